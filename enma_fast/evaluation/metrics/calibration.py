"""Calibration: how often the truth lies inside the intervals that an ensemble gives.

Shape suffixes: B trajectories, K members, T forecast frames, P points, L interval levels, R = K + 1 ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .arrays import Array, checked, pool
from .error import mean_error
from .score import PointSum, Totals, num_points

# numpy's linspace, so that the levels are those of uncertainty-toolbox to the last bit.
LEVELS_L = torch.from_numpy(np.linspace(0.0, 1.0, 100))


def rmsce(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Root mean squared calibration error of the Gaussian with the ensemble's mean and standard deviation.

    `sqrt(mean_p (p - C(p))^2)` over the 100 levels `p = linspace(0, 1, 100)`, where `C(p)` is the fraction of
    trajectories, frames and points at which the truth lies inside the central interval of probability `p`.
    The standard deviation has `K - 1` in its denominator (ddof 1). Equals uncertainty-toolbox's
    `root_mean_squared_calibration_error` with its defaults (Chung et al., 2021), from counts instead of a
    points-by-levels table. Where the members agree exactly, the truth is inside if it agrees too, and
    otherwise only at `p = 1`.

    Note that a Gaussian from few members is not calibrated even if the members are: its intervals are too
    narrow.

    Parameters
    ----------
    ensemble, truth : Tensor or ndarray
        `[B, K, T, *x, c]`, with `K >= 2`, and `[B, T, *x, c]`.
    per_frame : bool
        Pool trajectories and points only.

    Returns
    -------
    Tensor
        0-d, or `[T]` with `per_frame`; float64, no unit.

    Raises
    ------
    EnmaError
        If shapes do not match, a value is not finite, or there is one member.
    """
    ensemble_BKTP, truth_BTP = checked(ensemble, truth, min_members=2)
    counts_TL = interval_counts(ensemble_BKTP, truth_BTP)
    return calibration_error(pool(counts_TL, per_frame) / pool(num_points(truth_BTP), per_frame)[..., None])


def rmsce_rank(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Root mean squared calibration error from the truth's rank among the members, with no Gaussian assumed.

    `sqrt(mean_p (p - C(p))^2)` over the levels of `rmsce`. If `b` of `K` members lie below the truth and `m`
    equal it, its probability position is uniform between `b / (K + 1)` and `(b + m + 1) / (K + 1)`. `C(p)` is
    the mean overlap of that span with `[1/2 - p/2, 1/2 + p/2]`. This is what randomly broken ties give on
    average: the non-randomised probability integral transform of Czado, Gneiting and Held (2009). It tends
    to 0 for members that are exchangeable with the truth, however few.

    Parameters, returned value and errors are those of `rmsce`.
    """
    histogram_R = rank_histogram(ensemble, truth, per_frame=per_frame)
    return calibration_error(rank_coverage(histogram_R))


def rank_histogram(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Frequency of each rank of the truth among the members: flat if they are exchangeable.

    Rank `r` means that `r` members lie below the truth. A truth that equals `m` members counts `1 / (m + 1)`
    at each rank that breaking the tie could give. (Hamill, "Interpretation of rank histograms", 2001.)

    Parameters and errors are those of `rmsce`.

    Returns
    -------
    Tensor
        `[K + 1]`, or `[T, K + 1]` with `per_frame`; float64, each row sums to 1.
    """
    ensemble_BKTP, truth_BTP = checked(ensemble, truth, min_members=2)
    counts_R = pool(rank_counts(ensemble_BKTP, truth_BTP), per_frame)
    return counts_R / counts_R.sum(-1, keepdim=True)


def interval_counts(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    """Points inside the Gaussian's central interval of each level, `[T, L]`."""
    if ensemble_BKTP.shape[1] == 1:
        return ensemble_BKTP.new_zeros(ensemble_BKTP.shape[2], len(LEVELS_L))
    levels_L = LEVELS_L.to(truth_BTP.device)
    residual_BTP = mean_error(ensemble_BKTP, truth_BTP)
    score_BTP = residual_BTP / ensemble_BKTP.std(1, correction=1)
    score_BTP = torch.where(residual_BTP == 0, 0.0, score_BTP)
    # The first level whose interval holds the point; both bounds, since they are not exact mirror images.
    upper = torch.searchsorted(torch.special.ndtri(0.5 + levels_L / 2), score_BTP)
    lower = torch.searchsorted(-torch.special.ndtri(0.5 - levels_L / 2), -score_BTP)
    first_TL = _count_per_frame(torch.maximum(upper, lower), len(levels_L), torch.ones_like(score_BTP))
    return first_TL.cumsum(-1)


def rank_counts(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    """Rank histogram of each frame, `[T, R]`; a tie is divided among the ranks that breaking it could give."""
    num_ranks = ensemble_BKTP.shape[1] + 1
    below_BTP = (ensemble_BKTP < truth_BTP[:, None]).sum(1)
    tied_BTP = (ensemble_BKTP == truth_BTP[:, None]).sum(1)
    share_BTP = 1.0 / (tied_BTP.to(torch.float64) + 1.0)
    counts_TR = truth_BTP.new_zeros(truth_BTP.shape[1], num_ranks)
    for offset in range(int(tied_BTP.max()) + 1):
        weight_BTP = torch.where(offset <= tied_BTP, share_BTP, 0.0)
        # A weight of zero may sit beyond the last rank.
        counts_TR += _count_per_frame((below_BTP + offset).clamp_max(num_ranks - 1), num_ranks, weight_BTP)
    return counts_TR


def _count_per_frame(index_BTP: Tensor, num_bins: int, weight_BTP: Tensor) -> Tensor:
    """Weighted histogram of each frame, `[T, num_bins]`."""
    frames = index_BTP.shape[1]
    offset_T1 = num_bins * torch.arange(frames, device=index_BTP.device)[:, None]
    flat = (index_BTP + offset_T1).flatten()
    return torch.bincount(flat, weight_BTP.flatten(), minlength=frames * num_bins).view(frames, num_bins)


def rank_coverage(histogram_R: Tensor) -> Tensor:
    """Coverage of central intervals by the positions of a rank histogram, `[..., R] -> [..., L]`."""
    num_ranks = histogram_R.shape[-1]
    levels_L = LEVELS_L.to(histogram_R.device)
    edges = torch.arange(num_ranks + 1, dtype=torch.float64, device=levels_L.device)[:, None] / num_ranks
    inside = torch.minimum(edges[1:], 0.5 + levels_L / 2) - torch.maximum(edges[:-1], 0.5 - levels_L / 2)
    return histogram_R @ (inside.clamp_min(0.0) * num_ranks)


def calibration_error(coverage_L: Tensor) -> Tensor:
    return (coverage_L - LEVELS_L.to(coverage_L.device)).square().mean(-1).sqrt()


INSIDE = PointSum("inside", interval_counts, width=lambda num_members: (len(LEVELS_L),))
RANKS = PointSum("ranks", rank_counts, width=lambda num_members: (num_members + 1,))


def gaussian_calibration_error(totals: Totals) -> Tensor:
    """Calibration error of the Gaussian intervals."""
    return calibration_error(totals["inside"] / totals["points"][..., None])


def rank_calibration_error(totals: Totals) -> Tensor:
    """Calibration error of the truth's ranks."""
    return calibration_error(rank_coverage(totals["ranks"] / totals["points"][..., None]))
