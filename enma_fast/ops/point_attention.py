"""Cross-attention between scattered points and a grid, with a geometry bias (paper D.1.1).

    out_q = sum_p softmax_p( q . k_p / sqrt(K) - m_h dist(x_q, x_p) ) v_p

Legend: B batch, H heads, P observed points (keys), Q query points, K head dim, V value channels, d space dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import EnmaError
from ._backend import by_dtype, choose, native_problem, triton_problem
from ._checks import dtype_name, expect
from ._point_attention_run import OPERATOR

OP = "point_attention"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_HEAD_DIM, MOST_DIMS = 128, 3


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Implementations, best first, with the reason why one cannot serve."""
    problems = {"triton": triton_problem(device), "native": native_problem(device), "reference": None}
    return by_dtype(problems, dtype, {"triton": DTYPES, "native": DTYPES})


def distance(x_Qd: Tensor, x_Pd: Tensor, *, periods: tuple[float | None, ...]) -> Tensor:
    """Euclidean distances ``[..., Q, P]``; a periodic dimension is measured the shorter way around."""
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
    v_BHPV: Tensor,
    *,
    query_points: Tensor,
    points: Tensor,
    slopes: Tensor,
    periods: tuple[float | None, ...],
    valid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attend from query points to observed points, near ones more.

    ``out_q = sum_p softmax_p(q . k_p / sqrt(K) - m_h dist(x_q, x_p)) v_p``; memory grows with Q and P, not with
    their product, except in the reference.

    Parameters
    ----------
    q_BHQK, k_BHPK, v_BHPV
        Queries, keys, values of one dtype; any strides.
    query_points, points
        Coordinates ``[Q, d]`` or ``[B, Q, d]``, and ``[P, d]`` or ``[B, P, d]``. Kernels measure distances in fp32.
    slopes
        ``[H]``, m_h >= 0 in inverse units of distance.
    periods
        Domain length per dimension, or None where the domain is not periodic.
    valid
        ``[B, P]``, False at padding of batches with different point counts. Nothing that stands at padding has an
        influence, not even NaN. A row without a True gives zeros.
    backend
        An implementation by name; the best that can run by default.

    Returns
    -------
    Tensor
        ``[B, H, Q, V]``. All arguments have gradients.

    Raises
    ------
    EnmaError
        Names the argument, what was expected and what was given.
    """
    given = {"query_points": query_points, "points": points, "slopes": slopes}
    _check((q_BHQK, k_BHPK, v_BHPV), given, periods, valid)
    chosen = choose(OP, _problems(q_BHQK, given, periods), backend)
    if chosen == "reference":
        return point_attention_ref(q_BHQK, k_BHPK, v_BHPV, **given, periods=periods, valid=valid)
    rings = [0.0 if period is None else float(period) for period in periods]
    places = (query_points.float(), points.float(), slopes.float())
    out: Tensor = OPERATOR(q_BHQK, k_BHPK, v_BHPV, *places, valid, rings, chosen)[0]
    return out


def point_attention_ref(q_BHQK: Tensor, k_BHPK: Tensor, v_BHPV: Tensor, **geometry: Any) -> Tensor:
    """The formula of this module, as written, in the dtype of its arguments; `geometry` are its keyword arguments."""
    query_points, points, slopes = (geometry[name] for name in ("query_points", "points", "slopes"))
    periods, valid = geometry["periods"], geometry["valid"]
    if valid is not None:
        # 0 times NaN is NaN: a weight of zero is not enough.
        k_BHPK, v_BHPV = (x.masked_fill(~valid[:, None, :, None], 0) for x in (k_BHPK, v_BHPV))
        points = points.expand(*valid.shape, -1).masked_fill(~valid[..., None], 0)
    bias = distance(query_points, points, periods=periods)
    bias = bias[:, None] if bias.ndim == 3 else bias
    scores = q_BHQK @ k_BHPK.transpose(-1, -2) * q_BHQK.shape[-1] ** -0.5
    scores = scores - slopes[:, None, None] * bias.to(scores.dtype)
    if valid is not None:
        # Finite, so that a row of padding alone averages its values, which are zeros.
        scores = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
    out: Tensor = scores.softmax(-1).to(v_BHPV.dtype) @ v_BHPV
    return out


def _check(
    tensors: tuple[Tensor, Tensor, Tensor],
    geometry: Mapping[str, Tensor],
    periods: tuple[float | None, ...],
    valid: Tensor | None,
) -> None:
    (q, k, v), points, query_points = tensors, geometry["points"], geometry["query_points"]
    if any(period is not None and period <= 0 for period in periods):
        raise EnmaError(f"{OP}: periods is {periods}; expected lengths above 0, or None")
    expect(OP, "q_BHQK", q, shape=[None, None, None, None])
    B, H, Q, K = q.shape
    expect(OP, "k_BHPK", k, shape=[B, H, None, K], dtype=q.dtype, device=q.device)
    P = k.shape[2]
    expect(OP, "v_BHPV", v, shape=[B, H, P, None], dtype=q.dtype, device=q.device)
    if K == 0 or v.shape[3] == 0:
        raise EnmaError(f"{OP}: q_BHQK has {K} and v_BHPV {v.shape[3]} channels; expected at least 1")
    for name, places, rows, of in (("points", points, P, "keys"), ("query_points", query_points, Q, "queries")):
        expect(OP, name, places, shape=[None] * 2 if places.ndim < 3 else [B, None, None], device=q.device)
        if places.shape[-2] != rows:
            raise EnmaError(f"{OP}: {name} has {places.shape[-2]} rows; {of} have {rows}")
    if points.shape[-1] != len(periods) or query_points.shape[-1] != len(periods):
        raise EnmaError(
            f"{OP}: points have {points.shape[-1]} and query_points {query_points.shape[-1]} coordinates;"
            f" periods names {len(periods)} dimensions"
        )
    expect(OP, "slopes", geometry["slopes"], shape=[H], device=q.device)
    if valid is not None:
        expect(OP, "valid", valid, shape=[B, P], dtype=torch.bool, device=q.device)


def _problems(q: Tensor, geometry: Mapping[str, Tensor], periods: tuple[float | None, ...]) -> dict[str, str | None]:
    """`candidates` for these arguments."""
    problems = candidates(q.device, q.dtype)
    problem = None
    for name, tensor in geometry.items():
        if tensor.dtype not in DTYPES:
            problem = f"computes in float32, {name} is {dtype_name(tensor.dtype)}"
    if len(periods) > MOST_DIMS:
        problem = f"takes up to {MOST_DIMS} space dimensions, not {len(periods)}"
    problems |= {name: problems[name] or problem for name in ("triton", "native")}
    if q.shape[-1] > MOST_HEAD_DIM:
        problems["triton"] = problems["triton"] or f"takes head dims up to {MOST_HEAD_DIM}, not {q.shape[-1]}"
    return problems
