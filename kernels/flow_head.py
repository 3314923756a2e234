"""The flow-matching head as tiled products: what `enma_fast.ops.flow_head` computes, one kernel per product.

    before the loop   m_k = silu(W_c c + b_c + time_k),  modulations of all blocks and evaluations = W_mod m + b_mod
    each evaluation   h = silu(W_up (norm(y) (1 + scale) + shift) + b_up)                    up, once per block
                      y = y + gate (W_down h + b_down)                                       down, once per block
                      x = start + h_k (W_out (norm(y) (1 + scale) + shift) + b_out),  y = W_in x + b_in         move

Legend: M rows, C token channels, D width of the condition, W width of the head, L blocks, R evaluations, T evaluations
whose modulations exist at one time, N outputs of a product, G column blocks of a row.

The residual y, its statistics, the modulation arithmetic and the state are fp32; h, m and the modulations are stored in
the dtype of the weights. Each kernel that writes y also writes the mean and squared deviation of its own BLOCK_N
columns, so that the next kernel normalises in its prologue without reading the row twice.

No reduction mixes two rows, and all sums run in a fixed order, so the bits of a row depend only on the launch
configuration. Rows and columns outside a tensor read the last one inside it, and are not stored.

Products of fp32 weights are IEEE products: TF32 is less accurate than the reference, and so is the accumulation of
three TF32 products, which truncates.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flow_head_parts import (
    EPS,
    Config,
    block_statistics,
    dot,
    inside,
    launch_options,
    load_k,
    narrow,
    padded_channels,
    product,
    silu,
)
from .launches import OPTIONS, begin

# Three products per regime. `linear` computes the modulations: many rows, so a square tile that feeds the tensor cores.
# `block` is up and down; its prologue reads 8 bytes per element of y, shift and scale in every column block. For few
# rows the tiles are narrow, to spread over the multiprocessors (W = 512 gives 16 programs for 16 rows). For more rows
# they are wide, to read the operands of the prologue only 4 times; shared memory stays under 99 KB, so that two
# programs fit an H100. `move` has only C columns: short tiles, with the block_n of `block`, since both write statistics
# of y. fp32 has no tensor cores: both operands of a step are in registers, so steps are short. The values come from
# arithmetic and from compiling without spills, not from measurements.
CONFIGS = {
    ("small", torch.bfloat16): {
        "linear": Config(block_m=64, block_n=64, block_k=64, num_warps=4, num_stages=4),
        "block": Config(block_m=16, block_n=32, block_k=128, num_warps=4, num_stages=3),
        "move": Config(block_m=16, block_n=32, block_k=128, num_warps=4, num_stages=3),
    },
    ("medium", torch.bfloat16): {
        "linear": Config(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3),
        "block": Config(block_m=64, block_n=128, block_k=32, num_warps=8, num_stages=4),
        "move": Config(block_m=16, block_n=128, block_k=128, num_warps=4, num_stages=3),
    },
    ("small", torch.float32): {
        "linear": Config(block_m=32, block_n=64, block_k=32, num_warps=4, num_stages=3),
        "block": Config(block_m=16, block_n=32, block_k=32, num_warps=4, num_stages=3),
        "move": Config(block_m=16, block_n=32, block_k=32, num_warps=4, num_stages=3),
    },
    ("medium", torch.float32): {
        "linear": Config(block_m=64, block_n=64, block_k=16, num_warps=4, num_stages=3),
        "block": Config(block_m=64, block_n=64, block_k=16, num_warps=4, num_stages=3),
        "move": Config(block_m=16, block_n=64, block_k=32, num_warps=4, num_stages=3),
    },
}


# Numbers of a weight tile of `move` at most.
MOVE_TILE = 8192


def column_blocks(width: int, config: Config) -> int:
    """Number of column blocks of y, each with a pair of statistics per row."""
    return triton.cdiv(width, config.block_n)


@triton.jit
def _store_statistics(b_y, p_stats, o_m, m_m, o_n, i_g, W: tl.constexpr, G: tl.constexpr, BLOCK_N: tl.constexpr):
    """stats[m, 0, g] = mean, stats[m, 1, g] = sum of squared deviations of column block g"""
    b_mean, b_square = block_statistics(b_y, o_n, W, BLOCK_N)
    tl.store(p_stats + o_m * (2 * G) + i_g, b_mean, mask=m_m)
    tl.store(p_stats + o_m * (2 * G) + G + i_g, b_square, mask=m_m)


@triton.jit
def _load_statistics(p_stats, o_m, W: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of rows of y, from those of the column blocks."""
    o_g = tl.arange(0, BLOCK_G)
    m_g = (o_g < G)[None, :]
    b_n = tl.where(o_g < G, tl.minimum(W - o_g * BLOCK_N, BLOCK_N), 0).to(tl.float32)[None, :]
    p_g = p_stats + (o_m * (2 * G))[:, None] + o_g[None, :]
    b_means = tl.load(p_g, mask=m_g, other=0.0)
    b_squares = tl.load(p_g + G, mask=m_g, other=0.0)
    b_mean = tl.sum(b_means * b_n, 1) / W
    b_d = b_means - b_mean[:, None]
    b_square = tl.sum(b_squares + b_n * b_d * b_d, 1)
    return b_mean, tl.rsqrt(b_square / W + EPS)


@triton.jit
def _modulated_product(
    p_y,
    p_shift,
    p_w,
    b_mean,
    b_rstd,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(norm(y) (1 + scale) + shift) w^T; the pointers are at the starts of the rows, scale lies W after shift."""
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_k in range(0, W, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        b_y = load_k(p_y + o_k[None, :], o_k, W, BLOCK_K, False)
        b_shift = load_k(p_shift + o_k[None, :], o_k, W, BLOCK_K, False).to(tl.float32)
        b_scale = load_k(p_shift + W + o_k[None, :], o_k, W, BLOCK_K, False).to(tl.float32)
        b_w = load_k(p_w + o_k[:, None], o_k, W, BLOCK_K, True)
        b_a = (b_y - b_mean[:, None]) * b_rstd[:, None] * (1.0 + b_scale) + b_shift
        b_acc = dot(narrow(b_a, b_w.dtype), b_w, b_acc)
    return b_acc


@triton.jit
def _tile(M, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Column block, rows (clamped), mask of the rows, columns; column blocks of the same rows are neighbours."""
    i_n = tl.program_id(0) % tl.cdiv(N, BLOCK_N)
    o_m = (tl.program_id(0) // tl.cdiv(N, BLOCK_N)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    return i_n, tl.minimum(o_m, M - 1), o_m < M, i_n * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    p_a,
    p_w,
    p_bias,
    p_out,
    M,
    end,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = a w^T + bias; end = K, see `product`"""
    begin()
    _, o_m, m_m, o_n = _tile(M, N, BLOCK_M, BLOCK_N)
    i_n = inside(o_n, N, BLOCK_N)
    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_out = product(p_a + o_m[:, None] * K, p_w + i_n[None, :] * K, b_out, end, K, BLOCK_K)
    b_out += tl.load(p_bias + i_n).to(tl.float32)[None, :]
    p = p_out + o_m[:, None] * N + o_n[None, :]
    tl.store(p, narrow(b_out, p_out.dtype.element_ty), mask=m_m[:, None] & (o_n < N)[None, :])


@triton.jit(do_not_specialize=["M"])
def _inputs_kernel(p_condition, p_time, p_m, M, W: tl.constexpr, BLOCK: tl.constexpr):
    """m[t] = silu(condition + time[t])"""
    begin()
    i_t = tl.program_id(1)
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = M.to(tl.int64) * W
    m = o < size
    b_x = tl.load(p_condition + o, mask=m, other=0.0) + tl.load(p_time + i_t * W + o % W).to(tl.float32)
    tl.store(p_m + i_t * size + o, narrow(silu(b_x), p_m.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["M"])
def _up_kernel(
    p_y,
    p_stats,
    p_modulation,
    p_w,
    p_bias,
    p_out,
    M,
    o_block,
    W: tl.constexpr,
    N_MODULATION: tl.constexpr,
    G: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h = silu(w (norm(y) (1 + scale) + shift) + bias)"""
    begin()
    _, o_m, m_m, o_n = _tile(M, W, BLOCK_M, BLOCK_N)
    i_n = inside(o_n, W, BLOCK_N)
    b_mean, b_rstd = _load_statistics(p_stats, o_m, W, G, BLOCK_G, BLOCK_N)
    p_y += o_m[:, None] * W
    p_shift = p_modulation + o_m[:, None] * N_MODULATION + o_block
    p_w += i_n[None, :] * W
    b_h = _modulated_product(p_y, p_shift, p_w, b_mean, b_rstd, W, BLOCK_M, BLOCK_N, BLOCK_K)
    b_h = silu(b_h + tl.load(p_bias + i_n).to(tl.float32)[None, :])
    p = p_out + o_m[:, None] * W + o_n[None, :]
    tl.store(p, narrow(b_h, p_out.dtype.element_ty), mask=m_m[:, None] & (o_n < W)[None, :])


@triton.jit(do_not_specialize=["M"])
def _down_kernel(
    p_h,
    p_modulation,
    p_w,
    p_bias,
    p_y,
    p_stats,
    M,
    end,
    o_block,
    W: tl.constexpr,
    N_MODULATION: tl.constexpr,
    G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = y + gate (w h + bias), in place, with the statistics of this column block; end = W, see `product`"""
    begin()
    i_g, o_m, m_m, o_n = _tile(M, W, BLOCK_M, BLOCK_N)
    i_n = inside(o_n, W, BLOCK_N)
    b_d = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_d = product(p_h + o_m[:, None] * W, p_w + i_n[None, :] * W, b_d, end, W, BLOCK_K)
    b_d += tl.load(p_bias + i_n).to(tl.float32)[None, :]
    b_gate = tl.load(p_modulation + o_m[:, None] * N_MODULATION + o_block + 2 * W + i_n[None, :]).to(tl.float32)
    # The owner of a clamped element may have overwritten it already: read only elements that are stored here.
    p = p_y + o_m[:, None] * W + o_n[None, :]
    m = m_m[:, None] & (o_n < W)[None, :]
    b_y = tl.load(p, mask=m, other=0.0) + b_gate * b_d
    tl.store(p, b_y, mask=m)
    _store_statistics(b_y, p_stats, o_m, m_m, o_n, i_g, W, G, BLOCK_N)


@triton.jit(do_not_specialize=["M"])
def _move_kernel(
    p_start,
    p_y,
    p_stats,
    p_modulation,
    p_w_out,
    p_bias_out,
    p_w_in,
    p_bias_in,
    p_x,
    M,
    o_block,
    h,
    C: tl.constexpr,
    W: tl.constexpr,
    N_MODULATION: tl.constexpr,
    G: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OUTWARD: tl.constexpr,
    STORE: tl.constexpr,
    INWARD: tl.constexpr,
):
    """x = start + h (w_out (norm(y) (1 + scale) + shift) + bias_out) if OUTWARD, and y = w_in x + bias_in if INWARD"""
    begin()
    i_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = i_m < M
    o_m = tl.minimum(i_m, M - 1)
    o_c = tl.arange(0, BLOCK_C)
    i_c = inside(o_c, C, BLOCK_C)
    b_x = tl.load(p_start + o_m[:, None] * C + i_c[None, :])
    if OUTWARD:
        b_mean, b_rstd = _load_statistics(p_stats, o_m, W, G, BLOCK_G, BLOCK_N)
        p_shift = p_modulation + o_m[:, None] * N_MODULATION + o_block
        b_v = _modulated_product(
            p_y + o_m[:, None] * W, p_shift, p_w_out + i_c[None, :] * W, b_mean, b_rstd, W, BLOCK_M, BLOCK_C, BLOCK_K
        )
        b_x += h * (b_v + tl.load(p_bias_out + i_c).to(tl.float32)[None, :])
    if STORE:
        tl.store(p_x + o_m[:, None] * C + o_c[None, :], b_x, mask=m_m[:, None] & (o_c < C)[None, :])
    if INWARD:
        if OUTWARD:
            # The threads that read y are not those that overwrite it.
            tl.debug_barrier()
        b_x = narrow(b_x, p_w_in.dtype.element_ty)
        for i_g in range(G):
            o_n = i_g * BLOCK_N + tl.arange(0, BLOCK_N)
            i_n = inside(o_n, W, BLOCK_N)
            b_w = tl.load(p_w_in + i_n[None, :] * C + i_c[:, None], mask=(o_c < C)[:, None], other=0.0)
            b_y = dot(b_x, b_w, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
            b_y += tl.load(p_bias_in + i_n).to(tl.float32)[None, :]
            tl.store(p_y + o_m[:, None] * W + o_n[None, :], b_y, mask=m_m[:, None] & (o_n < W)[None, :])
            _store_statistics(b_y, p_stats, o_m, m_m, o_n, i_g, W, G, BLOCK_N)


def launch_linear(a_MK: Tensor, w_NK: Tensor, bias_N: Tensor, *, config: Config, out: Tensor) -> None:
    """out [M, N] = a w^T + bias, in the dtype of `out`."""
    M, N, K = a_MK.shape[0], *w_NK.shape
    grid = (triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n),)
    _linear_kernel[grid](a_MK, w_NK, bias_N, out, M, K, N, K, **launch_options(config))


def launch_inputs(condition_MW: Tensor, time_TW: Tensor, *, out: Tensor) -> None:
    """out [T, M, W] = silu(condition + time)."""
    M, W = condition_MW.shape
    _inputs_kernel[(triton.cdiv(M * W, 1024), time_TW.shape[0])](
        condition_MW, time_TW, out, M, W, BLOCK=1024, enable_fp_fusion=True, **OPTIONS
    )


def launch_up(
    y_MW: Tensor,
    stats_M2G: Tensor,
    modulation_MN: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    block: int,
    config: Config,
    out: Tensor,
) -> None:
    """out [M, W] = silu(weight (norm(y) (1 + scale) + shift) + bias) with the modulations of `block`."""
    M, W = y_MW.shape
    G = column_blocks(W, config)
    _up_kernel[(triton.cdiv(M, config.block_m) * G,)](
        y_MW,
        stats_M2G,
        modulation_MN,
        weight,
        bias,
        out,
        M,
        3 * block * W,
        W,
        modulation_MN.shape[1],
        G,
        triton.next_power_of_2(G),
        **launch_options(config),
    )


def launch_down_(
    h_MW: Tensor,
    modulation_MN: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    block: int,
    config: Config,
    y_MW: Tensor,
    stats_M2G: Tensor,
) -> None:
    """y += gate (weight h + bias), and the statistics of y."""
    M, W = y_MW.shape
    G = column_blocks(W, config)
    _down_kernel[(triton.cdiv(M, config.block_m) * G,)](
        h_MW,
        modulation_MN,
        weight,
        bias,
        y_MW,
        stats_M2G,
        M,
        W,
        3 * block * W,
        W,
        modulation_MN.shape[1],
        G,
        **launch_options(config),
    )


def launch_move_(
    start_MC: Tensor,
    modulation_MN: Tensor | None,
    outward: tuple[Tensor, Tensor],
    inward: tuple[Tensor, Tensor],
    *,
    h: float,
    again: bool,
    config: Config,
    y_MW: Tensor,
    stats_M2G: Tensor,
    out: Tensor | None,
) -> None:
    """x = start + h v(y), or start without modulations, stored in `out` if given; `again` also y and its statistics."""
    M, C = start_MC.shape
    W = y_MW.shape[1]
    G = column_blocks(W, config)
    # All channels are in one tile: where they are many, shorter tiles of W keep within the shared memory.
    config = replace(config, block_k=min(config.block_k, max(16, MOVE_TILE // padded_channels(C))))
    modulation = y_MW if modulation_MN is None else modulation_MN
    _move_kernel[(triton.cdiv(M, config.block_m),)](
        start_MC,
        y_MW,
        stats_M2G,
        modulation,
        *outward,
        *inward,
        start_MC if out is None else out,
        M,
        modulation.shape[1] - 2 * W if modulation_MN is not None else 0,
        h,
        C,
        W,
        modulation.shape[1],
        G,
        triton.next_power_of_2(G),
        padded_channels(C),
        OUTWARD=modulation_MN is not None,
        STORE=out is not None,
        INWARD=again,
        **launch_options(config),
    )
