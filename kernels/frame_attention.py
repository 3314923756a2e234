"""softmax(q [prefix; cache; own]^T / sqrt(K)) [prefix; cache; own]: the frame being decoded against what came before.

Two kernels, the second going on where the first stopped: with o and lse of a part, (maximum, sum, accumulator) =
(lse, 1, o) is the state of a streaming softmax that has seen that part.

    prefix    the queries of all members of a group in one batch, so that one tile of the shared keys serves many
    suffix    the own cache and the own frame of one row, and the result

Lengths come from device memory where they are tensors, so a captured graph can be replayed with others.
"""

import triton
import triton.language as tl
from torch import Tensor

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = 1.4426950408889634

# By element size and whether heads are wider than 64: most queries of a tile, keys of a tile. Fixed, so that bits do
# not depend on the batch; as large as registers allow.
BLOCKS = {(2, False): (64, 64), (2, True): (64, 32), (4, False): (32, 32), (4, True): (16, 16)}


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
def _length(p_length, length, capacity, ON_DEVICE: tl.constexpr):
    """Number of valid keys: from memory or as given, within the buffer."""
    if ON_DEVICE:
        length = tl.load(p_length).to(tl.int32)
    return tl.maximum(tl.minimum(length, capacity), 0)


@triton.jit(do_not_specialize=["length"])
def _prefix_kernel(
    p_q,
    p_k,
    p_v,
    p_length,
    p_out,
    p_lse,
    length,
    capacity,
    scale,
    members,
    H,
    N,
    K,
    s_qb,
    s_qh,
    s_qn,
    s_kg,
    s_kh,
    s_ks,
    s_vg,
    s_vh,
    s_vs,
    ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """o = softmax(q k^T) v and lse [B, H, N] over the prefix; 0 and -inf where it is empty."""
    i_gh = tl.program_id(0).to(tl.int64)
    i_g = i_gh // H
    i_h = i_gh % H
    o_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < members * N
    m_k = o_k < K
    m_mk = m_m[:, None] & m_k[None, :]
    # Row r of the group's queries is token r % N of member r // N.
    o_b = i_g * members + o_m // N
    o_n = (o_m % N).to(tl.int64)
    b_q = tl.load(p_q + (o_b * s_qb + i_h * s_qh + o_n * s_qn)[:, None] + o_k[None, :], mask=m_mk, other=0.0)
    p_k += i_g * s_kg + i_h * s_kh
    p_v += i_g * s_vg + i_h * s_vh
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    end = _length(p_length, length, capacity, ON_DEVICE)
    for first in range(0, end, BLOCK_S):
        b_m, b_l, b_acc = _tile(b_q, b_m, b_l, b_acc, p_k, p_v, first, end, scale, s_ks, s_vs, o_k, m_k, BLOCK_S)
    o_row = (o_b * H + i_h) * N + o_n
    b_some = tl.where(b_l > 0, b_l, 1.0)
    tl.store(p_out + o_row[:, None] * K + o_k[None, :], b_acc / b_some[:, None], mask=m_mk)
    tl.store(p_lse + o_row, b_m + tl.log2(b_some), mask=m_m)


@triton.jit(do_not_specialize=["length"])
def _suffix_kernel(
    p_q,
    p_k,
    p_v,
    p_cache_k,
    p_cache_v,
    p_length,
    p_prefix_out,
    p_prefix_lse,
    p_out,
    length,
    capacity,
    scale,
    H,
    N,
    K,
    s_qb,
    s_qh,
    s_qn,
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
    HAS_PREFIX: tl.constexpr,
    HAS_CACHE: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The softmax goes on from the prefix's (lse, 1, o) over the cache and the own frame; out [B, H, N, K]."""
    i_bh = tl.program_id(0).to(tl.int64)
    i_b = i_bh // H
    i_h = i_bh % H
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < N
    m_k = o_k < K
    m_nk = m_n[:, None] & m_k[None, :]
    o_row = i_bh * N + o_n
    o_n = o_n.to(tl.int64)
    b_q = tl.load(p_q + i_b * s_qb + i_h * s_qh + o_n[:, None] * s_qn + o_k[None, :], mask=m_nk, other=0.0)
    if HAS_PREFIX:
        b_m = tl.load(p_prefix_lse + o_row, mask=m_n, other=float("-inf"))
        b_l = tl.where(b_m > float("-inf"), 1.0, 0.0)
        b_acc = tl.load(p_prefix_out + o_row[:, None] * K + o_k[None, :], mask=m_nk, other=0.0)
    else:
        b_m = tl.full([BLOCK_N], float("-inf"), tl.float32)
        b_l = tl.zeros([BLOCK_N], tl.float32)
        b_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if HAS_CACHE:
        p_cache_k += i_b * s_ckb + i_h * s_ckh
        p_cache_v += i_b * s_cvb + i_h * s_cvh
        end = _length(p_length, length, capacity, ON_DEVICE)
        for first in range(0, end, BLOCK_S):
            b_m, b_l, b_acc = _tile(
                b_q, b_m, b_l, b_acc, p_cache_k, p_cache_v, first, end, scale, s_cks, s_cvs, o_k, m_k, BLOCK_S
            )
    p_k += i_b * s_kb + i_h * s_kh
    p_v += i_b * s_vb + i_h * s_vh
    for first in range(0, N, BLOCK_OWN):
        b_m, b_l, b_acc = _tile(b_q, b_m, b_l, b_acc, p_k, p_v, first, N, scale, s_kn, s_vn, o_k, m_k, BLOCK_OWN)
    b_out = (b_acc / b_l[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + o_row[:, None] * K + o_k[None, :], b_out, mask=m_nk)


def _strides(tensor: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1), tensor.stride(2))


def _block_k(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def launch_prefix(
    q: Tensor, prefix_k: Tensor, prefix_v: Tensor, length: int | Tensor, *, out: Tensor, lse: Tensor
) -> None:
    """Attention of `q` [B, H, N, K] to the prefix [G, H, P, K] alone; fp32 `out` [B, H, N, K], `lse` [B, H, N]."""
    B, H, N, K = q.shape
    G, P = prefix_k.shape[0], prefix_k.shape[2]
    if B * H * N == 0:
        return
    members = B // G
    block_m, block_s = BLOCKS[q.element_size(), K > 64]
    on_device = not isinstance(length, int)
    _prefix_kernel[(G * H, triton.cdiv(members * N, block_m))](
        q,
        prefix_k,
        prefix_v,
        length if on_device else None,
        out,
        lse,
        0 if on_device else length,
        P,
        K**-0.5 * LOG2_E,
        members,
        H,
        N,
        K,
        *_strides(q),
        *_strides(prefix_k),
        *_strides(prefix_v),
        ON_DEVICE=on_device,
        BLOCK_M=block_m,
        BLOCK_S=block_s,
        BLOCK_K=_block_k(K),
        num_warps=4,
        num_stages=2,
    )


def launch_suffix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache_k: Tensor | None,
    cache_v: Tensor | None,
    length: int | Tensor,
    prefix_out: Tensor | None,
    prefix_lse: Tensor | None,
    *,
    out: Tensor,
) -> None:
    """Attention to the prefix (if its state is given), the cache (if given) and the own frame; `out` [B, H, N, K]."""
    B, H, N, K = q.shape
    if B * H * N == 0:
        return
    most_n, block_s = BLOCKS[q.element_size(), K > 64]
    block_n = min(max(16, triton.next_power_of_2(N)), most_n)
    # Triton 3.6 spills in wider fp32 tiles of few queries from sm_90 on.
    if q.element_size() == 4:
        block_s = min(block_s, block_n)
    on_device = not isinstance(length, int)
    _suffix_kernel[(B * H, triton.cdiv(N, block_n))](
        q,
        k,
        v,
        cache_k,
        cache_v,
        length if on_device else None,
        prefix_out,
        prefix_lse,
        out,
        0 if on_device else length,
        0 if cache_k is None else cache_k.shape[2],
        K**-0.5 * LOG2_E,
        H,
        N,
        K,
        *_strides(q),
        *_strides(k),
        *_strides(v),
        *_strides(cache_k),
        *_strides(cache_v),
        HAS_PREFIX=prefix_out is not None,
        HAS_CACHE=cache_k is not None,
        ON_DEVICE=on_device,
        BLOCK_N=block_n,
        BLOCK_S=block_s,
        BLOCK_OWN=min(block_n, block_s),
        BLOCK_K=_block_k(K),
        num_warps=2 if block_n == 16 and K <= 64 and q.element_size() == 2 else 4,
        num_stages=2,
    )
