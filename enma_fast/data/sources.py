"""The contents of other people's files: named arrays, coordinates and columns of NumPy, NetCDF, Zarr and HDF5 files.

NumPy files are read without pickles. NetCDF and Zarr go through xarray, which decodes scales, fill values and dates.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.untrusted import Limits
from . import hdf5
from .missing import FILL_ATTRIBUTES, attributes, require_present

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
_HDF5, _NETCDF = (".h5", ".hdf5", ".hdf"), (".nc", ".nc4", ".cdf")
# Attributes of NetCDF's conventions by which numbers stand for others.
_PACKED = ("scale_factor", "add_offset")
_PDEBENCH_FLUIDS = ("Vx", "Vy", "Vz", "density", "pressure")


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One array of a source: its values, the names of its axes (None if the file has none), and its unit."""

    values: np.ndarray
    axes: tuple[str, ...] | None = None
    unit: str = "1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The contents of a file: fields of two axes or more, coordinates by axis, and columns of one axis.

    Attributes
    ----------
    fields : name -> variable
    coords : axis of a field file ("time", "x", ..., "channel") -> its values
    columns : name -> variable of one value per trajectory, perhaps
    wraps : True where the format says that the domain is periodic
    """

    path: Path
    fields: dict[str, Variable] = field(default_factory=dict)
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, Variable] = field(default_factory=dict)
    wraps: bool = False


def open_source(path: Path, names: Sequence[str]) -> Source:
    """Read a file or Zarr folder; of its fields only `names`, where there are any.

    `EnmaError` if it is missing, of no known kind, damaged, or lacks a field.
    """
    if not path.exists():
        raise EnmaError(f"{path}: no such file; check the path")
    ending = path.suffix.lower()
    if ending in (".npy", ".npz"):
        found = _arrays(path, _numpy(path), {})
    elif ending in _HDF5:
        found = _hdf5(path, names)
    elif ending in _NETCDF or ending == ".zarr" or any((path / mark).is_file() for mark in ("zarr.json", ".zgroup")):
        found = _xarray(path, names)
    else:
        raise EnmaError(f"{path}: is of no known kind; give a file {KINDS}")
    missing = [name for name in names if name not in found.fields]
    if missing or not found.fields:
        wanted = f"has no field '{missing[0]}'" if missing else "has no field of two axes or more"
        held = ", ".join([*found.fields, *found.columns, *found.coords]) or "nothing"
        raise EnmaError(f"{path}: {wanted}; it holds {held}")
    return Source(
        path=path,
        fields={name: found.fields[name] for name in names or found.fields},
        coords=found.coords,
        columns=found.columns,
        wraps=found.wraps,
    )


def _numpy(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"u": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EnmaError(f"{path}: cannot be read as NumPy's ({first_line(error)}); save it again by np.save") from error


def _arrays(path: Path, arrays: Mapping[str, np.ndarray], units: Mapping[str, str]) -> Source:
    """Arrays without names of axes: those of one axis are coordinates by their name, or else columns."""
    fields, coords, columns = {}, {}, {}
    fluids = "x-coordinate" in arrays and any(name in arrays for name in _PDEBENCH_FLUIDS)
    for name, values in arrays.items():
        if values.ndim > 1:
            axes = ("trajectory", "time", *"xyz"[: values.ndim - 2]) if fluids else None
            fields[name] = Variable(values=values, axes=axes, unit=units.get(name, "1"))
        elif values.ndim == 1 and name in AXES:
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
            first = hdf5.get(file, runs[0], "group")
            more(len(runs) * hdf5.get(first, "data", "dataset").nbytes)
            grid = hdf5.get(first, "grid", "group")
            axes = {key: hdf5.get(grid, key, "dataset")[()] for key in "txyz" if key in grid}
            parts = [hdf5.get(hdf5.get(file, key, "group"), "data", "dataset")[()] for key in sorted(runs)]
            if len({part.shape for part in parts}) > 1:
                raise EnmaError(f"{path}: its runs differ in shape; import those of one shape")
            return {"arrays": {"u": np.stack(parts), **axes}, "units": {}}
        datasets = {key: file[key] for key in file if hasattr(file[key], "dtype")}
        datasets = {key: hdf5.get(file, key, "dataset") for key in datasets}
        kept = {
            key: data
            for key, data in datasets.items()
            if data.dtype.kind in "fiu" and (data.ndim == 1 or not names or key in names)
        }
        more(sum(data.nbytes for data in kept.values()))
        arrays, units = {}, {}
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
        return {"arrays": arrays, "units": units}

    read = hdf5.read_file(path, work)
    arrays = read["arrays"]
    found = _arrays(path, arrays, read["units"])
    whole = "u" in arrays and "t" in arrays and arrays["u"].ndim == len(found.coords) + 2
    if whole and set(arrays) <= {"u", *"txyz"}:
        axes = ("trajectory", "time", *(name for name in "xyz" if name in found.coords), "channel")
        return replace(found, fields={"u": replace(found.fields["u"], axes=axes)})
    return found


def _xarray(path: Path, names: Sequence[str]) -> Source:
    xarray = load_extra("xarray", "store")
    fields, coords, columns = {}, {}, {}
    try:
        with (
            # Dates that NumPy cannot hold come as those of cftime, which are read as well.
            warnings.catch_warnings(action="ignore", category=xarray.SerializationWarning),
            _opened(xarray, path) as dataset,
        ):
            for name, data in dataset.variables.items():
                numeric = data.dtype.kind in "fiu"
                if data.ndim > 1 and numeric and name in dataset.data_vars and (not names or name in names):
                    unit = str(data.attrs.get("units", "1")) or "1"
                    fields[str(name)] = Variable(values=data.to_numpy(), axes=tuple(map(str, data.dims)), unit=unit)
                elif data.ndim == 1 and name in data.dims:
                    coords[AXES.get(str(name), str(name))] = data.to_numpy()
                elif data.ndim == 1 and numeric:
                    columns[str(name)] = Variable(values=data.to_numpy(), axes=tuple(map(str, data.dims)))
    except Exception as error:
        # Engines of xarray raise nearly anything for damaged files.
        raise EnmaError(f"{path}: xarray cannot read it ({first_line(error)}); check the file") from error
    return Source(path=path, fields=fields, coords=coords, columns=columns)


def _opened(xarray: Any, path: Path) -> Any:
    return xarray.open_zarr(path, chunks=None, consolidated=False) if path.is_dir() else xarray.open_dataset(path)
