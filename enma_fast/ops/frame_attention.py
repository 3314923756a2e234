"""Attention of the frame being decoded to the frames before it and to itself (paper 3.1.1).

    out = softmax(q [prefix; cache; k]^T / sqrt(K)) [prefix_v; cache_v; v]

No mask: every query sees the whole prefix, the valid part of its cache, and its own frame.

Legend: B batch x members, G groups of members that share a prefix (row b belongs to group b // (B / G)), H heads,
N tokens per frame, S capacity of the cache, P capacity of the prefix, K head dim.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from . import _frame_attention_flash as flash
from ._backend import by_dtype, choose, kernel, native, native_problem, register, triton_problem
from ._checks import expect

OP = "frame_attention"
MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 128
DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "flash": (torch.bfloat16, torch.float16),
    "native": (torch.float32, torch.bfloat16),
}
Length = int | Tensor
# Queries, keys and values of the frame; keys and values of the cache, and of the prefix.
Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    return dict(_candidates(device, dtype))


@functools.cache
def _candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    problems: dict[str, str | None] = {
        "triton": triton_problem(device),
        "flash": flash.problem(device),
        "native": native_problem(device),
        "sdpa": None,
    }
    dtypes = DTYPES | ({"sdpa": DTYPES["flash"]} if device.type == "cuda" else {})
    return by_dtype(problems, dtype, dtypes) | {"reference": None}


def frame_attention(
    q_BHNK: Tensor,
    k_BHNK: Tensor,
    v_BHNK: Tensor,
    *,
    cache_k: Tensor | None = None,
    cache_v: Tensor | None = None,
    length: Length | None = None,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    prefix_length: Length | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attend from a frame to a shared prefix, a cache and the frame itself, softmax in fp32.

    ``out = softmax(q [prefix_k; cache_k; k]^T / sqrt(K)) [prefix_v; cache_v; v]``

    Parameters
    ----------
    q_BHNK, k_BHNK, v_BHNK
        Queries, keys and values of the frame; K from 8 to 128.
    cache_k, cache_v
        Static buffers ``[B, H, S, K]``.
    length
        How many tokens of the cache are valid: an int, or a tensor ``[]`` (int32 or int64) on the device of `q`, which
        Triton and flash read there, so that a CUDA graph can be replayed with another length. All S by default.
    prefix_k, prefix_v
        ``[G, H, P, K]``, one copy for the B / G consecutive rows of a group.
    prefix_length
        As `length`, for the prefix.
    backend
        An implementation by name; the best that can run by default. Gradients are the reference's alone.

    Returns
    -------
    Tensor
        ``[B, H, N, K]``, dtype of `q`.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    tensors = (q_BHNK, k_BHNK, v_BHNK, cache_k, cache_v, prefix_k, prefix_v)
    length, prefix_length = _check(tensors, length, prefix_length)
    problems = _problems(tensors, (length, prefix_length))
    name = choose(OP, problems, backend)
    if name == "reference":
        past = {"cache_k": cache_k, "cache_v": cache_v, "length": length}
        past |= {"prefix_k": prefix_k, "prefix_v": prefix_v, "prefix_length": prefix_length}
        return frame_attention_ref(q_BHNK, k_BHNK, v_BHNK, **past)
    if name in _RUN and not torch.compiler.is_compiling():
        return _RUN[name](*tensors, length, prefix_length)
    if name in _RUN:
        return _OPERATOR(*tensors, *_split(length), *_split(prefix_length), name)
    return _parts(name, tensors, length, prefix_length)


def frame_attention_ref(q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, **past: Any) -> Tensor:
    """The formula of this module, as written; waits for a length that is on a GPU.

    `past` holds cache, prefix and their lengths, as `frame_attention` takes them.
    """
    keys, values = [k_BHNK], [v_BHNK]
    for name, length in (("cache", "length"), ("prefix", "prefix_length")):
        k, v, given = (past.get(key) for key in (f"{name}_k", f"{name}_v", length))
        if k is None or v is None:
            continue
        count = k.shape[2] if given is None else int(given)
        members = 1 if name == "cache" else q_BHNK.shape[0] // k.shape[0]
        keys.insert(0, k[:, :, :count].repeat_interleave(members, 0))
        values.insert(0, v[:, :, :count].repeat_interleave(members, 0))
    scores = q_BHNK @ torch.cat(keys, dim=2).transpose(-1, -2)
    weights = (scores.to(_wide(q_BHNK.dtype)) * q_BHNK.shape[-1] ** -0.5).softmax(-1)
    return weights.to(v_BHNK.dtype) @ torch.cat(values, dim=2)


def _check(tensors: Tensors, length: Length | None, prefix_length: Length | None) -> tuple[Length, Length]:
    """Check the arguments; returns the lengths, the capacity where none is given."""
    q, k, v, cache_k, cache_v, prefix_k, prefix_v = tensors
    expect(OP, "q_BHNK", q, shape=[None] * 4)
    B, H, N, K = q.shape
    if not MIN_HEAD_DIM <= K <= MAX_HEAD_DIM:
        raise EnmaError(f"{OP}: q_BHNK has head dim {K}; expected {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    for name, own in (("k_BHNK", k), ("v_BHNK", v)):
        expect(OP, name, own, shape=[B, H, N, K], dtype=q.dtype, device=q.device)
    lengths: list[Length] = []
    for name, keys, values, given in (
        ("cache", cache_k, cache_v, length),
        ("prefix", prefix_k, prefix_v, prefix_length),
    ):
        label = "length" if name == "cache" else "prefix_length"
        if keys is None or values is None:
            if keys is not None or values is not None:
                raise EnmaError(f"{OP}: one of {name}_k and {name}_v is missing; expected both or neither")
            if given is not None:
                raise EnmaError(f"{OP}: {label} is given without {name}_k and {name}_v")
            lengths.append(0)
            continue
        expect(
            OP, f"{name}_k", keys, shape=[B if name == "cache" else None, H, None, K], dtype=q.dtype, device=q.device
        )
        expect(OP, f"{name}_v", values, shape=keys.shape, dtype=q.dtype, device=q.device)
        lengths.append(_check_length(label, given, keys))
    if prefix_k is not None and (prefix_k.shape[0] == 0 or B % prefix_k.shape[0]):
        raise EnmaError(f"{OP}: prefix_k has {prefix_k.shape[0]} groups; expected a divisor of the {B} rows of q_BHNK")
    return lengths[0], lengths[1]


def _check_length(name: str, length: Length | None, keys: Tensor) -> Length:
    capacity = keys.shape[2]
    if length is None:
        return capacity
    if isinstance(length, Tensor):
        expect(OP, name, length, shape=[], dtype=(torch.int32, torch.int64), device=keys.device)
        if not length.is_cpu or torch.compiler.is_compiling():
            return length
    if not 0 <= int(length) <= capacity:
        raise EnmaError(f"{OP}: {name} is {int(length)}; expected 0 to {capacity}")
    return length


def _problems(tensors: Tensors, lengths: tuple[Length, Length]) -> dict[str, str | None]:
    """`candidates` for these arguments."""
    q = tensors[0]
    problems = _candidates(q.device, q.dtype)
    found = None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        found = "has no backward; gradients are the reference's"
    elif any(t is not None and t.stride(3) != 1 for t in tensors):
        found = "needs head dims that lie side by side (stride 1)"
    if found is not None:
        return {name: problem or (None if name == "reference" else found) for name, problem in problems.items()}
    if problems["sdpa"] is None and q.is_cuda:
        if any(isinstance(length, Tensor) for length in lengths):
            problems = problems | {"sdpa": "needs lengths as ints; only Triton and flash read them on the device"}
        elif q.shape[3] % 8:
            problems = problems | {"sdpa": f"needs a head dim that 8 divides, not {q.shape[3]}"}
    if problems["flash"] is None and q.shape[3] % 8:
        problems = problems | {"flash": f"needs a head dim that 8 divides, not {q.shape[3]}"}
    return problems


def _parts(name: str, tensors: Tensors, length: Length, prefix_length: Length) -> Tensor:
    q, k, v, cache_k, cache_v, prefix_k, prefix_v = tensors
    if q.numel() == 0:
        return torch.empty_like(q)
    part = _sdpa_part if name == "sdpa" else _flash_part
    found = []
    if prefix_k is not None and prefix_v is not None:
        B, H, N, K = q.shape
        G = prefix_k.shape[0]
        batched = q.view(G, B // G, H, N, K).transpose(1, 2).reshape(G, H, -1, K)
        out, lse = part(batched, prefix_k, prefix_v, prefix_length)
        out = out.view(G, H, B // G, N, K).transpose(1, 2).reshape(B, H, N, K)
        found.append((out, lse.view(G, H, B // G, N).transpose(1, 2).reshape(B, H, N)))
    if cache_k is not None and cache_v is not None:
        found.append(part(q, cache_k, cache_v, length))
    found.append(part(q, k, v, k.shape[2]))
    if len(found) == 1:
        return found[0][0]
    outs = torch.stack([out.to(_wide(out.dtype)) for out, _ in found])
    weights = torch.stack([lse for _, lse in found]).softmax(0)
    return (outs * weights[..., None]).sum(0).to(q.dtype)


def _sdpa_part(q: Tensor, k: Tensor, v: Tensor, length: Length) -> tuple[Tensor, Tensor]:
    count = int(length)
    if count == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:3], float("-inf"), dtype=_wide(q.dtype))
    k, v = k[:, :, :count], v[:, :, :count]
    if q.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse[:, :, : q.shape[2]].to(_wide(q.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Type of the softmax and of sums: float64 in float64, else fp32."""
    return torch.promote_types(dtype, torch.float32)


def _flash_part(q: Tensor, k: Tensor, v: Tensor, length: Length) -> tuple[Tensor, Tensor]:
    attend = flash.choose(torch.cuda.get_device_capability(q.device)[0])
    assert not isinstance(attend, str), attend
    return flash.part(q, k, v, length, attend)


def _run_triton(*arguments: Any) -> Tensor:
    q, k, v, cache_k, cache_v, prefix_k, prefix_v, length, prefix_length = arguments
    # A token after the other, as the projection after it takes them.
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
    with torch.cuda.device_of(q):
        kernel(OP).launch_frame_attention(q, k, v, cache_k, cache_v, length, prefix_k, prefix_v, prefix_length, out=out)
    return out


def _run_native(*arguments: Any) -> Any:
    *tensors, length, prefix_length = arguments
    return native().frame_attention(*tensors, int(length), int(prefix_length), threads=torch.get_num_threads())


_RUN = {"triton": _run_triton, "native": _run_native}


def _split(length: Length) -> tuple[Tensor | None, int]:
    return (length, 0) if isinstance(length, Tensor) else (None, length)


def _run(*arguments: Any) -> Tensor:
    *tensors, length, count, prefix_length, prefix_count, name = arguments
    run: Any = _RUN[name]
    given = count if length is None else length, prefix_count if prefix_length is None else prefix_length
    out: Tensor = run(*tensors, *given)
    return out.contiguous()


def _fake(q: Tensor, *arguments: Any) -> Tensor:
    return q.new_empty(q.shape)


_OPERATOR = register(
    "frame_attention(Tensor q, Tensor k, Tensor v, Tensor? cache_k, Tensor? cache_v, Tensor? prefix_k,"
    " Tensor? prefix_v, Tensor? length, SymInt count, Tensor? prefix_length, SymInt prefix_count, str backend)"
    " -> Tensor",
    _run,
    _fake,
)
