"""What a forecast takes and gives back: fields in numpy, torch or xarray, and the `Ensemble` in the same kind.

xarray fields are told apart by the names of their dimensions, in any order:

    input    ([trajectory,] time, x[, y][, channel]), or (.., point[, channel]) at scattered points
    output   ([trajectory,] realization, time, x[, y][, channel]), or (.., point[, channel]) at query points

In a Dataset each variable is a channel. Names and attributes are those of forecast stores (`output.py`). Units, and
further coordinates that do not vary in time, are those of the input.

Shape suffixes: B trajectories, K members, T frames, L observed frames, c physical channels, Q quantiles or thresholds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..data import attributes, decimals, require_present, unmasked
from ..errors import EnmaError
from ..utils.extras import load_extra

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["numpy", "torch", "dataarray", "dataset"]

SPACE = ("x", "y", "z")
# Relative difference between the frame spacing of observations and of the model.
TOLERANCE = 1e-3
# Names that the axes of a result take.
_TAKEN = ("realization", "time", "quantile", "threshold", "channel", "point")
_ATTRIBUTES: dict[str, dict[str, str]] = {
    "trajectory": {"long_name": "number of the trajectory in its file", "cf_role": "trajectory_id"},
    "realization": {"long_name": "ensemble member", "standard_name": "realization", "units": "1"},
    "time": {"long_name": "time", "units": "1", "axis": "T"},
    "quantile": {"long_name": "quantile", "units": "1"},
    "threshold": {"long_name": "threshold", "units": "1"},
} | {name: {"long_name": f"position along {name}", "units": "1", "axis": name.upper()} for name in SPACE}


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """An input as a plain array ``[L, *grid, c]`` or ``[B, L, *grid, c]``, and what its coordinates said."""

    data: Any
    kind: Kind
    numbers: tuple[int, ...] | None = None
    times: np.ndarray | None = None
    # Of space, and further ones: dimensions and values.
    coords: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)
    # Of scattered points, as far as they are known.
    points: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    channels: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    has_channel: bool = True
    name: str | None = None

    def ordered(self, argument: str, channels: tuple[str, ...]) -> Given:
        """With the channels in this order; `EnmaError` if they have other names."""
        if self.channels is None or self.channels == channels:
            return self
        if sorted(self.channels) != sorted(channels):
            raise EnmaError(f"{argument} has the channels {', '.join(self.channels)}; expected {', '.join(channels)}")
        places = [self.channels.index(name) for name in channels]
        units = self.units if self.units is None or len(self.units) == 1 else tuple(self.units[c] for c in places)
        return replace(self, data=self.data[..., places], channels=channels, units=units)

    def require_domain(self, argument: str, lengths: Sequence[float], periodic: Sequence[bool]) -> None:
        """Raise `EnmaError` unless the positions in space, where they are known, are those of a domain of this size."""
        for name, length, wraps in zip(SPACE, lengths, periodic, strict=False):
            x = self.coords.get(name)
            if x is None or x.size < 2:
                continue
            if x.dtype.kind not in "fiu":
                raise EnmaError(f"{argument}: the coordinate {name} has dtype {x.dtype}; numbers are expected")
            steps = np.diff(x.astype(np.float64))
            if not (steps > 0).all():
                raise EnmaError(f"{argument}: the coordinate {name} must increase; sort it: .sortby({name!r})")
            if wraps and np.ptp(steps) > 1e-2 * steps.mean():
                raise EnmaError(f"{argument}: the coordinate {name} is not evenly spaced, which a periodic one must be")
            # With the cell that closes a ring; of an open axis positions are those of cells, or reach from end to end.
            found = steps.sum() * x.size / (x.size - 1)
            sizes = (found,) if wraps else (found, steps.sum())
            if not any(math.isclose(size, length, rel_tol=TOLERANCE) for size in sizes):
                raise EnmaError(
                    f"{argument}: the coordinate {name} spans {found:.6g}; the model expects a domain of {length:.6g} "
                    "(if it is given in another unit, drop the coordinate)"
                )


def given(argument: str, value: Any, *, space: tuple[str, ...]) -> Given:
    """Read a field of any kind; `space` names its dimensions of space.

    Raises
    ------
    EnmaError
        If it is no array, or an xarray dimension is missing or not known.
    """
    kind = _kind(argument, value)
    if kind == "torch":
        return Given(data=value, kind=kind)
    if kind == "numpy":
        data = unmasked(argument, value)
        require_present(argument, data, attributes(value))
        return Given(data=data, kind=kind)
    if kind == "dataset":
        if not len(value.data_vars):
            raise EnmaError(f"{argument} is a Dataset without variables; each variable is a channel")
        parts = [_ordered(argument, variable, space, channel=False) for variable in value.data_vars.values()]
        whole = {part.dims for part in parts}
        if len(whole) > 1:
            raise EnmaError(f"{argument} holds variables of different dims; give all or none of them a trajectory")
        data = np.stack([_values(argument, part) for part in parts], axis=-1)
        channels, named = tuple(str(name) for name in value.data_vars), True
    else:
        parts = [_ordered(argument, value, space, channel=True)]
        data, named = _values(argument, parts[0]), "channel" in parts[0].dims
        channels = None
        if named and "channel" in value.coords:
            channels = tuple(str(name) for name in value["channel"].to_numpy())
        elif not named:
            data, channels = data[..., None], None if value.name is None else (str(value.name),)
    about = [dict(part.attrs) for part in parts]
    coords = {name: parts[0].coords[name] for name in ("time", *space) if name in parts[0].coords}
    numbers = _numbers(parts[0])
    further = _further(value, space, {*_TAKEN, *(channels or ())})
    known = {"time", "trajectory", *space, *further}
    if numbers is not None:
        further.pop("trajectory", None)
    return Given(
        data=data,
        kind=kind,
        numbers=numbers,
        times=coords["time"].to_numpy() if "time" in coords else None,
        coords={name: x.to_numpy() for name, x in coords.items() if name != "time"},
        further=further,
        points={name: x.to_numpy() for name, x in value.coords.items() if name in SPACE and x.dims == ("point",)},
        attributes={str(name): dict(x.attrs) for name, x in value.coords.items() if name in known and x.attrs},
        channels=channels,
        units=tuple(str(attributes.get("units") or "1") for attributes in about),
        has_channel=named,
        name=None if kind == "dataset" or value.name is None else str(value.name),
    )


def first_time(history: Given | None, context: Given | None, *, interval: float) -> float | None:
    """Time of the first forecast frame: one interval after the history, or the context's first; None if unknown.

    Raises
    ------
    EnmaError
        If times are no numbers, or not an interval apart.
    """
    for argument, source in (("history", history), ("context", context)):
        if source is None or source.times is None or not source.times.size:
            continue
        if source.times.dtype.kind not in "fiu":
            raise EnmaError(
                f"{argument}: the coordinate time has dtype {source.times.dtype}; numbers are expected, "
                f"{interval:g} apart: {argument}.assign_coords(time={interval:g} * numpy.arange({source.times.size}))"
            )
        if source.times.ndim != 1:
            raise EnmaError(f"{argument}: the coordinate time has {source.times.ndim} dimensions; 1 is expected")
        if not (np.diff(source.times) > 0).all():
            raise EnmaError(f"{argument}: the coordinate time must increase; sort it: .sortby('time')")
        steps, rounding = np.diff(source.times), 2 * np.spacing(np.abs(source.times).max())
        if not np.allclose(steps, interval, rtol=TOLERANCE, atol=rounding):
            raise EnmaError(
                f"{argument}: the coordinate time has frames {steps.mean():.4g} apart; the model expects {interval:.4g}"
            )
    leading = context if history is None else history
    if leading is None or leading.times is None or not leading.times.size:
        return None
    times = decimals(leading.times)
    return float(times[0]) if history is None else float(later(float(times[-1]), 1, interval=interval))


def later(start: float, frames: Any, *, interval: float) -> Any:
    """Times so many frames after a start, decimals where they are a rounding away: 0.3, not 0.30000000000000004."""
    times = start + interval * np.asarray(frames)
    short = np.round(times, max(0, 10 - math.floor(math.log10(interval))))
    return np.where(np.abs(short - times) <= 4 * np.spacing(np.abs(times)), short, times)


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels:
    """The kind of a forecast's arrays, and the names and coordinates of its axes."""

    kind: Kind
    members: tuple[int, ...]
    trajectories: tuple[int, ...]
    batched: bool
    interval: float
    # Time of the first forecast frame; times of the first ones, where they are those of a context.
    start: float | None = None
    first_times: np.ndarray | None = None
    space: tuple[str, ...] = ("x",)
    # Dimensions and values of the known coordinates of space, and of further ones.
    coords: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    channels: tuple[str, ...] | None = None
    # One for each channel, or one for all.
    units: tuple[str, ...] | None = None
    has_channel: bool = True
    name: str | None = None

    def plain(self, values: Tensor) -> Any:
        """A tensor as it is, or as a numpy array."""
        return values if self.kind == "torch" else values.numpy(force=True)

    def times(self, frames: Any) -> Any:
        """Times of forecast frames, numbered from 0; None if they are unknown."""
        if self.start is None:
            return None
        known, frames = self.first_times, np.asarray(frames)
        times = later(self.start, frames, interval=self.interval)
        return times if known is None else np.where(frames < len(known), known.take(frames, mode="clip"), times)

    def wrap(self, data: Any, dims: Sequence[str], label: str = "forecast", **coords: Any) -> Any:
        """Plain values ``[*dims, *grid, c]`` in this kind; `coords` are values of further coordinates."""
        if self.kind in ("numpy", "torch"):
            return data
        xarray = load_extra("xarray", "store")
        named = {"realization": self.members, "trajectory": self.trajectories if self.batched else self.trajectories[0]}
        found = {
            name: ((name,) if np.ndim(value) else (), np.asarray(value))
            for name, value in (named | coords).items()
            if value is not None
        }
        dims = (*dims, *self.space)
        known: dict[str, Any] = {
            name: (axes, value, self._about(name))
            for name, (axes, value) in (found | dict(self.coords)).items()
            if set(axes) <= set(dims)
        }
        channels = self.channels or _default_channels(data.shape[-1])
        units = self._units(len(channels)) if label != "exceedance probability" else ("1",) * len(channels)
        if self.kind == "dataset":
            variables = {
                name: (dims, data[..., c], {"long_name": f"{label} of {name}", "units": units[c]})
                for c, name in enumerate(channels)
            }
            return xarray.Dataset(variables, known, attrs={"Conventions": "CF-1.11", "channels": list(channels)})
        about = {"long_name": f"{label} of {self.name or ', '.join(channels)}", "units": units[0]}
        if not self.has_channel:
            return xarray.DataArray(data[..., 0], known, dims, name=self.name, attrs=about)
        if self.channels is not None:
            known["channel"] = ("channel", list(channels), {})
        return xarray.DataArray(data, known, (*dims, "channel"), name=self.name, attrs=about)

    def _about(self, name: str) -> dict[str, Any]:
        return dict(self.attributes.get(name) or _ATTRIBUTES.get(name, {}))

    def names(self) -> tuple[Any, ...]:
        """Names of the trajectories, where they have others than their numbers."""
        axes, values = self.coords.get("trajectory", ((), np.empty(0)))
        return tuple(values.tolist()) if axes == ("trajectory",) else ()

    def _units(self, count: int) -> tuple[str, ...]:
        units = self.units or ("1",)
        return units * count if len(units) == 1 else units

    def of_trajectories(self, places: list[int], numbers: tuple[int, ...], *, batched: bool) -> Labels:
        """Those of some trajectories; of one, if they are not to be an axis."""
        coords = {}
        for name, (axes, values) in self.coords.items():
            if "trajectory" in axes:
                axis = axes.index("trajectory")
                values = values.take(places if batched else places[0], axis=axis)
                axes = axes if batched else (*axes[:axis], *axes[axis + 1 :])
            coords[name] = (axes, np.asarray(values))
        return replace(self, trajectories=numbers, batched=batched, coords=coords)


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
        return self.labels.wrap(self.data, self._dims("realization"), time=self.times)

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
        return self._statistic("ensemble mean", _wide(self.data).mean(self._axis))

    def spread(self) -> Any:
        """Standard deviation of the members, with K - 1 as its divisor; `EnmaError` with fewer than two."""
        if self.num_members < 2:
            raise EnmaError("the spread of 1 member is not defined; forecast or select at least 2")
        x, axis = _wide(self.data), self._axis
        square = (x - x.mean(axis, keepdims=True)) ** 2
        return self._statistic("ensemble spread", (square.sum(axis) / (self.num_members - 1)) ** 0.5)

    def quantile(self, q: float | Sequence[float]) -> Any:
        """Quantiles, linear between members; several take the place of the member axis."""
        levels = _levels("q", q)
        if levels.ndim > 1 or not levels.size or not ((levels >= 0) & (levels <= 1)).all():
            raise EnmaError(f"q is {q}; quantiles are one number or several, each between 0 and 1")
        return self._several("quantile", levels, lambda level: _quantile(self.data, level, self._axis))

    def exceedance(self, threshold: float | Sequence[float]) -> Any:
        """Share of the members above a threshold; several thresholds take the place of the member axis."""
        levels = _levels("threshold", threshold)
        if levels.ndim > 1 or not levels.size or np.isnan(levels).any():
            raise EnmaError(f"threshold is {threshold}; one number or several are expected")
        # NaN is above nothing, and a stopped member is no member below the threshold.
        missing = (self.data != self.data).any(self._axis)

        def share(level: float) -> Any:
            found = (self.data > float(np.float32(level))).sum(self._axis) / self.num_members
            found[missing] = np.nan
            return found

        return self._several("threshold", levels, share)

    def sel(
        self, *, member: int | Sequence[int] | None = None, trajectory: int | Sequence[int] | None = None
    ) -> Ensemble:
        """Members and trajectories by their numbers, or names; one trajectory drops that axis, a list of them keeps it.

        Raises
        ------
        EnmaError
            If there is no such number.
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

    def numpy(self) -> np.ndarray:
        """The values as a numpy array, channels last."""
        return self.data if isinstance(self.data, np.ndarray) else self.data.numpy(force=True)

    def torch(self) -> Tensor:
        """The values as a tensor, channels last."""
        if not isinstance(self.data, np.ndarray):
            return self.data
        import torch

        return torch.from_numpy(self.data)

    def to_xarray(self) -> Any:
        """The members as an `xarray.Dataset` with a variable for each channel, as in a forecast store."""
        labels = replace(self.labels, kind="dataset")
        return labels.wrap(self.numpy(), self._dims("realization"), time=self.times)

    def __len__(self) -> int:
        return self.num_members

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # Before NumPy 2 None was no value of copy, and False meant what it means now.
        return np.array(self.numpy(), dtype=dtype, copy=bool(copy) if np.__version__ < "2" else copy)

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.data.shape))
        axes = ", ".join((*self._dims("realization"), *self.labels.space, "channel"))
        when = "" if self.times is None else f", times {self.times[0]:.4g} to {self.times[-1]:.4g}"
        return f"Ensemble([{shape}] {self.labels.kind}: {axes}; members {_listed(self.members)}{when})"

    @property
    def _axis(self) -> int:
        return int(self.labels.batched)

    def _dims(self, *members: str) -> tuple[str, ...]:
        return (*("trajectory",) * self.labels.batched, *members, "time")

    def _statistic(self, label: str, data: Any) -> Any:
        return self.labels.wrap(_narrow(data, self.data), self._dims(), label, realization=None, time=self.times)

    def _several(self, name: str, levels: np.ndarray, one: Callable[[float], Any]) -> Any:
        """A statistic at one level, or at several along an axis of that name."""
        found = [_narrow(one(float(level)), self.data) for level in np.atleast_1d(levels)]
        label = "exceedance probability" if name == "threshold" else name
        coords = {"realization": None, "time": self.times, name: levels if levels.ndim else float(levels)}
        if not levels.ndim:
            return self.labels.wrap(found[0], self._dims(), label, **coords)
        stack: Any = np.stack if isinstance(found[0], np.ndarray) else sys.modules["torch"].stack
        return self.labels.wrap(stack(found, self._axis), self._dims(name), label, **coords)


def _kind(argument: str, value: Any) -> Kind:
    # What was never imported has no instances.
    torch, xarray = sys.modules.get("torch"), sys.modules.get("xarray")
    if torch is not None and isinstance(value, torch.Tensor):
        return "torch"
    if xarray is not None and isinstance(value, xarray.DataArray):
        return "dataarray"
    if xarray is not None and isinstance(value, xarray.Dataset):
        return "dataset"
    if hasattr(value, "__array__"):
        return "numpy"
    raise EnmaError(f"{argument} is a {type(value).__name__}; give an array of numpy, torch or xarray")


def _ordered(argument: str, value: Any, space: tuple[str, ...], *, channel: bool) -> Any:
    """A DataArray with its dimensions in the order of the library."""
    free = ("trajectory", "channel") if channel else ("trajectory",)
    order = ("trajectory", "time", *space, *free[1:])
    dims = [str(dim) for dim in value.dims]
    if set(dims) - set(order) or set(order) - set(dims) - set(free):
        what = argument if channel else f"{argument}: the variable {value.name}"
        mend = "" if channel else "; select the channels from the Dataset"
        raise EnmaError(
            f"{what} has the dims ({', '.join(dims)}); expected are {', '.join(order)}, of which "
            f"{' and '.join(free)} may be left out{mend}"
        )
    return value.transpose(*(dim for dim in order if dim in dims))


def _values(argument: str, part: Any) -> np.ndarray:
    """Values of a DataArray; `EnmaError` if one stands for a missing value."""
    values = unmasked(argument, part.to_numpy())
    require_present(argument, values, part.attrs)
    return values


def _numbers(value: Any) -> tuple[int, ...] | None:
    """Numbers of the trajectories, from a coordinate of integers."""
    if "trajectory" not in value.coords or value["trajectory"].dtype.kind not in "iu":
        return None
    return tuple(int(number) for number in np.atleast_1d(value["trajectory"].to_numpy()))


def _further(value: Any, space: tuple[str, ...], taken: set[str]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Coordinates beside those of time and space that hold for a forecast too: dimensions and values."""
    # The output has other points than the input; indexes of several levels have no plain values.
    taken = taken | set(SPACE if space == ("point",) else space)
    levels = {str(name) for name, index in value.indexes.items() if hasattr(index, "levels")}
    along = {"trajectory", *space} - {"point"}
    return {
        str(name): (tuple(map(str, x.dims)), x.to_numpy())
        for name, x in value.coords.items()
        if name not in taken | levels and set(x.dims) <= along
    }


def _default_channels(count: int) -> tuple[str, ...]:
    return ("u",) if count == 1 else tuple(f"u_{c}" for c in range(count))


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
    found = ordered.select(axis, low).lerp(ordered.select(axis, high), place - low)
    last = ordered.select(axis, -1)
    return last.where(last.isnan(), found)


def _levels(what: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise EnmaError(f"{what} is {value!r}; one number or several are expected") from None


def _places(
    what: str, wanted: Any, there: tuple[int, ...], names: tuple[Any, ...] = ()
) -> tuple[list[int], tuple[int, ...]]:
    """Places, and numbers, of what is asked for by its numbers or names."""
    asked = np.atleast_1d(np.asarray(wanted)).tolist()
    if not asked:
        raise EnmaError(f"{what} is an empty list; there are {_listed(there)}")
    places = []
    for one in asked:
        known = there if isinstance(one, int) and not isinstance(one, bool) else names
        if one not in known:
            raise EnmaError(f"{what} {one} is not in this ensemble; there are {_listed(names or there)}")
        places.append(known.index(one))
    if len(set(places)) != len(places):
        raise EnmaError(f"{what} names one twice")
    return places, tuple(there[place] for place in places)


def _listed(numbers: tuple[Any, ...]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and numbers == tuple(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, numbers))
