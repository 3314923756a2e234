"""Forecasts on disk: a Zarr v3 store that `xarray.open_zarr` reads, with CF attributes and where it came from.

    <channel>            (trajectory, realization, time, x[, y])   float32, the forecast; one member per chunk
    <channel>_observed   (trajectory, observed_time, x[, y])       float32, what the model saw (if anything)
    <channel>_truth      (trajectory, time, x[, y])                float32 (where it is known)
    trajectory           number of the trajectory in its file; further columns, such as PDE parameters, share its axis
    realization, time, observed_time, x[, y]                       coordinates

The fields are dimensionless as the equations are, so all units are "1".

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .errors import EnmaError
from .extras import load_extra

FORMAT = "enma_fast_forecast"
FORMAT_VERSION = 1
_AXES = ("x", "y", "z")
_METADATA = "zarr.json"


class ForecastStore:
    """A store that is being written; made by `create_store`."""

    def __init__(self, group: Any, channels: Sequence[str]) -> None:
        self._group, self._channels = group, tuple(channels)

    def put(self, first: int, samples: ArrayLike) -> None:
        """Write the members `[B, K, T, *x, c]` of trajectories `first, ..., first + B - 1` of the store."""
        values = np.asarray(samples)
        for c, name in enumerate(self._channels):
            array = self._group[name]
            expected = (len(values), *array.shape[1:], len(self._channels))
            if values.shape != expected or first + len(values) > array.shape[0]:
                raise EnmaError(f"samples have shape {values.shape} at {first}; the store expects {expected}")
            array[first : first + len(values)] = values[..., c]


@contextmanager
def create_store(
    path: str | Path,
    *,
    channels: Sequence[str],
    times: ArrayLike,
    coords: Sequence[np.ndarray],
    trajectories: Sequence[int],
    num_members: int,
    first_member: int = 0,
    observed: np.ndarray | None = None,
    observed_times: ArrayLike = (),
    truth: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    attributes: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Iterator[ForecastStore]:
    """Write a forecast store; it appears at `path` complete, when the block ends, or not at all.

    Parameters
    ----------
    path : folder of the store, by habit ending in `.zarr`
    channels : names of the c physical channels; each becomes a variable
    times : [T] of the forecast frames
    coords : one array per space dimension
    trajectories : [B] numbers of the trajectories in their file
    num_members, first_member : members `first_member, ...`, the coordinate `realization`
    observed, observed_times : `[B, L, *x, c]` and [L], what the model saw of each trajectory
    truth : `[B, T, *x, c]`
    columns : further values per trajectory, name -> [B]
    attributes : of the whole store: model, seed, command, ...
    force : replace a forecast store that is there

    Raises
    ------
    EnmaError
        If `path` exists and is not to be replaced, cannot be written, or the `[store]` extra is missing.
    """
    path = Path(path)
    zarr = load_extra("zarr", "store")
    _refuse(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        group = zarr.open_group(temporary, mode="w-", zarr_format=3)
        axes = _AXES[: len(coords)]
        _coordinates(group, times, coords, trajectories, first_member + np.arange(num_members))
        for name, values in (columns or {}).items():
            _array(group, name, ("trajectory",), np.asarray(values), long_name=name, units="1")
        if observed is not None:
            _array(
                group,
                "observed_time",
                ("observed_time",),
                np.asarray(observed_times, np.float64),
                long_name="time",
                units="1",
            )
        for c, name in enumerate(channels):
            shape = (len(trajectories), num_members, np.size(times), *(len(x) for x in coords))
            dims = ("trajectory", "realization", "time", *axes)
            group.create_array(
                name,
                shape=shape,
                chunks=(1, 1, *shape[2:]),
                dtype="float32",
                fill_value=np.nan,
                dimension_names=dims,
                attributes={"long_name": f"forecast of {name}", "units": "1"},
            )
            if observed is not None:
                dims = ("trajectory", "observed_time", *axes)
                values = np.asarray(observed[..., c], np.float32)
                _array(group, f"{name}_observed", dims, values, long_name=f"observed {name}", units="1")
            if truth is not None:
                dims = ("trajectory", "time", *axes)
                values = np.asarray(truth[..., c], np.float32)
                _array(group, f"{name}_truth", dims, values, long_name=f"true {name}", units="1")
        group.attrs.update(_attributes(channels, attributes or {}))
        yield ForecastStore(group, channels)
        with warnings.catch_warnings():
            # Consolidated metadata is an extension of Zarr v3 as yet; xarray looks for it and warns without.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(temporary)
        _move(temporary, path)
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another place or free space") from error
    finally:
        _settle()
        shutil.rmtree(temporary, ignore_errors=True)


def read_forecast(path: str | Path) -> Any:
    """Open a forecast store as an `xarray.Dataset`, values on demand.

    Raises
    ------
    EnmaError
        If there is no store, it is of another kind or version, or the `[store]` extra is missing.
    """
    path = Path(path)
    load_extra("zarr", "store")
    xarray = load_extra("xarray", "store")
    if not (path / _METADATA).is_file():
        state = "is not a Zarr store" if path.exists() else "no such folder"
        raise EnmaError(f"{path}: {state}; give one written by `enma-fast forecast`")
    try:
        dataset = xarray.open_zarr(path, chunks=None)
    except Exception as error:
        # Zarr and its codecs raise many kinds for a damaged store.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnmaError(f"{path}: cannot be read as Zarr ({reason}); write the forecast again") from error
    version = dataset.attrs.get(FORMAT)
    if version is None:
        raise EnmaError(f"{path}: lacks the attribute {FORMAT}; give a store written by `enma-fast forecast`")
    if version != FORMAT_VERSION:
        raise EnmaError(f"{path}: {FORMAT} is {version}; this version of enma_fast reads {FORMAT_VERSION}")
    return dataset


def stacked(dataset: Any, suffix: str = "") -> np.ndarray | None:
    """The variables of all channels, `suffix` "", "_observed" or "_truth", with the channels as last axis."""
    names = [name + suffix for name in dataset.attrs["channels"]]
    if any(name not in dataset for name in names):
        return None
    return np.stack([dataset[name].to_numpy() for name in names], axis=-1)


def _coordinates(
    group: Any,
    times: ArrayLike,
    coords: Sequence[np.ndarray],
    trajectories: Sequence[int],
    members: np.ndarray,
) -> None:
    numbers = np.asarray(trajectories, np.int64)
    _array(
        group,
        "trajectory",
        ("trajectory",),
        numbers,
        long_name="number of the trajectory in its file",
        cf_role="trajectory_id",
    )
    _array(
        group,
        "realization",
        ("realization",),
        members.astype(np.int64),
        long_name="ensemble member",
        standard_name="realization",
        units="1",
    )
    _array(group, "time", ("time",), np.asarray(times, np.float64), long_name="time", units="1", axis="T")
    for name, values in zip(_AXES, coords, strict=False):
        _array(
            group,
            name,
            (name,),
            np.asarray(values, np.float64),
            long_name=f"position along {name}",
            units="1",
            axis=name.upper(),
        )


def _array(group: Any, name: str, dims: tuple[str, ...], values: np.ndarray, **attributes: str) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(1, *values.shape[1:]) if values.ndim > 1 else values.shape,
        dtype=values.dtype,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        dimension_names=dims,
        attributes=attributes,
    )
    array[...] = values


def _attributes(channels: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "Conventions": "CF-1.11",
        "title": "Ensemble forecast",
        "references": "https://arxiv.org/abs/2506.06158",
        "history": f"{now} {given.get('command', 'written by enma_fast')}",
        FORMAT: FORMAT_VERSION,
        "channels": list(channels),
        **given,
    }


def _refuse(path: Path, force: bool) -> None:
    """Only a forecast store is ever replaced, and only when asked for."""
    if not path.exists():
        return
    metadata = path / _METADATA
    if not (metadata.is_file() and f'"{FORMAT}"' in metadata.read_text(errors="replace")):
        raise EnmaError(f"{path}: exists and is not a forecast store; choose another --out")
    if not force:
        raise EnmaError(f"{path}: exists; choose another --out, or replace it with --force")


def _settle() -> None:
    """Wait for the chunks that Zarr still writes behind one that failed: they would come back after the removal."""

    async def others() -> None:
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    load_extra("zarr.core.sync", "store").sync(others())


def _move(temporary: Path, path: Path) -> None:
    """Put a folder in its place; a folder that was there goes once the new one is in place."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)
