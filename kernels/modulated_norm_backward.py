"""Gradients of h = x + gate * residual;  y = n * weight * (1 + scale) + shift  with n = norm(h).

    g         = grad_y * weight * (1 + scale)
    grad_x    = grad_h + (g - mean(g) - n mean(g n)) / deviation          no mean(g) for the RMS norm
    residual  : gate * grad_x          gate : residual * grad_x
    scale     : grad_y * weight * n    weight : sum of grad_y * (1 + scale) * n    shift : sum of grad_y

Gradients of single rows are summed in two steps, in an order fixed by the number of rows: no atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from .modulated_norm import config, row_stride

# Rows that one program sums, at least; at most so many programs.
MIN_ROWS = 16
MAX_PROGRAMS = 1024


@triton.jit
def _backward_kernel(
    p_grad_y,
    p_grad_h,
    p_h,
    p_stats,
    p_weight,
    p_scale,
    p_residual,
    p_gate,
    p_grad_x,
    p_grad_residual,
    p_grad_scale,
    p_grad_gate,
    p_sums,
    R,
    W,
    rows,
    s_h,
    s_scale,
    s_residual,
    s_gate,
    RMS: tl.constexpr,
    HAS_GRAD_H: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    WANT_X: tl.constexpr,
    WANT_RESIDUAL: tl.constexpr,
    WANT_SCALE: tl.constexpr,
    WANT_GATE: tl.constexpr,
    SUM_WEIGHT: tl.constexpr,
    SUM_SHIFT: tl.constexpr,
    SUM_SCALE: tl.constexpr,
    SUM_GATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The formulas above for `rows` rows; their sums go to row program_id of sums [4, programs, W]."""
    i_program = tl.program_id(0).to(tl.int64)
    o_w = tl.arange(0, BLOCK_W)
    m_w = o_w < W
    b_weight = tl.full([BLOCK_W], 1.0, tl.float32)
    if HAS_WEIGHT:
        b_weight = tl.load(p_weight + o_w, mask=m_w, other=0.0).to(tl.float32)
    b_sum_weight = tl.zeros([BLOCK_W], tl.float32)
    b_sum_shift = tl.zeros([BLOCK_W], tl.float32)
    b_sum_scale = tl.zeros([BLOCK_W], tl.float32)
    b_sum_gate = tl.zeros([BLOCK_W], tl.float32)
    for i in range(0, rows, BLOCK_R):
        o_in = i + tl.arange(0, BLOCK_R)
        o_r = i_program * rows + o_in
        m_r = (o_in < rows) & (o_r < R)
        m_rw = m_r[:, None] & m_w[None, :]
        o_out = o_r[:, None] * W + o_w[None, :]
        b_grad_y = tl.load(p_grad_y + o_out, mask=m_rw, other=0.0).to(tl.float32)
        b_n = tl.load(p_h + o_r[:, None] * s_h + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
        b_rstd = tl.load(p_stats + R + o_r, mask=m_r, other=0.0)
        if not RMS:
            b_n -= tl.load(p_stats + o_r, mask=m_r, other=0.0)[:, None]
        b_n = tl.where(m_rw, b_n * b_rstd[:, None], 0.0)
        b_g = b_grad_y
        if HAS_SCALE:
            b_scale = tl.load(p_scale + o_r[:, None] * s_scale + o_w[None, :], mask=m_rw, other=0.0)
            b_g *= 1.0 + b_scale.to(tl.float32)
        if SUM_WEIGHT:
            b_sum_weight += tl.sum(b_g * b_n, axis=0)
        if SUM_SHIFT:
            b_sum_shift += tl.sum(b_grad_y, axis=0)
        if WANT_SCALE or SUM_SCALE:
            b_grad_scale = b_grad_y * b_weight[None, :] * b_n
            if WANT_SCALE:
                tl.store(p_grad_scale + o_out, b_grad_scale.to(p_grad_scale.dtype.element_ty), mask=m_rw)
            if SUM_SCALE:
                b_sum_scale += tl.sum(b_grad_scale, axis=0)
        if WANT_X or WANT_RESIDUAL or WANT_GATE or SUM_GATE:
            b_g *= b_weight[None, :]
            b_grad = b_g - b_n * (tl.sum(b_g * b_n, axis=1) / W)[:, None]
            if not RMS:
                b_grad -= (tl.sum(b_g, axis=1) / W)[:, None]
            b_grad *= b_rstd[:, None]
            if HAS_GRAD_H:
                b_grad += tl.load(p_grad_h + o_out, mask=m_rw, other=0.0).to(tl.float32)
            if WANT_X:
                tl.store(p_grad_x + o_out, b_grad.to(p_grad_x.dtype.element_ty), mask=m_rw)
            if WANT_RESIDUAL:
                b_gate = tl.load(p_gate + o_r[:, None] * s_gate + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
                tl.store(p_grad_residual + o_out, (b_gate * b_grad).to(p_grad_residual.dtype.element_ty), mask=m_rw)
            if WANT_GATE or SUM_GATE:
                b_residual = tl.load(p_residual + o_r[:, None] * s_residual + o_w[None, :], mask=m_rw, other=0.0)
                b_grad *= b_residual.to(tl.float32)
                if WANT_GATE:
                    tl.store(p_grad_gate + o_out, b_grad.to(p_grad_gate.dtype.element_ty), mask=m_rw)
                if SUM_GATE:
                    b_sum_gate += tl.sum(b_grad, axis=0)
    s_sums = tl.num_programs(0).to(tl.int64) * W
    p_row = p_sums + i_program * W + o_w
    if SUM_WEIGHT:
        tl.store(p_row, b_sum_weight, mask=m_w)
    if SUM_SHIFT:
        tl.store(p_row + s_sums, b_sum_shift, mask=m_w)
    if SUM_SCALE:
        tl.store(p_row + 2 * s_sums, b_sum_scale, mask=m_w)
    if SUM_GATE:
        tl.store(p_row + 3 * s_sums, b_sum_gate, mask=m_w)


def launch_backward(
    grad_y: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    *,
    rms: bool,
    grad_x: Tensor,
    grad_weight: Tensor,
    grad_shift: Tensor,
    grad_scale: Tensor,
    grad_residual: Tensor,
    grad_gate: Tensor,
) -> None:
    """Write every ``grad_*`` that has rows: all R, or one that is the sum over rows (always for weight and shift)."""
    R, W = h.shape
    tile = config(W)
    # A program walks its rows, so one whose parameters are row-wise takes a single tile.
    single = [
        grad_weight.shape[0] > 0,
        grad_shift.shape[0] > 0,
        grad_scale.shape[0] > 0 and scale is not None and scale.shape[0] == 1,
        grad_gate.shape[0] > 0 and gate is not None and gate.shape[0] == 1,
    ]
    rows = max(MIN_ROWS, triton.cdiv(R, MAX_PROGRAMS)) if any(single) else tile["BLOCK_R"]
    programs = triton.cdiv(R, rows)
    sums = h.new_empty(4, programs, W, dtype=stats.dtype)
    if R:
        _backward_kernel[(programs,)](
            grad_y,
            grad_h,
            h,
            stats,
            weight,
            scale,
            residual,
            gate,
            grad_x,
            grad_residual,
            grad_scale,
            grad_gate,
            sums,
            R,
            W,
            rows,
            row_stride(h),
            row_stride(scale),
            row_stride(residual),
            row_stride(gate),
            RMS=rms,
            HAS_GRAD_H=grad_h is not None,
            HAS_WEIGHT=weight is not None,
            HAS_SCALE=scale is not None,
            HAS_GATE=gate is not None,
            WANT_X=grad_x.shape[0] > 0,
            WANT_RESIDUAL=grad_residual.shape[0] > 0,
            WANT_SCALE=grad_scale.shape[0] > 0 and not single[2],
            WANT_GATE=grad_gate.shape[0] > 0 and not single[3],
            SUM_WEIGHT=single[0],
            SUM_SHIFT=single[1],
            SUM_SCALE=single[2],
            SUM_GATE=single[3],
            **tile,
        )
    for out, parts, is_sum in zip((grad_weight, grad_shift, grad_scale, grad_gate), sums, single, strict=True):
        if is_sum:
            out.copy_(parts.sum(0, keepdim=True))
