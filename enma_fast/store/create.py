"""Creating a forecast store: its metadata, coordinates, observations and truth.

A store appears at its path with a ledger that says that its members are missing (`create_unfinished_store`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.files import make_folder, make_parents, move, remove, remove_empty, write_file
from ..utils.names import SPACE
from .checksums import write_checksums
from .chunks import array_metadata, checksum, chunk_name, encode_chunk, synced
from .forecast_store import ForecastStore
from .layout import LEDGER, Layout, store_attributes
from .ledger import RunLock, write_ledger
from .location import real_path, remove_leftovers, require_replaceable
from .metadata import METADATA, READINGS, STATISTICS


@contextmanager
def create_store(path: Path, layout: Layout, *, force: bool = False) -> Iterator[ForecastStore]:
    """Create a store, and yield it to be filled; it is complete when the block ends, and unfinished if that fails.

    With `force` it replaces a forecast store that is already there. `EnmaError` if `path` exists and may not be
    replaced, if it cannot be written or another process writes it, or if the `[store]` extra is missing.
    """
    with RunLock(path, f"create {uuid.uuid4().hex}") as lock:
        remove_leftovers(path)
        create_unfinished_store(path, layout, force=force)
        # Other processes that want to create it are refused now, and wait no longer.
        lock.share()
        try:
            with closing(ForecastStore(path, layout)) as store:
                yield store
                store.sync()
            (path / LEDGER).unlink()
        except OSError as error:
            raise EnmaError(f"{path}: cannot be written ({error}); choose another place or free space") from error


def create_unfinished_store(path: Path, layout: Layout, *, force: bool = False) -> None:
    """Create a store without members, with a ledger that marks all of them as missing; it appears at `path` complete.

    The caller holds the lock of the store. `EnmaError` in the same cases as `create_store`.
    """
    path = real_path(path)
    load_extra("zarr", "store")
    require_replaceable(path, force=force)
    temporary, parents = path.with_name(f".{path.name}.tmp"), list[Path]()
    try:
        parents = make_parents(path)
        with empty_store(temporary, layout):
            write_ledger(temporary / LEDGER, np.zeros(layout.num_units, bool))
        _replace_folder(temporary, path)
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another place or free space") from error
    finally:
        remove(temporary)
        remove_empty(parents)


@contextmanager
def empty_store(path: Path, layout: Layout) -> Iterator[None]:
    """Create a store without members and statistics; on leaving the block it is on the disk."""
    make_parents(path)
    remove(path)
    make_folder(path, follow=True)
    with synced(path.parent):
        _write_empty_store(path, layout)
        yield


def _write_empty_store(path: Path, layout: Layout) -> None:
    """Write metadata, coordinates, columns, observations and truth."""
    group = _NewGroup(path)
    axes = SPACE[: len(layout.coords)]
    _write_coordinates(group, layout)
    no_unit = {"units": "1"} if layout.dimensionless else {}
    for name, column in layout.columns.items():
        _write_array(group, name, ("trajectory",), np.asarray(column), long_name=name, **no_unit)
    seen_along = ("trajectory", "observed_time", *axes)
    if layout.observed_coords is not None:
        seen_along = ("trajectory", "observed_time", READINGS)
        for i, name in enumerate(axes):
            values, text = (
                np.asarray(layout.observed_coords[..., i], np.float32),
                f"position of the readings along {name}",
            )
            _write_array(group, f"{name}_observed", seen_along, values, long_name=text, **no_unit)
    for c, name in enumerate(layout.channels):
        B, frames, unit = len(layout.trajectories), layout.frame_shape, layout.units.get(name, "1")
        if layout.keep_members:
            sizes = (1, 1, *frames), (1, layout.shard, *frames) if layout.shard > 1 else None
            dims = ("trajectory", "realization", "time", *axes)
            attributes = {"long_name": f"forecast of {name}", "units": unit}
            _declare_array(group, name, (B, layout.num_members, *frames), *sizes, dims, attributes)
        for kind, size in layout.kept_statistics().items():
            axis, text, method = STATISTICS[kind]
            own = () if size is None else (size,)
            dims = ("trajectory", *(() if axis is None else (axis,)), "time", *axes)
            attributes = {"long_name": text.format(name), "units": "1" if kind == "exceedance" else unit}
            attributes |= {"cell_methods": method} if method else {}
            _declare_array(group, f"{name}_{kind}", (B, *own, *frames), (1, *own, *frames), None, dims, attributes)
        if layout.observed is not None:
            values = np.asarray(layout.observed[..., c], np.float32)
            _write_array(group, f"{name}_observed", seen_along, values, long_name=f"observed {name}", units=unit)
        if layout.truth is not None:
            dims, values = ("trajectory", "time", *axes), np.asarray(layout.truth[..., c], np.float32)
            _write_array(group, f"{name}_truth", dims, values, long_name=f"true {name}", units=unit)
    fixed = [value for _, values in sorted(group.checksums.items()) for value in values]
    write_checksums(path, np.array([*[0] * layout.num_files(), *fixed], np.uint32))
    # Consolidated metadata are not yet part of the Zarr v3 standard, but xarray looks for them and warns without.
    arrays = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(group.arrays.items()))}
    write_metadata(
        path,
        {
            "attributes": store_attributes(layout),
            "zarr_format": 3,
            "consolidated_metadata": arrays,
            "node_type": "group",
        },
    )


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Write the metadata of an array, or of the whole store, to the folder `path`."""
    write_file(path / METADATA, json.dumps(metadata, indent=2).encode())


@dataclass(frozen=True)
class _NewGroup:
    """A group that is being created: its folder, and the metadata of its arrays."""

    path: Path
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Name of an array -> the checksums of its files.
    checksums: dict[str, list[int]] = field(default_factory=dict)


def _write_coordinates(group: _NewGroup, layout: Layout) -> None:
    numbers = np.asarray(layout.trajectories, np.int64)
    text = "number of the trajectory in its file"
    _write_array(group, "trajectory", ("trajectory",), numbers, long_name=text, cf_role="trajectory_id")
    if layout.keep_members:
        members = layout.first_member + np.arange(layout.num_members, dtype=np.int64)
        text = "ensemble member"
        _write_array(
            group, "realization", ("realization",), members, long_name=text, standard_name="realization", units="1"
        )
    axes = {"time": (layout.times, "time", "T")}
    if layout.observed is not None:
        axes["observed_time"] = (layout.observed_times, "time", "")
    if layout.observed_coords is not None:
        numbers, text = np.arange(layout.observed_coords.shape[2]), "number of the reading in its frame"
        _write_array(group, READINGS, (READINGS,), numbers, long_name=text, units="1")
    for name, positions in zip(SPACE, layout.coords, strict=False):
        axes[name] = (positions, f"position along {name}", name.upper())
    if layout.statistics and len(layout.quantiles):
        axes["quantile"] = (layout.quantiles, "probability of a value below", "")
    if layout.statistics and len(layout.thresholds):
        axes["threshold"] = (layout.thresholds, "threshold", "")
    of_fields = {layout.units.get(name, "1") for name in layout.channels}
    units = {"quantile": "1", "threshold": of_fields.pop() if len(of_fields) == 1 else None}
    for name, (values, text, axis) in axes.items():
        unit = units.get(name, "1" if layout.dimensionless else None)
        attributes = {"long_name": text} | ({"units": unit} if unit else {}) | ({"axis": axis} if axis else {})
        _write_array(group, name, (name,), np.asarray(values, np.float64), **attributes)


def _write_array(group: _NewGroup, name: str, dims: tuple[str, ...], values: np.ndarray, **attributes: str) -> None:
    """Write an array; with more than one axis it has a chunk for each trajectory."""
    chunk = (1, *values.shape[1:]) if values.ndim > 1 else values.shape
    _declare_array(group, name, values.shape, chunk, None, dims, attributes, dtype=values.dtype)
    folder = group.path / name
    for i, part in enumerate(values if values.ndim > 1 else [values]):
        data = encode_chunk(part)
        write_file(folder / chunk_name(i, *(0 for _ in values.shape[1:])), data)
        group.checksums.setdefault(name, []).append(checksum(data, part.nbytes))


def _declare_array(
    group: _NewGroup,
    name: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    shard: tuple[int, ...] | None,
    dims: tuple[str, ...],
    attributes: Mapping[str, str],
    dtype: Any = np.float32,
) -> None:
    """Write the metadata of an array, and make the folder that its chunk files go to."""
    group.arrays[name] = array_metadata(np.dtype(dtype), shape, chunk, shard, dims, attributes)
    make_folder(group.path / name)
    write_metadata(group.path / name, group.arrays[name])


def _replace_folder(temporary: Path, path: Path) -> None:
    """Move a folder to its place; a folder that was there is removed after that, and put back if it fails."""
    if not path.exists():
        move(temporary, path)
        return
    old = temporary.with_suffix(".old")
    move(path, old)
    try:
        move(temporary, path)
    except BaseException:
        move(old, path)
        raise
    remove(old)
