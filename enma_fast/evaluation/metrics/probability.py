"""The continuous ranked probability score.

Shape suffixes: B trajectories, K members, T forecast frames, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arrays import Array, checked, pool
from .score import PointSum, Totals, num_points


def crps(ensemble: Array, truth: Array, *, per_frame: bool = False, fair: bool = True) -> Tensor:
    """Fair continuous ranked probability score, averaged over trajectories, frames and points.

    `mean_i |x_i - y| - 1 / (2 K (K - 1)) sum_ij |x_i - x_j|`, unbiased in the number of members (Ferro, "Fair
    scores for ensemble forecasts", 2014). With one member there is no second term: it is the mean absolute
    error.

    Parameters
    ----------
    ensemble, truth : Tensor or ndarray
        `[B, K, T, *x, c]` and `[B, T, *x, c]`.
    per_frame : bool
        Average over trajectories and points only.
    fair : bool
        False for the score of the K members as a distribution of their own, `1 / (2 K^2)` in place of
        `1 / (2 K (K - 1))`, as `properscoring` has it.

    Returns
    -------
    Tensor
        0-d, or `[T]` with `per_frame`; float64, in the field's unit.

    Raises
    ------
    EnmaError
        If shapes do not match or a value is not finite.
    """
    ensemble_BKTP, truth_BTP = checked(ensemble, truth)
    sums_T = crps_sums(ensemble_BKTP, truth_BTP, fair=fair)
    return pool(sums_T, per_frame) / pool(num_points(truth_BTP), per_frame)


def crps_sums(ensemble_BKTP: Tensor, truth_BTP: Tensor, *, fair: bool = True) -> Tensor:
    members = ensemble_BKTP.shape[1]
    sums_T = (ensemble_BKTP - truth_BTP[:, None]).abs().mean(1).sum((0, 2))
    if members == 1:
        return sums_T
    # sum_ij |x_i - x_j| / 2 = sum_i (2 i - K - 1) x_(i) over the sorted members, i = 1 .. K.
    weights_K = 2.0 * torch.arange(1, members + 1, device=sums_T.device, dtype=torch.float64) - members - 1
    sorted_BKTP = ensemble_BKTP.sort(dim=1).values
    pairs_T = (sorted_BKTP * weights_K[:, None, None]).sum((0, 1, 3))
    return sums_T - pairs_T / (members * (members - 1 if fair else members))


CRPS = PointSum("crps", crps_sums)


def mean_crps(totals: Totals) -> Tensor:
    """CRPS, in the field's unit."""
    return totals["crps"] / totals["points"]


def relative_crps(totals: Totals) -> Tensor:
    """CRPS of one trajectory over the RMS of its observed frames."""
    return totals["crps"] / totals["points"] / totals.amplitude
