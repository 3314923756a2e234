"""Observed fields in numpy, torch or xarray, read as plain arrays with their coordinates and attributes.

The axes of an xarray field are known by the names of its dimensions, in any order:

    ([trajectory,] time, x[, y][, channel]), or ([trajectory,] time, point[, channel]) at scattered points

In a Dataset each variable is a channel.

Shape suffixes: B trajectories, L observed frames, c physical channels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..data import SPACING_TOLERANCE, attributes, decimals, is_even, require_present, unmasked
from ..data.sources import AXES
from ..domain import Domain
from ..errors import EnmaError
from ..utils.names import SPACE
from .request import Fields

Kind = Literal["numpy", "torch", "dataarray", "dataset"]

# Names that the axes of a result take.
_TAKEN = ("realization", "time", "quantile", "threshold", "channel", "point")


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledField(Fields):
    """An input as a plain array with its coordinates and attributes."""

    kind: Kind
    numbers: tuple[int, ...] | None = None
    times: np.ndarray | None = None
    # Coordinates of space, and further ones: dimensions and values.
    coords: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, tuple[tuple[str, ...], np.ndarray]] = field(default_factory=dict)
    # Coordinates of scattered points, as far as the input says them.
    places: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    channels: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    has_channel: bool = True
    name: str | None = None

    def ordered(self, places: Sequence[int] | None) -> LabelledField:
        """With the channels at these places, in this order; as it is without places."""
        if places is None:
            return self
        names, units = self.channels and tuple(self.channels[c] for c in places), self.units
        units = units if units is None or len(units) == 1 else tuple(units[c] for c in places)
        return replace(self, values=self.values[..., list(places)], channels=names, units=units)

    def require_domain(self, argument: str, domain: Domain) -> None:
        """Raise `EnmaError` unless the positions in space, where they are known, are those of a domain of this size."""
        for name, length, wraps in zip(SPACE, domain.lengths, domain.periodic, strict=False):
            x = self.coords.get(name)
            if x is None or x.size < 2:
                continue
            if x.dtype.kind not in "fiu":
                raise EnmaError(f"{argument}: the coordinate {name} has dtype {x.dtype}; numbers are expected")
            steps = np.diff(x.astype(np.float64))
            if not (steps > 0).all():
                raise EnmaError(f"{argument}: the coordinate {name} must increase; sort it: .sortby({name!r})")
            if not is_even(x):
                raise EnmaError(
                    f"{argument}: the coordinate {name} is not evenly spaced, as the grid of the model is; interpolate "
                    "to even positions"
                )
            # The cell that closes a ring counts; positions of an open axis are those of cells or reach from end to end.
            extent = steps.sum() * x.size / (x.size - 1)
            sizes = (extent,) if wraps else (extent, steps.sum())
            if not any(math.isclose(size, length, rel_tol=SPACING_TOLERANCE) for size in sizes):
                raise EnmaError(
                    f"{argument}: the coordinate {name} spans {extent:.6g}; the model expects a domain of {length:.6g} "
                    "(if it is given in another unit, drop the coordinate)"
                )


def read_field(argument: str, value: Any, *, space: tuple[str, ...]) -> LabelledField:
    """Read a field of any kind; `space` names its dimensions of space.

    `EnmaError` if it is no array, or an xarray dimension is missing or not known.
    """
    kind = _kind(argument, value)
    if kind == "torch":
        return LabelledField(value, kind=kind)
    if kind == "numpy":
        data = unmasked(argument, value)
        require_present(argument, data, attributes(value))
        return LabelledField(data, kind=kind)
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
    axes = {"time", "trajectory", *space, *further}
    if numbers is not None:
        further.pop("trajectory", None)
    return LabelledField(
        data,
        kind=kind,
        numbers=numbers,
        times=coords["time"].to_numpy() if "time" in coords else None,
        coords={name: x.to_numpy() for name, x in coords.items() if name != "time"},
        further=further,
        places={name: x.to_numpy() for name, x in value.coords.items() if name in SPACE and x.dims == ("point",)},
        attributes={str(name): dict(x.attrs) for name, x in value.coords.items() if name in axes and x.attrs},
        channels=channels,
        units=tuple(str(attributes.get("units") or "1") for attributes in about),
        has_channel=named,
        name=None if kind == "dataset" or value.name is None else str(value.name),
    )


def first_time(history: LabelledField | None, context: LabelledField | None, *, interval: float) -> float | None:
    """Time of the first forecast frame: one interval after the history, or the context's first; None if unknown.

    `EnmaError` if times are no numbers, or not an interval apart.
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
        if not np.allclose(steps, interval, rtol=SPACING_TOLERANCE, atol=rounding):
            raise EnmaError(
                f"{argument}: the coordinate time has frames {steps.mean():.4g} apart; the model expects "
                f"{interval:.4g} (if it is given in another unit, drop the coordinate)"
            )
    leading = context if history is None else history
    if leading is None or leading.times is None or not leading.times.size:
        return None
    times = decimals(leading.times)
    return float(times[0]) if history is None else float(later(float(times[-1]), 1, interval=interval))


def later(start: float, frames: Any, *, interval: float) -> Any:
    """Times of frames after a start, as short decimals where rounding allows: 0.3, not 0.30000000000000004."""
    times = start + interval * np.asarray(frames)
    short = np.round(times, max(0, 10 - math.floor(math.log10(interval))))
    return np.where(np.abs(short - times) <= 4 * np.spacing(np.abs(times)), short, times)


def _kind(argument: str, value: Any) -> Kind:
    # A module that was never imported has no instances.
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
        subject = argument if channel else f"{argument}: the variable {value.name}"
        usual = {dim: AXES[dim] for dim in dims if dim not in order and AXES.get(dim) in set(order) - set(dims)}
        remedy = "" if channel else "; select the channels from the Dataset"
        if usual:
            remedy = f"; rename those that are called otherwise: .rename({usual})"
        if "point" in dims and "point" not in order:
            remedy = f"; give the coordinates of the points by {'context_' * (argument == 'context')}points="
        raise EnmaError(
            f"{subject} has the dims ({', '.join(dims)}); expected are {', '.join(order)}, of which "
            f"{' and '.join(free)} may be left out{remedy}"
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
