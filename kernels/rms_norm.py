"""h = x + residual;  y = h / sqrt(mean(h^2) + eps) * weight, a row at a time, and the gradients of y.

    n = x rstd     a = grad_y weight     grad_x = rstd (a - n mean(a n))     grad_weight = sum of grad_y n

The gradient of the weight is summed in two steps, in an order fixed by the number of rows: no atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile, several rows of a narrow one. The choice knows the width only, so that the bits of a row do not
# depend on the number of rows.
TILE = 1024
# Rows that one program of the backward sums, at least; at most so many programs.
MIN_ROWS = 16
MAX_PROGRAMS = 1024


def config(width: int) -> dict[str, int]:
    """Tile and warps for rows of this width."""
    block_w = triton.next_power_of_2(width)
    return {
        "BLOCK_R": max(1, TILE // block_w),
        "BLOCK_W": block_w,
        "num_warps": max(4, block_w // 256),
    }


@triton.jit
def _forward_kernel(
    p_x,
    p_weight,
    p_residual,
    p_y,
    p_h,
    p_rstd,
    R,
    W,
    s_x,
    s_residual,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_RSTD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """h = x + residual;  y = h / sqrt(mean(h^2) + eps) * weight."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_w = tl.arange(0, BLOCK_W)
    m_r = o_r < R
    m_w = o_w < W
    m_rw = m_r[:, None] & m_w[None, :]
    b_h = tl.load(p_x + o_r[:, None] * s_x + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        b_add = tl.load(p_residual + o_r[:, None] * s_residual + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
        b_rounded = (b_h + b_add).to(p_h.dtype.element_ty)
        tl.store(p_h + o_r[:, None] * W + o_w[None, :], b_rounded, mask=m_rw)
        b_h = b_rounded.to(tl.float32)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_h * b_h, axis=1) / W + eps)
    b_weight = tl.load(p_weight + o_w, mask=m_w, other=0.0).to(tl.float32)
    b_y = b_h * b_rstd[:, None] * b_weight[None, :]
    tl.store(p_y + o_r[:, None] * W + o_w[None, :], b_y.to(p_y.dtype.element_ty), mask=m_rw)
    if HAS_RSTD:
        tl.store(p_rstd + o_r, b_rstd, mask=m_r)


@triton.jit
def _backward_kernel(
    p_grad_y,
    p_x,
    p_rstd,
    p_weight,
    p_grad_x,
    p_sums,
    R,
    W,
    rows,
    s_x,
    WANT_X: tl.constexpr,
    WANT_WEIGHT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The gradients of `rows` rows; their sum for the weight goes to row program_id of sums [programs, W]."""
    i_program = tl.program_id(0).to(tl.int64)
    o_w = tl.arange(0, BLOCK_W)
    m_w = o_w < W
    b_weight = tl.load(p_weight + o_w, mask=m_w, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BLOCK_W], tl.float32)
    for i in range(0, rows, BLOCK_R):
        o_in = i + tl.arange(0, BLOCK_R)
        o_r = i_program * rows + o_in
        m_r = (o_in < rows) & (o_r < R)
        m_rw = m_r[:, None] & m_w[None, :]
        o_out = o_r[:, None] * W + o_w[None, :]
        b_a = tl.load(p_grad_y + o_out, mask=m_rw, other=0.0).to(tl.float32)
        b_n = tl.load(p_x + o_r[:, None] * s_x + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
        b_rstd = tl.load(p_rstd + o_r, mask=m_r, other=0.0)
        b_n = tl.where(m_rw, b_n * b_rstd[:, None], 0.0)
        if WANT_WEIGHT:
            b_sum += tl.sum(b_a * b_n, axis=0)
        if WANT_X:
            b_a *= b_weight[None, :]
            b_grad = (b_a - b_n * (tl.sum(b_a * b_n, axis=1) / W)[:, None]) * b_rstd[:, None]
            tl.store(p_grad_x + o_out, b_grad.to(p_grad_x.dtype.element_ty), mask=m_rw)
    if WANT_WEIGHT:
        tl.store(p_sums + i_program * W + o_w, b_sum, mask=m_w)


def _row_stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


def launch_forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, *, eps: float, y: Tensor, h: Tensor, rstd: Tensor
) -> None:
    """Write `y` [R, W]; `h` [R, W] if there is a residual; reciprocal root mean squares if `rstd` is [R]."""
    R, W = x.shape
    if R == 0:
        return
    tile = config(W)
    _forward_kernel[(triton.cdiv(R, tile["BLOCK_R"]),)](
        x,
        weight,
        residual,
        y,
        h,
        rstd,
        R,
        W,
        _row_stride(x),
        _row_stride(residual),
        eps,
        HAS_RESIDUAL=residual is not None,
        HAS_RSTD=rstd.shape[0] > 0,
        **tile,
    )


def launch_backward(
    grad_y: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, *, grad_x: Tensor, grad_weight: Tensor
) -> None:
    """Write `grad_x` [R, W] and `grad_weight` [W], each only if it is not empty."""
    R, W = x.shape
    tile = config(W)
    want_weight = grad_weight.shape[0] > 0
    # A program walks its rows, so it takes a single tile where nothing is summed over them.
    rows = max(MIN_ROWS, triton.cdiv(R, MAX_PROGRAMS)) if want_weight else tile["BLOCK_R"]
    programs = triton.cdiv(R, rows)
    sums = rstd.new_empty(programs, W)
    if R:
        _backward_kernel[(programs,)](
            grad_y,
            x,
            rstd,
            weight,
            grad_x,
            sums,
            R,
            W,
            rows,
            _row_stride(x),
            WANT_X=grad_x.shape[0] > 0,
            WANT_WEIGHT=want_weight,
            **tile,
        )
    if want_weight:
        grad_weight.copy_(sums.sum(0))
