"""Operators: one file each, its reference beside its public function.

An operator goes here, its kernels to `kernels/` and `csrc/`, which nothing else imports. Layers are `models`.
"""

from __future__ import annotations

import importlib

import torch

from ._backend import best as best
from ._backend import choose as choose
from ._backend import fused_in_training as fused_in_training
from ._backend import instruction_set as instruction_set
from ._backend import tried as tried

OPERATORS = (
    "point_attention",
    "frame_attention",
    "rms_norm",
    "self_attention",
    "swiglu",
    "flow_head",
    "frame_layer",
    "frame_rows",
    "philox_normal",
)


def implementations(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, str | None]]:
    """For each operator its implementations, best first, each with the reason why it cannot serve here, or None."""
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in OPERATORS}
    return {name: module.candidates(device, dtype) for name, module in modules.items()}
