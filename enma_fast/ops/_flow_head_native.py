"""The flow head on the CPU: the whole schedule in one call of the extension, over weights packed once per plan.

fp32 plans compute in fp32. bf16 plans keep bf16 weights; inputs of the products stay fp32, or are rounded to bf16 where
the processor multiplies bf16 (AVX-512 BF16). Sums are fp32 in either case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._backend import native, native_problem
from ._checks import dtype_name
from .flow_plan import FlowPlan

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve weights of this device and dtype."""
    if dtype not in FORMATS:
        return f"takes float32 and bfloat16 weights, these are {dtype_name(dtype)}"
    return native_problem(device)


def run(c_MD: Tensor, noise_MC: Tensor, plan: FlowPlan, *, threads: int | None = None, isa: str = "") -> Tensor:
    """Carry noise to tokens under their conditions; ``[M, C]`` fp32, both arguments contiguous.

    A row's bits depend neither on the other rows, nor on `threads` (those of torch by default). `isa` is an instruction
    set by name, the best by default.
    """
    return packed(plan).run(c_MD, noise_MC, threads=threads or torch.get_num_threads(), isa=isa)


def packed(plan: FlowPlan) -> Any:
    """The plan's weights as the kernels read them, packed once."""
    weights = plan.packed.get("native")
    if weights is None:
        weights = plan.packed["native"] = pack(plan)
    return weights


def pack(plan: FlowPlan) -> Any:
    """A copy of the plan's weights as the kernels read them."""
    w = plan.weights
    layers: dict[str, tuple[Any, str]] = {name: (w, name) for name in ("condition", "inward", "modulation", "outward")}
    for i, block in enumerate(w.blocks):
        layers |= {f"blocks.{i}.{name}": (block, name) for name in ("modulation", "up", "down")}
    parameters = {
        f"{layer}.{kind}": getattr(part, f"{name}_{kind}").detach().float().contiguous()
        for layer, (part, name) in layers.items()
        for kind in ("weight", "bias")
    }
    dtype = w.inward_weight.dtype
    return native().FlowHead(
        parameters,
        shape=(w.inward_weight.shape[1], w.condition_weight.shape[1], w.inward_weight.shape[0], len(w.blocks)),
        format=FORMATS[dtype],
        time=plan.time_RW.detach().to(dtype).float().contiguous(),
        moves=list(plan.moves),
        moves_per_step=plan.moves_per_step,
    )
