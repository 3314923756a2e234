"""Members of a forecast with their labels: statistics, selection, and xarray.

Shape suffixes: B trajectories, K members, T frames, c physical channels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing.plots import forecast_figure, require_picture, save_figure
from ..errors import EnmaError
from ..utils.text import counted
from .labels import Labels
from .presenting import drawn, summary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Members of a forecast, in the kind of array that the observations came in; made by `enma_fast.forecast`.

    Statistics have no member axis; those of a frame in which a member was stopped are NaN. `len` is the number of
    members, and `numpy.asarray(ensemble)` are the values.

    Parameters
    ----------
    data : plain values ``[K, T, *grid, c]``, or ``[B, K, T, *grid, c]`` of several trajectories
    labels : names and coordinates of their axes
    """

    data: Any
    labels: Labels

    @property
    def values(self) -> Any:
        """The members: an array ``[K, T, *grid, c]`` or ``[B, K, T, *grid, c]``, or the xarray object of these axes."""
        return self.labels.wrap(self.data, self.labels.dims("realization", "time"), time=self.times)

    @property
    def members(self) -> tuple[int, ...]:
        """Numbers of the members."""
        return self.labels.members

    @property
    def trajectories(self) -> tuple[int, ...]:
        """Numbers of the trajectories, the part of their noise key; one of them if there is no such axis."""
        return self.labels.trajectories

    @property
    def times(self) -> np.ndarray | None:
        """``[T]`` times of the frames; None if the observations had none."""
        return self.labels.times(np.arange(self.data.shape[self._axis + 1]))

    @property
    def num_members(self) -> int:
        """K."""
        return len(self.members)

    def mean(self) -> Any:
        """Mean of the members."""
        return self._statistic("ensemble mean", self._mean())

    def spread(self) -> Any:
        """Standard deviation of the members, with K - 1 as its divisor; `EnmaError` with fewer than two."""
        if self.num_members < 2:
            raise EnmaError("the spread of 1 member is not defined; forecast or select at least 2")
        return self._statistic("ensemble spread", self._spread())

    def quantile(self, q: float | Sequence[float]) -> Any:
        """Quantiles, linear between members; several take the place of the member axis."""
        levels = _levels("q", q)
        if levels.ndim > 1 or not levels.size or not ((levels >= 0) & (levels <= 1)).all():
            raise EnmaError(f"q is {q}; quantiles are one number or several, each between 0 and 1")
        return self._several("quantile", levels, lambda level: _quantile(self.data, level, self._axis))

    def exceedance(self, threshold: float | Sequence[float]) -> Any:
        """Share of the members above a threshold; several thresholds take the place of the member axis.

        They are compared in float64, as in a store's statistics: the float32 of 0.1 is above 0.1.
        """
        levels = _levels("threshold", threshold)
        if levels.ndim > 1 or not levels.size or np.isnan(levels).any():
            raise EnmaError(f"threshold is {threshold}; one number or several are expected")
        # NaN is above nothing, and a stopped member is no member below the threshold.
        missing = (self.data != self.data).any(self._axis)

        def share(level: float) -> Any:
            shares = _wide(sum(_wide(member) > level for member in self._each())) / self.num_members
            shares[missing] = np.nan
            return shares

        return self._several("threshold", levels, share)

    def sel(
        self, *, member: int | Sequence[int] | None = None, trajectory: int | Sequence[int] | None = None
    ) -> Ensemble:
        """Members and trajectories by their numbers, or names; one trajectory drops that axis, a list of them keeps it.

        `EnmaError` if there is no such number.
        """
        labels = self.labels
        data = self.data if labels.batched else self.data[None]
        if member is not None:
            places, numbers = _places("member", member, labels.members)
            data, labels = data[:, places], replace(labels, members=numbers)
        if trajectory is not None:
            places, numbers = _places("trajectory", trajectory, labels.trajectories, labels.names())
            data, labels = data[places], labels.of_trajectories(places, numbers, batched=np.ndim(trajectory) == 1)
        return Ensemble(data if labels.batched else data[0], labels)

    def summary(self) -> str:
        """Members, frames and points in a line, and for each channel its mean, spread and range in another."""
        spread = None if self.num_members < 2 else _plain(self._spread())
        return summary(self.labels, self.numpy(), _plain(self._mean()), spread)

    def plot(
        self,
        path: str | Path,
        *,
        trajectory: Any = None,
        channel: int | str = 0,
        history: Any = None,
        truth: Any = None,
        title: str | None = None,
    ) -> Path:
        """Draw the mean and the spread of a trajectory, and its members at the point of the largest spread.

        Parameters
        ----------
        path
            The picture, .png, .pdf or .svg; an old one is replaced.
        trajectory
            Number or name of one of several trajectories; the first by default.
        channel
            Its number or its name.
        history, truth
            Observed frames, and true frames at the times of the forecast, of this trajectory or of all of the ensemble.
        title
            By default the number of members, and the trajectory where there are several.

        Returns
        -------
        pathlib.Path
            The picture.

        Raises
        ------
        EnmaError
            If the extra ``plots`` is not installed, the picture cannot be written, the values are at query points, or
            an argument is not of this ensemble.
        """
        path = Path(path)
        require_picture(path)
        if self.labels.space == ("point",):
            raise EnmaError("this ensemble is at query points, which are not drawn; forecast without query")
        number = self.trajectories[0] if trajectory is None else trajectory
        one = self.sel(trajectory=number)
        place = self.trajectories.index(one.trajectories[0])
        forecast = drawn(self.labels, one.numpy(), place=place, channel=channel, history=history, truth=truth)
        if title is None:
            title = counted(self.num_members, "member") + (f", trajectory {number}" if self.labels.batched else "")
        return save_figure(forecast_figure(forecast, title=title), path)

    def numpy(self) -> np.ndarray:
        """The values as a numpy array, channels last."""
        return _plain(self.data)

    def torch(self) -> Tensor:
        """The values as a tensor, channels last."""
        if not isinstance(self.data, np.ndarray):
            return self.data
        import torch

        return torch.from_numpy(self.data)

    def to_xarray(self) -> Any:
        """The members as an `xarray.Dataset` with a variable for each channel, as in a forecast store."""
        labels = replace(self.labels, kind="dataset")
        return labels.wrap(self.numpy(), self.labels.dims("realization", "time"), time=self.times)

    def __len__(self) -> int:
        return self.num_members

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # NumPy 1 does not take None, and False has the meaning there that None has in NumPy 2.
        return np.array(self.numpy(), dtype=dtype, copy=bool(copy) if np.__version__ < "2" else copy)

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.data.shape))
        axes = ", ".join((*self.labels.dims("realization", "time"), *self.labels.space, "channel"))
        when = "" if self.times is None else f", times {self.times[0]:.4g} to {self.times[-1]:.4g}"
        return f"Ensemble([{shape}] {self.labels.kind}: {axes}; members {_listed(self.members)}{when})"

    @property
    def _axis(self) -> int:
        return int(self.labels.batched)

    def _each(self) -> Iterable[Any]:
        """The members one after the other: all of them in float64 would take twice the memory of the ensemble."""
        x: Any = self.data
        return np.moveaxis(x, self._axis, 0) if isinstance(x, np.ndarray) else x.unbind(self._axis)

    def _mean(self) -> Any:
        return sum(map(_wide, self._each())) / self.num_members

    def _spread(self) -> Any:
        mean = self._mean()
        square = sum((_wide(member) - mean) ** 2 for member in self._each())
        return (square / (self.num_members - 1)) ** 0.5

    def _statistic(self, label: str, data: Any) -> Any:
        return self.labels.wrap(
            _narrow(data, self.data), self.labels.dims("time"), label, realization=None, time=self.times
        )

    def _several(self, name: str, levels: np.ndarray, one: Callable[[float], Any]) -> Any:
        """A statistic at one level, or at several along an axis of that name."""
        statistics = [_narrow(one(float(level)), self.data) for level in np.atleast_1d(levels)]
        label = "exceedance probability" if name == "threshold" else name
        coords = {"realization": None, "time": self.times, name: levels if levels.ndim else float(levels)}
        if not levels.ndim:
            return self.labels.wrap(statistics[0], self.labels.dims("time"), label, **coords)
        stack: Any = np.stack if isinstance(statistics[0], np.ndarray) else sys.modules["torch"].stack
        return self.labels.wrap(stack(statistics, self._axis), self.labels.dims(name, "time"), label, **coords)


def _plain(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.numpy(force=True)


def _wide(x: Any) -> Any:
    """In float64, so that sums over many members are exact to the last digit of fp32."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double()


def _narrow(x: Any, like: Any) -> Any:
    return x.astype(like.dtype, copy=False) if isinstance(x, np.ndarray) else x.to(like.dtype)


def _quantile(x: Any, q: float, axis: int) -> Any:
    if isinstance(x, np.ndarray):
        return np.quantile(x, q, axis=axis)
    # torch.quantile takes 16 million values at most. NaN is sorted last.
    ordered = x.sort(axis).values
    place = q * (x.shape[axis] - 1)
    low = int(place)
    high = min(low + 1, x.shape[axis] - 1)
    quantile = ordered.select(axis, low).lerp(ordered.select(axis, high), place - low)
    last = ordered.select(axis, -1)
    return last.where(last.isnan(), quantile)


def _levels(what: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise EnmaError(f"{what} is {value!r}; one number or several are expected") from None


def _places(
    what: str, wanted: Any, numbers: tuple[int, ...], names: tuple[Any, ...] = ()
) -> tuple[list[int], tuple[int, ...]]:
    """Places, and numbers, of what is asked for by its numbers or names."""
    asked = np.atleast_1d(np.asarray(wanted)).tolist()
    if not asked:
        raise EnmaError(f"{what} is an empty list; there are {_listed(numbers)}")
    places = []
    for one in asked:
        choices = numbers if isinstance(one, int) and not isinstance(one, bool) else names
        if one not in choices:
            raise EnmaError(f"{what} {one} is not in this ensemble; there are {_listed(names or numbers)}")
        places.append(choices.index(one))
    if len(set(places)) != len(places):
        raise EnmaError(f"{what} names one twice; give each once")
    return places, tuple(numbers[place] for place in places)


def _listed(numbers: tuple[Any, ...]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and numbers == tuple(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, numbers))
