"""Fair scores of a few draws, with gradients: the losses of one-pass models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def fair_score(draws: Tensor, truth: Tensor, distance: Callable[[Tensor], Tensor]) -> Tensor:
    """Score of ``draws [B, K, ...]`` at ``truth [B, ...]``, shaped as the distance of the truth.

        score = mean_i d(x_i - y) - sum_{i<j} d(x_i - x_j) / (K (K - 1))

    The distance d maps differences to their lengths: absolute values give the CRPS of each entry, norms over the last
    dimensions the energy score. It is the fair score (Ferro, 2014), which is least, in expectation, for draws from the
    truth's own distribution. K is at least 2.
    """
    K = draws.shape[1]
    score = distance(draws - truth[:, None]).mean(1)
    less = 1 / (K * (K - 1))
    for i in range(K):
        for j in range(i):
            score = score - less * distance(draws[:, i] - draws[:, j])
    return score
