"""Fair CRPS of a few draws, with gradients: the loss of one-pass models."""

from __future__ import annotations

from torch import Tensor


def fair_crps(made: Tensor, truth: Tensor, *, fairness: float = 1.0) -> Tensor:
    """CRPS of draws ``made [B, K, ...]`` at ``truth [B, ...]``, one value for each entry of the truth.

        CRPS = mean_i |x_i - y| - (1 - e) sum_{i<j} |x_i - x_j| / (K (K - 1)),   e = (1 - fairness) / K

    With ``fairness`` 1 it is the fair score (Ferro, 2014), which is least, in expectation, for draws from the truth's
    own distribution; below 1 the almost fair one (Lang et al., 2024). K is at least 2.
    """
    K = made.shape[1]
    crps = (made - truth[:, None]).abs().mean(1)
    less = (1 - (1 - fairness) / K) / (K * (K - 1))
    for i in range(K):
        for j in range(i):
            crps = crps - less * (made[:, i] - made[:, j]).abs()
    return crps
