"""Power 2 without a ring as plain attention: the bias becomes channels of q and k (any attention kernel serves).

    -m |x - y|^2 = 2 m x . y - m |y|^2 - m |x|^2

The last term is constant over the points and drops out of the softmax. bf16 keeps 8 bits, so coordinates are centred,
and each factor a is split into a_h = bf16(a) and a_l = bf16(a - a_h): x y = x_h y_h + x_h y_l + x_l y_h, three channels
per dimension, and two for |y|^2: 8 channels in two dimensions.

Legend as in point_attention.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Far below any logit, and within bf16; sums of it with logits stay finite.
_MASKED = -1e30


def folded_problem(power: int, periods: tuple[float | None, ...], dtype: torch.dtype) -> str | None:
    """Why the bias cannot become channels."""
    if power != 2:
        return f"needs power 2 (distance itself has no finite form), power is {power}"
    if any(period is not None for period in periods):
        return f"needs a domain without a ring, periods is {periods}"
    if dtype == torch.float16:
        return "the channels leave the range of float16"
    return None


def fold(
    q_BHQK: Tensor,
    k_BHPK: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    valid: Tensor | None,
    split: bool,
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose products over sqrt(K) are logits of `point_attention`, up to a constant per query."""
    dtype, wide = q_BHQK.dtype, torch.promote_types(query_points.dtype, torch.float32)
    B, H, Q, K = q_BHQK.shape
    P = k_BHPK.shape[2]
    query_points, points = (x.to(wide).expand(B, -1, -1) for x in (query_points, points))
    if valid is None:
        centre = points.mean(1, keepdim=True)
    else:
        points = points.masked_fill(~valid[..., None], 0)
        centre = points.sum(1, keepdim=True) / valid.sum(1).clamp_min(1)[:, None, None]
    x, y = (query_points - centre)[:, None], (points - centre)[:, None]
    # The softmax divides all logits by sqrt(K).
    slopes = slopes.to(wide)[:, None, None] * K**0.5
    left, right = 2 * slopes * x, y
    square = -slopes * y.square().sum(-1, keepdim=True)
    if valid is not None:
        square = square.masked_fill(~valid[:, None, :, None], _MASKED)
    if split:
        left_h, right_h, square_h = (a.to(dtype).to(wide) for a in (left, right, square))
        left = torch.cat([left_h, left_h, left - left_h], -1)
        right = torch.cat([right_h, right - right_h, right_h], -1)
        square = torch.cat([square_h, square - square_h], -1)
    ones = square.new_ones(B, H, Q, square.shape[-1])
    q = torch.cat([q_BHQK, left.expand(B, H, Q, -1).to(dtype), ones.to(dtype)], -1)
    k = torch.cat([k_BHPK, right.expand(B, H, P, -1).to(dtype), square.to(dtype)], -1)
    return q, k


def folded(
    q_BHQK: Tensor,
    k_BHPK: Tensor,
    v_BHPK: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    valid: Tensor | None,
) -> Tensor:
    """`point_attention` of power 2 through `scaled_dot_product_attention`."""
    if valid is not None:
        k_BHPK, v_BHPK = (x.masked_fill(~valid[:, None, :, None], 0) for x in (k_BHPK, v_BHPK))
    q, k = fold(
        q_BHQK,
        k_BHPK,
        query_points=query_points,
        points=points,
        slopes=slopes,
        valid=valid,
        split=q_BHQK.dtype == torch.bfloat16,
    )
    # Flash kernels want one width for all three, a multiple of 8.
    width = -(-max(q.shape[-1], v_BHPK.shape[-1]) // 8) * 8
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v_BHPK))
    out = F.scaled_dot_product_attention(q, k, v, scale=q_BHQK.shape[-1] ** -0.5)
    return out[..., : v_BHPK.shape[-1]]
