"""Scores of one set of trajectories against another by their features: distance, fidelity and variety.

Shape suffixes: N, M samples of a set; F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics.arrays import Array

# Neighbours whose distance is the radius of a sample's ball (Kynkaanniemi et al., 2019).
NEIGHBOURS = 3


def frechet_distance(first: Array, second: Array) -> float:
    """Squared 2-Wasserstein distance of the Gaussians that have the moments of two sets (Heusel et al., 2017).

    `|m - n|^2 + tr(S + R - 2 (S R)^(1/2))` with the means `m`, `n` and the covariances `S`, `R` (denominator `N - 1`).

    Parameters
    ----------
    first, second : `[N, F]` and `[M, F]`

    Returns
    -------
    float
        In squared units of the features; 0 for equal moments.

    Raises
    ------
    EnmaError
        If a set has fewer than two samples, or the sets have other features.
    """
    a_NF, b_MF = _checked(first, second, fewest=2)
    # The trace of the root of a product of covariances is the sum of the singular values of the product of their roots.
    root_FF, other_FF = (_root(torch.atleast_2d(each.T.cov())) for each in (a_NF, b_MF))
    means = (a_NF.mean(0) - b_MF.mean(0)).square().sum()
    spreads = root_FF.square().sum() + other_FF.square().sum()
    return max(0.0, float(means + spreads - 2 * torch.linalg.svdvals(root_FF @ other_FF).sum()))


def precision_recall(real: Array, generated: Array) -> tuple[float, float]:
    """Share of the generated samples that lie among the real ones, and of the real among the generated.

    A sample lies among those of a set if it is in the ball of one of them, whose radius is the distance to the
    third nearest other sample of that set (Kynkaanniemi et al., 2019). Sets of one size compare best.

    Parameters
    ----------
    real, generated : `[N, F]` and `[M, F]`

    Returns
    -------
    tuple of float
        Precision and recall, from 0 to 1.

    Raises
    ------
    EnmaError
        If a set has fewer than four samples, or the sets have other features.
    """
    real_NF, made_MF = _checked(real, generated, fewest=NEIGHBOURS + 1)
    between_NM = _distances(real_NF, made_MF)

    def radii(points_NF: Tensor) -> Tensor:
        # The nearest of all is the sample itself.
        return _distances(points_NF, points_NF).kthvalue(NEIGHBOURS + 1, dim=1).values

    precision = (between_NM <= radii(real_NF)[:, None]).any(0).double().mean()
    recall = (between_NM <= radii(made_MF)).any(1).double().mean()
    return float(precision), float(recall)


def _distances(first_NF: Tensor, second_MF: Tensor) -> Tensor:
    return torch.cdist(first_NF, second_MF, compute_mode="donot_use_mm_for_euclid_dist")


def _root(covariance_FF: Tensor) -> Tensor:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance_FF)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _checked(first: Array, second: Array, *, fewest: int) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(each).double() for each in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise EnmaError(f"sets of features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give [N, F] and [M, F]")
    if min(len(a), len(b)) < fewest:
        raise EnmaError(f"sets of features have {len(a)} and {len(b)} samples; at least {fewest} are needed")
    return a, b
