"""The report: a forecast store as one HTML page that needs no network. One trajectory is in memory at a time.

The page shows the provenance of the forecast, scores, figures, and a viewer with a slider over time.
"""

from .page import write_report
from .reader import PooledScores, StoreReader, Trajectory, store_figure, store_movie

__all__ = ["PooledScores", "StoreReader", "Trajectory", "store_figure", "store_movie", "write_report"]
