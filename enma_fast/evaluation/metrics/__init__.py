"""Scores of an ensemble forecast: one family of functions a file, the table of scores, and their accumulation.

Truth is `[B, T, *x, c]` and an ensemble `[B, K, T, *x, c]` (torch or numpy, any float type), only forecast
frames. All sums run in float64. An unqualified "point" is one value: a place and a channel.
"""

from .accumulator import PartSums, Scores
from .calibration import rank_histogram, rmsce, rmsce_rank
from .error import relative_l2
from .probability import crps
from .spread import spread_skill
from .table import SCORES, columns

__all__ = [
    "SCORES",
    "PartSums",
    "Scores",
    "columns",
    "crps",
    "rank_histogram",
    "relative_l2",
    "rmsce",
    "rmsce_rank",
    "spread_skill",
]
