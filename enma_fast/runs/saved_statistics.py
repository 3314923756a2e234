"""Statistics that are not yet of all members, saved in a store so that a run that was stopped goes on with them."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import read_file, write_file
from ..utils.untrusted import read_arrays
from .statistics import Statistics

log = logging.getLogger("enma_fast")


def read_state(
    path: Path, shape: tuple[int, ...], quantiles: Sequence[float], thresholds: Sequence[float]
) -> Statistics:
    """Statistics as they were saved, or new ones."""
    try:
        return Statistics.restore(read_arrays(io.BytesIO(read_file(path))))
    except FileNotFoundError:
        return Statistics(shape, quantiles=quantiles, thresholds=thresholds)
    except (OSError, ValueError):
        log.warning("%s: is damaged; its trajectory is sampled again", path)
        return Statistics(shape, quantiles=quantiles, thresholds=thresholds)


def write_state(path: Path, fold: Statistics) -> None:
    """Save statistics; the file appears whole."""
    data = io.BytesIO()
    arrays: dict[str, Any] = dict(fold.state())
    np.savez(data, **arrays)
    write_file(path, data.getvalue())
