"""Cross-attention with a geometry bias, forward: streaming softmax over the points, no Q x P matrix in memory.

s_qp  = q . k_p / sqrt(K) - m_h dist(x_q, x_p)
lse_q = log sum_p exp s_qp
out_q = sum_p exp(s_qp - lse_q) v_p
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))

# The limit keeps the assembler from spilling a few words to fit one more block on a multiprocessor.
MOST_REGISTERS = 255
# BLOCK_Q, BLOCK_P, warps, stages, by bytes of an element and the wider of BLOCK_K and BLOCK_V.
CONFIGS = {
    (2, 16): (64, 32, 4, 3),
    (2, 32): (64, 32, 4, 3),
    (2, 64): (128, 32, 8, 3),
    (2, 128): (64, 64, 8, 2),
    (4, 16): (32, 32, 4, 2),
    (4, 32): (32, 16, 4, 2),
    (4, 64): (32, 32, 8, 1),
    (4, 128): (16, 32, 8, 1),
}


@triton.jit
def dot(a, b):
    """a b in fp32; operands of 16 bits are exact products."""
    if INTERPRET:
        # Triton 3.9 interprets bf16 products wrongly.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def apart(b_rows, b_columns, period, PERIODIC: tl.constexpr):
    """x_row - x_column, to the nearest periodic image."""
    difference = b_rows[:, None] - b_columns[None, :]
    if PERIODIC:
        difference -= period * tl.floor(difference * (1.0 / period) + 0.5)
    return difference


@triton.jit
def coordinate(p_places, o_rows, m_rows, i_dim: tl.constexpr, DIMS: tl.constexpr):
    """Coordinate `i_dim` of some rows; 0 in a dimension that is not there."""
    if i_dim < DIMS:
        return tl.load(p_places + o_rows * DIMS + i_dim, mask=m_rows, other=0.0)
    else:
        return tl.zeros(o_rows.shape, dtype=tl.float32)


@triton.jit
def distances(r_0, r_1, r_2, c_0, c_1, c_2, period_0, period_1, period_2, DIMS: tl.constexpr, PERIODIC: tl.constexpr):
    """dist(x_row, x_column); bit i of PERIODIC: dimension i is periodic."""
    a = apart(r_0, c_0, period_0, PERIODIC % 2 == 1)
    square = a * a
    if DIMS > 1:
        a = apart(r_1, c_1, period_1, (PERIODIC // 2) % 2 == 1)
        square += a * a
    if DIMS > 2:
        a = apart(r_2, c_2, period_2, PERIODIC // 4 == 1)
        square += a * a
    return tl.sqrt(square)


@triton.jit
def rows(p_x, stride, o_rows, m_rows, o_width, WIDTH: tl.constexpr):
    """Rows [BLOCK, BLOCK_WIDTH], 0 outside."""
    m_x = m_rows[:, None] & (o_width < WIDTH)[None, :]
    return tl.load(p_x + o_rows[:, None] * stride + o_width[None, :], mask=m_x, other=0.0)


@triton.jit
def forward(
    p_q, p_k, p_v, p_at, p_places, p_slopes, p_valid, p_out, p_lse,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kr, stride_vb, stride_vh, stride_vr,
    stride_at, stride_places, H, Q, P, scale, period_0, period_1, period_2,
    K: tl.constexpr, V: tl.constexpr, DIMS: tl.constexpr, PERIODIC: tl.constexpr,
    HAS_VALID: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Formula of this module for BLOCK_Q queries and BLOCK_V value channels of one head."""
    program = tl.program_id(0).to(tl.int64)
    blocks_q = tl.cdiv(Q, BLOCK_Q)
    BLOCKS_V: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    i_q = program % blocks_q
    i_v = program // blocks_q % BLOCKS_V
    i_bh = program // blocks_q // BLOCKS_V
    i_b = i_bh // H
    i_h = i_bh % H

    o_q = i_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_k = tl.arange(0, BLOCK_K)
    o_v = i_v * BLOCK_V + tl.arange(0, BLOCK_V)
    m_q = o_q < Q
    b_q = rows(p_q + i_b * stride_qb + i_h * stride_qh, stride_qr, o_q, m_q, o_k, K)
    p_at += i_b * stride_at
    p_places += i_b * stride_places
    at_0 = coordinate(p_at, o_q, m_q, 0, DIMS)
    at_1 = coordinate(p_at, o_q, m_q, 1, DIMS)
    at_2 = coordinate(p_at, o_q, m_q, 2, DIMS)
    slope = tl.load(p_slopes + i_h) * LOG2_E
    p_k += i_b * stride_kb + i_h * stride_kh
    p_v += i_b * stride_vb + i_h * stride_vh

    most = tl.full([BLOCK_Q], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_Q], dtype=tl.float32)
    values = tl.zeros([BLOCK_Q, BLOCK_V], dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P).to(tl.int64)
        m_p = o_p < P
        if HAS_VALID:
            m_p = m_p & (tl.load(p_valid + i_b * P + o_p, mask=m_p, other=0) != 0)
        b_k = rows(p_k, stride_kr, o_p, m_p, o_k, K)
        distance = distances(
            at_0, at_1, at_2,
            coordinate(p_places, o_p, m_p, 0, DIMS),
            coordinate(p_places, o_p, m_p, 1, DIMS),
            coordinate(p_places, o_p, m_p, 2, DIMS),
            period_0, period_1, period_2, DIMS, PERIODIC,
        )  # fmt: skip
        logits = dot(b_q, tl.trans(b_k)) * (scale * LOG2_E) - slope * distance
        logits = tl.where(m_p[None, :], logits, float("-inf"))
        larger = tl.maximum(most, tl.max(logits, 1))
        # Nothing valid so far: any finite shift gives weights 0.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(logits - shift[:, None])
        factor = tl.exp2(most - shift)
        total = total * factor + tl.sum(weights, 1)
        b_v = rows(p_v, stride_vr, o_p, m_p, o_v, V)
        values = values * factor[:, None] + dot(weights.to(b_v.dtype), b_v)
        most = larger

    # Without a valid point: zeros, and minus infinity.
    total = tl.where(total > 0, total, 1.0)
    out = values / total[:, None]
    m_out = m_q[:, None] & (o_v < V)[None, :]
    p_out += i_bh * Q * V
    tl.store(p_out + o_q[:, None] * V + o_v[None, :], out.to(p_out.dtype.element_ty), mask=m_out)
    if i_v == 0:
        tl.store(p_lse + i_bh * Q + o_q, (most + tl.log2(total)) * LN_2, mask=m_q)


def block_of(width: int) -> int:
    """BLOCK_K or BLOCK_V: a power of two that tensor cores take, at most 128."""
    return min(max(16, triton.next_power_of_2(width)), 128)


def geometry(periods: tuple[float, ...]) -> tuple[list[float], int]:
    """Three periods (0: none), and the mask of the periodic dimensions."""
    mask = sum(1 << i for i, period in enumerate(periods) if period > 0)
    return [*map(float, periods), *[1.0] * (3 - len(periods))], mask


def strides(*tensors: Tensor) -> list[int]:
    """Strides of batch, head and row of each tensor, in elements; the last dimension is contiguous."""
    return [tensor.stride(i) for tensor in tensors for i in range(3)]


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    valid: Tensor | None,
    periods: tuple[float, ...],
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fill `out` [B, H, Q, V] and `lse` [B, H, Q] (fp32), contiguous; coordinates and slopes are contiguous fp32."""
    batches, heads, num_queries, head_dim = q.shape
    num_points, value_dim = v.shape[-2:]
    if out.numel() == 0:
        return
    block_k, block_v = block_of(head_dim), block_of(value_dim)
    block_q, block_p, warps, stages = CONFIGS[q.element_size(), max(block_k, block_v)]
    rings, mask = geometry(periods)
    grid = (triton.cdiv(num_queries, block_q) * triton.cdiv(value_dim, block_v) * batches * heads,)
    forward[grid](
        q, k, v, query_points, points, slopes, slopes if valid is None else valid, out, lse, *strides(q, k, v),
        query_points.stride(0) if query_points.ndim == 3 else 0, points.stride(0) if points.ndim == 3 else 0,
        heads, num_queries, num_points, head_dim**-0.5, *rings,
        K=head_dim, V=value_dim, DIMS=len(periods), PERIODIC=mask, HAS_VALID=valid is not None,
        BLOCK_Q=block_q, BLOCK_P=block_p, BLOCK_K=block_k, BLOCK_V=block_v, num_warps=warps, num_stages=stages,
        maxnreg=MOST_REGISTERS,
    )  # fmt: skip
