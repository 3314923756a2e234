"""What a method of forecasting is, and those that need no model: what a forecast has to be better than.

| name          | forecast                                                        |
|---------------|-----------------------------------------------------------------|
| `persistence` | the last observed frame, for ever                               |
| `climatology` | the mean of the training trajectories, at each point of a frame |

Shape suffixes: B trajectories, K members, L observed frames, T frames, c channels; `*x` points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..data import FIRST_FRAME, FieldFile

# Names of baselines, in the order of tables.
BASELINES = ("persistence", "climatology")


@dataclass(frozen=True, kw_only=True)
class Observations:
    """The observed part of a batch of trajectories, and the forecast that a method is asked for.

    Attributes
    ----------
    history : `[B, L, *x, c]`; None for the generation of whole trajectories
    context : `[B, T, *x, c]`, other trajectories of the same physics; None in the temporal task
    num_frames, num_members : to forecast
    trajectories : their numbers in the file
    seed : of random numbers
    """

    history: np.ndarray | None
    context: np.ndarray | None
    num_frames: int
    num_members: int
    trajectories: Sequence[int]
    seed: int


# Gives members `[B, K, T, *x, c]`; a deterministic method may give one in place of K.
Method = Callable[[Observations], Tensor | np.ndarray]


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
