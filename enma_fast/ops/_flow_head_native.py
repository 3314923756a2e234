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


def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension cannot serve weights of this device and dtype."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16 weights, these are {dtype_name(dtype)}"
    return native_problem(device)


def run(
    c_MD: Tensor,
    noise_MC: Tensor,
    plan: FlowPlan,
    *,
    threads: int | None = None,
    isa: str = "",
    division: str = "",
) -> Tensor:
    """Carry noise to tokens under their conditions; ``[M, C]`` fp32, both arguments contiguous.

    A row's bits depend neither on the other rows, nor on `threads` (those of torch by default), nor on `division`: how
    the work is divided among them, ``rows``, ``columns``, or by size. `isa` is an instruction set by name, the best by
    default.
    """
    threads = threads or torch.get_num_threads()
    return packed(plan).run(c_MD, noise_MC, threads=threads, isa=isa, division=division)


def packed(plan: FlowPlan) -> Any:
    """The plan's weights as the kernels read them, packed once."""
    found = plan.packed.get("native")
    if found is None:
        found = plan.packed["native"] = pack(plan)
    return found


def pack(plan: FlowPlan) -> Any:
    """A copy of the plan's weights as the kernels read them."""
    w = plan.weights
    tensors = [w.condition_weight, w.condition_bias, w.inward_weight, w.inward_bias]
    for block in w.blocks:
        tensors += [block.modulation_weight, block.modulation_bias]
        tensors += [block.up_weight, block.up_bias, block.down_weight, block.down_bias]
    tensors += [w.modulation_weight, w.modulation_bias, w.outward_weight, w.outward_bias]
    return native().FlowHead(
        [tensor.detach().contiguous() for tensor in tensors],
        time=plan.time_RW.detach().to(w.inward_weight.dtype).contiguous(),
        moves=list(plan.moves),
        moves_per_step=plan.moves_per_step,
    )
