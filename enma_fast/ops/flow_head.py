"""All integration steps of the flow-matching head for a set of tokens, in one call (paper 3.1.2).

    m_k  = silu(W_c c + b_c + time_k)                           modulation input at evaluation k
    y    = W_in x + b_in
    y   += gate * W_down silu(W_up (norm(y) (1 + scale) + shift))      for each block, (shift, scale, gate) from m_k
    v    = W_out (norm(y) (1 + scale) + shift)                  (shift, scale) from m_k
    x    = x_start + h_k v                                      the state, kept in fp32

Legend: M rows (tokens x members), C token channels, D width of the condition, W width of the head, L blocks,
R evaluations of the velocity (two per midpoint step, one per Euler step).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EnmaError
from . import _flow_head_cuda, _flow_head_native, _flow_head_triton
from ._backend import choose
from ._checks import expect
from .flow_plan import FlowPlan, HeadWeights, tensors_of

EPS = 1e-6
OP = "flow_head"


def candidates(device: torch.device, dtype: torch.dtype, plan: FlowPlan | None = None) -> dict[str, str | None]:
    """Implementations for weights of this device and dtype, best first, with the reason why one cannot serve."""
    return {
        "cuda": _flow_head_cuda.problem(device, dtype, plan),
        "triton": _flow_head_triton.problem(device, dtype),
        "native": _flow_head_native.problem(device, dtype),
        "reference": None,
    }


def flow_head(c: Tensor, noise: Tensor, *, plan: FlowPlan, backend: str | None = None) -> Tensor:
    """Carry noise to tokens under their conditions.

    Parameters
    ----------
    c
        Conditions ``[..., D]`` in the dtype of the weights.
    noise
        State at flow time 0, ``[..., C]`` fp32 (float64 with float64 weights).
    plan
        Weights and schedule.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor
        State at flow time 1, ``[..., C]``, dtype of `noise`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    weights = plan.weights
    dtype, device = weights.inward_weight.dtype, weights.inward_weight.device
    state = torch.float64 if dtype == torch.float64 else torch.float32
    expect(OP, "c", c, shape=[*noise.shape[:-1], weights.condition_weight.shape[1]], dtype=dtype, device=device)
    expect(OP, "noise", noise, shape=[*c.shape[:-1], weights.inward_weight.shape[1]], dtype=state, device=device)
    c_MD, noise_MC = c.reshape(-1, c.shape[-1]), noise.reshape(-1, noise.shape[-1])
    problems = candidates(device, dtype, plan)
    if backend is None and noise_MC.shape[0] > _flow_head_cuda.MAX_ROWS:
        # Weights that stay in shared memory pay while the rows are few.
        problems["cuda"] = problems["cuda"] or f"is for at most {_flow_head_cuda.MAX_ROWS} rows"
    name = choose(OP, problems, backend)
    if name == "reference":
        return flow_head_ref(c, noise, plan=plan)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (c, noise, *plan.tensors())):
        raise EnmaError(f"{OP}: backend {name!r} has no gradient; call it under torch.no_grad() or detach the inputs")
    module = {"cuda": _flow_head_cuda, "triton": _flow_head_triton, "native": _flow_head_native}[name]
    return module.run(c_MD.contiguous(), noise_MC.contiguous(), plan).view(noise.shape)


def load_(plan: FlowPlan, weights: FlowPlan) -> None:
    """Give a plan the weights of another one of its sizes, in place.

    What is packed for a GPU is packed again where it is, since CUDA graphs read it there.
    """
    for own, given in zip(plan.tensors(), weights.tensors(), strict=True):
        own.copy_(given)
    plan.packed.pop("native", None)
    for name, pack in (("cuda", _flow_head_cuda.pack), ("triton", _flow_head_triton.pack)):
        if (packed := plan.packed.get(name)) is not None:
            for own, given in zip(tensors_of(packed), tensors_of(pack(plan)), strict=True):
                own.copy_(given)


def flow_head_ref(c: Tensor, noise: Tensor, *, plan: FlowPlan) -> Tensor:
    """The formula of this module, as written; products in the dtype of the weights, the state in that of the noise."""
    condition = F.linear(c, plan.weights.condition_weight, plan.weights.condition_bias)

    def at(k: int, x: Tensor) -> Tensor:
        return velocity(x.to(c.dtype), F.silu(condition + plan.time_RW[k]), plan.weights)

    return integrate(at, noise, moves=plan.moves, moves_per_step=plan.moves_per_step)


def integrate(
    velocity_at: Callable[[int, Tensor], Tensor], x: Tensor, *, moves: tuple[float, ...], moves_per_step: int
) -> Tensor:
    """Carry the state `x` from flow time 0 to 1; `velocity_at(k, x)` is the velocity of evaluation k."""
    start = x
    for k, h in enumerate(moves):
        if k % moves_per_step == 0:
            start = x
        x = start + h * velocity_at(k, x).to(x.dtype)
    return x


def velocity(x: Tensor, m: Tensor, weights: HeadWeights) -> Tensor:
    """Velocity ``[..., C]`` at ``x [..., C]``; modulation inputs ``m [..., W]`` broadcast."""
    y = F.linear(x, weights.inward_weight, weights.inward_bias)
    for block in weights.blocks:
        shift, scale, gate = F.linear(m, block.modulation_weight, block.modulation_bias).chunk(3, dim=-1)
        hidden = F.silu(F.linear(_modulated(y, shift, scale), block.up_weight, block.up_bias))
        y = y + gate * F.linear(hidden, block.down_weight, block.down_bias)
    shift, scale = F.linear(m, weights.modulation_weight, weights.modulation_bias).chunk(2, dim=-1)
    return F.linear(_modulated(y, shift, scale), weights.outward_weight, weights.outward_bias)


def _modulated(y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(y, y.shape[-1:], eps=EPS) * (1 + scale) + shift
