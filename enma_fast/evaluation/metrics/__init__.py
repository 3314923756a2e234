"""Scores of an ensemble forecast: one family of functions a file, the table of scores, and their accumulation.

Truth is `[B, T, *x, c]` and an ensemble `[B, K, T, *x, c]` (torch or numpy, any float type), only forecast
frames. All sums run in float64. An unqualified "point" is one value: a place and a channel.
"""

from .accumulator import PartSums as PartSums
from .accumulator import Scores as Scores
from .calibration import rank_histogram as rank_histogram
from .calibration import rmsce as rmsce
from .calibration import rmsce_rank as rmsce_rank
from .error import relative_l2 as relative_l2
from .probability import crps as crps
from .spread import spread_skill as spread_skill
from .table import SCORES as SCORES
from .table import columns as columns
