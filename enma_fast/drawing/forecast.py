"""The forecast of one channel of one trajectory, as the figures take it: members, or statistics of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import EnmaError
from .style import labelled

# Quantiles that bound the central 50, 80 and 95 % of the members, and their median.
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


@dataclass(kw_only=True)
class Forecast:
    """One channel of one trajectory: its members, or statistics of them.

    Parameters
    ----------
    times : [T] times of the forecast frames
    coords : one array per space dimension
    members : [K, T, *x]; mean, spread and num_members are computed from them
    mean, spread : [T, *x], if there are no members
    levels, quantiles : [Q] in (0, 1) and [Q, T, *x], if there are no members; the median replaces a missing mean
    num_members : K, if it is known
    truth : [T, *x]
    observed, observed_times : [L, *x] and [L], the frames that the model saw
    observed_places : [L, *x], true where it saw them; by default everywhere
    readings, reading_points : [L, P] and [L, P, d], what it saw at scattered points in place of observed frames, NaN
        where a frame has fewer
    name : name of the channel
    unit : its unit; None or "1" if it has none
    axis_units : units of `time`, `x` and `y`; "1" is dimensionless, and one that is absent is not known
    centre : "mean" or "median", the statistic in `mean`
    together : forecast frames that the model decides together, in one latent frame

    Raises
    ------
    EnmaError
        If shapes do not match, if space has more than two dimensions, or if there is nothing to draw.
    """

    times: np.ndarray
    coords: Sequence[np.ndarray]
    members: np.ndarray | None = None
    mean: np.ndarray | None = None
    spread: np.ndarray | None = None
    levels: Sequence[float] = ()
    quantiles: np.ndarray | None = None
    num_members: int | None = None
    truth: np.ndarray | None = None
    observed: np.ndarray | None = None
    observed_times: np.ndarray | None = None
    observed_places: np.ndarray | None = None
    readings: np.ndarray | None = None
    reading_points: np.ndarray | None = None
    name: str = "u"
    unit: str | None = None
    axis_units: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(("time", "x", "y"), "1"))
    centre: str = "mean"
    together: int = 1

    def __post_init__(self) -> None:
        space = tuple(len(x) for x in self.coords)
        shape = (len(self.times), *space)
        if len(space) not in (1, 2):
            raise EnmaError(f"the field has {len(space)} space dimensions; figures are of one or two")
        for name in ("members", "quantiles", "mean", "spread", "truth"):
            values, stack = getattr(self, name), name in ("members", "quantiles")
            if values is not None and values.shape[stack:] != shape:
                axis = {"members": "K, ", "quantiles": "Q, "}.get(name, "")
                raise EnmaError(f"{name} has shape {values.shape}; [{axis}{', '.join(map(str, shape))}] is expected")
        if self.members is not None:
            self.num_members = len(self.members)
            self.mean = self.members.mean(0)
            self.spread = self.members.std(0, ddof=1 if self.num_members > 1 else 0)
        middle = [i for i, level in enumerate(self.levels) if abs(level - 0.5) < 1e-6]
        if self.mean is None and self.quantiles is not None and middle:
            self.mean, self.centre = self.quantiles[middle[0]], "median"
        if self.mean is None and self.spread is None:
            raise EnmaError("the forecast holds no members, mean, spread or median: there is nothing to draw")
        if self.readings is not None:
            self.observed = np.full((len(self.readings), *space), np.nan, np.float32)
        elif self.observed is None:
            self.observed, self.observed_times = np.empty((0, *space)), np.empty(0)
        self.observed_times = np.asarray(self.observed_times)

    @property
    def label(self) -> str:
        """The channel, and its unit if it has one."""
        return self.name if self.unit in (None, "1") else labelled(self.name, self.unit)

    def axis_label(self, axis: str) -> str:
        """Label of `time`, `x` or `y`."""
        return labelled(axis, self.axis_units.get(axis))

    @property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Observed frames and their times; empty if there are none, and NaN where there are readings."""
        assert self.observed is not None
        assert self.observed_times is not None
        return self.observed, self.observed_times

    @property
    def observed_part(self) -> np.ndarray:
        """Observed frames [L, *x], NaN at places that the model did not see."""
        seen, _ = self.seen
        return seen if self.observed_places is None else np.where(self.observed_places, seen, np.nan)

    @property
    def ends_of_latents(self) -> np.ndarray:
        """[T - 1], true where a frame is the last of its latent frame and the next one begins another."""
        # Frame 0 is a latent frame of its own, and the first forecast frame comes after the observed ones.
        return (len(self.seen[1]) + np.arange(len(self.times) - 1)) % self.together == 0

    def widest(self) -> tuple[int, ...]:
        """Grid indices of the largest spread in the last frame; the middle of the grid if there is no spread."""
        if self.spread is None or not np.isfinite(self.spread[-1]).any():
            return tuple(len(x) // 2 for x in self.coords)
        return tuple(int(i) for i in np.unravel_index(int(np.nanargmax(self.spread[-1])), self.spread.shape[1:]))

    def quantiles_at(self, where: tuple[int, ...]) -> tuple[Sequence[float], np.ndarray]:
        """Levels [Q] and quantiles [Q, T] at one grid point; from the members if there are any."""
        if self.members is not None:
            return LEVELS, np.quantile(values_at(self.members, where), LEVELS, axis=0)
        if self.quantiles is not None:
            return self.levels, values_at(self.quantiles, where)
        return (), np.empty((0, len(self.times)))

    def fields(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Fields to draw, by title: truth and mean, then error of the mean and spread; missing ones are left out."""
        values = {"truth": self.truth, f"ensemble {self.centre}": self.mean}
        error = None if self.truth is None or self.mean is None else np.abs(self.mean - self.truth)
        others = {f"error of the {self.centre} (absolute)": error, "spread (standard deviation)": self.spread}
        return (
            {label: field for label, field in values.items() if field is not None},
            {label: field for label, field in others.items() if field is not None},
        )


def central_intervals(levels: Sequence[float]) -> list[tuple[float, int, int]]:
    """Central intervals between quantile levels, widest first: (probability, index of lower, index of upper level)."""
    intervals = []
    for i, low in enumerate(levels):
        for j, high in enumerate(levels):
            if low < high and abs(low + high - 1) < 1e-6:
                intervals.append((float(high - low), i, j))
    return sorted(intervals, reverse=True)


def values_at(values: np.ndarray, where: tuple[int, ...]) -> np.ndarray:
    """Values at one point of space, whose axes are the last."""
    index: Any = (..., *where)
    return np.asarray(values[index])
