"""The contents of other people's files: named arrays, coordinates and columns of NumPy, NetCDF, Zarr and HDF5 files.

NumPy files are read without pickles. NetCDF and Zarr go through xarray, which decodes scales, fill values and dates.
Fields of these and of .npy files are read when they are indexed, so that a part of a large file can be taken.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.names import SPACE
from ..utils.text import shown
from ..utils.untrusted import Limits, open_regular, read_arrays, require_memory
from . import hdf5, xarray_files
from .missing import FILL_ATTRIBUTES, attributes, require_present

log = logging.getLogger("enma_fast")

# Axis of a field file -> names that sources give it.
NAMES = {
    "trajectory": ("trajectory", "traj", "sample", "member", "realization", "ensemble", "simulation", "run"),
    "time": ("time", "t", "frame", "t-coordinate", "valid_time"),
    "x": ("x", "lon", "longitude", "x-coordinate"),
    "y": ("y", "lat", "latitude", "y-coordinate"),
    "z": ("z", "z-coordinate"),
    "channel": ("channel", "variable", "component", "field"),
}
AXES = {name: axis for axis, names in NAMES.items() for name in names}
KINDS = ".npy, .npz, .nc, .zarr, .h5 or .hdf5"
# In messages, where other data have their path.
IN_MEMORY = Path("dataset")
_HDF5, _NETCDF = (".h5", ".hdf5", ".hdf"), (".nc", ".nc4", ".cdf")
# Attributes of NetCDF's conventions by which numbers stand for others.
_PACKED = ("scale_factor", "add_offset")
# Groups that are named where they hold all arrays.
_MOST_GROUPS = 8
_PDEBENCH_FLUIDS = ("Vx", "Vy", "Vz", "density", "pressure")


@dataclass(frozen=True, kw_only=True, eq=False)
class Deferred:
    """An array in a file of which the part that is asked for is read, by slices of all axes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        return self.part(key)


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One array of a source: its values, the names of its axes (None if the file has none), and its unit."""

    values: np.ndarray | Deferred
    axes: tuple[str, ...] | None = None
    unit: str = "1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The contents of a file: fields of two axes or more, coordinates by axis, and columns of one axis.

    Attributes
    ----------
    fields : name -> variable
    coords : name of an axis, or of an axis of a field file where the fields name none -> its values
    columns : name -> variable of one value per trajectory, perhaps
    wraps : True where the format says that the domain is periodic
    others : names of fields that were not read, with their type if they are no real numbers
    bounds : names of fields that are the edges of cells of a coordinate
    """

    path: Path
    fields: dict[str, Variable] = field(default_factory=dict)
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, Variable] = field(default_factory=dict)
    wraps: bool = False
    others: tuple[str, ...] = ()
    bounds: frozenset[str] = frozenset()

    def lacks(self, name: str) -> EnmaError:
        """The error of a field that is not there."""
        axes = {AXES.get(column, column) for column in self.columns}
        names = [
            *self.fields,
            *self.others,
            *self.columns,
            *(axis for axis in self.coords if AXES.get(axis, axis) not in axes),
        ]
        held = ", ".join(names) or "nothing"
        return EnmaError(f"{self.path}: has no field '{name}'; it holds {held}")


def open_source(path: Path, names: Sequence[str]) -> Source:
    """Open a file or Zarr folder; of HDF5's fields only those that `names`, or names of their components, begin with.

    `EnmaError` if it is missing, of no known kind, damaged, or has no field.
    """
    if not path.exists():
        raise EnmaError(f"{path}: no such file; check the path")
    ending = path.suffix.lower()
    if ending in (".npy", ".npz"):
        source = _arrays(path, _numpy(path), {})
    elif ending in _HDF5:
        source = _hdf5(path, names)
    elif ending in _NETCDF or ending == ".zarr" or any((path / mark).is_file() for mark in ("zarr.json", ".zgroup")):
        source = _labelled(path, xarray_files.variables(path), functools.partial(xarray_files.values, path))
    else:
        raise EnmaError(f"{path}: is of no known kind; give a file {KINDS}")
    return _with_fields(source, names)


def in_memory(data: Any) -> Source:
    """The variables of a Dataset or DataArray of xarray; `EnmaError` if it is neither, or has no field."""
    xarray = load_extra("xarray", "store")
    if isinstance(data, xarray.DataArray):
        data = data.to_dataset(name=data.name or "u")
    if not isinstance(data, xarray.Dataset):
        raise EnmaError(
            f"data is a {type(data).__name__}; give a file, a folder, what read_fields gives, or a Dataset of xarray"
        )
    variables = [xarray_files.Labelled(**about) for about in xarray_files.described(data)]

    def part(name: str, key: tuple[slice, ...]) -> np.ndarray:
        return xarray_files.valid_part(f"{IN_MEMORY}: {name}", data.variables[name], key)

    return _with_fields(_labelled(IN_MEMORY, variables, part), ())


def _with_fields(source: Source, names: Sequence[str]) -> Source:
    """A source that has fields; `EnmaError` where it has none."""
    if not source.fields:
        if names:
            raise source.lacks(names[0])
        held = ", ".join(dict.fromkeys([*source.others, *source.columns, *source.coords])) or "nothing"
        raise EnmaError(f"{source.path}: has no field of two axes or more that are real numbers; it holds {held}")
    return source


def _numpy(path: Path) -> dict[str, np.ndarray]:
    with open_regular(path):
        try:
            return read_arrays(path)
        except EnmaError:
            raise
        except ValueError as error:
            # Trajectories of different lengths come as objects, which saving again does not change.
            objects = "object" in str(error).lower()
            fix = "keep arrays of numbers in it alone, of one shape each" if objects else "save it again by np.save"
            raise EnmaError(f"{path}: cannot be read as NumPy's ({error}); {fix}") from error


def _arrays(path: Path, arrays: Mapping[str, np.ndarray], units: Mapping[str, str]) -> Source:
    """Arrays without names of axes: those of one axis are coordinates by their name, or else columns."""
    fields, coords, columns = {}, {}, {}
    fluids = "x-coordinate" in arrays and any(name in arrays for name in _PDEBENCH_FLUIDS)
    for name, values in arrays.items():
        if values.ndim > 1:
            axes = ("trajectory", "time", *SPACE[: values.ndim - 2]) if fluids else None
            fields[name] = Variable(values=values, axes=axes, unit=units.get(name, "1"))
        elif values.ndim == 1 and name in AXES:
            if AXES[name] in coords:
                other = next(key for key in arrays if AXES.get(key) == AXES[name])
                raise EnmaError(f"{path}: {other} and {name} are both positions along {AXES[name]}; keep one of them")
            coords[AXES[name]] = values
        elif values.ndim == 1:
            columns[name] = Variable(values=values)
    if fluids and fields and "time" in coords:
        # PDEBench gives one time more than frames.
        frames = next(iter(fields.values())).values.shape[1]
        coords["time"] = coords["time"][: frames if len(coords["time"]) == frames + 1 else None]
    # Its names say `periodic`, or `trans` where what leaves the domain does not come back.
    return Source(path=path, fields=fields, coords=coords, columns=columns, wraps=fluids and "_trans_" not in path.name)


def _hdf5(path: Path, names: Sequence[str]) -> Source:
    """Arrays at the root of an HDF5 file, or the runs of PDEBench's 2-D files: groups of `data` and `grid`."""

    def work(file: Any, more: Limits) -> dict[str, dict[str, Any]]:
        runs = [key for key in file if key.isdigit() and "data" in hdf5.get(file, key, "group")]
        if runs:
            first_run = hdf5.get(file, min(runs, key=int), "group")
            require_memory(path, size := len(runs) * hdf5.get(first_run, "data", "dataset").nbytes)
            more(size)
            grid = hdf5.get(first_run, "grid", "group")
            axes = {key: hdf5.get(grid, key, "dataset")[()] for key in ("t", *SPACE) if key in grid}
            parts = [hdf5.get(hdf5.get(file, key, "group"), "data", "dataset")[()] for key in sorted(runs, key=int)]
            if len({part.shape for part in parts}) > 1:
                raise EnmaError(f"{path}: its runs differ in shape; import those of one shape")
            return {"arrays": {"u": np.stack(parts), **axes}, "units": {}, "others": {}}
        datasets = {key: file[key] for key in file if hasattr(file[key], "dtype")}
        datasets = {key: hdf5.get(file, key, "dataset") for key in datasets}
        numeric = {key: data for key, data in datasets.items() if data.dtype.kind in "fiu"}
        if not numeric and (groups := [key for key in file if key not in datasets]):
            raise EnmaError(
                f"{path}: has no arrays at its root, only the groups {', '.join(groups[:_MOST_GROUPS])}; copy the "
                "arrays of one to the root of a file, such as by h5copy"
            )
        kept = {
            key: data
            for key, data in numeric.items()
            if data.ndim == 1 or not names or any(name == key or name.startswith(f"{key}_") for name in names)
        }
        require_memory(path, size := sum(data.nbytes for data in kept.values()))
        more(size)
        arrays, units = {}, {}
        for key, data in datasets.items():
            if data.ndim == 1 and load_extra("h5py", "data").check_string_dtype(data.dtype):
                arrays[key] = np.array(data.asstr(errors="replace")[()].tolist(), "U")
        for key, data in kept.items():
            about = attributes(data)
            if data.ndim == 1 and key not in AXES and any(mark in about for mark in (*_PACKED, *FILL_ATTRIBUTES)):
                # A column beside the fields: its numbers stand for others.
                continue
            if packed := [mark for mark in _PACKED if mark in about]:
                raise EnmaError(
                    f"{path}: {key} is packed ({', '.join(packed)}); let it end in .nc, so that xarray unpacks it"
                )
            arrays[key] = data[()]
            require_present(f"{path}: {key}", arrays[key], about)
            if isinstance(unit := about.get("units"), str | bytes):
                units[key] = (unit.decode() if isinstance(unit, bytes) else unit) or "1"
        others = [key for key in numeric if key not in kept]
        others += [f"{key} ({data.dtype})" for key, data in datasets.items() if key not in numeric and data.ndim > 1]
        return {"arrays": arrays, "units": units, "others": dict.fromkeys(others)}

    read = hdf5.read_file(path, work)
    arrays = read["arrays"]
    source = replace(_arrays(path, arrays, read["units"]), others=tuple(read["others"]))
    whole = "u" in arrays and "t" in arrays and arrays["u"].ndim == len(source.coords) + 2
    if whole and set(arrays) <= {"u", "t", *SPACE}:
        axes = ("trajectory", "time", *(name for name in SPACE if name in source.coords), "channel")
        return replace(source, fields={"u": replace(source.fields["u"], axes=axes)})
    return source


def _labelled(
    path: Path, variables: Sequence[xarray_files.Labelled], part: Callable[[str, tuple[slice, ...]], np.ndarray]
) -> Source:
    """A NetCDF file, a Zarr store or a Dataset: its arrays name their axes. `part` reads a part of one by its name."""
    fields, coords, columns, others, bounds = {}, {}, {}, [], set()
    for each in variables:
        name, numbers = each.name, each.kind in "fiu"
        bounds |= set(each.bounds)
        if each.values is not None:
            if name in each.axes:
                coords[name] = each.values
                if " since " in each.unit:
                    log.warning(
                        "%s: %s of %s are no dates, and are taken as plain numbers", path, shown(each.unit), name
                    )
            if each.values.dtype.kind in "fiuUS":
                columns[name] = Variable(values=each.values, axes=each.axes)
        elif each.data and len(each.axes) > 1 and numbers:
            values = Deferred(shape=each.shape, dtype=np.dtype(each.dtype), part=functools.partial(part, name))
            fields[name] = Variable(values=values, axes=each.axes, unit=each.unit)
        elif each.data and len(each.axes) > 1:
            others.append(f"{name} ({each.dtype})")
    return Source(
        path=path, fields=fields, coords=coords, columns=columns, others=tuple(others), bounds=frozenset(bounds)
    )
