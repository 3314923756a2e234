"""Layers of a transformer over the tokens of one frame, each between two attentions in as few launches as can be.

    q, k, v = norm(x) W_qkv^T               queries and keys normalised by heads, and rotated
    a       = softmax(q k^T / sqrt(K)) v
    h       = x + a W_out^T
    y       = h + (silu(norm(h) W_gate^T) * norm(h) W_up^T) W_down^T

The static step of the sampler calls these with its own buffers, in inference and never traced, so they are no operators
of the dispatcher. Rows may be chosen by the tokens of a mask step: token n is row `first` + n.

Legend: B rows of the batch, L rows of the transformer, M tokens, D width, H heads, K head dim, X hidden width, S places
of a cache, T rows of the rotary tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._backend import by_library, choose, kernel, triton_problem
from ._checks import dtype_name, expect
from .rms_norm import rms_norm

OP = "frame_layer"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWeights:
    """Weights of one layer, as stored (out, in); those of norms in the same type or in fp32."""

    norm: Tensor  # [D]
    qkv: Tensor  # [3 D, D]
    q_norm: Tensor  # [K]
    k_norm: Tensor  # [K]
    out: Tensor  # [D, D]
    mlp_norm: Tensor  # [D]
    gate_up: Tensor  # [2 X, D]
    down: Tensor  # [D, X]
    eps: float
    head_eps: float

    @property
    def heads(self) -> int:
        return self.norm.shape[0] // self.q_norm.shape[0]


def candidates(device: torch.device, dtype: torch.dtype, *, head_dim: int = 2, rows: int = 0) -> dict[str, str | None]:
    """Implementations of products of so many rows, best first, with the reason why one cannot serve."""
    problem = triton_problem(device)
    if problem is None and dtype not in DTYPES:
        problem = f"takes {', '.join(map(dtype_name, DTYPES))}, not {dtype_name(dtype)}"
    if problem is None and (head_dim % 2 or head_dim > MAX_HEAD_DIM):
        problem = f"takes even head dims up to {MAX_HEAD_DIM}, not {head_dim}"
    return {"reference": None, "triton": problem} if by_library(rows) else {"triton": problem, "reference": None}


def heads_(
    x_BLD: Tensor,
    layer: LayerWeights,
    *,
    q: Tensor,
    kv: Tensor,
    turns: Tensor | None = None,
    position: Tensor | None = None,
    tokens: Tensor | None = None,
    first: int = 0,
    only_queries: bool = False,
    store: Tensor | None = None,
    length: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Write queries, keys and values of rows.

    Parameters
    ----------
    x_BLD
        Rows; D contiguous.
    q, kv
        Results ``[B, L, H, K]`` and ``[2, B, L, H, K]``, a head after the other.
    turns
        Cosines and sines ``[2, T, K / 2]`` of row l, or of row l + `position` L; no rotation without.
    position
        int64 ``[]`` on the device.
    tokens
        ``[B, M]``: compute these rows only, in their places.
    only_queries
        `tokens` choose the queries alone, and `q` is ``[B, M, H, K]``.
    store, length
        Keys and values go to ``[2, B, S, H, K]`` too, from place `length` (int64 ``[]``) on.
    """
    _check(x_BLD, layer)
    given: dict[str, Any] = {"turns": turns, "position": position, "tokens": tokens, "first": first}
    given |= {"only_queries": only_queries, "q": q, "kv": kv, "store": store, "length": length}
    B, L = x_BLD.shape[:2]
    if _choose(x_BLD, layer, backend, rows=B * L if tokens is None or only_queries else tokens.numel()) == "triton":
        norms = (layer.norm, layer.qkv, layer.q_norm, layer.k_norm)
        with torch.cuda.device_of(x_BLD):
            kernel(OP).launch_heads(x_BLD, *norms, eps=(layer.eps, layer.head_eps), **given)
        return
    _heads_ref_(x_BLD, layer, **given)


def _heads_ref_(
    x: Tensor,
    layer: LayerWeights,
    *,
    q: Tensor,
    kv: Tensor,
    first: int,
    only_queries: bool,
    **given: Tensor | None,
) -> None:
    """The formula of this module, as written."""
    turns, position, tokens, store, length = map(given.get, ("turns", "position", "tokens", "store", "length"))
    B, L, D = x.shape
    rows = torch.arange(L, device=x.device).expand(B, L)
    chosen = rows if tokens is None else tokens + first

    def products(of: slice, at: Tensor) -> tuple[Tensor, ...]:
        y = rms_norm(x if at is rows else _rows_of(x, at), layer.norm, eps=layer.eps)
        return F.linear(y, layer.qkv[of]).unflatten(-1, (-1, layer.heads, D // layer.heads)).unbind(2)

    def turned(heads: Tensor, norm: Tensor, at: Tensor) -> Tensor:
        heads = rms_norm(heads, norm, eps=layer.head_eps)
        if turns is None:
            return heads
        cos, sin = turns[:, at if position is None else at + position * L][..., None, :]
        a, b = heads.to(torch.promote_types(heads.dtype, torch.float32)).chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(heads.dtype)

    others = rows if only_queries else chosen
    if only_queries:
        parts = products(slice(D), chosen) + products(slice(D, None), rows)
    else:
        parts = products(slice(None), chosen)
    queries = turned(parts[0], layer.q_norm, chosen)
    both = torch.stack([turned(parts[1], layer.k_norm, others), parts[2]])
    if tokens is None or only_queries:
        q.copy_(queries)
        kv.copy_(both)
    else:
        for target, values in ((q, queries), (kv[0], both[0]), (kv[1], both[1])):
            target.scatter_(1, chosen[..., None, None].expand_as(values), values)
    if store is not None and length is not None:
        store.index_copy_(2, rows[0] + length, both)


def attend(
    q_BMHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, *, frame: int | None = None, backend: str | None = None
) -> Tensor:
    """Attention ``[B, M, H K]``, softmax in fp32.

    Parameters
    ----------
    q_BMHK, k_BLHK, v_BLHK
        A head after the other, each contiguous.
    frame
        Rows are those of several frames of this many tokens each, and attend to frames that are not after their own.
    """
    causal = frame is not None
    if choose(OP, candidates(q_BMHK.device, q_BMHK.dtype, head_dim=q_BMHK.shape[3]), backend) == "triton":
        out = q_BMHK.new_empty(*q_BMHK.shape[:2], q_BMHK.shape[2] * q_BMHK.shape[3])
        with torch.cuda.device_of(q_BMHK):
            kernel(OP).launch_attend(
                q_BMHK, k_BLHK, v_BLHK, frame=frame or max(1, q_BMHK.shape[1]), causal=causal, out=out
            )
        return out
    q, k, v = (part.transpose(1, 2) for part in (q_BMHK, k_BLHK, v_BLHK))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if frame is not None:
        number = torch.arange(q.shape[2], device=q.device) // frame
        scores = scores.masked_fill(number[:, None] < number[None, :], float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def residual(
    x_BLD: Tensor,
    a_BMX: Tensor,
    weight_DX: Tensor,
    *,
    tokens: Tensor | None = None,
    first: int = 0,
    backend: str | None = None,
) -> Tensor:
    """``x + a W^T`` ``[B, M, D]``, of the rows of `x` that the `tokens` ``[B, M]`` choose, or of all M = L."""
    problems = candidates(x_BLD.device, x_BLD.dtype, rows=a_BMX.shape[:2].numel())
    if choose(OP, problems, backend) == "triton":
        out = x_BLD.new_empty(*a_BMX.shape[:2], weight_DX.shape[0])
        with torch.cuda.device_of(x_BLD):
            kernel(OP).launch_residual(x_BLD, a_BMX.contiguous(), weight_DX, tokens, first=first, out=out)
        return out
    return (x_BLD if tokens is None else _rows_of(x_BLD, tokens + first)) + F.linear(a_BMX, weight_DX)


def swiglu(x_BMD: Tensor, layer: LayerWeights, *, backend: str | None = None) -> Tensor:
    """``silu(norm(x) W_gate^T) * (norm(x) W_up^T)`` ``[B, M, X]``."""
    _check(x_BMD, layer)
    if _choose(x_BMD, layer, backend, rows=x_BMD.shape[:2].numel()) == "triton":
        out = x_BMD.new_empty(*x_BMD.shape[:2], layer.down.shape[1])
        with torch.cuda.device_of(x_BMD):
            kernel(OP).launch_swiglu(
                x_BMD.flatten(0, 1), layer.mlp_norm, layer.gate_up, eps=layer.eps, out=out.flatten(0, 1)
            )
        return out
    gate, up = F.linear(rms_norm(x_BMD, layer.mlp_norm, eps=layer.eps), layer.gate_up).chunk(2, dim=-1)
    return F.silu(gate) * up


def _rows_of(x_BLD: Tensor, rows_BM: Tensor) -> Tensor:
    return x_BLD.gather(1, rows_BM[..., None].expand(-1, -1, x_BLD.shape[-1]))


def _choose(x: Tensor, layer: LayerWeights, backend: str | None, *, rows: int) -> str:
    return choose(OP, candidates(x.device, x.dtype, head_dim=layer.q_norm.shape[0], rows=rows), backend)


def _check(x: Tensor, layer: LayerWeights) -> None:
    width = layer.norm.shape[0]
    expect(OP, "x", x, shape=[None, None, width], dtype=layer.qkv.dtype, device=layer.qkv.device)
