"""The protocol of a score: a row of the table in `table.py`.

A score is finished from sums over the points of ensembles and their truth, one sum for each frame, so trajectories
can be added one by one, and a trajectory part by part.

Shape suffixes: B trajectories, K members, T forecast frames, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

# Places that show scores: `enma-fast score`, the model card, the card's table of the paper's figures, and the report's
# table of single trajectories. JSON, and the report's table over all trajectories, hold every score.
Place = Literal["terminal", "card", "paper", "trajectories"]


@dataclass(frozen=True)
class PointSum:
    """A sum over the points of one trajectory, or of a part of its points.

    Attributes
    ----------
    name : scores that use the same sum share it by this name
    function : (ensemble float64 `[1, K, T, P]`, truth `[1, T, P]`) -> the sums, with T on one axis
    frame_axis : the axis of T
    width : number of members -> sizes of the axes other than T, of a sum that is added up over trajectories
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    frame_axis: int = 0
    width: Callable[[int], tuple[int, ...]] = lambda num_members: ()


@dataclass(frozen=True)
class Totals:
    """The sums that a score is computed from: `totals["points"]` is the sum of that name.

    Attributes
    ----------
    sums : over all frames, or with the axis T for one score each
    num_members : K
    amplitude : RMS of what was observed of the trajectory; NaN in a score over points
    """

    sums: Mapping[str, Tensor]
    num_members: int
    amplitude: float = float("nan")

    def __getitem__(self, name: str) -> Tensor:
        return self.sums[name]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A score as tables show it.

    Attributes
    ----------
    name : key in results
    label, short : words for a row, and for the head of a narrow column
    places : where it is shown beside JSON and the report
    """

    name: str
    label: str
    short: str
    places: tuple[Place, ...] = ("terminal", "card")


@dataclass(frozen=True, kw_only=True)
class Score(Column):
    """A score that `Scores` accumulates.

    Attributes
    ----------
    sums : what it is finished from
    finish : float64 0-d from totals over all frames, `[T]` from those of each
    over : "points" finishes the sums over all trajectories, "trajectories" those of each, and averages
    summary : of the values of all trajectories, in place of their average; such a score has no value per frame, and the
        values have the width of its first sum
    needs_truth : an error, which has no meaning for generated trajectories
    needs_members : the mean and spread of members are not enough
    fewest_members : with fewer it is None
    """

    sums: tuple[PointSum, ...]
    finish: Callable[[Totals], Tensor]
    over: Literal["points", "trajectories"] = "points"
    summary: Callable[[np.ndarray], float] | None = None
    needs_truth: bool = False
    needs_members: bool = False
    fewest_members: int = 1


def num_points(truth_BTP: Tensor) -> Tensor:
    """Points of each frame, `[T]`."""
    batch, frames, points = truth_BTP.shape
    return truth_BTP.new_full((frames,), batch * points)


POINTS = PointSum("points", lambda ensemble_1KTP, truth_1TP: num_points(truth_1TP))
