"""Sums over the points of ensembles and their truth, one for each frame: what the scores of `metrics` are made of.

Shape suffixes: B trajectories, K members, T forecast frames, P points, L interval levels, R = K + 1 ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# numpy's linspace, so that the levels are those of uncertainty-toolbox to the last bit.
LEVELS_L = torch.from_numpy(np.linspace(0.0, 1.0, 100))


def trajectory_error(pred_TP: Tensor, truth_TP: Tensor, per_frame: bool) -> Tensor:
    """`[..., T, P] -> [...]`, or `[..., T]` per frame."""
    return ratio((pred_TP - truth_TP).square().sum(-1), truth_TP.square().sum(-1), per_frame)


def ratio(error_T: Tensor, norm_T: Tensor, per_frame: bool) -> Tensor:
    """Relative L2 error from the squared norms of each frame."""
    return torch.sqrt(error_T / norm_T if per_frame else error_T.sum(-1) / norm_T.sum(-1))


def crps_sums(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    members = ensemble_BKTP.shape[1]
    sums_T = (ensemble_BKTP - truth_BTP[:, None]).abs().mean(1).sum((0, 2))
    if members == 1:
        return sums_T
    # sum_ij |x_i - x_j| / 2 = sum_i (2 i - K - 1) x_(i) over the sorted members, i = 1 .. K.
    weights_K = 2.0 * torch.arange(1, members + 1, device=sums_T.device, dtype=torch.float64) - members - 1
    sorted_BKTP = ensemble_BKTP.sort(dim=1).values
    pairs_T = (sorted_BKTP * weights_K[:, None, None]).sum((0, 1, 3))
    return sums_T - pairs_T / (members * (members - 1))


def mean_error(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    """Ensemble mean less truth, `[B, T, P]`, counted from the first member: exact where all agree."""
    first_B1TP = ensemble_BKTP[:, :1]
    return (ensemble_BKTP - first_B1TP).mean(1) - (truth_BTP - first_B1TP[:, 0])


def squared_error_sums(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    return mean_error(ensemble_BKTP, truth_BTP).square().sum((0, 2))


def variance_sums(ensemble_BKTP: Tensor) -> Tensor:
    if ensemble_BKTP.shape[1] == 1:
        return ensemble_BKTP.new_zeros(ensemble_BKTP.shape[2])
    return ensemble_BKTP.var(1, correction=1).sum((0, 2))


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
    first_TL = count_per_frame(torch.maximum(upper, lower), len(levels_L), torch.ones_like(score_BTP))
    return first_TL.cumsum(-1)


def rank_counts(ensemble_BKTP: Tensor, truth_BTP: Tensor) -> Tensor:
    """Rank histogram of each frame, `[T, R]`; a tie is shared by the ranks that breaking it could give."""
    num_ranks = ensemble_BKTP.shape[1] + 1
    below_BTP = (ensemble_BKTP < truth_BTP[:, None]).sum(1)
    tied_BTP = (ensemble_BKTP == truth_BTP[:, None]).sum(1)
    share_BTP = 1.0 / (tied_BTP.to(torch.float64) + 1.0)
    counts_TR = truth_BTP.new_zeros(truth_BTP.shape[1], num_ranks)
    for offset in range(int(tied_BTP.max()) + 1):
        weight_BTP = torch.where(offset <= tied_BTP, share_BTP, 0.0)
        # A weight of zero may sit beyond the last rank.
        counts_TR += count_per_frame((below_BTP + offset).clamp_max(num_ranks - 1), num_ranks, weight_BTP)
    return counts_TR


def count_per_frame(index_BTP: Tensor, num_bins: int, weight_BTP: Tensor) -> Tensor:
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


def spread_factor(num_members: int) -> float:
    return (num_members + 1) / num_members


def num_points(truth_BTP: Tensor) -> Tensor:
    batch, frames, points = truth_BTP.shape
    return truth_BTP.new_full((frames,), batch * points)
