"""softmax(q [prefix; cache; own]^T / sqrt(K)) [prefix; cache; own]: the frame being decoded against what came before.

One launch: a program goes over the keys of its row's group, of its row's cache and of its own frame, in this order, so
the bits of a row do not depend on how many rows share the prefix.

Lengths come from device memory, so a captured graph can be replayed with others.
"""

import triton
import triton.language as tl
from torch import Tensor

from .launches import OPTIONS, begin

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = 1.4426950408889634

# By element size and whether heads are wider than 64: most queries of a tile, keys of a tile. Fixed, so that bits do
# not depend on the batch; as large as registers allow.
BLOCKS = {(2, False): (64, 64), (2, True): (64, 32), (4, False): (32, 16), (4, True): (16, 16)}


@triton.jit
def _tile(b_q, b_m, b_l, b_acc, p_k, p_v, first, length, scale, s_k, s_v, o_k, m_k, BLOCK_S: tl.constexpr):
    """One tile of keys from `first` on: the new (maximum, sum, accumulator); logits are in units of log 2."""
    o_s = first + tl.arange(0, BLOCK_S)
    m_s = o_s < length
    o_s = o_s.to(tl.int64)
    b_k = tl.load(p_k + o_s[None, :] * s_k + o_k[:, None], mask=m_s[None, :] & m_k[:, None], other=0.0)
    b_v = tl.load(p_v + o_s[:, None] * s_v + o_k[None, :], mask=m_s[:, None] & m_k[None, :], other=0.0)
    # The interpreter of Triton 3.9 computes garbage from bf16 operands.
    if INTERPRET:
        b_scores = tl.dot(b_q.to(tl.float32), b_k.to(tl.float32), input_precision="ieee") * scale
    else:
        b_scores = tl.dot(b_q, b_k, input_precision="ieee") * scale
    b_scores = tl.where(m_s[None, :], b_scores, float("-inf"))
    b_new = tl.maximum(b_m, tl.max(b_scores, axis=1))
    b_p = tl.exp2(b_scores - b_new[:, None])
    b_alpha = tl.exp2(b_m - b_new)
    b_l = b_l * b_alpha + tl.sum(b_p, axis=1)
    b_acc = b_acc * b_alpha[:, None]
    if INTERPRET:
        b_acc += tl.dot(b_p.to(b_v.dtype).to(tl.float32), b_v.to(tl.float32), input_precision="ieee")
    else:
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
    return b_new, b_l, b_acc


@triton.jit
def _length(p_length, capacity):
    """Valid tokens of a buffer, which never go beyond it."""
    return tl.maximum(tl.minimum(tl.load(p_length).to(tl.int32), capacity), 0)


@triton.jit
def _frame_attention_kernel(
    p_q,
    p_k,
    p_v,
    p_cache_k,
    p_cache_v,
    p_length,
    p_prefix_k,
    p_prefix_v,
    p_prefix_length,
    p_out,
    capacity,
    prefix_capacity,
    scale,
    members,
    H,
    N,
    K,
    s_qb,
    s_qh,
    s_qn,
    s_ob,
    s_oh,
    s_on,
    s_kb,
    s_kh,
    s_kn,
    s_vb,
    s_vh,
    s_vn,
    s_ckb,
    s_ckh,
    s_cks,
    s_cvb,
    s_cvh,
    s_cvs,
    s_pkg,
    s_pkh,
    s_pks,
    s_pvg,
    s_pvh,
    s_pvs,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = softmax(q k^T) v over the prefix of the row's group, the cache of the row, and the frame."""
    begin()
    i_bh = tl.program_id(0).to(tl.int64)
    i_b = i_bh // H
    i_h = i_bh % H
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < N
    m_k = o_k < K
    m_nk = m_n[:, None] & m_k[None, :]
    o_n = o_n.to(tl.int64)
    b_q = tl.load(p_q + i_b * s_qb + i_h * s_qh + o_n[:, None] * s_qn + o_k[None, :], mask=m_nk, other=0.0)
    b_m = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_N], tl.float32)
    b_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    p_prefix_k += i_b // members * s_pkg + i_h * s_pkh
    p_prefix_v += i_b // members * s_pvg + i_h * s_pvh
    end = _length(p_prefix_length, prefix_capacity)
    for first in range(0, end, BLOCK_S):
        b_m, b_l, b_acc = _tile(
            b_q, b_m, b_l, b_acc, p_prefix_k, p_prefix_v, first, end, scale, s_pks, s_pvs, o_k, m_k, BLOCK_S
        )
    p_cache_k += i_b * s_ckb + i_h * s_ckh
    p_cache_v += i_b * s_cvb + i_h * s_cvh
    end = _length(p_length, capacity)
    for first in range(0, end, BLOCK_S):
        b_m, b_l, b_acc = _tile(
            b_q, b_m, b_l, b_acc, p_cache_k, p_cache_v, first, end, scale, s_cks, s_cvs, o_k, m_k, BLOCK_S
        )
    p_k += i_b * s_kb + i_h * s_kh
    p_v += i_b * s_vb + i_h * s_vh
    for first in range(0, N, BLOCK_OWN):
        b_m, b_l, b_acc = _tile(b_q, b_m, b_l, b_acc, p_k, p_v, first, N, scale, s_kn, s_vn, o_k, m_k, BLOCK_OWN)
    b_out = (b_acc / b_l[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + i_b * s_ob + i_h * s_oh + o_n[:, None] * s_on + o_k[None, :], b_out, mask=m_nk)


def _strides(tensor: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1), tensor.stride(2))


def _block_k(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def launch_frame_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cache: Tensor,
    length: Tensor,
    prefix: Tensor,
    prefix_length: Tensor,
    out: Tensor,
) -> None:
    """Write `out` [B, H, N, K]: attention to prefix [2, G, H, P, K], cache [2, B, H, S, K] and own frame."""
    B, H, N, K = q.shape
    if B * H * N == 0:
        return
    most_n, block_s = BLOCKS[q.element_size(), K > 64]
    block_n = min(max(16, triton.next_power_of_2(N)), most_n)
    _frame_attention_kernel[(B * H, triton.cdiv(N, block_n))](
        q,
        k,
        v,
        *cache,
        length,
        *prefix,
        prefix_length,
        out,
        cache.shape[3],
        prefix.shape[3],
        K**-0.5 * LOG2_E,
        B // prefix.shape[1],
        H,
        N,
        K,
        *_strides(q),
        *_strides(out),
        *_strides(k),
        *_strides(v),
        *_strides(cache[0]),
        *_strides(cache[1]),
        *_strides(prefix[0]),
        *_strides(prefix[1]),
        BLOCK_N=block_n,
        BLOCK_S=block_s,
        BLOCK_OWN=min(block_n, block_s),
        BLOCK_K=_block_k(K),
        num_warps=2 if block_n == 16 and K <= 64 and q.element_size() == 2 else 4,
        num_stages=2,
        **OPTIONS,
    )
