"""The contents of a field file: `FieldSource` while the file is open, `FieldFile` in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np

from ..domain import Domain
from ..errors import EnmaError
from ..utils.bounds import MOST_POINTS
from ..utils.untrusted import Limits, require_memory
from . import hdf5
from .drivers import rows_of
from .missing import FILL_ATTRIBUTES, in_place, present

# Steps of an even grid may differ by this part of their mean.
_EVEN = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FieldFile:
    """Trajectories of one PDE on one regular grid, or readings of them at points that lie anywhere.

    Attributes
    ----------
    path, name : file and `dataset_name`
    u : float32 [n, T, x.., c]; of readings [n, T, P, c]. Values are finite but for the places of a mask, where they are
        NaN in all frames of all trajectories
    points : float32 [n, T, P, d], coordinates of readings, NaN where a frame has fewer than P; None on a grid
    channels : names of the c channels; the components of a vector field `v` are `v_x`, `v_y`, `v_z`
    times : float64 [T]
    coords : one float64 array per space dimension
    lengths : domain size per dimension; on a periodic one it includes the cell that closes the ring
    periodic : per dimension
    parameters : name -> float64 [n], PDE parameters
    units : channel -> its unit; "1", or absent, where it has none
    environment : int64 [n], equal where the PDE and its parameters are; None if the file does not say
    environment_by : names of the columns whose values are equal where the environment is, if the file says. Columns of
        numbers are parameters. With a column of text the number of an environment is the same in every file.
    known : known inputs by name, [n or 1, T or 1, x or 1..] (`data.drivers`). Those that vary in time may have more
        frames than there are times, for forecasts.
    numbers : int64 [n], of the trajectories in the file, of what `read_numbered` reads; None for 0, 1, ..., the numbers
        that `read` gives, also to what it selects
    total : trajectories of the file; None for n
    """

    path: Path
    name: str
    u: np.ndarray
    channels: tuple[str, ...]
    times: np.ndarray
    coords: tuple[np.ndarray, ...]
    lengths: tuple[float, ...]
    periodic: tuple[bool, ...]
    parameters: dict[str, np.ndarray]
    environment: np.ndarray | None
    numbers: np.ndarray | None = None
    total: int | None = None
    units: dict[str, str] = field(default_factory=dict)
    points: np.ndarray | None = None
    environment_by: tuple[str, ...] = ()
    known: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.u)

    @property
    def mask(self) -> np.ndarray | None:
        """True where there are values, [x.., c]; None if they are everywhere."""
        mask = ~np.isnan(self.u[0, 0])
        return None if self.points is not None or mask.all() else mask

    @property
    def domain(self) -> Domain:
        """Where the fields live; of readings, the grid that they are forecast on."""
        grid = self.u.shape[2:-1] if self.points is None else tuple(map(len, self.coords))
        return Domain(grid, self.lengths, self.periodic)

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories in the file, read or not."""
        return len(self.u) if self.total is None else self.total

    @property
    def trajectories(self) -> Sequence[int]:
        """Numbers of the trajectories that were read, in their order."""
        return range(len(self)) if self.numbers is None else self.numbers.tolist()

    def places(self, numbers: Sequence[int]) -> list[int]:
        """Places of trajectories along the first axis of `u`, by number; `EnmaError` for one that was not read."""
        if self.numbers is None:
            places = {number: number for number in numbers if 0 <= number < len(self.u)}
        else:
            places = {int(number): place for place, number in enumerate(self.numbers)}
        missing = [number for number in numbers if number not in places]
        if missing:
            raise EnmaError(f"{self.path}: trajectory {missing[0]} was not read; read it, or select others")
        return [places[number] for number in numbers]

    def rows(self, places: Sequence[int] | np.ndarray) -> FieldFile:
        """Some of the trajectories, by their places along the first axis of `u`, as a file of their own."""
        return replace(
            self,
            u=self.u[places],
            parameters={name: values[places] for name, values in self.parameters.items()},
            environment=None if self.environment is None else self.environment[places],
            numbers=None,
            total=None,
            points=None if self.points is None else self.points[places],
            known=rows_of(self.known, places),
        )

    def parts(self) -> dict[str, Any]:
        """All but the path, as plain values and arrays."""
        return {entry.name: getattr(self, entry.name) for entry in dataclass_fields(self) if entry.name != "path"}

    def context_for(self, i: int) -> int:
        """Number of the next trajectory with the environment of trajectory `i`, cyclically.

        `EnmaError` if the file has no environments, `i` is out of range, or no other trajectory shares its own.
        """
        return context_number(self.path, self.environment, i, np.asarray(self.trajectories))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FieldArray:
    """One HDF5 dataset and the axes it varies along; the missing ones are broadcast."""

    dataset: Any
    where: str
    channels: tuple[str, ...]
    vector: bool = False
    sample_varying: bool = True
    time_varying: bool = True
    dim_varying: tuple[bool, ...]
    unit: str = "1"

    def frames(self, count: int) -> int:
        """Frames of the dataset, of a file of so many: a driver may have more."""
        if not self.time_varying:
            return 1
        place = int(self.sample_varying)
        return max(count, self.dataset.shape[place]) if self.dataset.ndim > place else count


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FieldSource:
    """An open, checked field file: everything but the values, which `load` reads for some trajectories.

    Drivers are the arrays `known`, and the parameters that are `told`.
    """

    path: Path
    layout: str
    name: str
    num_trajectories: int
    times: np.ndarray
    coords: tuple[np.ndarray, ...]
    periodic: tuple[bool, ...]
    parameters: dict[str, np.ndarray]
    environment: np.ndarray | None
    environment_by: tuple[str, ...] = ()
    arrays: tuple[FieldArray, ...]
    known: tuple[FieldArray, ...] = ()
    told: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_trajectories < 1 or not self.channels:
            raise EnmaError(
                f"{self.path}: holds {self.num_trajectories} trajectories of {len(self.channels)} fields; "
                "give at least one of each and list the fields in t0_fields@field_names"
            )
        for array in self.arrays:
            self._check(array, len(self.times))
        for array in self.known:
            self._check(array, array.frames(len(self.times)))

    def _check(self, array: FieldArray, frames: int) -> None:
        shape = (
            *((self.num_trajectories,) if array.sample_varying else ()),
            *((frames,) if array.time_varying else ()),
            *(size for size, varies in zip(self.grid, array.dim_varying, strict=True) if varies),
            *((len(array.channels),) if array.vector else ()),
        )
        if array.dataset.shape != shape:
            raise EnmaError(
                f"{self.path}: {array.where} has shape {array.dataset.shape}, expected {shape} "
                "from the dimensions and n_trajectories; write it as trajectories, frames, points"
            )
        if array.dataset.dtype.kind != "f":
            raise EnmaError(f"{self.path}: {array.where} has dtype {array.dataset.dtype}; write it as float32")

    @property
    def grid(self) -> tuple[int, ...]:
        return self.domain.grid

    @property
    def domain(self) -> Domain:
        return Domain.of_coords(self.coords, self.periodic)

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(channel for array in self.arrays for channel in array.channels)

    @property
    def units(self) -> dict[str, str]:
        return {channel: array.unit for array in self.arrays for channel in array.channels}

    def num_bytes(self, num_trajectories: int) -> int:
        """Bytes of the values of so many trajectories; `EnmaError` if no machine could hold them."""
        num_bytes = 4 * num_trajectories * len(self.times) * math.prod(self.grid) * len(self.channels)
        if num_bytes > 1 << 50:
            raise EnmaError(f"{self.path}: asks for {num_bytes / 1e12:,.0f} TB; the file is damaged, copy it again")
        return num_bytes

    def load(self, rows: np.ndarray, more: Limits = lambda num_bytes: None) -> FieldFile:
        """Read the trajectories `rows`; `more` gets their size in bytes first. `EnmaError` if a value is not finite."""
        require_memory(self.path, num_bytes := self.num_bytes(len(rows)))
        more(num_bytes)
        u = np.empty((len(rows), len(self.times), *self.grid, len(self.channels)), dtype=np.float32)
        first = 0
        for array in self.arrays:
            last = first + len(array.channels)
            u[..., first:last] = self._load_array(array, rows)
            first = last
        dims = len(self.grid)
        known = {name: self.parameters[name][rows].reshape(-1, *[1] * (dims + 1)) for name in self.told}
        for array in self.known:
            known |= dict(zip(array.channels, np.moveaxis(self._load_array(array, rows), -1, 0), strict=True))
        return FieldFile(
            path=self.path,
            name=self.name,
            u=u,
            channels=self.channels,
            times=self.times,
            coords=self.coords,
            lengths=self.domain.lengths,
            periodic=self.periodic,
            units=self.units,
            parameters={key: value[rows] for key, value in self.parameters.items()},
            environment=None if self.environment is None else self.environment[rows],
            environment_by=self.environment_by,
            known={name: np.asarray(values, np.float32) for name, values in known.items()},
        )

    def _load_array(self, array: FieldArray, rows: np.ndarray) -> np.ndarray:
        """Values [n or 1, T or 1, x or 1.., c] as float32."""
        dataset = array.dataset
        full = (
            len(rows) if array.sample_varying else 1,
            array.frames(len(self.times)),
            *(size if varies else 1 for size, varies in zip(self.grid, array.dim_varying, strict=True)),
            len(array.channels),
        )
        values = _read_rows(dataset, rows) if array.sample_varying else dataset[()]
        with np.errstate(over="ignore"):
            values = values.reshape(full).astype(np.float32, copy=False)
        fills = [hdf5.attribute(dataset, name, default=None) for name in FILL_ATTRIBUTES]
        for good, what in (
            (np.isfinite(values), "a NaN or an infinity"),
            (present(values, fills), "a missing value"),
        ):
            if not good.all() and in_place(good) and not np.isinf(values).any():
                # A mask, such as land.
                values = np.where(good, values, np.float32(np.nan))
            elif not good.all():
                row, frame = np.argwhere(~good)[0, :2]
                raise EnmaError(
                    f"{self.path}: {array.where} holds {what}, first at trajectory "
                    f"{rows[row] if array.sample_varying else 0}, frame {frame}; "
                    "compute that trajectory again or leave it out, unless it is missing in all frames of all of them"
                )
        return values


def context_number(path: Path, environment: np.ndarray | None, i: int, numbers: np.ndarray) -> int:
    """Number of the next trajectory with the environment of trajectory `i`, cyclically; raises as `context_for`."""
    if environment is None:
        raise EnmaError(
            f"{path}: lacks scalars/environment; add one integer per trajectory, its group, "
            "so that a context trajectory can be found, or give contexts in a file of their own (forecast --context)"
        )
    if i not in numbers:
        raise EnmaError(f"{path}: trajectory {i} is out of range; {len(numbers)} were read")
    group = environment[numbers == i][0]
    members = np.sort(numbers[environment == group])
    if len(members) < 2:
        raise EnmaError(
            f"{path}: trajectory {i} is alone in its group, scalars/environment {group}; a context needs a second "
            "trajectory of the same group, or a file of contexts (forecast --context)"
        )
    return int(members[(np.searchsorted(members, i) + 1) % len(members)])


def select_rows(select: slice | Sequence[int] | np.ndarray | None, num_trajectories: int, path: Path) -> np.ndarray:
    """Trajectory numbers of a selection, in its order."""
    if select is None or isinstance(select, slice):
        rows = np.arange(*(slice(None) if select is None else select).indices(num_trajectories))
    else:
        rows = np.asarray(select)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise EnmaError(f"{path}: select must be a slice or a list of trajectory numbers")
        if rows.size and not (rows.min() >= 0 and rows.max() < num_trajectories):
            raise EnmaError(
                f"{path}: select asks for trajectories outside 0..{num_trajectories - 1}, which the file has"
            )
    if not rows.size:
        raise EnmaError(f"{path}: no trajectory selected; the file has {num_trajectories}")
    return rows


def decimals(values: np.ndarray) -> np.ndarray:
    """Float32 values as the float64 of their shortest decimals: 0.2 where float32 holds 0.20000000298."""
    # NumPy writes the fewest digits that distinguish a number from its neighbours.
    narrow = values.dtype.kind == "f" and values.dtype.itemsize < 8
    return (values.astype(str) if narrow else values).astype(np.float64)


def is_even(positions: np.ndarray) -> bool:
    """True if positions that increase are evenly spaced, up to the rounding of their own format."""
    steps = np.diff(positions.astype(np.float64))
    rounding = 2 * float(np.spacing(np.abs(positions).max())) if positions.dtype.kind == "f" else 0.0
    return len(steps) == 0 or bool(np.ptp(steps) <= _EVEN * steps.mean() + rounding)


def axis(dataset: Any, where: str, path: Path, *, periodic: bool = False, fewest: int = 2) -> np.ndarray:
    """A coordinate or time axis as float64, checked: 1-D, finite, increasing, even if periodic."""
    if dataset.ndim != 1 or dataset.dtype.kind not in "fiu":
        raise EnmaError(
            f"{path}: {where} has shape {dataset.shape} and dtype {dataset.dtype}; write one axis of floats"
        )
    if dataset.size > MOST_POINTS:
        raise EnmaError(f"{path}: {where} has {dataset.size} values; at most {MOST_POINTS} are read")
    values = decimals(dataset[:])
    if len(values) < fewest:
        raise EnmaError(f"{path}: {where} has {len(values)} values; at least {fewest} are needed")
    steps = np.diff(values)
    if not (np.isfinite(values).all() and (steps > 0).all()):
        raise EnmaError(f"{path}: {where} must be finite and increasing; sort it and remove repeated values")
    if periodic and not is_even(values):
        raise EnmaError(f"{path}: {where} is periodic but not evenly spaced; interpolate the fields to an even grid")
    return values


def _read_rows(dataset: Any, rows: np.ndarray) -> np.ndarray:
    first, last = int(rows.min()), int(rows.max()) + 1
    if (np.diff(rows) == 1).all():
        return dataset[first:last]
    # HDF5 selects in increasing order without repeats only.
    unique, inverse = np.unique(rows, return_inverse=True)
    return dataset[unique][inverse]
