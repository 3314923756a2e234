"""h = x + gate * residual;  y = norm(h) * weight * (1 + scale) + shift, a row at a time.

norm(h) is (h - mean) / sqrt(var + eps), or h / sqrt(mean square + eps). Parameters of one row have row stride 0.
"""

import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile, several rows of a narrow one. The choice knows the width only, so that the bits of a row do not
# depend on the number of rows.
TILE = 1024


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
    p_shift,
    p_scale,
    p_residual,
    p_gate,
    p_y,
    p_h,
    p_stats,
    R,
    W,
    s_x,
    s_shift,
    s_scale,
    s_residual,
    s_gate,
    eps,
    RMS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_STATS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """h = x + gate * residual;  y = norm(h) * weight * (1 + scale) + shift."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_w = tl.arange(0, BLOCK_W)
    m_r = o_r < R
    m_w = o_w < W
    m_rw = m_r[:, None] & m_w[None, :]
    b_h = tl.load(p_x + o_r[:, None] * s_x + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        b_add = tl.load(p_residual + o_r[:, None] * s_residual + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
        if HAS_GATE:
            b_add *= tl.load(p_gate + o_r[:, None] * s_gate + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
        b_rounded = (b_h + b_add).to(p_h.dtype.element_ty)
        tl.store(p_h + o_r[:, None] * W + o_w[None, :], b_rounded, mask=m_rw)
        b_h = b_rounded.to(tl.float32)
    b_mean = tl.zeros([BLOCK_R], tl.float32)
    if not RMS:
        b_mean = tl.sum(b_h, axis=1) / W
        b_h = tl.where(m_w[None, :], b_h - b_mean[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_h * b_h, axis=1) / W + eps)
    b_y = b_h * b_rstd[:, None]
    if HAS_WEIGHT:
        b_y *= tl.load(p_weight + o_w, mask=m_w, other=0.0).to(tl.float32)[None, :]
    if HAS_SCALE:
        b_y *= 1.0 + tl.load(p_scale + o_r[:, None] * s_scale + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        b_y += tl.load(p_shift + o_r[:, None] * s_shift + o_w[None, :], mask=m_rw, other=0.0).to(tl.float32)
    tl.store(p_y + o_r[:, None] * W + o_w[None, :], b_y.to(p_y.dtype.element_ty), mask=m_rw)
    if HAS_STATS:
        tl.store(p_stats + o_r, b_mean, mask=m_r)
        tl.store(p_stats + R + o_r, b_rstd, mask=m_r)


def row_stride(rows: Tensor | None) -> int:
    """Elements from row to row; 0 repeats a single one."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.stride(0)


def launch_forward(
    x: Tensor,
    weight: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    *,
    rms: bool,
    eps: float,
    y: Tensor,
    h: Tensor,
    stats: Tensor,
) -> None:
    """Write `y` [R, W]; `h` [R, W] if there is a residual; means and reciprocal deviations if `stats` is [2, R]."""
    R, W = x.shape
    if R == 0:
        return
    tile = config(W)
    _forward_kernel[(triton.cdiv(R, tile["BLOCK_R"]),)](
        x,
        weight,
        shift,
        scale,
        residual,
        gate,
        y,
        h,
        stats,
        R,
        W,
        row_stride(x),
        row_stride(shift),
        row_stride(scale),
        row_stride(residual),
        row_stride(gate),
        eps,
        RMS=rms,
        HAS_WEIGHT=weight is not None,
        HAS_SHIFT=shift is not None,
        HAS_SCALE=scale is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_GATE=gate is not None,
        HAS_STATS=stats.shape[1] > 0,
        **tile,
    )
