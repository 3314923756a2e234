"""Forecasts on disk: a Zarr v3 store that `xarray.open_zarr` reads, with CF attributes and where it came from.

    <channel>             (trajectory, realization, time, x[, y])  float32, the forecast; one member per chunk
    <channel>_observed    (trajectory, observed_time, x[, y])      float32, what the model saw (if anything)
    <channel>_truth       (trajectory, time, x[, y])               float32 (where it is known)
    <channel>_mean, <channel>_spread     (trajectory, time, x[, y])             float32, if statistics are asked for
    <channel>_quantile    (trajectory, quantile, time, x[, y])     float32, likewise
    <channel>_exceedance  (trajectory, threshold, time, x[, y])    float32, share of members above the threshold
    trajectory            number of the trajectory in its file; further columns, such as PDE parameters, share its axis
    realization, time, observed_time, x[, y], quantile, threshold               coordinates
    .checksums            of each file of the forecast
    .unfinished           the ledger of a run, gone once all is written
    .damaged              files of what is written once that are marked as damaged, until a run has repaired them

The fields are dimensionless as the equations are, so all units are "1". Nothing in a store depends on when, where or by
how many processes it was written.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import EnmaError, first_line
from ..utils.extras import load_extra
from ..utils.files import made_parents, make_folder, move, remove, remove_empty, write_file
from ..utils.names import check_names
from .checksums import Recorder, write_checksums
from .chunks import Disk, array_metadata, checksum, chunk_name, encode_chunk, encode_shard, settled
from .ledger import write_ledger
from .location import real_path, refuse
from .metadata import AXES, DIGEST, FORMAT, FORMAT_VERSION, METADATA, STATISTICS, digest_of, root_of

LEDGER, DAMAGED = ".unfinished", ".damaged"
# Attribute: numbers of the trajectories whose observed frames lie outside what the model was trained on.
OUTSIDE = "outside_training"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a store holds.

    Attributes
    ----------
    channels : names of the c physical channels; each becomes a variable
    times : [T] of the forecast frames
    coords : one array per space dimension
    trajectories : [B] numbers of the trajectories in their file
    num_members, first_member : members `first_member, ...`, the coordinate `realization`
    keep_members : whether members are written, or statistics only
    shard : members in a file
    statistics : whether mean and spread are written
    quantiles, thresholds : of further statistics
    observed, observed_times : `[B, L, *x, c]` and [L], what the model saw of each trajectory
    truth : `[B, T, *x, c]`
    columns : further values per trajectory, name -> [B]
    attributes : of the whole store: model, seed, command, ...
    """

    channels: Sequence[str]
    times: ArrayLike
    coords: Sequence[np.ndarray]
    trajectories: Sequence[int]
    num_members: int
    first_member: int = 0
    keep_members: bool = True
    shard: int = 1
    statistics: bool = False
    quantiles: Sequence[float] = ()
    thresholds: Sequence[float] = ()
    observed: np.ndarray | None = None
    observed_times: ArrayLike = ()
    truth: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.channels, kind="channel")
        check_names(self.columns, kind="parameter")
        twice = [name for name, count in Counter(self._names()).items() if count > 1]
        if twice:
            raise EnmaError(f"{twice[0]!r} is a variable of the store twice; rename the field or the parameter")

    def _names(self) -> list[str]:
        """Names of all variables that the store can have, and of the file beside them."""
        axes = ["trajectory", "time", *AXES[: len(self.coords)], METADATA]
        axes += ["realization"] if self.keep_members else []
        axes += [] if self.observed is None else ["observed_time"]
        axes += ["quantile"] if len(self.quantiles) else []
        axes += ["threshold"] if len(self.thresholds) else []
        kinds = ["", "_observed", "_truth", *(f"_{kind}" for kind in STATISTICS)]
        return [*axes, *self.columns, *(f"{name}{kind}" for name in self.channels for kind in kinds)]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """`[T, *x]`."""
        return (np.size(self.times), *(len(x) for x in self.coords))

    @property
    def num_units(self) -> int:
        """Units of the ledger: members, if kept, and then the statistics of each trajectory, if asked for."""
        members = self.num_members if self.keep_members else 0
        return len(self.trajectories) * (members + self.statistics)

    def kept_statistics(self) -> dict[str, int | None]:
        """Names of the statistics, and how many values each has along an axis of its own."""
        sizes = {"mean": None, "spread": None, "quantile": len(self.quantiles), "exceedance": len(self.thresholds)}
        return {name: size for name, size in sizes.items() if self.statistics and size != 0}

    @property
    def _shards(self) -> int:
        """Files of the members of a trajectory and channel."""
        return -(-self.num_members // self.shard) if self.keep_members else 0

    def num_files(self) -> int:
        """Files of the forecast on disk."""
        return len(self.channels) * len(self.trajectories) * (self._shards + len(self.kept_statistics()))

    def place_of_member(self, channel: int, trajectory: int, member: int) -> int:
        """Place of the file of a member among all files of the forecast."""
        before = channel * self.num_files() // len(self.channels)
        return before + trajectory * self._shards + member // self.shard

    def place_of_statistic(self, channel: int, trajectory: int, kind: str) -> int:
        """Likewise of a statistic of a trajectory."""
        after = len(self.trajectories) * (self._shards + list(self.kept_statistics()).index(kind))
        return channel * self.num_files() // len(self.channels) + after + trajectory

    def num_bytes(self) -> int:
        """Bytes of the forecast on disk, without what is small beside it."""
        frames = 4 * int(np.prod(self.frame_shape)) * len(self.channels) * len(self.trajectories)
        kept = sum(1 if size is None else size for size in self.kept_statistics().values())
        return frames * (kept + (self.num_members if self.keep_members else 0))


class ForecastStore:
    """A store whose members and statistics are being written.

    Several processes may write different members at once. Nothing is on the disk before `settle`.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        # A link to the store is followed once; in the store there are none.
        self.path, self.layout = real_path(path), layout
        self._disk: Disk | None = None
        self._recorder: Recorder | None = None

    def put(self, first: int, samples: ArrayLike) -> None:
        """Write the members `[B, K, T, *x, c]` of trajectories `first, ..., first + B - 1` of the store."""
        values, num_members = np.asarray(samples), self.layout.num_members
        if values.ndim < 2 or values.shape[1] != num_members:
            raise EnmaError(f"samples have shape {values.shape}; the store expects {num_members} members on axis 1")
        for b, members in enumerate(values):
            self.put_members(first + b, 0, members)

    def put_members(self, trajectory: int, first: int, samples: np.ndarray) -> None:
        """Write members `[n, T, *x, c]` at places `first, ..., first + n - 1` of a trajectory; whole shards only."""
        layout, samples = self.layout, np.asarray(samples, np.float32)
        last = first + len(samples)
        self._check("samples", samples.shape[1:], (*layout.frame_shape, len(layout.channels)), trajectory)
        if last > layout.num_members or first % layout.shard or (last % layout.shard and last != layout.num_members):
            raise EnmaError(f"samples are members {first} to {last - 1}; the store takes whole shards of its own")
        for c, name in enumerate(layout.channels):
            # As text: paths take a third of the time of writing a small file.
            folder, sums = str(self.path / name), []
            for k in range(first, last, layout.shard):
                chunks = [samples[i - first, ..., c] for i in range(k, min(k + layout.shard, last))]
                data = encode_chunk(chunks[0]) if layout.shard == 1 else encode_shard(chunks, layout.shard)
                self._write(f"{folder}/{_member_name(layout, trajectory, k)}", data)
                sums.append(checksum(data, chunks[0].nbytes, len(chunks)))
            self._record(layout.place_of_member(c, trajectory, first), sums)

    def get_members(self, trajectory: int, first: int, last: int) -> np.ndarray:
        """Members `[n, T, *x, c]` at places `first, ..., last - 1` of a trajectory; `EnmaError` for a damaged one."""
        for name in self.layout.channels:
            for k in range(first // self.layout.shard * self.layout.shard, last, self.layout.shard):
                file = member_file(self.path, name, self.layout, trajectory, k)
                if not file.exists():
                    # It would read as NaN.
                    raise EnmaError(f"{file}: is missing; run: enma-fast verify {self.path}")
        group = load_extra("zarr", "store").open_group(self.path, mode="r")
        try:
            return np.stack([group[name][trajectory, first:last] for name in self.layout.channels], axis=-1)
        except Exception as error:
            reason = first_line(error)
            raise EnmaError(f"{self.path}: cannot be read ({reason}); run: enma-fast verify {self.path}") from error

    def put_statistics(self, trajectory: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the statistics of a trajectory, name -> `[(own axis,) T, *x, c]`."""
        layout = self.layout
        for kind, size in layout.kept_statistics().items():
            own = () if size is None else (size,)
            array = np.asarray(values[kind], np.float32)
            self._check(kind, array.shape, (*own, *layout.frame_shape, len(layout.channels)), trajectory)
            for c, name in enumerate(layout.channels):
                data = encode_chunk(array[..., c])
                self._write(statistic_file(self.path, name, kind, layout, trajectory), data)
                self._record(layout.place_of_statistic(c, trajectory, kind), [checksum(data, array[..., c].nbytes)])

    def settle(self) -> None:
        """Wait until what was written is on the disk; `OSError` if it did not get there."""
        if self._disk is not None:
            self._disk.settle()

    def close(self) -> None:
        """No more is written."""
        if self._disk is not None:
            self._disk.close()
            self._disk = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _record(self, place: int, checksums: Sequence[int]) -> None:
        if self._recorder is None:
            self._recorder = Recorder(self.path)
        self._recorder.record(place, checksums)

    def _write(self, path: str | Path, data: bytes) -> None:
        if self._disk is None:
            self._disk = Disk(self.path)
        write_file(path, data)

    def _check(self, what: str, shape: tuple[int, ...], expected: tuple[int, ...], trajectory: int) -> None:
        if shape != expected or not 0 <= trajectory < len(self.layout.trajectories):
            raise EnmaError(f"{what} have shape {shape} at trajectory {trajectory}; the store expects {expected}")


def member_file(store: Path, channel: str, layout: Layout, trajectory: int, member: int) -> Path:
    """The file of a member; with shards, of all members of its shard."""
    return store / channel / _member_name(layout, trajectory, member)


def _member_name(layout: Layout, trajectory: int, member: int) -> str:
    return chunk_name(trajectory, member // layout.shard, *(0 for _ in layout.frame_shape))


def statistic_file(store: Path, channel: str, kind: str, layout: Layout, trajectory: int) -> Path:
    """The file of a statistic of a trajectory."""
    own = () if STATISTICS[kind][0] is None else (0,)
    return store / f"{channel}_{kind}" / chunk_name(trajectory, *own, *(0 for _ in layout.frame_shape))


@contextmanager
def create_store(
    path: str | Path, layout: Layout | None = None, *, force: bool = False, **contents: Any
) -> Iterator[ForecastStore]:
    """Write a forecast store at once; it appears at `path` complete, when the block ends, or not at all.

    Parameters
    ----------
    path : folder of the store, by habit ending in `.zarr`
    layout : what it holds; or its attributes as keywords
    force : replace a forecast store that is there

    Raises
    ------
    EnmaError
        If `path` exists and is not to be replaced, cannot be written, or the `[store]` extra is missing.
    """
    path, layout = real_path(path), layout or Layout(**contents)
    load_extra("zarr", "store")
    refuse(path, force=force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    parents: list[Path] = []
    try:
        parents = made_parents(path)
        with made(temporary, layout):
            store = ForecastStore(temporary, layout)
            try:
                yield store
            finally:
                store.close()
        with settled(path.parent):
            _move(temporary, path)
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another place or free space") from error
    finally:
        remove(temporary)
        remove_empty(parents)


def lay_out(path: Path, layout: Layout, *, force: bool = False) -> None:
    """Make a store whose members are missing, with a ledger that says so; it appears at `path` whole.

    Raises
    ------
    EnmaError
        As `create_store`.
    """
    load_extra("zarr", "store")
    path = real_path(path)
    refuse(path, force=force)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with made(temporary, layout):
            write_ledger(temporary / LEDGER, np.zeros(layout.num_units, bool))
        _move(temporary, path)
    except OSError as error:
        raise EnmaError(f"{path}: cannot be written ({error}); choose another place or free space") from error
    finally:
        remove(temporary)


@contextmanager
def made(path: Path, layout: Layout) -> Iterator[None]:
    """A store without a forecast; after the block it is on the disk, with what was added."""
    made_parents(path)
    remove(path)
    make_folder(path, follow=True)
    with settled(path.parent):
        _lay_out(path, layout)
        yield


def _lay_out(path: Path, layout: Layout) -> None:
    """Metadata, coordinates and what is known beforehand."""
    group = _Group(path)
    axes = AXES[: len(layout.coords)]
    _coordinates(group, layout)
    for name, column in layout.columns.items():
        _array(group, name, ("trajectory",), np.asarray(column), long_name=name, units="1")
    for c, name in enumerate(layout.channels):
        B, frames = len(layout.trajectories), layout.frame_shape
        if layout.keep_members:
            sizes = (1, 1, *frames), (1, layout.shard, *frames) if layout.shard > 1 else None
            dims = ("trajectory", "realization", "time", *axes)
            attributes = {"long_name": f"forecast of {name}", "units": "1"}
            _empty(group, name, (B, layout.num_members, *frames), *sizes, dims, attributes)
        for kind, size in layout.kept_statistics().items():
            axis, text, method = STATISTICS[kind]
            own = () if size is None else (size,)
            dims = ("trajectory", *(() if axis is None else (axis,)), "time", *axes)
            attributes = {"long_name": text.format(name), "units": "1"} | ({"cell_methods": method} if method else {})
            _empty(group, f"{name}_{kind}", (B, *own, *frames), (1, *own, *frames), None, dims, attributes)
        if layout.observed is not None:
            dims, values = ("trajectory", "observed_time", *axes), np.asarray(layout.observed[..., c], np.float32)
            _array(group, f"{name}_observed", dims, values, long_name=f"observed {name}", units="1")
        if layout.truth is not None:
            dims, values = ("trajectory", "time", *axes), np.asarray(layout.truth[..., c], np.float32)
            _array(group, f"{name}_truth", dims, values, long_name=f"true {name}", units="1")
    fixed = [value for _, values in sorted(group.checksums.items()) for value in values]
    write_checksums(path, np.array([*[0] * layout.num_files(), *fixed], np.uint32))
    # Metadata of all arrays in one place are an extension of Zarr v3 as yet; xarray looks for it and warns without.
    arrays = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(group.arrays.items()))}
    write_metadata(
        path,
        {
            "attributes": attributes_of(layout),
            "zarr_format": 3,
            "consolidated_metadata": arrays,
            "node_type": "group",
        },
    )


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Of an array, or of the whole store."""
    write_file(path / METADATA, json.dumps(metadata, indent=2).encode())


def read_forecast(path: str | Path, *, partial: bool = False) -> Any:
    """Open a forecast store as an `xarray.Dataset`, values on demand.

    Parameters
    ----------
    path : folder of the store
    partial : open an unfinished store too; what is not yet written reads as NaN

    Raises
    ------
    EnmaError
        If there is no store, it is of another kind or version or unfinished, or the `[store]` extra is missing.
    """
    path = Path(path)
    load_extra("zarr", "store")
    xarray = load_extra("xarray", "store")
    root = root_of(path)
    for file, state, what in ((LEDGER, "not finished", "continue"), (DAMAGED, "damaged", "repair")):
        if not partial and (path / file).exists():
            command = root["attributes"].get("command") or "the command that began it"
            raise EnmaError(f"{path}: is {state}; {what} it: {command} --out {path}")
    try:
        # Nothing is opened but the arrays that have been looked at.
        dataset = xarray.open_zarr(path, chunks=None, consolidated=True, zarr_format=3)
    except Exception as error:
        # Zarr and its codecs raise many kinds for a damaged store.
        reason = first_line(error)
        raise EnmaError(f"{path}: cannot be read as Zarr ({reason}); run: enma-fast verify {path}") from error
    return dataset


def is_missing(path: Path, dataset: Any, name: str, place: int, member: int = 0) -> bool:
    """Whether the file of a variable of a trajectory, of a member where there are members, is not there.

    What is missing reads as NaN, as what is NaN does.
    """
    index = [0] * dataset[name].ndim
    index[0] = place
    if "realization" in dataset[name].dims:
        index[1] = member // dataset.attrs["shard"]
    return not (path / name / chunk_name(*index)).exists()


def stacked(dataset: Any, suffix: str = "") -> np.ndarray | None:
    """The variables of all channels, `suffix` "", "_observed" or "_truth", with the channels as last axis."""
    names = [name + suffix for name in dataset.attrs["channels"]]
    if any(name not in dataset for name in names):
        return None
    return np.stack([dataset[name].to_numpy() for name in names], axis=-1)


@dataclass(frozen=True)
class _Group:
    """A group that is being made: its folder, and the metadata of its arrays."""

    path: Path
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Of the files of each array that is written with it.
    checksums: dict[str, list[int]] = field(default_factory=dict)


def _coordinates(group: _Group, layout: Layout) -> None:
    numbers = np.asarray(layout.trajectories, np.int64)
    text = "number of the trajectory in its file"
    _array(group, "trajectory", ("trajectory",), numbers, long_name=text, cf_role="trajectory_id")
    if layout.keep_members:
        members = layout.first_member + np.arange(layout.num_members, dtype=np.int64)
        text = "ensemble member"
        _array(group, "realization", ("realization",), members, long_name=text, standard_name="realization", units="1")
    axes = {"time": (layout.times, "time", "T")}
    if layout.observed is not None:
        axes["observed_time"] = (layout.observed_times, "time", "")
    for name, positions in zip(AXES, layout.coords, strict=False):
        axes[name] = (positions, f"position along {name}", name.upper())
    if layout.statistics and len(layout.quantiles):
        axes["quantile"] = (layout.quantiles, "probability of a value below", "")
    if layout.statistics and len(layout.thresholds):
        axes["threshold"] = (layout.thresholds, "threshold", "")
    for name, (values, text, axis) in axes.items():
        attributes = {"long_name": text, "units": "1"} | ({"axis": axis} if axis else {})
        _array(group, name, (name,), np.asarray(values, np.float64), **attributes)


def _array(group: _Group, name: str, dims: tuple[str, ...], values: np.ndarray, **attributes: str) -> None:
    """An array with its values; of each trajectory a chunk where there are more axes."""
    chunk = (1, *values.shape[1:]) if values.ndim > 1 else values.shape
    _empty(group, name, values.shape, chunk, None, dims, attributes, dtype=values.dtype)
    folder = group.path / name
    for i, part in enumerate(values if values.ndim > 1 else [values]):
        data = encode_chunk(part)
        write_file(folder / chunk_name(i, *(0 for _ in values.shape[1:])), data)
        group.checksums.setdefault(name, []).append(checksum(data, part.nbytes))


def _empty(
    group: _Group,
    name: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    shard: tuple[int, ...] | None,
    dims: tuple[str, ...],
    attributes: Mapping[str, str],
    dtype: Any = np.float32,
) -> None:
    """An array without values, whose chunks are raw and carry a CRC-32C; all of them lie in one folder."""
    group.arrays[name] = array_metadata(np.dtype(dtype), shape, chunk, shard, dims, attributes)
    make_folder(group.path / name)
    write_metadata(group.path / name, group.arrays[name])


def attributes_of(layout: Layout) -> dict[str, Any]:
    """Attributes of the whole store, the last of them a digest of the others."""
    found = {
        "Conventions": "CF-1.11",
        "title": "Ensemble forecast",
        "references": "https://arxiv.org/abs/2506.06158",
        "history": str(layout.attributes.get("command", "written by enma_fast")),
        FORMAT: FORMAT_VERSION,
        "channels": list(layout.channels),
        "num_members": layout.num_members,
        "first_member": layout.first_member,
        "shard": layout.shard,
        "keeps": ", ".join([*(["members"] if layout.keep_members else []), *layout.kept_statistics()]),
        "quantiles": [float(q) for q in layout.quantiles],
        "thresholds": [float(t) for t in layout.thresholds],
        **layout.attributes,
    }
    return {**found, DIGEST: digest_of(found)}


def _move(temporary: Path, path: Path) -> None:
    """Put a folder in its place; a folder that was there goes once the new one is in place."""
    old = temporary.with_suffix(".old")
    if path.exists():
        move(path, old)
    move(temporary, path)
    remove(old)
