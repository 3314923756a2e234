"""Import fields that others made into the project's field file: axes, spacing, boundaries, environments, windows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..domain import Domain
from ..errors import EnmaError
from ..utils.names import SPACE, check_names
from ..utils.text import shown
from . import hdf5
from .arranging import arranged, drivers_of, placed
from .checks import check_store_names, check_values, constant_channels, leave_out, repeated_ends
from .drivers import TIME, cycles_of, driver, part_of, windows_of
from .environments import along_trajectories, environments
from .fields import FieldFile
from .positions import check_space, descending, positions
from .sources import AXES, NAMES, Source, in_memory, open_source
from .well import channels_of, read
from .well_writing import write_fields

log = logging.getLogger("enma_fast")

# Columns of windows that are cut from longer trajectories: number of the trajectory, and their first frame in it.
SERIES, FIRST_FRAME = "series", "first_frame"
_LONGEST_UNIT = 64


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Facts that a source lacks, or that replace those of the source.

    Attributes
    ----------
    axes : names of the axes of every field in their order: trajectory, time, x, y, z, channel
    fields : fields, or components of them (`u_0`), to import, in the order of the channels; all by default
    channels : new names of all channels
    units : channel -> its unit
    dt, spacing : times between frames, and between points of each space axis; replace those of the source
    periodic : space axes that are periodic; None as the source says, or else none
    environment : column, or columns with commas between them, that are equal where the physics is
    crop : space axis or time -> first of its places that are kept, and the place after the last; a cropped axis is
        periodic only if `periodic` says so
    known : parameters, series, maps and fields that models are told, in place of channels; `time` gives the time of the
        day and of the year, of dates that span these
    mask : field that is 0 or missing where the fields have no values
    window, stride : frames of each of the trajectories that are cut from longer ones, and frames between their
        beginnings, by default the same
    """

    axes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    units: Mapping[str, str] | None = None
    dt: float | None = None
    spacing: tuple[float, ...] = ()
    periodic: tuple[str, ...] | None = None
    environment: str | None = None
    crop: Mapping[str, tuple[int, int]] | None = None
    known: tuple[str, ...] = ()
    mask: str | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.axes if name not in NAMES]
        if unknown or len(set(self.axes)) < len(self.axes):
            raise EnmaError(f"axes {','.join(self.axes)}: name each axis once, out of {', '.join(NAMES)}")
        for name, values in (("dt", [self.dt]), ("spacing", self.spacing)):
            if any(value is not None and not 0 < value < np.inf for value in values):
                raise EnmaError(f"{name} is {values}; numbers above 0 are expected")
        if self.stride is not None and self.window is None:
            raise EnmaError("stride is given without window; give the number of frames of a window too")
        for option, value, least in (("window", self.window, 2), ("stride", self.stride, 1)):
            if value is not None and value < least:
                raise EnmaError(f"{option} is {value}; at least {least} is needed")


def import_fields(
    source: Any,
    out: str | Path,
    options: ImportOptions | None = None,
    *,
    force: bool = False,
    known: Sequence[str] | Mapping[str, Any] = (),
    **facts: Any,
) -> Path:
    """Write the fields of a NumPy, NetCDF, Zarr or HDF5 file, or of a Dataset of xarray, as a field file.

    HDF5 may be in The Well's layout, PDEBench's (1-D and 2-D), or have arrays at its root. `facts` are attributes of
    `ImportOptions`, in place of `options`. With `force` an existing file is replaced. `known` are names of what models
    are told, or arrays by name (:func:`enma_fast.data.drivers.driver`).

    Raises
    ------
    EnmaError
        In one line with the fix: if `out` exists, axes or positions are not known, or positions are unsorted, repeated
        or uneven. Also if a value is missing or beyond float32, or a forecast would have two arrays of one name.
    """
    source, out = Path(source) if isinstance(source, str) else source, Path(out)
    if out.exists() and not force:
        raise EnmaError(f"{out}: exists; choose another --out, or use --force")
    if out.suffix not in (".h5", ".hdf5"):
        raise EnmaError(f"{out}: is no name of a field file; let it end in .h5")
    options = options or ImportOptions(**facts)
    if isinstance(known, Mapping):
        return write_fields(out, with_drivers(imported(source, options), known), name=out.stem)
    options = replace(options, known=(*options.known, *known))
    return write_fields(out, imported(source, options), name=out.stem)


# Values are checked for being finite, so NumPy need not warn of them.
@np.errstate(all="ignore")
def imported(source: Any, options: ImportOptions) -> FieldFile:
    """The fields of such a file, or of a Dataset."""
    if not isinstance(source, Path):
        data = _assembled(in_memory(source), options)
    elif known_layout(source):
        data = _described(source, options)
    else:
        # All that may be a driver is opened.
        data = _assembled(open_source(source, (*options.fields, *_told(options)) if options.fields else ()), options)
    if options.mask is not None:
        data = _masked(data, options.mask)
    if data.known:
        data = _observed(data)
    source_data, data = data, _renamed(data, options)
    check_names(data.parameters, kind="parameter", where=data.path)
    check_values(data)
    # By the names that the options know.
    _note_constants(source_data)
    _note_repeated_ends(source_data)
    if options.window is not None:
        data = windows(data, options.window, options.stride or options.window)
    check_names(data.known, kind="known input", where=data.path)
    if twice := set(data.known) & set(data.channels):
        raise EnmaError(f"{data.path}: {twice.pop()} is both a channel and known; rename the channel by --channels")
    check_store_names(data)
    return data


def _note_constants(data: FieldFile) -> None:
    constant = constant_channels(data)
    for name, value in constant.items():
        said = "%s: %s is %g everywhere; training refuses it unless it varies in other files, so %s"
        log.warning(said, data.path, name, value, leave_out(data, constant))


def _note_repeated_ends(data: FieldFile) -> None:
    wraps = ",".join(axis for axis, ring in zip(SPACE, data.periodic, strict=False) if ring)
    for axis in repeated_ends(data):
        size = data.u.shape[2 + SPACE.index(axis)]
        said = (
            "%s: %s is periodic, and its last place has the values of the first; leave it out: --crop %s --periodic %s"
        )
        log.warning(said, data.path, axis, f"{axis}=0:{size - 1}", wraps)


def known_layout(path: Path) -> bool:
    """True for files that `read` takes: The Well's, and PDEBench's 1-D ones."""
    if path.suffix.lower() not in (".h5", ".hdf5", ".hdf") or not path.is_file():
        return False
    is_known: bool = hdf5.read_file(
        path,
        lambda file, _: "t0_fields" in file or ("tensor" in file and hdf5.get(file, "tensor", "dataset").ndim == 3),
    )
    return is_known


def _described(path: Path, options: ImportOptions) -> FieldFile:
    """A file that says all that is needed, with what is said otherwise."""
    if options.axes:
        raise EnmaError(f"{path}: names its axes itself; leave out --axes")
    if TIME in options.known:
        raise EnmaError(f"{path}: has no dates; give the time of the day or year as series, or leave --known time out")
    data = _chosen(path, options.fields, _told(options))
    if options.environment:
        if data.environment is not None:
            raise EnmaError(f"{path}: names its environments itself; leave out --environment")
        environment, parameters, by = environments(path, data.parameters, options.environment, len(data))
        data = replace(data, environment=environment, parameters=parameters, environment_by=by)
    given = {**dict(zip(SPACE, data.coords, strict=False)), "time": data.times}
    coords, times = positions(path, data.u.shape[1:-1], given, dt=options.dt, spacing=options.spacing)
    check_space(path, coords)
    periodic = _boundaries(path, len(coords), options, data.periodic)
    data = replace(data, coords=coords, times=times, periodic=periodic)
    kept = _kept(path, data.u.shape[1:-1], options)
    u = np.ascontiguousarray(data.u[(slice(None), *kept)])
    return _cropped(replace(data, u=u, known=part_of(data.known, kept)), kept, options)


def _told(options: ImportOptions) -> tuple[str, ...]:
    """Names of a source that are drivers, or the mask."""
    return (*options.known, *([] if options.mask is None else [options.mask]))


def _masked(data: FieldFile, name: str) -> FieldFile:
    """The data without values where a driver, which is none then, is 0 or missing."""
    known = dict(data.known)
    mask = np.nan_to_num(known.pop(name)) != 0
    if mask.shape[:2] != (1, 1) and not (mask == mask[:1, :1]).all():
        raise EnmaError(f"{data.path}: the mask {name} changes over time or trajectories; give one that stays")
    return replace(data, u=np.where(mask[:1, :1, ..., None], data.u, np.float32(np.nan)), known=known)


def _observed(data: FieldFile) -> FieldFile:
    """The data up to the last frame that has values; drivers may go on, for forecasts."""
    seen = np.flatnonzero(~np.isnan(data.u).all(axis=(0, *range(2, data.u.ndim))))
    last = seen[-1] + 1 if len(seen) else len(data.times)
    return data if last == len(data.times) else replace(data, u=data.u[:, :last], times=data.times[:last])


def _chosen(path: Path, names: Sequence[str], known: Sequence[str]) -> FieldFile:
    """A file of a known layout, of its fields only those that are named, or components of them."""
    if not names:
        return read(path, known=known)
    held = channels_of(path)
    fields = [name if name in held else next((f for f, c in held.items() if name in c), name) for name in names]
    data = read(path, fields=list(dict.fromkeys(fields)), known=known)
    channels = [channel for name in names for channel in held.get(name, (name,))]
    if channels == list(data.channels):
        return data
    places = [data.channels.index(channel) for channel in channels]
    units = {channel: data.units.get(channel, "1") for channel in channels}
    return replace(data, u=np.ascontiguousarray(data.u[..., places]), channels=tuple(channels), units=units)


def _assembled(source: Source, options: ImportOptions) -> FieldFile:
    path, told = source.path, _told(options)
    fields = arranged(source, options.axes, options.fields, told)
    if len({field.shape for field in fields}) > 1:
        shapes = ", ".join(f"{field.name} {field.variable.values.shape}" for field in fields)
        raise EnmaError(f"{path}: its fields differ in shape ({shapes}); choose those of one shape by --fields")
    shape, first_field = fields[0].shape, fields[0].name
    coords, times = positions(
        path, shape[1:], placed(source, options.axes, first_field), dt=options.dt, spacing=options.spacing
    )
    turned = descending(coords)
    coords = tuple(x[::-1] if i in turned else x for i, x in enumerate(coords))
    periodic = _boundaries(path, len(coords), options, (source.wraps,) * len(coords))
    check_space(path, coords)
    columns, counted = along_trajectories(source, first_field, options.axes)
    environment, parameters, by = environments(path, columns, options.environment, shape[0], counted)
    # Of a large file only the part that is kept is read.
    kept = _kept(path, shape[1:], options)
    parts = {"time": kept[0]}
    for i, (axis, size, part) in enumerate(zip(SPACE, shape[2:], kept[1:], strict=False)):
        first_place, end, _ = part.indices(size)
        parts[axis] = slice(size - end, size - first_place) if i in turned else part
    u = np.concatenate([field.load(parts) for field in fields], axis=-1)
    known = drivers_of(source, told, columns, fields[0], options.axes, parts)
    if turned:
        u = np.ascontiguousarray(np.flip(u, axis=tuple(2 + i for i in turned)))
        known = {name: np.flip(values, axis=tuple(2 + i for i in turned)) for name, values in known.items()}
    whole = FieldFile(
        path=path,
        name=path.stem,
        u=u,
        channels=tuple(name for field in fields for name in field.wanted),
        times=times,
        coords=coords,
        lengths=Domain.of_coords(coords, periodic).lengths,
        periodic=periodic,
        parameters=parameters,
        environment=environment,
        environment_by=by,
        units={name: field.variable.unit for field in fields for name in field.wanted},
        known=known,
    )
    return _cropped(whole, kept, options)


def _boundaries(path: Path, dims: int, options: ImportOptions, default: Sequence[bool]) -> tuple[bool, ...]:
    if options.periodic is None:
        return tuple(default)
    unknown = [axis for axis in options.periodic if axis not in SPACE[:dims]]
    if unknown:
        raise EnmaError(f"{path}: has no axis '{unknown[0]}' to be periodic; its axes are {', '.join(SPACE[:dims])}")
    return tuple(axis in options.periodic for axis in SPACE[:dims])


def _renamed(data: FieldFile, options: ImportOptions) -> FieldFile:
    """The data with the names and units that are given; a unit of the source is not contradicted."""
    channels = options.channels or data.channels
    if len(channels) != len(data.channels) or len(set(channels)) < len(channels):
        raise EnmaError(
            f"{data.path}: has the channels {', '.join(data.channels)}; give as many names, each once, by --channels"
        )
    check_names(channels, kind="channel", where=data.path)
    units = {new: data.units.get(old, "1") for old, new in zip(data.channels, channels, strict=True)}
    for channel in [name for name, unit in units.items() if not unit.isprintable() or len(unit) > _LONGEST_UNIT]:
        log.warning(
            "%s: the unit of %s is left out, %s: it is no short text", data.path, channel, shown(units[channel])
        )
        units[channel] = "1"
    for channel, unit in (options.units or {}).items():
        if channel not in units:
            raise EnmaError(f"{data.path}: has no channel '{channel}'; it has {', '.join(channels)}")
        if units[channel] not in ("1", unit):
            raise EnmaError(
                f"{data.path}: {channel} has the unit {units[channel]}, not {unit}; convert the values, or leave the "
                "unit out"
            )
        units[channel] = unit
    return replace(data, channels=tuple(channels), units=units)


def _kept(path: Path, sizes: Sequence[int], options: ImportOptions) -> list[slice]:
    """The places along time and each space axis that are asked for, of axes that ascend."""
    axes = ("time", *SPACE[: len(sizes) - 1])
    parts = [slice(None)] * len(axes)
    for name, (first, end) in (options.crop or {}).items():
        # Sources call them lat and lon.
        axis = AXES.get(name) or name
        if axis not in axes:
            raise EnmaError(f"{path}: has no axis '{name}' to crop; its axes are {', '.join(axes)}")
        if parts[axes.index(axis)] != slice(None):
            raise EnmaError(f"{path}: crop names {axis} twice, the second time as {name}; name each axis once")
        size = sizes[axes.index(axis)]
        if not 0 <= first < end - 1 < size:
            raise EnmaError(
                f"{path}: {axis} has the places 0 to {size - 1}, of which crop keeps {first}:{end}; give a first "
                f"place and the one after the last, such as {axis}=0:{size}, two places at least"
            )
        parts[axes.index(axis)] = slice(first, end)
    return parts


def _cropped(data: FieldFile, parts: Sequence[slice], options: ImportOptions) -> FieldFile:
    """Data whose fields are those of a part of the places, with the positions of that part."""
    coords = tuple(x[part] for x, part in zip(data.coords, parts[1:], strict=True))
    periodic = tuple(
        wraps and (options.periodic is not None or len(part) == len(x))
        for wraps, x, part in zip(data.periodic, data.coords, coords, strict=True)
    )
    lengths = Domain.of_coords(coords, periodic).lengths
    return replace(data, times=data.times[parts[0]], coords=coords, lengths=lengths, periodic=periodic)


def with_drivers(data: FieldFile, known: Mapping[str, Any]) -> FieldFile:
    """The data with drivers of arrays, as `data.drivers.driver` takes them."""
    sizes, arrays = data.u.shape[:-1], dict(known)
    if TIME in arrays:
        arrays |= cycles_of(np.asarray(arrays.pop(TIME)))
    return replace(data, known=data.known | {name: driver(name, x, sizes) for name, x in arrays.items()})


def windows(data: FieldFile, window: int, stride: int) -> FieldFile:
    """Windows of each trajectory as trajectories, of its environment; without one, of one of their own.

    So are windows that overlap: as the context of another, one would show what is to be forecast.
    """
    starts = np.arange(0, len(data.times) - window + 1, stride)
    if not len(starts):
        raise EnmaError(f"{data.path}: its trajectories have {len(data.times)} frames; --window is {window}")
    series = np.repeat(np.arange(len(data)), len(starts))
    first = np.tile(starts, len(data))
    parameters = {name: values[series] for name, values in data.parameters.items()}
    return replace(
        data,
        u=np.stack([data.u[i, t : t + window] for i, t in zip(series, first, strict=True)]),
        times=data.times[:window] - data.times[0],
        parameters={**parameters, SERIES: series, FIRST_FRAME: first},
        environment=None if data.environment is None or stride < window else data.environment[series],
        environment_by=() if stride < window else data.environment_by,
        known=windows_of(data.known, series, first, window),
    )
