"""The plain C++ core of the operators over lanes.h under AddressSanitizer and UBSan, without Torch."""

import shutil
from pathlib import Path

import pytest

from ._sanitizers import run_core


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_cores_under_sanitizers(tmp_path: Path) -> None:
    """Every instruction set of this machine, and AVX-512's code on vectors that the compiler emulates."""
    run_core(
        ["frame_attention", "point_attention", "rms_norm", "self_attention", "swiglu"],
        tmp_path,
        parts=["vector_kernels*"],
    )
