"""Names and coordinates of the axes of a forecast, by which results come in the kind of array that was given.

    ([trajectory,] realization, time, x[, y][, channel]), or (.., point[, channel]) at query points

Names and attributes are those of forecast stores. Units, and further coordinates that do not vary in time, are those of
the observed fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.extras import load_extra
from ..utils.names import SPACE
from .labelled_field import Kind, later

if TYPE_CHECKING:
    from torch import Tensor

_ATTRIBUTES: dict[str, dict[str, str]] = {
    "trajectory": {"long_name": "number of the trajectory in its file", "cf_role": "trajectory_id"},
    "realization": {"long_name": "ensemble member", "standard_name": "realization", "units": "1"},
    "time": {"long_name": "time", "axis": "T"},
    "quantile": {"long_name": "quantile", "units": "1"},
    "threshold": {"long_name": "threshold", "units": "1"},
} | {name: {"long_name": f"position along {name}", "axis": name.upper()} for name in SPACE}


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
    # True if time and space are so; otherwise their units are not known, unless the observed fields have them.
    dimensionless: bool = True
    has_channel: bool = True
    name: str | None = None

    def plain(self, values: Tensor) -> Any:
        """A tensor as it is, or as a numpy array."""
        return values if self.kind == "torch" else values.numpy(force=True)

    def times(self, frames: Any) -> Any:
        """Times of forecast frames, numbered from 0; None if they are unknown."""
        if self.start is None:
            return None
        given, frames = self.first_times, np.asarray(frames)
        times = later(self.start, frames, interval=self.interval)
        return times if given is None else np.where(frames < len(given), given.take(frames, mode="clip"), times)

    def wrap(self, data: Any, dims: Sequence[str], label: str = "forecast", **coords: Any) -> Any:
        """Give plain values ``[*dims, *grid, c]`` their labels; `coords` are values of further coordinates."""
        if self.kind in ("numpy", "torch"):
            return data
        xarray = load_extra("xarray", "store")
        named = {"realization": self.members, "trajectory": self.trajectories if self.batched else self.trajectories[0]}
        own_coords = {
            name: ((name,) if np.ndim(value) else (), np.asarray(value))
            for name, value in (named | coords).items()
            if value is not None
        }
        dims = (*dims, *self.space)
        coordinates: dict[str, Any] = {
            name: (axes, value, self._about(name))
            for name, (axes, value) in (own_coords | dict(self.coords)).items()
            if set(axes) <= set(dims)
        }
        channels = self.channel_names(data.shape[-1])
        units = self.unit_names(len(channels)) if label != "exceedance probability" else ("1",) * len(channels)
        if self.kind == "dataset":
            variables = {
                name: (dims, data[..., c], {"long_name": f"{label} of {name}", "units": units[c]})
                for c, name in enumerate(channels)
            }
            return xarray.Dataset(variables, coordinates, attrs={"Conventions": "CF-1.11", "channels": list(channels)})
        about = {"long_name": f"{label} of {self.name or ', '.join(channels)}", "units": units[0]}
        if not self.has_channel:
            return xarray.DataArray(data[..., 0], coordinates, dims, name=self.name, attrs=about)
        if self.channels is not None:
            coordinates["channel"] = ("channel", list(channels), {})
        return xarray.DataArray(data, coordinates, (*dims, "channel"), name=self.name, attrs=about)

    def dims(self, *further: str) -> tuple[str, ...]:
        """Names of the leading axes: that of the trajectories if there is one, then `further`."""
        return (*("trajectory",) * self.batched, *further)

    def names(self) -> tuple[Any, ...]:
        """Names of the trajectories, where these differ from their numbers."""
        axes, values = self.coords.get("trajectory", ((), np.empty(0)))
        return tuple(values.tolist()) if axes == ("trajectory",) else ()

    def channel_names(self, count: int) -> tuple[str, ...]:
        """Names of so many channels: those of the observed fields, or ``u``, or ``u_0, u_1, ...``."""
        return self.channels or (("u",) if count == 1 else tuple(f"u_{c}" for c in range(count)))

    def unit_names(self, count: int) -> tuple[str, ...]:
        """The unit of each of so many channels; "1" of one without a unit."""
        units = self.units or ("1",)
        return units * count if len(units) == 1 else units

    def unit_of(self, axis: str) -> str | None:
        """The unit of time or of an axis of space; None if it is not known."""
        unit = self._about(axis).get("units")
        return None if unit is None else str(unit)

    def _about(self, name: str) -> dict[str, Any]:
        """Attributes of a coordinate."""
        if given := self.attributes.get(name):
            return dict(given)
        own = dict(_ATTRIBUTES.get(name, {}))
        return own | {"units": "1"} if self.dimensionless and name in ("time", *SPACE) else own

    def of_trajectories(self, places: list[int], numbers: tuple[int, ...], *, batched: bool) -> Labels:
        """The labels of some trajectories; of one, if they are not to be an axis."""
        coords = {}
        for name, (axes, values) in self.coords.items():
            if "trajectory" in axes:
                axis = axes.index("trajectory")
                values = values.take(places if batched else places[0], axis=axis)
                axes = axes if batched else (*axes[:axis], *axes[axis + 1 :])
            coords[name] = (axes, np.asarray(values))
        return replace(self, trajectories=numbers, batched=batched, coords=coords)
