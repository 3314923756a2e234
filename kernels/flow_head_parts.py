"""Parts that the kernels of the flow head share: tiles, products summed in a fixed order, and statistics of norms.

Legend: M rows, N outputs of a product, K its summed dimension, W width of the head.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from .launches import OPTIONS

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))
EPS = tl.constexpr(1e-6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Tile of one product, with the warps and pipeline stages that execute it."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@triton.jit
def inside(o_n, N: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a block; those outside are clamped to the last one inside."""
    if N % BLOCK != 0:
        o_n = tl.minimum(o_n, N - 1)
    return o_n


@triton.jit
def silu(b_x):
    """x / (1 + exp(-x))"""
    return b_x * tl.sigmoid(b_x)


@triton.jit
def narrow(b_x, dtype: tl.constexpr):
    """Round x to `dtype`, to nearest even."""
    if INTERPRET and dtype == tl.bfloat16:
        # The cast of the interpreter truncates, so x is rounded before.
        b_x = b_x.to(tl.int32, bitcast=True)
        b_x = ((b_x + 0x7FFF + ((b_x >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return b_x.to(dtype)


@triton.jit
def dot(b_a, b_w, b_acc):
    """acc + a w"""
    if INTERPRET:
        # In the interpreter bfloat16 products are wrong, and fp32 sums depend on the place of the row in the tile.
        b_acc += tl.sum(b_a.to(tl.float32)[:, :, None] * b_w.to(tl.float32)[None, :, :], 1)
    else:
        b_acc = tl.dot(b_a, b_w, b_acc, input_precision="ieee")
    return b_acc


@triton.jit
def load_k(p, o_k, K: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr):
    """Load a block at pointers `p`, with offsets `o_k` along the summed dimension; zero past its end.

    If ROWS, o_k runs along the rows of the block (weights), else along its columns (activations).
    """
    if K % BLOCK_K == 0:
        b = tl.load(p)
    elif ROWS:
        b = tl.load(p, mask=(o_k < K)[:, None], other=0.0)
    else:
        b = tl.load(p, mask=(o_k < K)[None, :], other=0.0)
    return b


@triton.jit
def product(p_a, p_w, b_acc, end, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """acc + a w^T; p_a [BLOCK_M, 1] and p_w [1, BLOCK_N] point at the starts of the rows; end = K.

    `end` is no constant, so the loop is not unrolled, which saves registers for addresses.
    """
    for i_k in range(0, end, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        b_a = load_k(p_a + o_k[None, :], o_k, K, BLOCK_K, False)
        b_w = load_k(p_w + o_k[:, None], o_k, K, BLOCK_K, True)
        b_acc = dot(b_a, b_w, b_acc)
    return b_acc


@triton.jit
def block_statistics(b_y, o_n, W: tl.constexpr, BLOCK_N: tl.constexpr):
    """Mean and sum of squared deviations over the existing columns of a block of y."""
    if W % BLOCK_N == 0:
        n = tl.full([], BLOCK_N, tl.float32)
        b_mean = tl.sum(b_y, 1) / n
        b_d = b_y - b_mean[:, None]
    else:
        m_n = (o_n < W)[None, :]
        n = tl.sum((o_n < W).to(tl.float32), 0)
        b_mean = tl.sum(tl.where(m_n, b_y, 0.0), 1) / n
        b_d = tl.where(m_n, b_y - b_mean[:, None], 0.0)
    return b_mean, tl.sum(b_d * b_d, 1)


def padded_channels(channels: int) -> int:
    """Columns of a tile of the state, at least as many as a product needs."""
    return max(16, triton.next_power_of_2(channels))


def launch_options(config: Config) -> dict[str, int | bool]:
    """Tile and compiler options as keywords of a launch."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        # The default differs between releases of Triton.
        "enable_fp_fusion": True,
        **OPTIONS,
    }
