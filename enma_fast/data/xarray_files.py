"""NetCDF files and Zarr stores that others made, as xarray decodes them: their variables, and parts of the values.

xarray and the libraries below it read in a child of `utils.untrusted.isolated`. Zarr stores are checked by
`zarr_check` before, HDF5 files by `hdf5`, by their content and not by their name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.untrusted import Limits, isolated, open_regular, require_memory
from . import hdf5
from .missing import invalid, require_valid
from .zarr_check import check_store

_T = TypeVar("_T")
# Libraries that read NetCDF, of which the extra installs the first.
_ENGINES = ("h5netcdf", "netCDF4", "scipy.io")
# Attributes that name the edges of cells.
_BOUNDS = ("bounds", "climatology")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """A variable of a data set.

    Attributes
    ----------
    axes : names of its dimensions
    kind, dtype : of the values as they are decoded, as NumPy names them
    data : True for a variable that is no coordinate
    unit : text, "1" without one
    bounds : names of variables that are the edges of its cells
    values : those of a variable of one axis of numbers, text (kind `U`), dates or spans; None for others
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str
    dtype: str
    data: bool
    unit: str
    bounds: tuple[str, ...]
    values: np.ndarray | None


def variables(path: Path) -> list[Labelled]:
    """The variables of a NetCDF file or a Zarr store; `EnmaError` if it cannot be read, or is of another kind."""
    if path.is_dir():
        check_store(path)
    else:
        with open_regular(path):
            pass

    def work(dataset: Any, more: Limits) -> list[dict[str, Any]]:
        size = sum(data.nbytes for data in dataset.variables.values() if data.ndim == 1)
        require_memory(path, size)
        more(size)
        return described(dataset)

    return [Labelled(**about) for about in _read(path, work)]


def values(path: Path, name: str, key: tuple[slice, ...]) -> np.ndarray:
    """A part of a variable; `EnmaError` if it holds a value outside the range that its attributes call valid."""

    def work(dataset: Any, more: Limits) -> np.ndarray:
        data = dataset.variables[name]
        ranges = [range(*part.indices(size)) for part, size in zip(key, data.shape, strict=True)]
        chunks = _chunks(data)
        require_memory(path, data.dtype.itemsize * (math.prod(map(len, ranges)) + math.prod(chunks)))
        # Whole chunks are decoded.
        touched = [(-(-r.stop // c) - r.start // c) * c for r, c in zip(ranges, chunks, strict=True)]
        more(data.dtype.itemsize * math.prod(touched))
        return valid_part(f"{path}: {name}", data, key)

    array: np.ndarray = _read(path, work)
    return array


def valid_part(where: str, data: Any, key: tuple[slice, ...]) -> np.ndarray:
    """A part of an open variable; `EnmaError` if a value lies outside the range that its attributes call valid."""
    part: np.ndarray = data[key].to_numpy()
    require_valid(where, part, {**data.attrs, **data.encoding})
    return part


def described(dataset: Any) -> list[dict[str, Any]]:
    """What :class:`Labelled` holds of each variable of an open data set."""
    return [_described(dataset, name) for name in dataset.variables]


def _chunks(data: Any) -> tuple[int, ...]:
    """Sizes of the pieces of a variable that are decoded as a whole, along its axes."""
    preferred = data.encoding.get("preferred_chunks")
    preferred = preferred if isinstance(preferred, Mapping) else {}
    sizes = [preferred.get(axis) for axis in data.dims]
    return tuple(c if isinstance(c, int) and c > 0 else 1 for c in sizes)


def _described(dataset: Any, name: str) -> dict[str, Any]:
    data = dataset.variables[name]
    about = {**data.attrs, **data.encoding}
    values = None
    if data.ndim == 1:
        values = _plain(data.to_numpy())
        values = np.where(outside, np.nan, values) if (outside := invalid(values, about)).any() else values
    return {
        "name": str(name),
        "axes": tuple(map(str, data.dims)),
        "shape": tuple(data.shape),
        "kind": data.dtype.kind,
        "dtype": str(data.dtype),
        "data": name in dataset.data_vars,
        "unit": str(data.attrs.get("units", "1")) or "1",
        "bounds": tuple(str(about[mark]) for mark in _BOUNDS if mark in about),
        "values": values,
    }


def _plain(values: np.ndarray) -> np.ndarray:
    """Values without Python's objects: text as kind `U`, dates of the calendars of cftime as spans since the first."""
    if values.dtype.kind not in "OST":
        return values
    items: Sequence[Any] = values.tolist()
    if items and all(hasattr(item, "calendar") for item in items):
        return np.array([item - items[0] for item in items], "m8[us]")
    return np.array([item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in items], "U")


def _read(path: Path, work: Callable[[Any, Limits], _T]) -> _T:
    """Call `work` on an open data set, in a child; what it or xarray raises is an `EnmaError` of one line."""
    xarray = load_extra("xarray", "store")
    # Imported once here, not in each child.
    load_extra("zarr" if path.is_dir() else "h5netcdf", "store")
    for name in ("cftime", *(() if path.is_dir() else _ENGINES)):
        with suppress(ImportError):
            import_module(name)

    def read(more: Limits) -> _T:
        try:
            opened = _store if path.is_dir() else _netcdf
            with _dated(lambda **options: opened(xarray, path.absolute(), **options)) as dataset:
                return work(dataset, more)
        except EnmaError:
            raise
        except Exception as error:
            # Engines of xarray raise nearly anything for damaged files.
            raise EnmaError(f"{path}: xarray cannot read it ({first_line(error)}); check the file") from error

    result: _T = isolated(path, read)
    return result


def _store(xarray: Any, path: Path, **options: Any) -> Any:
    zarr = load_extra("zarr", "store")
    # Each thread takes address space, which is limited.
    zarr.config.set({"threading.max_workers": 2, "async.concurrency": 2})
    # No text, which could be the address of another kind of store.
    store = zarr.storage.LocalStore(path, read_only=True)
    return xarray.open_zarr(store, chunks=None, consolidated=False, **options)


def _netcdf(xarray: Any, path: Path, **options: Any) -> Any:
    with open_regular(path) as file:
        classic = os.read(file, 3) == b"CDF"
    if not classic:
        if not load_extra("h5py", "data").is_hdf5(path):
            raise EnmaError(f"{path}: is no NetCDF file; copy it again, or name it by its format")
        # Refuses what lies in other files.
        hdf5.read_here(path, lambda file: None)
    return xarray.open_dataset(path, **options)


def _dated(opened: Callable[..., Any]) -> Any:
    try:
        return opened()
    except ValueError as error:
        # Months of the usual calendar have no one length, but their numbers may be even.
        if "decode" not in str(error):
            raise
        return opened(decode_times=False)
