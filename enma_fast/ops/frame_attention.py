"""Attention of the frame being decoded to the frames before it and to itself (paper 3.1.1).

    out = softmax(q [prefix; cache; k]^T / sqrt(K)) [prefix_v; cache_v; v]

No mask: every query sees the whole prefix, the valid part of its cache, and its own frame. The static step of the
sampler calls it with its own buffers, in inference and never traced, so it is no operator of the dispatcher.

Legend: B batch x members, G groups of members that share a prefix (row b belongs to group b // (B / G)), H heads,
N tokens per frame, S capacity of the cache, P capacity of the prefix, K head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from . import _frame_attention_flash as flash
from ._backend import by_dtype, choose, kernel, native, native_problem, triton_problem
from ._checks import expect

OP = "frame_attention"
MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 128
DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "flash": (torch.bfloat16, torch.float16),
    "native": (torch.float32, torch.bfloat16),
}


@functools.cache
def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    problems = {"triton": triton_problem(device), "flash": flash.problem(device), "native": native_problem(device)}
    return by_dtype(problems, dtype, DTYPES) | {"reference": None}


def frame_attention(
    q_BHNK: Tensor,
    k_BHNK: Tensor,
    v_BHNK: Tensor,
    *,
    cache: Tensor,
    length: Tensor,
    prefix: Tensor,
    prefix_length: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Attend from a frame to a shared prefix, a cache and the frame itself, softmax in fp32.

    ``out = softmax(q [prefix; cache; k]^T / sqrt(K)) [prefix; cache; v]``

    Parameters
    ----------
    q_BHNK, k_BHNK, v_BHNK
        Queries, keys and values of the frame; K from 8 to 128, side by side (stride 1) here and in the buffers.
    cache
        Keys and values in a static buffer ``[2, B, H, S, K]``.
    length
        How many tokens of the cache are valid: ``[]`` (int32 or int64) on the device of `q`, which Triton and flash
        read there, so that a CUDA graph can be replayed with another length.
    prefix
        ``[2, G, H, P, K]``, one copy for the B / G consecutive rows of a group.
    prefix_length
        As `length`, for the prefix.
    backend
        An implementation by name; the best that can run by default. None has gradients but the reference.

    Returns
    -------
    Tensor
        ``[B, H, N, K]``, dtype of `q`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    given = {"cache": cache, "length": length, "prefix": prefix, "prefix_length": prefix_length}
    _check(q_BHNK, k_BHNK, v_BHNK, **given)
    problems = candidates(q_BHNK.device, q_BHNK.dtype)
    if problems["flash"] is None and q_BHNK.shape[3] % 8:
        problems = problems | {"flash": f"needs a head dim that 8 divides, not {q_BHNK.shape[3]}"}
    return _RUN[choose(OP, problems, backend)](q_BHNK, k_BHNK, v_BHNK, **given)


def frame_attention_ref(
    q_BHNK: Tensor,
    k_BHNK: Tensor,
    v_BHNK: Tensor,
    *,
    cache: Tensor,
    length: Tensor,
    prefix: Tensor,
    prefix_length: Tensor,
) -> Tensor:
    """The formula of this module, as written; waits for lengths that are on a GPU."""
    shared = prefix[:, :, :, : int(prefix_length)].repeat_interleave(q_BHNK.shape[0] // prefix.shape[1], 1)
    keys, values = torch.cat([shared, cache[:, :, :, : int(length)], torch.stack([k_BHNK, v_BHNK])], dim=3)
    scores = q_BHNK @ keys.transpose(-1, -2)
    weights = (scores.to(torch.promote_types(q_BHNK.dtype, torch.float32)) * q_BHNK.shape[-1] ** -0.5).softmax(-1)
    return weights.to(v_BHNK.dtype) @ values


def _check(q: Tensor, k: Tensor, v: Tensor, **buffers: Tensor) -> None:
    expect(OP, "q_BHNK", q, shape=[None] * 4)
    B, H, _, K = q.shape
    if not MIN_HEAD_DIM <= K <= MAX_HEAD_DIM:
        raise EnmaError(f"{OP}: q_BHNK has head dim {K}; expected {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    shapes: dict[str, tuple[Tensor, Sequence[int | None]]] = {"k_BHNK": (k, q.shape), "v_BHNK": (v, q.shape)}
    for name, rows, length in (("cache", B, "length"), ("prefix", None, "prefix_length")):
        buffer, count = buffers[name], buffers[length]
        shapes[name] = (buffer, (2, rows, H, None, K))
        expect(OP, length, count, shape=[], dtype=(torch.int32, torch.int64), device=q.device)
        if count.is_cpu and not 0 <= int(count) <= buffer.shape[3]:
            raise EnmaError(f"{OP}: {length} is {int(count)}; expected 0 to {buffer.shape[3]}")
    for name, (tensor, shape) in shapes.items():
        expect(OP, name, tensor, shape=shape, dtype=q.dtype, device=q.device)
        if tensor.stride(-1) != 1 or q.stride(3) != 1:
            raise EnmaError(f"{OP}: needs head dims that lie side by side (stride 1)")
    groups = buffers["prefix"].shape[1]
    if groups == 0 or B % groups:
        raise EnmaError(f"{OP}: prefix has {groups} groups; expected a divisor of the {B} rows of q_BHNK")


def _run_triton(q: Tensor, *own: Tensor, **buffers: Tensor) -> Tensor:
    # A token after the other, as the projection after it takes them.
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
    with torch.cuda.device_of(q):
        kernel(OP).launch_frame_attention(q, *own, **buffers, out=out)
    return out


def _run_native(*own: Tensor, cache: Tensor, length: Tensor, prefix: Tensor, prefix_length: Tensor) -> Any:
    lengths = int(length), int(prefix_length)
    return native().frame_attention(*own, *cache, *prefix, *lengths, threads=torch.get_num_threads())


_RUN: dict[str, Callable[..., Tensor]] = {
    "triton": _run_triton,
    "flash": flash.run,
    "native": _run_native,
    "reference": frame_attention_ref,
}
