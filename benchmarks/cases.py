"""The cases that are compared: each operator and its baselines on the same inputs, with the float64 answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import gemm_rate
from enma_fast.config import FlowConfig
from enma_fast.errors import EnmaError
from enma_fast.models.decoders.flow_head import VelocityHead
from enma_fast.ops import _flow_head_cuda
from enma_fast.ops.flow_head import flow_head, flow_head_ref
from enma_fast.ops.flow_plan import FlowPlan
from enma_fast.ops.frame_attention import frame_attention, frame_attention_ref
from enma_fast.ops.frame_layer import LayerWeights, attend, heads_, residual, swiglu
from enma_fast.ops.point_attention import distance, point_attention, point_attention_ref
from enma_fast.ops.rms_norm import sum_rms_norm, sum_rms_norm_ref

# A baseline of which one call would take longer is left out, and the result says so.
SLOWEST = 30.0
# Dtypes in names of contenders.
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a table: contenders by name, `ours` first, and what each must agree with."""

    name: str
    rows: int
    dtype: torch.dtype
    device: torch.device
    contenders: Mapping[str, Callable[[], Tensor]]
    exact: Tensor
    # Plain code in this dtype may be this far from the exact result; a contender twice as far is wrong.
    allowance: float
    flops: float
    # Seconds are reported per unit.
    units: int = 1
    left_out: Mapping[str, str] = field(default_factory=dict)
    # Exact result and allowance of contenders that compute something else.
    others: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def _case(
    name: str,
    rows: int,
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *,
    flops: float,
    compiled: bool,
    sample: int | None = None,
    fused: Callable[..., Tensor] | None = None,
    **notes: Any,
) -> Case:
    """Inputs are rounded to `dtype` once, so that every contender and the float64 answer see the same numbers.

    `fused` computes the same with torch's fused attention.

    With `sample`, the error of plain code is taken over the first rows only where it is slow (and rows do not see each
    other).
    """
    inputs = {key: value.to(dtype) for key, value in tensors.items()}
    wide = {key: value.float() for key, value in inputs.items()}
    exact = reference(**{key: value.double() for key, value in inputs.items()})
    short = SHORT[dtype]
    contenders: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(**inputs),
        f"eager-{short}": lambda: reference(**inputs),
        "eager-fp32": lambda: reference(**wide),
    }
    if fused is not None:
        contenders[f"sdpa-{short}"] = lambda: fused(**inputs)
        contenders["sdpa-fp32"] = lambda: fused(**wide)
    if compiled:
        # A graph of its own for each shape: compiled code for unknown shapes would be a slower baseline.
        torch._dynamo.reset()
        step = torch.compile(reference, dynamic=False)
        contenders[f"compile-{short}"] = lambda: step(**inputs)
        contenders["compile-fp32"] = lambda: step(**wide)
    left_out = {}
    # The first product is that of a cold library; where products are slow the second is as slow, and enough.
    gemm_rate(dtype, device=exact.device, seconds=0.0)
    seconds = flops / gemm_rate(dtype, device=exact.device, seconds=0.0)
    if seconds > SLOWEST:
        reason = f"about {seconds:.0f} s a call at this machine's rate of {short} products"
        left_out = {
            name: reason
            for name in (f"eager-{short}", f"sdpa-{short}", f"compile-{short}")
            if contenders.pop(name, None)
        }
    # All rows where plain code is fast enough: the largest error of a few is too strict a line for many.
    sample = sample if left_out else None
    few = {key: value[:sample] for key, value in inputs.items()}
    wrong_by = reference(**few).double() - exact[:sample]
    allowance = 2 * wrong_by.abs().max().item() + 4e-7 * exact.abs().max().item()
    device = exact.device
    return Case(
        name=name,
        rows=rows,
        dtype=dtype,
        device=device,
        contenders=contenders,
        exact=exact,
        allowance=allowance,
        flops=flops,
        left_out=left_out,
        notes=notes,
    )


def head_plan(*, width: int, layers: int, channels: int, steps: int, generator: torch.Generator) -> FlowPlan:
    """A velocity network with random weights of a trained network's size, in float64."""
    head = VelocityHead(FlowConfig(width=width, layers=layers), channels, width)
    for p in head.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.1)
    return head.double().plan(steps=steps)


def head_flops(plan: FlowPlan, rows: int) -> float:
    """FLOPs of the products of the reference: the condition once, all else at each evaluation."""
    w = plan.weights
    inner = [w.inward_weight, w.modulation_weight, w.outward_weight]
    inner += [t for b in w.blocks for t in (b.modulation_weight, b.up_weight, b.down_weight)]
    return 2.0 * rows * (w.condition_weight.numel() + len(plan.moves) * sum(t.numel() for t in inner))


def flow_head_case(
    rows: int, dtype: torch.dtype, device: torch.device, *, compiled: bool, exchange: str | None = None
) -> Case:
    """The paper's head: 3 blocks of 512, 10 midpoint steps, 16 tokens of 4 channels.

    Ours by the best implementation, or by the CUDA kernels whose thread blocks exchange activations in this way.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        plan = head_plan(width=512, layers=3, channels=4, steps=10, generator=generator)
    flops = head_flops(plan, rows)
    c, noise = torch.randn(rows, 512, generator=generator), torch.randn(rows, 4, generator=generator)
    plans = {d: plan.to(dtype).to(d).to(device) for d in {dtype, torch.float32, torch.float64}}

    def state(c: Tensor, noise: Tensor) -> Tensor:
        return noise.to(torch.float64 if c.dtype == torch.float64 else torch.float32)

    case = _case(
        "flow_head",
        rows,
        dtype,
        {"c": c.to(device), "noise": noise.to(device)},
        lambda c, noise: flow_head(c, state(c, noise), plan=plans[c.dtype]),
        lambda c, noise: flow_head_ref(c, state(c, noise), plan=plans[c.dtype]),
        flops=flops,
        compiled=compiled,
        sample=16,
        width=512,
        layers=3,
        channels=4,
        evaluations=len(plan.moves),
    )
    if exchange is None:
        return case
    plan, given = plans[dtype], (c.to(device).to(dtype), noise.to(device).to(dtype).float())
    lacking = _flow_head_cuda.problem(device, dtype) or _flow_head_cuda.group_problem(device, plan, exchange)
    if lacking is not None:
        raise EnmaError(f"--exchange {exchange}: {lacking}")
    ours = partial(_flow_head_cuda.run, *given, plan, group=exchange)
    return replace(case, contenders={**case.contenders, "ours": ours}, notes={**case.notes, "exchange": exchange})


def point_attention_case(rows: int, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> Case:
    """`rows` scattered points to 256 grid queries of a periodic line, 4 heads of 32, batch 64."""
    batch, heads, queries, dim, period = 64, 4, 256, 32, 6.283185307179586
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "q": torch.randn(batch, heads, queries, dim, generator=generator),
        "k": torch.randn(batch, heads, rows, dim, generator=generator),
        "v": torch.randn(batch, heads, rows, dim, generator=generator),
    }
    where = {
        "query_points": torch.linspace(0, period, queries + 1)[:queries, None].to(device),
        "points": (torch.rand(batch, rows, 1, generator=generator) * period).to(device),
        "slopes": torch.tensor([1.0, 2.0, 4.0, 8.0], device=device),
    }

    def geometry(dtype: torch.dtype) -> dict[str, Any]:
        places = {
            key: value.to(torch.float64 if dtype == torch.float64 else torch.float32) for key, value in where.items()
        }
        return {**places, "periods": (period,)}

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The bias, which the fused attention takes as a mask, is a part of the operator: computed in each call."""
        places = geometry(q.dtype)
        bias = distance(places["query_points"], places["points"], periods=(period,))[:, None]
        mask = -(places["slopes"][:, None, None] * bias).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return _case(
        "point_attention",
        rows,
        dtype,
        {key: value.to(device) for key, value in tensors.items()},
        lambda q, k, v: point_attention(q, k, v, **geometry(q.dtype)),
        lambda q, k, v: point_attention_ref(q, k, v, **geometry(q.dtype), valid=None),
        fused=fused,
        flops=4.0 * batch * heads * queries * rows * dim,
        compiled=compiled,
        batch=batch,
        heads=heads,
        queries=queries,
        head_dim=dim,
    )


def frame_attention_case(rows: int, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> Case:
    """`rows` members of one trajectory: 16 tokens against 5 shared, 4 own and this frame; 8 heads of 64."""
    heads, tokens, dim, shared, own = 8, 16, 64, 5 * 16, 4 * 16
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    tensors = {name: draw(rows, heads, tokens, dim) for name in "qkv"}
    tensors |= {"cache": draw(2, rows, heads, own, dim), "prefix": draw(2, 1, heads, shared, dim)}
    lengths = {name: torch.tensor(n, device=device) for name, n in (("length", own), ("prefix_length", shared))}

    def fused(q: Tensor, k: Tensor, v: Tensor, **past: Tensor) -> Tensor:
        """Over all keys in one tensor, which has to be made: shared ones are held once, own ones apart."""
        shared_by_all = past["prefix"].expand(-1, rows, -1, -1, -1)
        keys, values = torch.cat([shared_by_all, past["cache"], torch.stack([k, v])], dim=3)
        return F.scaled_dot_product_attention(q, keys, values)

    return _case(
        "frame_attention",
        rows,
        dtype,
        tensors,
        lambda q, k, v, **past: frame_attention(q, k, v, **past, **lengths),
        lambda q, k, v, **past: frame_attention_ref(q, k, v, **past, **lengths),
        fused=fused,
        flops=4.0 * rows * heads * tokens * (shared + own + tokens) * dim,
        compiled=compiled,
        heads=heads,
        tokens=tokens,
        head_dim=dim,
        shared=shared,
        own=own,
    )


def rms_norm_case(rows: int, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> Case:
    """RMS norm of the sum of two of `rows` x 512, as between the parts of a transformer's block."""
    width = 512
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(rows, width, generator=generator).to(device) for name in ("x", "residual")}
    tensors["weight"] = 1 + 0.1 * torch.randn(width, generator=generator).to(device)
    return _case(
        "rms_norm",
        rows,
        dtype,
        tensors,
        lambda **inputs: torch.cat(sum_rms_norm(**inputs, eps=1e-5)),
        lambda **inputs: torch.cat(sum_rms_norm_ref(**inputs, eps=1e-5)),
        # No products here: what counts is the time itself.
        flops=0.0,
        compiled=compiled,
        width=width,
    )


def frame_layer_case(rows: int, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> Case:
    """One layer of the paper's masked transformer: `rows` members, 32 rows of 512 channels each, 8 heads of 64."""
    length, heads, dim, hidden = 32, 8, 64, 1024
    width = heads * dim
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device)

    tensors = {
        "x": normal(rows, length, width),
        "norm": 1 + normal(width, scale=0.1),
        "qkv": normal(3 * width, width, scale=width**-0.5),
        "q_norm": 1 + normal(dim, scale=0.1),
        "k_norm": 1 + normal(dim, scale=0.1),
        "out": normal(width, width, scale=width**-0.5),
        "mlp_norm": 1 + normal(width, scale=0.1),
        "gate_up": normal(2 * hidden, width, scale=width**-0.5),
        "down": normal(width, hidden, scale=hidden**-0.5),
    }

    def layer(x: Tensor, *, backend: str | None, **weights: Tensor) -> Tensor:
        given = LayerWeights(**weights, eps=1e-5, head_eps=1e-5)
        q, kv = x.new_empty(rows, length, heads, dim), x.new_empty(2, rows, length, heads, dim)
        heads_(x, given, q=q, kv=kv, backend=backend)
        h = residual(x, attend(q, *kv, backend=backend), given.out, backend=backend)
        return residual(h, swiglu(h, given, backend=backend), given.down, backend=backend)

    products = 2.0 * rows * length * width * (4 * width + 3 * hidden)
    return _case(
        "frame_layer",
        rows,
        dtype,
        tensors,
        partial(layer, backend=None),
        partial(layer, backend="reference"),
        flops=products + 4.0 * rows * length * length * width,
        compiled=compiled,
        length=length,
        heads=heads,
        head_dim=dim,
        hidden=hidden,
    )


CASES: dict[str, tuple[Callable[..., Case], tuple[int, ...]]] = {
    "flow_head": (flow_head_case, (3, 64, 2048)),
    "point_attention": (point_attention_case, (1024,)),
    "frame_attention": (frame_attention_case, (1, 16, 64)),
    "rms_norm": (rms_norm_case, (16, 1024, 8192)),
    "frame_layer": (frame_layer_case, (1, 64, 256)),
}
