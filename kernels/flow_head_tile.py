"""The flow-matching head with the whole integration in one launch: a program carries a tile of rows through it.

    m = silu(condition + time_k),  y = W_in x + b_in                                   for each evaluation k
    a = norm(y) (1 + scale) + shift,  h = silu(W_up a + b_up),  y = y + gate (W_down h + b_down)   for each block
    x = start + h_k (W_out (norm(y) (1 + scale) + shift) + b_out)

Legend: M rows, C token channels, W width of the head, L blocks, R evaluations, P programs.

Modulations are products of m, computed where they are used and never kept: at 16,000 rows they would be 180 MB per
evaluation, whose traffic costs as much as the products.

y in fp32 beside an accumulator of its size does not fit the register file: 128 rows of two times 512 values are twice
of it, 64 rows all of it, and the fewer the rows, the more often all weights are read from the level-2 cache, which is
the limit here. So y, m, a and h live in scratch that belongs to the program and are read back column block by column
block. A program keeps its scratch from tile to tile: the size is that of P tiles, whatever M.

The threads of a program exchange values through scratch: each phase ends with a barrier. Column blocks and evaluations
run in one order, so a row's bits depend on the configuration only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flow_head_parts import (
    EPS,
    INTERPRET,
    Config,
    block_statistics,
    dot,
    inside,
    launch_options,
    narrow,
    padded_channels,
    product,
    silu,
)

# 128 x 64 with 8 warps is the largest tile that no compiler spills: an accumulator of 32 registers per thread, an
# operand of the same shape beside it, and their changes of layout. 128 x 128 would read a third less from the level-2
# cache and spills 45 to 277 times. fp32 has no tensor cores: both operands of a step are in registers, so steps are
# short. From the cubins and from arithmetic, not from a measurement.
CONFIGS = {
    torch.bfloat16: Config(block_m=128, block_n=64, block_k=64, num_warps=8, num_stages=3),
    torch.float32: Config(block_m=64, block_n=64, block_k=16, num_warps=8, num_stages=3),
}


@triton.jit
def _here(i):
    """i, known from here on only: else the compiler keeps the addresses of all phases in registers, and spills."""
    if not INTERPRET:
        i = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [i], dtype=tl.int32, is_pure=False, pack=1)
    return i


@triton.jit
def _rows(p, BLOCK_M: tl.constexpr, W: tl.constexpr):
    """[BLOCK_M, 1] pointers at the starts of the rows of this program's scratch."""
    return p + _here(tl.program_id(0)).to(tl.int64) * (BLOCK_M * W) + (tl.arange(0, BLOCK_M) * W)[:, None]


@triton.jit
def _tile_rows(i_tile, M, BLOCK_M: tl.constexpr):
    """Rows of a tile, and which of them exist; those outside the tensor are its last one."""
    o_m = (_here(i_tile) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    return tl.minimum(o_m, M - 1)[:, None], (o_m < M)[:, None]


@triton.jit
def _modulated(
    p_m,
    p_y,
    p_w,
    p_bias,
    i_n,
    end,
    b_mean,
    b_square,
    b_zero,
    W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """norm(y) (1 + scale) + shift in columns i_n; the rows of w are shift, then scale."""
    p_w += i_n[None, :] * W
    b_scale = product(p_m, p_w + W * W, b_zero, end, W, BLOCK_K)
    b_scale += tl.load(p_bias + W + i_n).to(tl.float32)[None, :] + 1.0
    # One accumulator at a time: y is read after the product, and the product of the shift starts from the rest.
    tl.debug_barrier()
    b_a = (tl.load(p_y + i_n[None, :]) - b_mean[:, None]) * tl.rsqrt(b_square / W + EPS)[:, None] * b_scale
    b_a += tl.load(p_bias + i_n).to(tl.float32)[None, :]
    return product(p_m, p_w, b_a, end, W, BLOCK_K)


@triton.jit
def _add_statistics(b_mean, b_square, b_y, o_n, W: tl.constexpr, BLOCK_N: tl.constexpr):
    """Mean and sum of squared deviations of the columns before this block, and of those with it."""
    n_before = tl.min(o_n, 0).to(tl.float32)
    n, b_block_mean, b_block_square = block_statistics(b_y, o_n, W, BLOCK_N)
    b_delta = b_block_mean - b_mean
    share = n / (n_before + n)
    return b_mean + b_delta * share, b_square + b_block_square + b_delta * b_delta * (n_before * share)


@triton.jit(do_not_specialize=["M", "R", "L", "P", "end"])
def _tile_kernel(
    p_condition,
    p_noise,
    p_out,
    p_y,
    p_m,
    p_a,
    p_h,
    p_x,
    p_start,
    p_w_in,
    p_bias_in,
    p_w_modulation,
    p_bias_modulation,
    p_w_up,
    p_bias_up,
    p_w_down,
    p_bias_down,
    p_w_out,
    p_bias_out,
    p_time,
    p_moves,
    M,
    R,
    L,
    P,
    end,
    C: tl.constexpr,
    W: tl.constexpr,
    MOVES_PER_STEP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = the state after R evaluations from noise, by the formula of this module; end = W, see `product`."""
    dtype = p_w_in.dtype.element_ty
    o_c = tl.arange(0, BLOCK_C)
    i_c = inside(o_c, C, BLOCK_C)
    b_zero = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_tile in range(tl.program_id(0), tl.cdiv(M, BLOCK_M), P):
        o_m, _ = _tile_rows(i_tile, M, BLOCK_M)
        tl.store(_rows(p_x, BLOCK_M, BLOCK_C) + o_c[None, :], tl.load(p_noise + o_m * C + i_c[None, :]))
        for k in range(R):
            # The state is written; nobody reads y and m of the evaluation before any more.
            tl.debug_barrier()
            b_x = tl.load(_rows(p_x, BLOCK_M, BLOCK_C) + o_c[None, :])
            if k % MOVES_PER_STEP == 0:
                tl.store(_rows(p_start, BLOCK_M, BLOCK_C) + o_c[None, :], b_x)
            b_x = narrow(b_x, dtype)
            o_m, _ = _tile_rows(i_tile, M, BLOCK_M)
            b_mean = tl.zeros([BLOCK_M], tl.float32)
            b_square = tl.zeros([BLOCK_M], tl.float32)
            for i_n in range(0, W, BLOCK_N):
                o_n = i_n + tl.arange(0, BLOCK_N)
                m_n = (o_n < W)[None, :]
                b_n = inside(o_n, W, BLOCK_N)
                b_m = tl.load(p_condition + o_m * W + b_n[None, :])
                b_m = silu(b_m + tl.load(p_time + k * W + b_n).to(tl.float32)[None, :])
                tl.store(_rows(p_m, BLOCK_M, W) + o_n[None, :], narrow(b_m, dtype), mask=m_n)
                b_w = tl.load(p_w_in + b_n[None, :] * C + i_c[:, None], mask=(o_c < C)[:, None], other=0.0)
                b_y = dot(b_x, b_w, b_zero) + tl.load(p_bias_in + b_n).to(tl.float32)[None, :]
                tl.store(_rows(p_y, BLOCK_M, W) + o_n[None, :], b_y, mask=m_n)
                b_mean, b_square = _add_statistics(b_mean, b_square, b_y, o_n, W, BLOCK_N)
            tl.debug_barrier()
            for i_l in range(L + 1):
                p_w = p_w_modulation + i_l * (3 * W * W)
                p_bias = p_bias_modulation + i_l * (3 * W)
                for i_n in range(0, W, BLOCK_N):
                    o_n = i_n + tl.arange(0, BLOCK_N)
                    b_n = inside(o_n, W, BLOCK_N)
                    p_row = _rows(p_m, BLOCK_M, W)
                    p_y_row = _rows(p_y, BLOCK_M, W)
                    b_a = _modulated(p_row, p_y_row, p_w, p_bias, b_n, end, b_mean, b_square, b_zero, W, BLOCK_K)
                    tl.store(_rows(p_a, BLOCK_M, W) + o_n[None, :], narrow(b_a, dtype), mask=(o_n < W)[None, :])
                tl.debug_barrier()
                if i_l < L:
                    for i_n in range(0, W, BLOCK_N):
                        o_n = i_n + tl.arange(0, BLOCK_N)
                        b_n = inside(o_n, W, BLOCK_N)
                        p_n = p_w_up + i_l * (W * W) + b_n[None, :] * W
                        b_h = product(_rows(p_a, BLOCK_M, W), p_n, b_zero, end, W, BLOCK_K)
                        b_h = silu(b_h + tl.load(p_bias_up + i_l * W + b_n).to(tl.float32)[None, :])
                        tl.store(_rows(p_h, BLOCK_M, W) + o_n[None, :], narrow(b_h, dtype), mask=(o_n < W)[None, :])
                    tl.debug_barrier()
                    b_mean = tl.zeros([BLOCK_M], tl.float32)
                    b_square = tl.zeros([BLOCK_M], tl.float32)
                    for i_n in range(0, W, BLOCK_N):
                        o_n = i_n + tl.arange(0, BLOCK_N)
                        m_n = (o_n < W)[None, :]
                        b_n = inside(o_n, W, BLOCK_N)
                        p_n = p_w + 2 * W * W + b_n[None, :] * W
                        b_gate = product(_rows(p_m, BLOCK_M, W), p_n, b_zero, end, W, BLOCK_K)
                        b_gate += tl.load(p_bias + 2 * W + b_n).to(tl.float32)[None, :]
                        # In place of a, which is no longer needed, while the other product has the registers.
                        tl.store(_rows(p_a, BLOCK_M, W) + o_n[None, :], narrow(b_gate, dtype), mask=m_n)
                        tl.debug_barrier()
                        p_n = p_w_down + i_l * (W * W) + b_n[None, :] * W
                        b_y = product(_rows(p_h, BLOCK_M, W), p_n, b_zero, end, W, BLOCK_K)
                        b_y += tl.load(p_bias_down + i_l * W + b_n).to(tl.float32)[None, :]
                        tl.debug_barrier()
                        b_y *= tl.load(_rows(p_a, BLOCK_M, W) + b_n[None, :]).to(tl.float32)
                        tl.debug_barrier()
                        b_y += tl.load(_rows(p_y, BLOCK_M, W) + o_n[None, :], mask=m_n, other=0.0)
                        tl.store(_rows(p_y, BLOCK_M, W) + o_n[None, :], b_y, mask=m_n)
                        b_mean, b_square = _add_statistics(b_mean, b_square, b_y, o_n, W, BLOCK_N)
                    tl.debug_barrier()
            b_v = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
            b_v = product(_rows(p_a, BLOCK_M, W), p_w_out + i_c[None, :] * W, b_v, end, W, BLOCK_K)
            b_v += tl.load(p_bias_out + i_c).to(tl.float32)[None, :]
            b_x = tl.load(_rows(p_start, BLOCK_M, BLOCK_C) + o_c[None, :]) + tl.load(p_moves + k) * b_v
            tl.store(_rows(p_x, BLOCK_M, BLOCK_C) + o_c[None, :], b_x)
        tl.debug_barrier()
        b_x = tl.load(_rows(p_x, BLOCK_M, BLOCK_C) + o_c[None, :])
        # Every thread has read the state before the next tile's is written.
        tl.debug_barrier()
        o_m, m_m = _tile_rows(i_tile, M, BLOCK_M)
        tl.store(p_out + o_m * C + o_c[None, :], b_x, mask=m_m & (o_c < C)[None, :])


def launch_tile(
    condition_MW: Tensor,
    noise_MC: Tensor,
    weights: tuple[Tensor, ...],
    time_RW: Tensor,
    moves_R: Tensor,
    *,
    moves_per_step: int,
    config: Config,
    scratch: tuple[Tensor, ...],
    out: Tensor,
) -> None:
    """out [M, C] = the state after all evaluations, from condition = W_c c + b_c in fp32.

    `weights`: weight and bias of inward, modulations [(3L+2)W, W], up [L, W, W], down [L, W, W], outward.
    `scratch`: y in fp32, m, a and h in the dtype of the weights, each [P block_m, W]; the state and that at the start
    of a step in fp32, each [P block_m, padded channels].
    """
    M, W = condition_MW.shape
    C = noise_MC.shape[1]
    programs = scratch[0].shape[0] // config.block_m
    _tile_kernel[(programs,)](
        condition_MW,
        noise_MC,
        out,
        *scratch,
        *weights,
        time_RW,
        moves_R,
        M,
        moves_R.shape[0],
        weights[4].shape[0],
        programs,
        W,
        C,
        W,
        moves_per_step,
        padded_channels(C),
        **launch_options(config),
    )
