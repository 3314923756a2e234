"""Programmatic dependent launch: a kernel is launched while the one before it ends, and waits before it reads.

No GPU has proved it yet, so ENMA_GPU_TRY=launches asks for it. It needs compute capability 9.0.
"""

import os

import triton
import triton.language as tl

EARLY = tl.constexpr("launches" in os.environ.get("ENMA_GPU_TRY", "").split(","))
# Of a launch whose kernel calls `begin` first.
OPTIONS = {"launch_pdl": True} if EARLY.value else {}


@triton.jit
def begin():
    """Wait for the kernels before, whose memory can be read then, and let the next one be launched."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
