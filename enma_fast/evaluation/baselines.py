"""Baselines that need no model, as methods of `protocols`: what a forecast has to be better than.

| name          | forecast                                                        |
|---------------|-----------------------------------------------------------------|
| `persistence` | the last observed frame, for ever                               |
| `climatology` | the mean of the training trajectories, at each point of a frame |
"""

from __future__ import annotations

import numpy as np

from ..data import FIRST_FRAME, FieldFile
from .protocols import Method, Observations

# Names of baselines, in the order of tables.
BASELINES = ("persistence", "climatology")


def baselines(train: FieldFile) -> dict[str, Method]:
    """All of them by name, for forecasts of data like the training data."""
    return dict(zip(BASELINES, (persistence, climatology(train)), strict=True))


def persistence(given: Observations) -> np.ndarray:
    """The last observed frame, as one member."""
    assert given.history is not None
    return np.repeat(given.history[:, None, -1:], given.num_frames, axis=2)


def climatology(train: FieldFile) -> Method:
    """The mean of the training trajectories at each point and frame, as one member, whatever was observed.

    Windows of one series begin anywhere in it, so their mean is taken over the frames too.
    """
    mean = train.u.mean(axis=0, dtype=np.float64)
    if FIRST_FRAME in train.parameters:
        mean = np.broadcast_to(mean.mean(axis=0), mean.shape)

    def method(given: Observations) -> np.ndarray:
        seen = 0 if given.history is None else given.history.shape[1]
        forecast = mean[seen : seen + given.num_frames].astype(np.float32)
        return np.repeat(forecast[None, None], len(given.trajectories), axis=0)

    return method
