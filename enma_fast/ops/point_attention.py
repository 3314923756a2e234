"""Cross-attention between scattered points and a grid, with a geometry bias (paper D.1.1).

    out_q = sum_p softmax_p( q . k_p / sqrt(K) - m_h dist(x_q, x_p)^power ) v_p

Legend: B batch, H heads, P observed points (keys), Q query points, K head dim, d space dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import EnmaError


def distance(x_Qd: Tensor, x_Pd: Tensor, *, periods: tuple[float | None, ...]) -> Tensor:
    """Euclidean distances ``[..., Q, P]``; a dimension with a period is measured around the ring."""
    difference = x_Qd[..., :, None, :] - x_Pd[..., None, :, :]
    parts = []
    for i, period in enumerate(periods):
        part = difference[..., i]
        parts.append(part if period is None else part - period * torch.round(part / period))
    square = torch.stack(parts).square().sum(0)
    # The gradient of sqrt at zero is infinite, and coincident points are the usual case on grids.
    return torch.where(square > 0, square.clamp_min(1e-24).sqrt(), square)


def point_attention(
    q_BHQK: Tensor,
    k_BHPK: Tensor,
    v_BHPK: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    power: int = 1,
    periods: tuple[float | None, ...],
    valid: Tensor | None = None,
) -> Tensor:
    """Attend from query points to observed points.

    Parameters
    ----------
    q_BHQK, k_BHPK, v_BHPK
        Queries, keys, values.
    query_points, points
        Coordinates ``[Q, d]`` or ``[B, Q, d]``, and ``[P, d]`` or ``[B, P, d]``.
    slopes
        ``[H]``, m_h >= 0 in inverse units of distance (to the ``power``).
    power
        1 or 2.
    periods
        Domain length per dimension, or None where the domain is not periodic.
    valid
        ``[B, P]``, False at padding of batches with different point counts; each row needs one True.

    Returns
    -------
    Tensor
        ``[B, H, Q, K]``.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    if power not in (1, 2):
        raise EnmaError(f"point_attention: power is {power}; expected 1 or 2")
    if points.shape[-2] != k_BHPK.shape[-2]:
        raise EnmaError(f"point_attention: points has {points.shape[-2]} rows; keys have {k_BHPK.shape[-2]}")
    if query_points.shape[-2] != q_BHQK.shape[-2]:
        raise EnmaError(
            f"point_attention: query_points has {query_points.shape[-2]} rows; queries have {q_BHQK.shape[-2]}"
        )
    if points.shape[-1] != len(periods) or query_points.shape[-1] != len(periods):
        raise EnmaError(
            f"point_attention: points have {points.shape[-1]} and query_points {query_points.shape[-1]} coordinates;"
            f" periods names {len(periods)} dimensions"
        )
    return point_attention_ref(
        q_BHQK,
        k_BHPK,
        v_BHPK,
        query_points=query_points,
        points=points,
        slopes=slopes,
        power=power,
        periods=periods,
        valid=valid,
    )


def point_attention_ref(
    q_BHQK: Tensor,
    k_BHPK: Tensor,
    v_BHPK: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    power: int,
    periods: tuple[float | None, ...],
    valid: Tensor | None,
) -> Tensor:
    """The formula of this module, as written, in the dtype of its arguments."""
    bias = distance(query_points, points, periods=periods) ** power
    bias = bias[:, None] if bias.ndim == 3 else bias
    scores = q_BHQK @ k_BHPK.transpose(-1, -2) * q_BHQK.shape[-1] ** -0.5
    scores = scores - slopes[:, None, None] * bias.to(scores.dtype)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None, :], float("-inf"))
    return scores.softmax(-1) @ v_BHPK
