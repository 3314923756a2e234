"""Whether one forecast is better than another, or only seems so by chance."""

from __future__ import annotations

from torch import Tensor

# Quantiles of 95 % of Student's distribution with 1, 2, ... degrees of freedom.
_SURE = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.65)


def surely_less(errors: Tensor, others: Tensor, independent: int) -> bool:
    """Whether errors `[n]` are less than others beyond chance, where so many of the n are independent of each other."""
    gain = (others / errors).log()
    if len(gain) == 1:
        return float(gain) > 0
    independent = max(2, min(len(gain), independent))
    quantile = _SURE[min(independent - 1, len(_SURE)) - 1]
    return float(gain.mean()) > quantile * float(gain.std()) / independent**0.5
