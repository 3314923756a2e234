"""Export a forecast store as one NetCDF-4 file with CF attributes, a trajectory at a time.

Variables, coordinates and attributes are those of the store (`layout`), except where CF asks for something else in a
NetCDF file: there is no fill value where nothing can be missing, and no attribute `axis`, since CF reserves it for
dates and for places on the earth, which time and space are not known to be here. Attributes that are lists of names
become one text. The same store gives the same bytes.

Shape suffixes: S sizes of the axes behind the trajectory.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.files import complete_file
from .metadata import DIGEST, READINGS
from .read import read_forecast, zarr_errors

log = logging.getLogger("enma_fast")

# Values in a chunk of the file, and values that are copied at a time: 1 MB and 64 MB of fp32.
_CHUNK, _BLOCK = 1 << 18, 1 << 24
_COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_DROPPED = ("axis", "_FillValue")
# Attributes that describe the store and not the forecast.
_OWN = (DIGEST,)


def export_netcdf(
    path: str | Path,
    out: str | Path,
    *,
    trajectories: Sequence[int] | None = None,
    members: Sequence[int] | None = None,
    command: str = "",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a forecast store, or a selection of it, as a NetCDF-4 file; memory does not grow with the store.

    Parameters
    ----------
    path : forecast store
    out : file to write; it appears complete, or not at all
    trajectories : numbers of trajectories, from the coordinate `trajectory`; all by default
    members : numbers of members, from the coordinate `realization`; all by default
    command : a line for the attribute `history`
    force : replace a NetCDF file that is already there
    progress : called with (trajectories done, trajectories)

    Returns
    -------
    dict
        `store`, `file`, `num_trajectories`, `num_members` (0 for a store of statistics only), `bytes`.

    Raises
    ------
    EnmaError
        If the store is unfinished or damaged or lacks a selected trajectory or member, if `out` exists and may not be
        replaced or cannot be written, or if the `[store]` extra is missing.
    """
    path, out = Path(path), Path(out)
    h5netcdf = load_extra("h5netcdf", "store")
    dataset = read_forecast(path)
    places = {"trajectory": _places(path, dataset, "trajectory", trajectories)}
    if "realization" in dataset.coords:
        places["realization"] = _places(path, dataset, "realization", members)
    elif members is not None:
        raise EnmaError(f"{path}: holds statistics only, so no members can be selected; leave members out")
    _refuse(out, force)
    is_part = len(places.get("realization", ())) < dataset.sizes.get("realization", 0)
    total, missing = len(places["trajectory"]), 0
    to_disk = complete_file(out, remedy="choose another place or free space", errors=(OSError, RuntimeError))
    with to_disk as temporary, h5netcdf.File(temporary, "w") as file:
        for name, value in _global_attributes(dataset, places, command).items():
            file.attrs[name] = value
        file.dimensions = {str(d): len(places[d]) if d in places else size for d, size in dataset.sizes.items()}
        large = [name for name in dataset.variables if _is_large(dataset[name])]
        for name in dataset.variables:
            _create(file, name, dataset[name], places, is_part=is_part)
            if name not in large:
                file.variables[name][...] = _read(path, dataset[name], places)
        for i in range(total):
            for name in large:
                missing += _copy(path, file.variables[name], dataset[name], places, i)
            if progress is not None:
                progress(i + 1, total)
    if missing:
        log.warning("%s: %d values are missing in the store; they are NaN in the file", out, missing)
    return {
        "store": str(path),
        "file": str(out),
        "num_trajectories": total,
        "num_members": len(places.get("realization", ())),
        "bytes": out.stat().st_size,
    }


def _places(path: Path, dataset: Any, axis: str, numbers: Sequence[int] | None) -> np.ndarray:
    """Indices of these numbers along an axis of the store, in the order of the axis."""
    stored = dataset[axis].to_numpy()
    if numbers is None:
        return np.arange(len(stored))
    lacking = sorted(set(numbers) - set(stored.tolist()))
    if lacking or not len(numbers):
        what = lacking[0] if lacking else "chosen"
        raise EnmaError(f"{path}: has no {axis} {what}; it holds {stored.min()} to {stored.max()}")
    return np.flatnonzero(np.isin(stored, np.asarray(numbers)))


def _is_large(array: Any) -> bool:
    return array.dims[0] == "trajectory" and array.ndim > 1


def _create(file: Any, name: str, array: Any, places: Mapping[str, np.ndarray], *, is_part: bool) -> None:
    """Create a variable; `is_part` is True if the file holds some of the members and not all."""
    if array.dtype.kind not in "fiu":
        raise EnmaError(f"{name} of the store has dtype {array.dtype}, which is not exported; store numbers")
    options: dict[str, Any] = {}
    if _is_large(array):
        sizes_S = _sizes(array, places)
        options = {"chunks": (1, *_parts(sizes_S, _CHUNK)), "fillvalue": array.dtype.type(np.nan), **_COMPRESSION}
    variable = file.create_variable(name, array.dims, array.dtype, **options)
    for key, value in _plain(array.attrs).items():
        if key not in _DROPPED:
            variable.attrs[key] = value
    if is_part and "realization" in array.attrs.get("cell_methods", ""):
        variable.attrs["comment"] = "over all members of the forecast store, of which this file holds some"


def _sizes(array: Any, places: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Sizes of the selection along the axes behind the trajectory."""
    return tuple(len(places[d]) if d in places else array.sizes[d] for d in array.dims[1:])


def _parts(sizes_S: Sequence[int], limit: int, unit_S: Sequence[int] | None = None) -> tuple[int, ...]:
    """Shape of the largest block of at most `limit` values, whole along the last axes, cut at multiples of `unit_S`."""
    part, product = [], 1
    for axis in reversed(range(len(sizes_S))):
        unit = 1 if unit_S is None else unit_S[axis]
        size = sizes_S[axis] if product * sizes_S[axis] <= limit else max(1, limit // product // unit) * unit
        part.append(min(size, sizes_S[axis]))
        product *= part[-1]
    return tuple(reversed(part))


def _copy(path: Path, variable: Any, array: Any, places: Mapping[str, np.ndarray], i: int) -> int:
    """Copy one trajectory of a variable in blocks; returns how many values are missing."""
    sizes_S, missing = _sizes(array, places), 0
    step_S = _parts(sizes_S, _BLOCK, _parts(sizes_S, _CHUNK))
    row = {"trajectory": places["trajectory"][i]}
    for starts in itertools.product(*(range(0, size, step) for size, step in zip(sizes_S, step_S, strict=True))):
        slices = [slice(a, min(a + step, size)) for a, step, size in zip(starts, step_S, sizes_S, strict=True)]
        chosen = {d: places[d][s] if d in places else s for d, s in zip(array.dims[1:], slices, strict=True)}
        values = _read(path, array, {**row, **chosen})
        # A frame may have fewer readings than others.
        missing += 0 if READINGS in array.dims else int(np.isnan(values).sum())
        variable[(i, *slices)] = values
    return missing


def _read(path: Path, array: Any, places: Mapping[str, Any]) -> np.ndarray:
    """Read the values of a variable of the store at these indices of its axes."""
    with zarr_errors(path, array.name):
        return np.asarray(array.isel({d: place for d, place in places.items() if d in array.dims}).to_numpy())


def _global_attributes(dataset: Any, places: Mapping[str, np.ndarray], command: str) -> dict[str, Any]:
    attrs = {name: value for name, value in _plain(dataset.attrs).items() if name not in _OWN}
    if command:
        attrs["history"] = "\n".join(filter(None, [attrs.get("history"), _encodable(command)]))
    if "realization" in places:
        members = dataset["realization"].to_numpy()[places["realization"]]
        attrs |= {"num_members": len(members), "first_member": int(members[0])}
    attrs.setdefault("source", f"enma_fast, model {attrs.get('model', 'unknown')}")
    return attrs


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert attributes to the types of NetCDF: text, numbers and lists of numbers; empty ones are left out."""
    plain: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            value = ", ".join(value)
        elif isinstance(value, bool):
            value = int(value)
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, list | dict) for v in value)):
            value = json.dumps(value)
        if value is not None and not (isinstance(value, str | list) and not value):
            plain[_encodable(str(name))] = _encodable(value) if isinstance(value, str) else value
    return plain


def _encodable(text: str) -> str:
    """Text with what cannot be encoded, such as bytes of a file name that are not UTF-8, as escapes."""
    return text.encode(errors="backslashreplace").decode()


def _refuse(out: Path, force: bool) -> None:
    """Raise `EnmaError` unless `out` is free or, with `force`, a NetCDF file."""
    if not out.exists():
        return
    if not (out.is_file() and _is_netcdf(out)):
        raise EnmaError(f"{out}: exists and is not a NetCDF file; choose another --out")
    if not force:
        raise EnmaError(f"{out}: exists; choose another --out, or replace it with --force")


def _is_netcdf(path: Path) -> bool:
    """True for a NetCDF file; a field file is HDF5 too, but not NetCDF."""
    with path.open("rb") as file:
        head = file.read(8)
    if head != _HDF5:
        return head.startswith(b"CDF")
    try:
        with load_extra("h5py", "store").File(path) as file:
            return "_NCProperties" in file.attrs
    except OSError:
        return False
