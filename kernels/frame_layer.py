"""Layers of a transformer over the tokens of one frame, between two attentions: four launches and one of attention.

    heads     q, k, v = norm(x) W_qkv^T, q and k normalised by heads and rotated, written where attention reads them
    attend    softmax(q k^T / sqrt(K)) v
    residual  h = x + a W^T
    swiglu    u = silu(norm(h) W_gate^T) * (norm(h) W_up^T), of which W_down is again a residual

and what begins and ends them: rows put together from tokens, places and context; tokens read off; a context scaled and
shifted. The norm of a row is a factor of its products, so it is summed beside them and applied to them.

Shapes: B rows of the batch, M of L rows of the transformer, D width, H heads, K head dim, C token channels.
"""

import triton
import triton.language as tl
from torch import Tensor

from .flow_head_parts import INTERPRET, narrow
from .frame_attention import LOG2_E, _strides, _tile
from .launches import OPTIONS, begin

# Up to so many rows: rows, columns and depth of a tile, warps and stages, for two bytes and for four. A row's sums are
# in the same order in all of them that share a depth.
TILES = {
    2: ((32, (32, 32, 128, 4, 3)), (2048, (64, 64, 64, 4, 3)), (2**62, (128, 64, 64, 8, 3))),
    4: ((2**62, (32, 32, 32, 4, 2)),),
}


@triton.jit
def _rounded(values, p_like):
    """fp32 values in the type that a pointer points to."""
    return narrow(values, p_like.dtype.element_ty)


@triton.jit
def _dot(b_a, b_b, b_acc):
    # The interpreter of Triton 3.9 computes garbage from bf16 operands.
    if INTERPRET:
        b_acc += tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), input_precision="ieee")
    else:
        b_acc = tl.dot(b_a, b_b, b_acc, input_precision="ieee")
    return b_acc


@triton.jit
def _operand(p_x, o_x, m_m, p_norm, o_d, D, b_squares, NORM: tl.constexpr):
    """A tile of rows as the first operand, times the norm's weights, and the sum of their squares so far."""
    m_d = o_d < D
    b_x = tl.load(p_x + o_x[:, None] + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)
    if NORM:
        b_wide = b_x.to(tl.float32)
        b_squares += tl.sum(b_wide * b_wide, axis=1)
        b_weight = tl.load(p_norm + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_x = _rounded(b_wide * b_weight[None, :], p_x)
    return b_x, b_squares


@triton.jit
def _weights(p_weight, o_n, m_n, o_d, D):
    """A tile of a matrix [N, D] as the second operand."""
    m = (o_d < D)[:, None] & m_n[None, :]
    return tl.load(p_weight + o_n[None, :] * D + o_d[:, None], mask=m, other=0.0)


@triton.jit
def _heads_kernel(
    p_x,
    p_norm,
    p_weight,
    p_q_norm,
    p_k_norm,
    p_turns,
    p_position,
    p_rows,
    p_q,
    p_kv,
    p_store,
    p_length,
    B,
    L,
    M,
    H,
    K,
    D,
    first_row,
    eps,
    head_eps,
    s_xb,
    s_xl,
    s_rb,
    s_rm,
    s_qb,
    s_ql,
    s_part,
    s_kb,
    s_kl,
    s_store,
    s_sb,
    s_sl,
    s_turns,
    ROWS: tl.constexpr,
    HAS_TURNS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    HAS_STORE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of queries, keys or values. ROWS: 0 all rows, 1 those named, 2 queries of those named, in order."""
    begin()
    part = tl.program_id(1) // H
    i_h = tl.program_id(1) % H
    per = L
    if ROWS == 1:
        per = M
    if ROWS == 2:
        per = tl.where(part == 0, M, L)
    o_i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_i < B * per
    o_b = (o_i // per).to(tl.int64)
    o_l = (o_i % per).to(tl.int64)
    o_to = o_l
    if ROWS > 0:
        # A block, as masks are.
        named = o_i * 0 + part < 1
        if ROWS == 1:
            named = m_m
        b_named = tl.load(p_rows + o_b * s_rb + o_l * s_rm, mask=m_m & named, other=0)
        o_l = tl.where(named, b_named + first_row, o_l)
        if ROWS == 1:
            o_to = o_l
    half = K // 2
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < half
    o_n = part * D + i_h * K + o_h
    b_squares = tl.zeros([BLOCK_M], tl.float32)
    b_one = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    b_two = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for first in range(0, D, BLOCK_D):
        o_d = first + tl.arange(0, BLOCK_D)
        b_x, b_squares = _operand(p_x, o_b * s_xb + o_l * s_xl, m_m, p_norm, o_d, D, b_squares, True)
        b_one = _dot(b_x, _weights(p_weight, o_n, m_h, o_d, D), b_one)
        b_two = _dot(b_x, _weights(p_weight, o_n + half, m_h, o_d, D), b_two)
    b_rstd = 1.0 / tl.sqrt(b_squares / D + eps)
    b_one *= b_rstd[:, None]
    b_two *= b_rstd[:, None]
    if part < 2:
        b_rstd = 1.0 / tl.sqrt((tl.sum(b_one * b_one, axis=1) + tl.sum(b_two * b_two, axis=1)) / K + head_eps)
        p_head = p_q_norm
        if part == 1:
            p_head = p_k_norm
        b_one *= b_rstd[:, None] * tl.load(p_head + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
        b_two *= b_rstd[:, None] * tl.load(p_head + half + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
        if HAS_TURNS:
            o_turn = o_l
            if HAS_POSITION:
                o_turn += tl.load(p_position) * L
            o_turn = o_turn[:, None] * half + o_h[None, :]
            m_turn = m_m[:, None] & m_h[None, :]
            b_cos = tl.load(p_turns + o_turn, mask=m_turn, other=0.0)
            b_sin = tl.load(p_turns + s_turns + o_turn, mask=m_turn, other=0.0)
            b_turned = b_one * b_cos - b_two * b_sin
            b_two = b_one * b_sin + b_two * b_cos
            b_one = b_turned
    m_out = m_m[:, None] & m_h[None, :]
    o_head = i_h * K + o_h
    if part == 0:
        p_to = p_q + (o_b * s_qb + o_to * s_ql)[:, None] + o_head[None, :]
        tl.store(p_to, _rounded(b_one, p_q), mask=m_out)
        tl.store(p_to + half, _rounded(b_two, p_q), mask=m_out)
    else:
        p_to = p_kv + (part - 1).to(tl.int64) * s_part + (o_b * s_kb + o_to * s_kl)[:, None] + o_head[None, :]
        tl.store(p_to, _rounded(b_one, p_kv), mask=m_out)
        tl.store(p_to + half, _rounded(b_two, p_kv), mask=m_out)
        if HAS_STORE:
            o_place = o_l + tl.load(p_length)
            p_to = (
                p_store + (part - 1).to(tl.int64) * s_store + (o_b * s_sb + o_place * s_sl)[:, None] + o_head[None, :]
            )
            tl.store(p_to, _rounded(b_one, p_store), mask=m_out)
            tl.store(p_to + half, _rounded(b_two, p_store), mask=m_out)


@triton.jit
def _attend_kernel(
    p_q,
    p_k,
    p_v,
    p_out,
    L,
    M,
    H,
    K,
    N,
    scale,
    s_qb,
    s_qm,
    s_kb,
    s_kl,
    s_vb,
    s_vl,
    CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Attention of one head from tokens of one frame of N; CAUSAL: to the keys of that frame and those before it."""
    begin()
    i_b = (tl.program_id(0) // H).to(tl.int64)
    i_h = (tl.program_id(0) % H).to(tl.int64)
    blocks = tl.cdiv(N, BLOCK_N)
    i_frame = tl.program_id(1) // blocks
    o_n = tl.program_id(1) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    m_n = o_n < N
    o_m = (i_frame * N + o_n).to(tl.int64)
    m_nk = m_n[:, None] & m_k[None, :]
    b_q = tl.load(p_q + i_b * s_qb + o_m[:, None] * s_qm + i_h * K + o_k[None, :], mask=m_nk, other=0.0)
    p_k += i_b * s_kb + i_h * K
    p_v += i_b * s_vb + i_h * K
    b_m = tl.full([BLOCK_N], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_N], tl.float32)
    b_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    end = L
    if CAUSAL:
        end = (i_frame + 1) * N
    for first in range(0, end, BLOCK_S):
        b_m, b_l, b_acc = _tile(b_q, b_m, b_l, b_acc, p_k, p_v, first, end, scale, s_kl, s_vl, o_k, m_k, BLOCK_S)
    o_out = (i_b * M + o_m) * H * K + i_h * K
    tl.store(p_out + o_out[:, None] + o_k[None, :], _rounded(b_acc / b_l[:, None], p_out), mask=m_nk)


@triton.jit
def _residual_kernel(
    p_x,
    p_a,
    p_weight,
    p_rows,
    p_out,
    B,
    M,
    D,
    X,
    first_row,
    s_xb,
    s_xl,
    s_rb,
    s_rm,
    HAS_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = x[rows] + a W^T."""
    begin()
    o_i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_i < B * M
    m_n = o_n < D
    o_b = (o_i // M).to(tl.int64)
    o_l = (o_i % M).to(tl.int64)
    if HAS_ROWS:
        o_l = tl.load(p_rows + o_b * s_rb + o_l * s_rm, mask=m_m, other=0) + first_row
    o_i = o_i.to(tl.int64)
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, X, BLOCK_D):
        o_d = first + tl.arange(0, BLOCK_D)
        b_a, _ = _operand(p_a, o_i * X, m_m, p_a, o_d, X, 0.0, False)
        b_acc = _dot(b_a, _weights(p_weight, o_n, m_n, o_d, X), b_acc)
    m_mn = m_m[:, None] & m_n[None, :]
    b_acc += tl.load(p_x + (o_b * s_xb + o_l * s_xl)[:, None] + o_n[None, :], mask=m_mn, other=0.0).to(tl.float32)
    tl.store(p_out + o_i[:, None] * D + o_n[None, :], _rounded(b_acc, p_out), mask=m_mn)


@triton.jit
def _swiglu_kernel(
    p_x,
    p_norm,
    p_weight,
    p_out,
    R,
    D,
    X,
    eps,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = silu(g) * u with g, u = norm(x) W^T, the rows of W being those of g and then those of u."""
    begin()
    o_i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_i < R
    m_n = o_n < X
    o_i = o_i.to(tl.int64)
    b_squares = tl.zeros([BLOCK_M], tl.float32)
    b_gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, D, BLOCK_D):
        o_d = first + tl.arange(0, BLOCK_D)
        b_x, b_squares = _operand(p_x, o_i * D, m_m, p_norm, o_d, D, b_squares, True)
        b_gate = _dot(b_x, _weights(p_weight, o_n, m_n, o_d, D), b_gate)
        b_up = _dot(b_x, _weights(p_weight, o_n + X, m_n, o_d, D), b_up)
    b_rstd = (1.0 / tl.sqrt(b_squares / D + eps))[:, None]
    b_gate *= b_rstd
    b_out = b_gate / (1.0 + tl.exp(-b_gate)) * (b_up * b_rstd)
    tl.store(p_out + o_i[:, None] * X + o_n[None, :], _rounded(b_out, p_out), mask=m_m[:, None] & m_n[None, :])


def _tiles(rows: int, like: Tensor) -> dict[str, int | bool]:
    sizes = next(sizes for most, sizes in TILES[like.element_size()] if rows <= most)
    return dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_D", "num_warps", "num_stages"), sizes, strict=True)) | OPTIONS


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _two(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))


def launch_heads(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    *,
    eps: tuple[float, float],
    turns: Tensor | None,
    position: Tensor | None,
    tokens: Tensor | None,
    first: int,
    only_queries: bool,
    q: Tensor,
    kv: Tensor,
    store: Tensor | None,
    length: Tensor | None,
) -> None:
    """Write `q` [B, L, H, K], `kv` [2, B, L, H, K] and, from `length` on, `store` [2, B, S, H, K].

    Of `x` [B, L, D] all rows are read; or those of the `tokens` [B, M], from row `first` on: for all three, which are
    then written in their place, or for the queries alone, which are [B, M, H, K].
    `turns` [2, T, K / 2] are cosines and sines of row l, or l + `position` L.
    """
    B, L, D = x.shape
    H, K = q.shape[2:]
    M = L if tokens is None else tokens.shape[1]
    most = M if tokens is not None and not only_queries else L
    if B * most == 0:
        return
    tiles = _tiles(B * most, x)
    del tiles["BLOCK_N"]
    if x.element_size() == 4:
        # Two stages of fp32 spill a few words on sm_80 and sm_100 (Triton 3.9).
        tiles["num_stages"] = 1
    _heads_kernel[(triton.cdiv(B * most, tiles["BLOCK_M"]), 3 * H)](
        x,
        norm,
        weight,
        q_norm,
        k_norm,
        turns,
        position,
        tokens,
        q,
        kv,
        store,
        length,
        B,
        L,
        M,
        H,
        K,
        D,
        first,
        *eps,
        *_two(x),
        *_two(tokens),
        *_two(q),
        *_strides(kv),
        *_strides(store),
        0 if turns is None else turns.stride(0),
        ROWS=0 if tokens is None else 1 + only_queries,
        HAS_TURNS=turns is not None,
        HAS_POSITION=position is not None,
        HAS_STORE=store is not None,
        BLOCK_H=_block(K // 2),
        **tiles,
    )


def launch_attend(q: Tensor, k: Tensor, v: Tensor, *, frame: int, causal: bool, out: Tensor) -> None:
    """Write `out` [B, M, H K]: attention from `q` [B, M, H, K], frames of `frame` rows, to `k`, `v` [B, L, H, K]."""
    B, M, H, K = q.shape
    if B * M == 0:
        return
    small = q.element_size() == 2
    block_n = min(_block(frame), 64 if small else 32)
    # fp32 tiles of few queries spill where they are wider (`frame_attention`).
    block_s = min(_block(k.shape[1]), (64 if K <= 64 else 32) if small else min(16, block_n))
    _attend_kernel[(B * H, M // frame * triton.cdiv(frame, block_n))](
        q,
        k,
        v,
        out,
        k.shape[1],
        M,
        H,
        K,
        frame,
        K**-0.5 * LOG2_E,
        *_two(q),
        *_two(k),
        *_two(v),
        CAUSAL=causal,
        BLOCK_N=block_n,
        BLOCK_S=block_s,
        BLOCK_K=_block(K),
        num_warps=2 if small and block_n <= 32 else 4,
        num_stages=2,
        **OPTIONS,
    )


def launch_residual(x: Tensor, a: Tensor, weight: Tensor, tokens: Tensor | None, *, first: int, out: Tensor) -> None:
    """Write `out` [B, M, D] = x + a [B, M, X] weight [D, X]^T, of `x` [B, L, D] all rows or those of the `tokens`."""
    B, M, X = a.shape
    D = weight.shape[0]
    if B * M == 0:
        return
    tiles = _tiles(B * M, a)
    grid = (triton.cdiv(B * M, tiles["BLOCK_M"]), triton.cdiv(D, tiles["BLOCK_N"]))
    strides = (*_two(x), *_two(tokens))
    given = tokens is not None
    _residual_kernel[grid](x, a, weight, tokens, out, B, M, D, X, first, *strides, HAS_ROWS=given, **tiles)


def launch_swiglu(x: Tensor, norm: Tensor, weight: Tensor, *, eps: float, out: Tensor) -> None:
    """Write `out` [R, X] from `x` [R, D] and `weight` [2 X, D]."""
    R, D = x.shape
    X = out.shape[1]
    if R == 0:
        return
    tiles = _tiles(R, x)
    grid = (triton.cdiv(R, tiles["BLOCK_M"]), triton.cdiv(X, tiles["BLOCK_N"]))
    _swiglu_kernel[grid](x, norm, weight, out, R, D, X, eps, **tiles)
