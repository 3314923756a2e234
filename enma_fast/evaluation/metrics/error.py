"""Errors of single forecasts and of the ensemble mean.

Shape suffixes: B trajectories, K members, T forecast frames, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import EnmaError
from .arrays import Array, float64, require_finite, require_nonzero
from .score import PointSum, Totals


def relative_l2(pred: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Relative L2 error of each trajectory, not squared.

    `||pred - truth||_2 / ||truth||_2` with both norms over all frames, points and channels of a trajectory,
    or over those of one frame. The mean over trajectories is the paper's "Relative MSE" (section 4).

    Parameters
    ----------
    pred, truth : Tensor or ndarray
        `[B, T, *x, c]`.
    per_frame : bool
        One error for each frame.

    Returns
    -------
    Tensor
        `[B]`, or `[B, T]` with `per_frame`; float64, no unit; infinite or NaN for a frame whose truth is
        zero.

    Raises
    ------
    EnmaError
        If shapes differ, a value is not finite, or the truth of a trajectory is zero throughout.
    """
    forecast, fields = float64(pred), float64(truth)
    if fields.ndim < 3 or forecast.shape != fields.shape:
        raise EnmaError(
            f"pred is {list(forecast.shape)} and truth {list(fields.shape)}: expected [B, T, *x, c] for both"
        )
    require_finite("pred", forecast)
    require_finite("truth", fields)
    require_nonzero(fields)
    forecast_BTP, truth_BTP = forecast.flatten(2), fields.flatten(2).to(forecast.device)
    error_BT, norm_BT = (forecast_BTP - truth_BTP).square().sum(-1), truth_BTP.square().sum(-1)
    return torch.sqrt(error_BT / norm_BT if per_frame else error_BT.sum(-1) / norm_BT.sum(-1))


def mean_error(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    """Ensemble mean less truth, `[B, T, P]`, counted from the first member: exact where all agree."""
    first_B1TP = ensemble_BKTP[:, :1]
    return (ensemble_BKTP - first_B1TP).mean(1) - (truth_BTP - first_B1TP[:, 0])


def squared_error_sums(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    return mean_error(ensemble_BKTP, truth_BTP).square().sum((0, 2))


SQUARED_ERROR = PointSum("squared_error", squared_error_sums)
TRUTH = PointSum("truth", lambda ensemble_1KTP, truth_1TP: truth_1TP.square().sum(-1)[0])
MEAN_ERROR = PointSum("mean_error", lambda ensemble_1KTP, truth_1TP: _square(ensemble_1KTP.mean(1) - truth_1TP))
MEMBER_ERROR = PointSum(
    "member_error", lambda ensemble_1KTP, truth_1TP: _square(ensemble_1KTP - truth_1TP[:, None]), frame_axis=1
)


def relative(totals: Totals) -> Tensor:
    """Relative L2 error of the ensemble mean of one trajectory."""
    return torch.sqrt(totals["mean_error"] / totals["truth"])


def relative_of_members(totals: Totals) -> Tensor:
    """Mean of the relative L2 errors of the members of one trajectory."""
    error_K = totals["member_error"]
    return torch.sqrt(error_K / totals["truth"].expand_as(error_K)).mean(0)


def rmse(totals: Totals) -> Tensor:
    """RMS error of the ensemble mean."""
    return torch.sqrt(totals["squared_error"] / totals["points"])


def _square(error_1TP: Tensor) -> Tensor:
    return error_1TP.square().sum(-1)[0]
