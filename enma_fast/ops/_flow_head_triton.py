"""`flow_head` by Triton kernels: which kernels run for how many rows, their packed weights and their buffers.

Two regimes by rows M: ``small`` up to 512, in narrow tiles, and ``medium`` beyond, in wide ones. Within one regime a
row's result has the same bits whatever M and the other rows are; the two differ by rounding. For the same bits at every
M, name one regime: ``run(..., regime=)``.

The host never waits for the device, so a call can be captured in a CUDA graph once the same call has run (kernels
compile and weights are packed then). Launches per call: R (2L + 1) + 2 and 2 for each chunk of evaluations whose
modulations are made at once.

Legend: M rows, C token channels, D width of the condition, W width of the head, L blocks, R evaluations, T evaluations
of a chunk, N = (3L + 2) W modulations of an evaluation, G column blocks of a row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from ._backend import by_library, kernel, triton_problem
from ._checks import dtype_name
from .flow_plan import FlowPlan

OP = "flow_head"
DTYPES = (torch.bfloat16, torch.float32)
REGIMES = ("small", "medium")
SMALL_ROWS = 512
# A chunk's modulations are read back soon after they were made: they should still be in the level-2 cache (H100 50 MB).
CHUNK_BYTES = 32 << 20
# Rows are taken in slices where a single evaluation needs more than this.
MODULATION_BYTES = 256 << 20

_Buffer = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Packed:
    """The weights, those of the blocks one after the other."""

    condition: tuple[Tensor, Tensor]
    inward: tuple[Tensor, Tensor]
    modulation: tuple[Tensor, Tensor]  # [N, W] and [N]: shift, scale, gate of each block, then shift and scale
    up: tuple[Tensor, Tensor]  # [L, W, W] and [L, W]
    down: tuple[Tensor, Tensor]
    outward: tuple[Tensor, Tensor]
    time_RW: Tensor

    @property
    def width(self) -> int:
        return self.time_RW.shape[1]


def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot serve weights of this dtype on this device."""
    if dtype not in DTYPES:
        return f"serves bfloat16 and float32 weights, these are {dtype_name(dtype)}"
    missing = triton_problem(device)
    if missing is not None:
        return missing
    if device.type == "cuda" and _device(device).major < 8:
        return f"needs compute capability 8.0 or later, {device} has {_device(device).major}.{_device(device).minor}"
    return None


def regime_of(rows: int) -> str:
    """The regime of a call with this many rows that names none."""
    return "small" if rows <= SMALL_ROWS else "medium"


def run(c_MD: Tensor, noise_MC: Tensor, plan: FlowPlan, *, regime: str | None = None) -> Tensor:
    """State at flow time 1, ``[M, C]`` fp32.

    `c_MD` are conditions in the dtype of the weights and `noise_MC` is the state at flow time 0 in fp32, both
    contiguous; the weights of `plan` are packed at the first call; `regime` is one of `REGIMES`, by default that of
    `regime_of`.
    """
    rows = noise_MC.shape[0]
    out = torch.empty_like(noise_MC)
    if rows == 0:
        return out
    regime = regime_of(rows) if regime is None else _checked(regime)
    packed = _packed(plan)
    scratch = {
        name: torch.empty(shape, dtype=dtype, device=c_MD.device)
        for name, (shape, dtype) in _buffers(rows, packed, regime).items()
    }
    # Triton launches on the current device.
    with torch.cuda.device_of(c_MD):
        step = _rows_of_slice(rows, packed)
        for i in range(0, rows, step):
            o = slice(i, i + step)
            _integrate(c_MD[o], noise_MC[o], plan, packed, regime, scratch, out[o])
    return out


def _integrate(
    c_MD: Tensor,
    noise_MC: Tensor,
    plan: FlowPlan,
    packed: _Packed,
    regime: str,
    scratch: dict[str, Tensor],
    out: Tensor,
) -> None:
    head = kernel("flow_head")
    configs = head.CONFIGS[regime, c_MD.dtype]
    rows, evaluations, blocks = c_MD.shape[0], len(plan.moves), len(plan.weights.blocks)
    chunk = scratch["m"].shape[0]
    # The last slice of rows may be shorter.
    condition, y, stats, h = (scratch[name][:rows] for name in ("condition", "y", "stats", "h"))
    states = scratch["states"][:, :rows]
    m = scratch["m"].flatten()[: chunk * rows * packed.width].view(chunk, rows, packed.width)
    modulation = scratch["modulation"].flatten()[: chunk * rows * len(packed.modulation[1])].view(chunk, rows, -1)
    move = functools.partial(
        head.launch_move_,
        outward=packed.outward,
        inward=packed.inward,
        config=configs["move"],
        y_MW=y,
        stats_M2G=stats,
    )
    layers = list(zip(*packed.up, *packed.down, strict=True)) if blocks else []

    head.launch_linear(c_MD, *packed.condition, config=configs["linear"], out=condition)
    start = noise_MC
    move(start, None, h=0.0, again=True, out=None)
    for k, step in enumerate(plan.moves):
        if k % chunk == 0:
            n = min(chunk, evaluations - k)
            head.launch_inputs(condition, packed.time_RW[k : k + n], out=m[:n])
            inputs, outputs = m[:n].flatten(0, 1), modulation[:n].flatten(0, 1)
            if by_library(len(inputs)):
                weight, bias = packed.modulation
                torch.addmm(bias, inputs, weight.T, out=outputs)
            else:
                head.launch_linear(inputs, *packed.modulation, config=configs["linear"], out=outputs)
        now = modulation[k % chunk]
        for i, (up_weight, up_bias, down_weight, down_bias) in enumerate(layers):
            head.launch_up(y, stats, now, up_weight, up_bias, block=i, config=configs["block"], out=h)
            head.launch_down_(h, now, down_weight, down_bias, block=i, config=configs["block"], y_MW=y, stats_M2G=stats)
        last = k + 1 == evaluations
        # The state is kept at the end of a step only; two copies in turn, as a program reads the one it replaces.
        kept = out if last else states[(k + 1) // plan.moves_per_step % 2]
        ends = last or (k + 1) % plan.moves_per_step == 0
        move(start, now, h=step, again=not last, out=kept if ends else None)
        if ends:
            start = kept


def _packed(plan: FlowPlan) -> _Packed:
    packed: _Packed | None = plan.packed.get("triton")
    like = plan.weights.inward_weight
    # A converted plan may share the dictionary of the plan it came from.
    if packed is None or (packed.inward[0].dtype, packed.inward[0].device) != (like.dtype, like.device):
        packed = plan.packed["triton"] = pack(plan)
    return packed


def pack(plan: FlowPlan) -> _Packed:
    """The weights as the kernels read them."""
    w, like = plan.weights, plan.weights.inward_weight
    width = like.shape[0]

    def stack(name: str) -> tuple[Tensor, Tensor]:
        shapes = {"weight": (0, width, width), "bias": (0, width)}
        kinds = [
            torch.stack([getattr(b, f"{name}_{kind}") for b in w.blocks]) if w.blocks else like.new_empty(shape)
            for kind, shape in shapes.items()
        ]
        return kinds[0], kinds[1]

    with torch.no_grad():
        return _Packed(
            condition=(w.condition_weight.contiguous(), w.condition_bias.contiguous()),
            inward=(w.inward_weight.contiguous(), w.inward_bias.contiguous()),
            modulation=(
                torch.cat([*(b.modulation_weight for b in w.blocks), w.modulation_weight]),
                torch.cat([*(b.modulation_bias for b in w.blocks), w.modulation_bias]),
            ),
            up=stack("up"),
            down=stack("down"),
            outward=(w.outward_weight.contiguous(), w.outward_bias.contiguous()),
            time_RW=plan.time_RW.detach().contiguous(),
        )


def _rows_of_slice(rows: int, packed: _Packed) -> int:
    per_row = packed.modulation[0].shape[0] * packed.modulation[0].element_size()
    return min(rows, max(1, MODULATION_BYTES // per_row))


def _buffers(rows: int, packed: _Packed, regime: str) -> dict[str, _Buffer]:
    """Shape and dtype of each buffer of a call."""
    W, dtype, state = packed.width, packed.inward[0].dtype, torch.float32
    head, C = kernel("flow_head"), packed.inward[0].shape[1]
    R, N = packed.time_RW.shape[0], packed.modulation[0].shape[0]
    M = _rows_of_slice(rows, packed)
    T = min(R, max(1, CHUNK_BYTES // (M * N * dtype.itemsize)))
    G = head.column_blocks(W, head.CONFIGS[regime, dtype]["block"])
    return {
        "condition": ((M, W), state),
        "m": ((T, M, W), dtype),
        "modulation": ((T, M, N), dtype),
        "y": ((M, W), state),
        "stats": ((M, 2, G), state),
        "h": ((M, W), dtype),
        "states": ((2, M, C), state),
    }


def _checked(regime: str) -> str:
    if regime not in REGIMES:
        raise EnmaError(f"{OP}: regime {regime!r} is unknown; expected one of {', '.join(REGIMES)}")
    return regime


@functools.cache
def _device(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)
