"""The flow head by CUDA kernels that keep the weights of the blocks in shared memory, for few rows.

Legend: M rows, C token channels, D width of the condition, W width of the head, L blocks, R evaluations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EnmaError
from ._backend import cuda_problem, extension_problem, native, tried
from ._checks import dtype_name
from .flow_plan import FlowPlan

# With more rows, tiled products over all rows are faster; `run` takes any number, this many at a time.
MAX_ROWS = 1024
# The ways in which thread blocks that share the weights hand activations to each other (`FlowHeadGroup`, flow_head.h).
GROUPS = ("remote", "cluster", "counter")


def problem(device: torch.device, dtype: torch.dtype, plan: FlowPlan | None = None) -> str | None:
    """Why the kernels cannot serve weights of this dtype on this device, and this plan if given."""
    missing = cuda_problem(device) or extension_problem()
    if missing is not None:
        return missing
    if not hasattr(native(), "flow_head_cuda"):
        return "the extension was built without CUDA"
    if dtype != torch.bfloat16:
        return f"takes weights in bfloat16, these are {dtype_name(dtype)}"
    if plan is None:
        return None
    return group_problem(device, plan, "best")


def group_problem(device: torch.device, plan: FlowPlan, group: str) -> str | None:
    """Why thread blocks of this device cannot hand activations on in this way."""
    with torch.cuda.device(device):
        reason: str = native().flow_head_cuda_problem([1, *sizes(plan)], group)
    return reason or None


def run(c_MD: Tensor, noise_MC: Tensor, plan: FlowPlan, *, group: str = "best") -> Tensor:
    """State at flow time 1 ``[M, C]``; contiguous bf16 conditions and fp32 noise on one CUDA device.

    The first call packs the weights: make it before a CUDA graph is captured. `group` is one of `GROUPS`, or the best
    that the GPU has ("remote" has to be asked for, here or by ENMA_GPU_TRY).
    """
    reason = problem(noise_MC.device, plan.weights.inward_weight.dtype)
    if reason is not None:
        raise EnmaError(f"flow_head: backend 'cuda' cannot run: {reason}")
    if group == "best" and tried("remote") and group_problem(noise_MC.device, plan, "remote") is None:
        group = "remote"
    packed = plan.packed.get("cuda")
    if packed is None:
        packed = plan.packed["cuda"] = pack(plan)
    # Rows of conditions are read 16 bytes at a time; a view may begin anywhere.
    c_MD = c_MD if c_MD.data_ptr() % 16 == 0 else c_MD.clone()
    with torch.cuda.device_of(noise_MC):
        parts = [
            native().flow_head_cuda(c, noise, packed, [len(noise), *sizes(plan)], group)
            for c, noise in zip(c_MD.split(MAX_ROWS), noise_MC.split(MAX_ROWS), strict=True)
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def sizes(plan: FlowPlan) -> tuple[int, ...]:
    """C, D, W, L, R and moves per step."""
    width, condition_width = plan.weights.condition_weight.shape
    channels = plan.weights.inward_weight.shape[1]
    return channels, condition_width, width, len(plan.weights.blocks), len(plan.moves), plan.moves_per_step


def pack(plan: FlowPlan) -> list[Tensor]:
    """A copy of the weights in the order in which the kernels read them (`FlowHeadWeights` of flow_head_plan.h)."""
    w = plan.weights
    device = w.inward_weight.device
    outputs = w.outward_bias.shape[0]
    matrices = [matrix for block in w.blocks for matrix in (block.up_weight, block.down_weight)]
    biases = [bias for block in w.blocks for bias in (block.up_bias, block.down_bias)]
    modulation = [*(block.modulation_weight for block in w.blocks), w.modulation_weight]
    modulation_bias = [*(block.modulation_bias for block in w.blocks), w.modulation_bias]
    tensors = [
        fragments(w.condition_weight),
        w.condition_bias.float(),
        plan.time_RW.float(),
        fragments(torch.cat(modulation)),
        torch.cat(modulation_bias).float(),
        fragments(w.inward_weight, steps=1),
        w.inward_bias.float(),
        torch.cat([fragments(matrix) for matrix in matrices]),
        torch.cat(biases).float(),
        fragments(w.outward_weight),
        F.pad(w.outward_bias.float(), (0, -outputs % 8)),
        torch.tensor(plan.moves, dtype=torch.float32, device=device),
    ]
    return [tensor.detach().contiguous() for tensor in tensors]


def fragments(weight_NK: Tensor, *, steps: int = 2) -> Tensor:
    """A matrix as the second operand of ``mma.m16n8k16``: what one lane loads at once lies together.

    Order: tile of 8 outputs, `steps` steps of 16 inputs, lane, step, half of the step, neighbours. Zeros fill up N to a
    multiple of 8 and K to one of 16 `steps`.
    """
    n, k = weight_NK.shape
    padded = F.pad(weight_NK, (0, -k % (16 * steps), 0, -n % 8))
    # Lane l holds column l // 4, inputs 2 (l % 4) and the next, and the same 8 further on.
    split = padded.unflatten(1, (-1, steps, 2, 4, 2)).unflatten(0, (-1, 8))
    return split.permute(0, 2, 1, 5, 3, 4, 6).contiguous().flatten()
