"""Rows of the transformers from tokens and context, tokens from rows, and order and noise of a frame; a launch each.

    rows     x = base + z W^T + places + context       and the tokens z written into the frame
    read     z = norm(x) W^T + b, or mean + scale y with both read off x
    shifted  c' = anchor (1 + gamma) + beta            gamma, beta from silu(c) through a bottleneck
    noise    the order of the tokens, and the normals of each at the mask step that decides it

Shapes: B rows of the batch, G groups that share an anchor, M of N tokens, L rows of the transformer, D width, C token
channels, R rank of the bottleneck.
"""

import triton
import triton.language as tl
from torch import Tensor

from .frame_layer import _block, _dot, _operand, _rounded, _tiles, _two, _weights
from .launches import OPTIONS, begin
from .philox_normal import MASK32, _pair

# ln(e - 1): softplus of it is 1.
UNIT = tl.constexpr(0.5413248546129181)
ORDER_STEP = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _rows_kernel(
    p_base,
    p_z,
    p_weight,
    p_places,
    p_context,
    p_tokens,
    p_x,
    p_frame,
    B,
    M,
    N,
    D,
    C,
    first,
    scale,
    s_zb,
    s_zm,
    s_tb,
    s_tm,
    s_xb,
    s_xl,
    s_fb,
    s_fn,
    CONCAT: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    HAS_CONTEXT: tl.constexpr,
    HAS_TOKENS: tl.constexpr,
    HAS_FRAME: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Row l = first + n of token n; CONCAT: rows 0 .. N - 1 are the context's, and those of tokens come after them."""
    begin()
    o_i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_i < B * M
    m_d = o_d < D
    o_b = (o_i // M).to(tl.int64)
    o_m = (o_i % M).to(tl.int64)
    o_n = o_m
    m_z = m_m
    if HAS_TOKENS:
        o_n = tl.load(p_tokens + o_b * s_tb + o_m * s_tm, mask=m_m, other=0)
    o_l = o_n + first
    if CONCAT:
        m_z = m_m & (o_m >= N)
        o_l = o_n
        o_n = o_n % N
        o_m = o_n
    b_base = tl.load(p_base + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_x = tl.where(m_z[:, None], b_base[None, :], 0.0)
    if HAS_Z:
        o_c = tl.arange(0, BLOCK_C)
        m_zc = m_z[:, None] & (o_c < C)[None, :]
        b_z = tl.load(p_z + (o_b * s_zb + o_m * s_zm)[:, None] + o_c[None, :], mask=m_zc, other=0.0)
        if HAS_FRAME and tl.program_id(1) == 0:
            tl.store(p_frame + (o_b * s_fb + o_n * s_fn)[:, None] + o_c[None, :], b_z, mask=m_zc)
        b_z = _rounded((b_z * scale).to(tl.float32), p_weight)
        b_x = _dot(b_z, _weights(p_weight, o_d, m_d, o_c, C), b_x)
    m_md = m_m[:, None] & m_d[None, :]
    if HAS_PLACES:
        b_x += tl.load(p_places + o_n[:, None] * D + o_d[None, :], mask=m_md, other=0.0).to(tl.float32)
    if HAS_CONTEXT:
        m_context = m_md & (m_z == 0)[:, None] if CONCAT else m_md
        o_context = (o_b * N + o_n)[:, None] * D + o_d[None, :]
        b_x += tl.load(p_context + o_context, mask=m_context, other=0.0).to(tl.float32)
    tl.store(p_x + (o_b * s_xb + o_l * s_xl)[:, None] + o_d[None, :], _rounded(b_x, p_x), mask=m_md)


@triton.jit
def _read_kernel(
    p_x,
    p_norm,
    p_weight,
    p_bias,
    p_y,
    p_out,
    R,
    D,
    C,
    eps,
    NORM: tl.constexpr,
    MOMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = (norm(x) or x) W^T + b; MOMENTS: of its halves (m, s), out = m + (softplus(s + ln(e - 1)) + 1e-3) y."""
    begin()
    o_i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_m = o_i < R
    m_c = o_c < C
    o_i = o_i.to(tl.int64)
    b_squares = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    b_scale = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for first in range(0, D, BLOCK_D):
        o_d = first + tl.arange(0, BLOCK_D)
        b_x, b_squares = _operand(p_x, o_i * D, m_m, p_norm, o_d, D, b_squares, NORM)
        b_out = _dot(b_x, _weights(p_weight, o_c, m_c, o_d, D), b_out)
        if MOMENTS:
            b_scale = _dot(b_x, _weights(p_weight, o_c + C, m_c, o_d, D), b_scale)
    if NORM:
        b_out *= (1.0 / tl.sqrt(b_squares / D + eps))[:, None]
    b_out += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    o_out = o_i[:, None] * C + o_c[None, :]
    m_mc = m_m[:, None] & m_c[None, :]
    if MOMENTS:
        b_scale += tl.load(p_bias + C + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :] + UNIT
        b_scale = tl.maximum(b_scale, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(b_scale))) + 1e-3
        b_out += b_scale * tl.load(p_y + o_out, mask=m_mc, other=0.0)
    tl.store(p_out + o_out, b_out, mask=m_mc)


@triton.jit
def _shifted_kernel(
    p_c,
    p_anchor,
    p_down,
    p_up,
    p_bias,
    p_out,
    B,
    N,
    D,
    R,
    members,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out = anchor (1 + gamma) + beta; gamma, beta = (silu(c) down^T) up^T + bias. Row b has anchor b // members."""
    begin()
    o_i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_r = tl.arange(0, BLOCK_R)
    m_m = o_i < B * N
    m_n = o_n < D
    o_i = o_i.to(tl.int64)
    b_low = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        o_d = first + tl.arange(0, BLOCK_D)
        m_d = o_d < D
        b_c = tl.load(p_c + o_i[:, None] * D + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)
        b_c = b_c.to(tl.float32)
        b_c = _rounded(b_c / (1.0 + tl.exp(-b_c)), p_c)
        b_low = _dot(b_c, _weights(p_down, o_r, o_r < R, o_d, D), b_low)
    b_low = _rounded(b_low, p_c)
    b_gamma = _dot(b_low, _weights(p_up, o_n, m_n, o_r, R), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
    b_beta = _dot(b_low, _weights(p_up, o_n + D, m_n, o_r, R), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
    b_gamma += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    b_beta += tl.load(p_bias + D + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    m_mn = m_m[:, None] & m_n[None, :]
    o_anchor = (o_i // N // members) * N + o_i % N
    b_anchor = tl.load(p_anchor + o_anchor[:, None] * D + o_n[None, :], mask=m_mn, other=0.0).to(tl.float32)
    b_out = b_anchor * (1.0 + b_gamma) + b_beta
    tl.store(p_out + o_i[:, None] * D + o_n[None, :], _rounded(b_out, p_out), mask=m_mn)


@triton.jit
def _noise_kernel(
    p_seeds,
    p_members,
    p_frame,
    p_steps,
    p_order,
    p_noise,
    B,
    N,
    scale,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """All tokens of one member: the rank of each among their words, and its normals at the mask step of that rank.

    `steps` [3, N] are, of each rank, the mask step, its first rank and the number of its tokens.
    """
    begin()
    i_b = tl.program_id(0).to(tl.int64)
    key = (tl.load(p_seeds + i_b) & MASK32) | (tl.load(p_members + i_b) << 32)
    frame = tl.load(p_frame).to(tl.uint32)
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < N
    b_none = tl.zeros([BLOCK_N], tl.uint32)
    b_own, _, _, _ = tl.philox(key, b_none, o_n.to(tl.uint32), b_none + ORDER_STEP, b_none + frame)
    b_rank = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, N, BLOCK_O):
        o_o = first + tl.arange(0, BLOCK_O)
        b_zero = tl.zeros([BLOCK_O], tl.uint32)
        b_word, _, _, _ = tl.philox(key, b_zero, o_o.to(tl.uint32), b_zero + ORDER_STEP, b_zero + frame)
        less = b_word[None, :] < b_own[:, None]
        first_of_equals = (b_word[None, :] == b_own[:, None]) & (o_o[None, :] < o_n[:, None])
        b_rank += tl.sum(((less | first_of_equals) & (o_o < N)[None, :]).to(tl.int32), axis=1)
    tl.store(p_order + i_b * N + b_rank, o_n.to(tl.int64), mask=m_n)
    b_step = tl.load(p_steps + b_rank, mask=m_n, other=0)
    b_begin = tl.load(p_steps + N + b_rank, mask=m_n, other=0)
    b_count = tl.load(p_steps + 2 * N + b_rank, mask=m_n, other=0)
    o_place = (b_begin * B + i_b * b_count + b_rank - b_begin) * C
    for first in range(0, E, BLOCK_E):
        o_e = first + tl.arange(0, BLOCK_E)
        b_all = tl.zeros([BLOCK_N, BLOCK_E], tl.uint32)
        w0, w1, w2, w3 = tl.philox(
            key,
            b_all + o_e.to(tl.uint32)[None, :],
            b_all + o_n.to(tl.uint32)[:, None],
            b_all + b_step.to(tl.uint32)[:, None],
            b_all + frame,
        )
        n0, n1 = _pair(w0, w1)
        n2, n3 = _pair(w2, w3)
        o_c = (o_e * 4)[None, :]
        p_own = p_noise + o_place[:, None] + o_c
        m_nc = m_n[:, None] & (o_c < C)
        tl.store(p_own, n0 * scale, mask=m_nc)
        tl.store(p_own + 1, n1 * scale, mask=m_nc & (o_c + 1 < C))
        tl.store(p_own + 2, n2 * scale, mask=m_nc & (o_c + 2 < C))
        tl.store(p_own + 3, n3 * scale, mask=m_nc & (o_c + 3 < C))


def launch_rows(
    base: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    places: Tensor | None,
    context: Tensor | None,
    tokens: Tensor | None,
    *,
    scale: float,
    first: int,
    concat: bool,
    x: Tensor,
    frame: Tensor | None,
) -> None:
    """Write rows of `x` [B, L, D]: those of all N tokens or of the `tokens` [B, M], from row `first` on.

    Each is `base` [D] + scale z [B, M, C] weight [D, C]^T + places [N, D] + context [B, N, D], and z is written into
    `frame` [B, N, C]. With `concat` the context and its places are rows of their own, before those of the tokens.
    """
    B, D = x.shape[0], x.shape[2]
    N = x.shape[1] // 2 if concat else x.shape[1]
    M = x.shape[1] if tokens is None else tokens.shape[1]
    C = 1 if z is None else z.shape[2]
    if B * M == 0:
        return
    tiles = _tiles(B * M, x)
    del tiles["BLOCK_D"]
    _rows_kernel[(triton.cdiv(B * M, tiles["BLOCK_M"]), triton.cdiv(D, tiles["BLOCK_N"]))](
        base,
        z,
        weight,
        places,
        context,
        tokens,
        x,
        frame,
        B,
        M,
        N,
        D,
        C,
        first,
        scale,
        *_two(z),
        *_two(tokens),
        *_two(x),
        *_two(frame),
        CONCAT=concat,
        HAS_Z=z is not None,
        HAS_PLACES=places is not None,
        HAS_CONTEXT=context is not None,
        HAS_TOKENS=tokens is not None,
        HAS_FRAME=frame is not None,
        BLOCK_C=_block(C),
        **tiles,
    )


def launch_read(
    x: Tensor, norm: Tensor | None, weight: Tensor, bias: Tensor, y: Tensor | None, *, eps: float, out: Tensor
) -> None:
    """Write fp32 `out` [R, C] from `x` [R, D]: of `weight` [C, D], or with `y` [R, C] of [2 C, D]."""
    R, D = x.shape
    C = out.shape[1]
    if R == 0:
        return
    tiles = _tiles(R, x)
    del tiles["BLOCK_N"]
    block_c = min(_block(C), 32)
    grid = (triton.cdiv(R, tiles["BLOCK_M"]), triton.cdiv(C, block_c))
    flags = {"NORM": norm is not None, "MOMENTS": y is not None}
    _read_kernel[grid](x, norm, weight, bias, y, out, R, D, C, eps, **flags, BLOCK_C=block_c, **tiles)


def launch_shifted(c: Tensor, anchor: Tensor, down: Tensor, up: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """Write `out` [B, N, D] from `c` [B, N, D], `anchor` [G, N, D], `down` [R, D], `up` [2 D, R] and `bias` [2 D]."""
    B, N, D = c.shape
    R = down.shape[0]
    tiles = _tiles(B * N, c)
    grid = (triton.cdiv(B * N, tiles["BLOCK_M"]), triton.cdiv(D, tiles["BLOCK_N"]))
    members = B // anchor.shape[0]
    _shifted_kernel[grid](c, anchor, down, up, bias, out, B, N, D, R, members, BLOCK_R=_block(R), **tiles)


def launch_noise(
    seeds: Tensor, members: Tensor, frame: Tensor, steps: Tensor, *, scale: float, order: Tensor, noise: Tensor
) -> None:
    """Write `order` [B, N] and, times `scale`, `noise`, [B, M, C] for each mask step; `steps` [3, N] int64."""
    B, N = order.shape
    C = noise.shape[-1]
    E = triton.cdiv(C, 4)
    block_n = triton.next_power_of_2(N)
    block_e = min(triton.next_power_of_2(E), max(1, 256 // block_n))
    _noise_kernel[(B,)](
        seeds,
        members,
        frame,
        steps,
        order,
        noise,
        B,
        N,
        scale,
        C=C,
        E=E,
        BLOCK_N=block_n,
        BLOCK_O=min(block_n, 32),
        BLOCK_E=block_e,
        num_warps=min(8, max(1, block_n * block_e // 32)),
        **OPTIONS,
    )
