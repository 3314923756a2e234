"""`frame_attention` by an installed flash-attn package: flash-attn-4 (``flash_attn.cute``) or flash-attn 2.

Both take ``[B, N, H, K]`` and read on the device how many keys of each row are valid, so a captured CUDA graph can be
replayed with other lengths.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from ._backend import cuda_problem

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _attend_4(q_BNHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """By flash-attn-4: output ``[B, N, H, K]`` and log-sum-exp ``[B, H, N]``."""
    attend = importlib.import_module("flash_attn.cute").flash_attn_varlen_func
    out, lse = attend(q_BNHK, k_BSHK, v_BSHK, seqused_k=counts_B, return_lse=True)
    return out, lse


def _attend_2(q_BNHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """By flash-attn 2: output ``[B, N, H, K]`` and log-sum-exp ``[B, H, N]``."""
    attend = importlib.import_module("flash_attn").flash_attn_with_kvcache
    out, lse = attend(q_BNHK, k_BSHK, v_BSHK, cache_seqlens=counts_B, return_softmax_lse=True)
    return out, lse


# Module, its function, the least major compute capability of a GPU, and the call; best first.
PACKAGES: tuple[tuple[str, str, int, Attend], ...] = (
    ("flash_attn.cute", "flash_attn_varlen_func", 9, _attend_4),
    ("flash_attn", "flash_attn_with_kvcache", 8, _attend_2),
)


def problem(device: torch.device) -> str | None:
    """Why no flash-attn package can serve tensors on this device."""
    if (problem := cuda_problem(device)) is not None:
        return problem
    choice = choose(torch.cuda.get_device_capability(device)[0])
    return choice if isinstance(choice, str) else None


@functools.cache
def choose(capability: int) -> Attend | str:
    """The call of the first package that serves GPUs of this major compute capability, or why none does."""
    reasons = []
    for module, function, least, attend in PACKAGES:
        try:
            # Without flash-attn 2, `flash_attn` is a namespace that holds nothing but `cute`.
            present = hasattr(importlib.import_module(module), function)
        except ImportError as error:
            reasons.append(f"{module} cannot be imported ({error})")
            continue
        if not present:
            reasons.append(f"{module} has no {function}")
        elif capability < least:
            reasons.append(f"{module} needs compute capability {least}.0, the GPU has {capability}.x")
        else:
            return attend
    return "; ".join(reasons)


def part(q: Tensor, k: Tensor, v: Tensor, length: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
    """Attention ``[B, H, N, K]`` to the first `length` keys and its log-sum-exp ``[B, H, N]``, 0 and -inf for none."""
    counts_B = length.to(torch.int32).expand(q.shape[0]).contiguous()
    out, lse = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), counts_B)
    # flash-attn 2 says +inf of an empty row, flash-attn-4 -inf.
    empty = length == 0
    return out.transpose(1, 2).masked_fill(empty, 0), lse.float().masked_fill(empty, float("-inf"))


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cache: Tensor,
    length: Tensor,
    prefix: Tensor,
    prefix_length: Tensor,
) -> Tensor:
    """`frame_attention` in three parts, merged by their log-sum-exps; members that share a prefix are one row of it."""
    if q.numel() == 0:
        return torch.empty_like(q)
    attend = choose(torch.cuda.get_device_capability(q.device)[0])
    assert not isinstance(attend, str), attend
    B, H, N, K = q.shape
    G = prefix.shape[1]
    batched = q.view(G, B // G, H, N, K).transpose(1, 2).reshape(G, H, -1, K)
    out, lse = part(batched, prefix[0], prefix[1], prefix_length, attend)
    out = out.view(G, H, B // G, N, K).transpose(1, 2).reshape(B, H, N, K)
    lse = lse.view(G, H, B // G, N).transpose(1, 2).reshape(B, H, N)
    own = part(q, k, v, torch.full_like(length, N), attend)
    parts = [(out, lse), part(q, cache[0], cache[1], length, attend), own]
    outs = torch.stack([out.float() for out, _ in parts])
    weights = torch.stack([lse for _, lse in parts]).softmax(0)
    return (outs * weights[..., None]).sum(0).to(q.dtype)
