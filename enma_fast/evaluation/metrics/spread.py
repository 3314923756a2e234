"""Spread of an ensemble, and its ratio to the error.

Shape suffixes: B trajectories, K members, T forecast frames, P points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .arrays import Array, checked, pool
from .error import rmse, squared_error_sums
from .score import PointSum, Totals

# Choices of a member of each trajectory as its truth.
_DRAWS = 1000
# Of these so many at a time, over all trajectories.
_AT_ONCE = 1_000_000


def spread_skill(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Spread-skill ratio: 1 for a calibrated ensemble, below 1 if it is too narrow.

    `sqrt((K + 1) / K mean s^2) / sqrt(mean (xbar - y)^2)` over trajectories, frames and points, with `s^2`
    the members' variance (denominator `K - 1`) and `xbar` their mean. The factor makes the ratio 1 for
    members that are exchangeable with the truth, however few (Fortin et al., 2014).

    Parameters and errors are those of `rmsce`.

    Returns
    -------
    Tensor
        0-d, or `[T]` with `per_frame`; float64, no unit; infinite or NaN where the mean has no error at all.
    """
    ensemble_BKTP, truth_BTP = checked(ensemble, truth, min_members=2)
    error_T = squared_error_sums(ensemble_BKTP, truth_BTP)
    square = pool(variance_sums(ensemble_BKTP, truth_BTP), per_frame) / pool(error_T, per_frame)
    return torch.sqrt(spread_factor(ensemble_BKTP.shape[1]) * square)


def variance_sums(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    if ensemble_BKTP.shape[1] == 1:
        return ensemble_BKTP.new_zeros(ensemble_BKTP.shape[2])
    return ensemble_BKTP.var(1, correction=1).sum((0, 2))


def deviation_sums(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    """Squared deviations of each member from the mean of all, `[T, K]`."""
    del truth_BTP
    return (ensemble_BKTP - ensemble_BKTP.mean(1, keepdim=True)).square().sum((0, 3)).T


def calibrated_ratio(deviations_BK: np.ndarray, *, quantile: float) -> float:
    """A quantile of the spread-skill ratio if the truth of each trajectory were one of its members.

    Where few trajectories have most of the error, the ratio of a calibrated ensemble may be far from 1: this says how
    far. Members `[B, K]`, at least 3 of each, are given by their squared deviations from the mean of all.
    """
    B, K = deviations_BK.shape
    # The order of the trajectories does not count.
    deviations_BK = deviations_BK[deviations_BK.sum(1).argsort()]
    # Of the mean of the others, and their variance.
    error = deviations_BK * (K / (K - 1)) ** 2
    variance = (deviations_BK.sum(1, keepdims=True) - deviations_BK * K / (K - 1)) / (K - 2)
    generator, rows, size = np.random.default_rng(0), np.arange(B), max(1, _AT_ONCE // B)
    squares = []
    for first in range(0, _DRAWS, size):
        truth = generator.integers(K, size=(min(size, _DRAWS - first), B))
        with np.errstate(invalid="ignore", divide="ignore"):
            squares.append(variance[rows, truth].sum(1) / error[rows, truth].sum(1))
    return float(np.quantile(np.sqrt(spread_factor(K - 1) * np.concatenate(squares)), quantile))


def spread_factor(num_members: int) -> float:
    """Expected squared error of the mean of so many exchangeable members, over their variance."""
    return (num_members + 1) / num_members


VARIANCE = PointSum("variance", variance_sums)
DEVIATIONS = PointSum("deviations", deviation_sums, width=lambda num_members: (num_members,))


def spread(totals: Totals) -> Tensor:
    """Root of the mean variance of the members (ddof 1)."""
    return torch.sqrt(totals["variance"] / totals["points"])


def ratio(totals: Totals) -> Tensor:
    """Spread-skill ratio."""
    return spread_factor(totals.num_members) ** 0.5 * spread(totals) / rmse(totals)
