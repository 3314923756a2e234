"""Self-attention of a block between its two projections, frame by frame (paper 3.1.1, 3.1.2).

    q, k = rotate(norm(q)), rotate(norm(k))              RMS norm of each head; pairs (i, i + K/2) turn
    out = softmax(q [past; k]^T / sqrt(K)) [past; v]     a token sees the past and its own and earlier frames

Legend: B batch, L tokens, H heads, K head dim, P tokens of the past, S = P + L.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EnmaError
from ._backend import by_dtype, choose, fused_in_training, native, native_problem, recorded, register
from ._checks import expect
from .rms_norm import rms_norm, rms_norm_ref

OP = "self_attention"
DTYPES = {"native": (torch.float32, torch.bfloat16)}

Pair = tuple[Tensor, Tensor]


@functools.cache
def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    return by_dtype({"native": native_problem(device), "reference": None}, dtype, DTYPES)


def self_attention(
    qkv_BL3HK: Tensor,
    weights: Pair,
    *,
    frame: int,
    eps: float,
    rotary: Pair | None = None,
    past: Pair | None = None,
    keep: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Pair | None]:
    """Attend with the queries, keys and values of a projection. Differentiable once.

    Parameters
    ----------
    qkv_BL3HK
        Queries, keys and values ``[B, L, 3, H, K]``.
    weights
        Those of the norms of queries and of keys, ``[K]``.
    frame
        Tokens of a frame; tokens of one frame see each other.
    eps
        Added to the mean squares.
    rotary
        Cosines and sines ``[L, K/2]`` (fp32 or the type of the projection); without, nothing turns.
    past
        Keys and values ``[B, H, P, K]`` of earlier calls.
    keep
        Return all keys and values, to be the past of later calls.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    tuple
        The result ``[B, L, H, K]``, and keys and values ``[B, H, S, K]`` if kept.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    _check(qkv_BL3HK, weights, frame, rotary, past)
    name = choose(OP, candidates(qkv_BL3HK.device, qkv_BL3HK.dtype), backend)
    if name == "reference":
        return self_attention_ref(qkv_BL3HK, weights, frame=frame, eps=eps, rotary=rotary, past=past, keep=keep)
    tables = (None, None) if rotary is None else tuple(x.float() for x in rotary)
    tensors = (qkv_BL3HK, *(w.float() for w in weights), *tables, *(past or (None, None)))
    given = [None if x is None else x.contiguous() for x in tensors]
    operator = _FORWARD if recorded(*given) else _run_forward
    out, _, keys, values = operator(*given, frame, eps, keep)
    return out, (keys, values) if keep else None


def self_attention_ref(
    qkv_BL3HK: Tensor,
    weights: Pair,
    *,
    frame: int,
    eps: float,
    rotary: Pair | None = None,
    past: Pair | None = None,
    keep: bool = False,
) -> tuple[Tensor, Pair | None]:
    """The formula of this module, as written."""
    q, k, v = split_heads(qkv_BL3HK, weights, eps=eps, rotary=rotary)
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    L, S = q.shape[2], k.shape[2]
    mask = None
    if frame < L:
        number = torch.arange(L, device=q.device) // frame
        mask = torch.where(number[:, None] >= number[None, :], 0.0, float("-inf"))
        mask = F.pad(mask, (S - L, 0))
    return attention(q, k, v, mask).transpose(1, 2), (k, v) if keep else None


def split_heads(
    qkv_BL3HK: Tensor, weights: Pair, *, eps: float, rotary: Pair | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, H, L, K]``, normalised and rotated."""
    q, k, v = qkv_BL3HK.permute(2, 0, 3, 1, 4)
    norm = rms_norm if fused_in_training(q) else rms_norm_ref
    q, k = (norm(x, weight, eps=eps) for x, weight in zip((q, k), weights, strict=True))
    if rotary is not None:
        q, k = rotate(q, *rotary), rotate(k, *rotary)
    return q, k, v


def rotate(x_BHLK: Tensor, cos_Lk: Tensor, sin_Lk: Tensor) -> Tensor:
    """Turn the pairs (x_k, x_{k+K/2}) by the angles of their place."""
    a, b = widened(x_BHLK).chunk(2, dim=-1)
    return torch.cat([a * cos_Lk - b * sin_Lk, a * sin_Lk + b * cos_Lk], dim=-1).to(x_BHLK.dtype)


def attention(q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v; mask is additive, broadcast to [B, H, L, S].

    On the CPU plain matrix products beat torch's fused kernel at head dims of 32 and a few hundred keys
    (docs/notes/native-operators.md), so SDPA serves GPUs only.
    """
    if q_BHLK.is_cuda:
        return F.scaled_dot_product_attention(q_BHLK, k_BHSK, v_BHSK, attn_mask=mask)
    scores = q_BHLK @ k_BHSK.transpose(-1, -2)
    scores = widened(scores) * q_BHLK.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v_BHSK.dtype) @ v_BHSK


def widened(x: Tensor) -> Tensor:
    """`x` in fp32, or unchanged in float64: the type of sums and tokens beside weights of any type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(qkv: Tensor, weights: Pair, frame: int, rotary: Pair | None, past: Pair | None) -> None:
    expect(OP, "qkv_BL3HK", qkv, shape=[None, None, 3, None, None])
    B, L, _, H, K = qkv.shape
    if K == 0:
        raise EnmaError(f"{OP}: qkv_BL3HK has head dim 0; expected at least 1")
    if frame < 1:
        raise EnmaError(f"{OP}: frame is {frame}; expected at least 1 token")
    dtypes = tuple(dict.fromkeys((qkv.dtype, torch.float32)))
    for name, weight in zip(("q", "k"), weights, strict=True):
        expect(OP, f"weight of {name}", weight, shape=[K], dtype=dtypes, device=qkv.device)
    if rotary is not None:
        if K % 2:
            raise EnmaError(f"{OP}: qkv_BL3HK has head dim {K}; expected an even one to rotate")
        for name, table in zip(("cosines", "sines"), rotary, strict=True):
            expect(OP, name, table, shape=[L, K // 2], dtype=dtypes, device=qkv.device)
    if past is not None:
        for name, kept in zip(("keys", "values"), past, strict=True):
            expect(OP, f"{name} of the past", kept, shape=[B, H, None, K], dtype=qkv.dtype, device=qkv.device)
        expect(OP, "values of the past", past[1], shape=past[0].shape)


def _run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = native().self_attention_forward(*arguments, threads=torch.get_num_threads())
    return outputs


def _fake_forward(qkv: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    B, L, _, H, K = qkv.shape
    past_keys, keep = arguments[4], arguments[-1]
    kept = (B, H, (0 if past_keys is None else past_keys.shape[2]) + L if keep else 0, K)
    lse = qkv.new_empty(B, H, L, dtype=torch.float32)
    return qkv.new_empty(B, L, H, K), lse, qkv.new_empty(kept), qkv.new_empty(kept)


def _run_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = native().self_attention_backward(*arguments, threads=torch.get_num_threads())
    return gradients


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    qkv, past_keys = arguments[5], arguments[10]
    B, _, _, H, K = qkv.shape
    past = (B, H, 0 if past_keys is None else past_keys.shape[2], K)
    weights = qkv.new_empty(2, K, dtype=torch.float32)
    return torch.empty_like(qkv), weights, qkv.new_empty(past), qkv.new_empty(past)


_GIVEN = "Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor? cos, Tensor? sin, Tensor? past_k, Tensor? past_v"
_FORWARD = register(
    f"self_attention({_GIVEN}, int frame, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_forward,
    _fake_forward,
)
_BACKWARD = register(
    "self_attention_backward(Tensor grad_out, Tensor? grad_k, Tensor? grad_v, Tensor out, Tensor lse, "
    f"{_GIVEN}, int frame, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.frame, ctx.eps, keep = inputs
    out, lse, keys, values = output
    ctx.mark_non_differentiable(*((lse,) if keep else (lse, keys, values)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out, lse, *tensors)


def _backward(ctx: Any, grad_out: Tensor | None, _: None, *grad_kept: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out.contiguous()
    later = (None if grad is None else grad.contiguous() for grad in grad_kept)
    qkv, weights, *past = _BACKWARD(grad_out, *later, out, lse, *tensors, ctx.frame, ctx.eps)
    return (qkv, *weights, None, None, *(past if tensors[-1] is not None else (None, None)), None, None, None)


torch.library.register_autograd("enma_fast::self_attention", _backward, setup_context=_setup_context)
