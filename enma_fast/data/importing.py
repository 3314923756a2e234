"""Import fields that others made into the project's field file: axes, spacing, boundaries, environments, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from ..utils.bounds import FEWEST_FRAMES
from ..utils.names import check_names
from ..utils.text import counted
from . import hdf5
from .fields import FieldFile, decimals, lengths_of
from .missing import present
from .sources import AXES, NAMES, Source, Variable, open_source
from .well import read, write_fields

SPACE = ("x", "y", "z")
# Columns that name the environment of a trajectory, where none is asked for.
_ENVIRONMENT = ("environment", "env_id", "env")
# Columns of windows that are cut from longer trajectories: number of the trajectory, and their first frame in it.
SERIES, FIRST_FRAME = "series", "first_frame"
# Times and points may be off an even grid by this part of a step.
_EVEN = 1e-2


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Facts that a source lacks, or that replace those of the source.

    Attributes
    ----------
    axes : names of the axes of every field in their order: trajectory, time, x, y, z, channel
    fields : fields to import, in the order of the channels; all by default
    channels : new names of all channels
    units : channel -> its unit
    dt, spacing : times between frames, and between points of each space axis; replace those of the source
    periodic : space axes that are periodic; None as the source says, or else none
    environment : column that names the environment of each trajectory
    crop : space axis or time -> first of its places that are kept, and the place after the last; a cropped axis is
        periodic only if `periodic` says so
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
        if (self.window is not None and self.window < 2) or (self.stride is not None and self.stride < 1):
            raise EnmaError(f"window is {self.window} and stride {self.stride}; at least 2 and 1 are needed")


def import_fields(source: str | Path, out: str | Path, options: ImportOptions, *, force: bool = False) -> Path:
    """Write the fields of a NumPy, NetCDF, Zarr or HDF5 file as a field file.

    HDF5 may be in The Well's layout, PDEBench's (1-D and 2-D), or have arrays at its root.

    Raises
    ------
    EnmaError
        In one line with the fix: if `out` exists, axes or positions are not known, positions are unsorted, repeated or
        uneven, a value is missing, a channel is constant, or there is one trajectory only.
    """
    source, out = Path(source), Path(out)
    if out.exists() and not force:
        raise EnmaError(f"{out}: exists; choose another --out, or use --force")
    if out.suffix not in (".h5", ".hdf5"):
        raise EnmaError(f"{out}: is no name of a field file; let it end in .h5")
    data = _described(source, options) if _known_layout(source) else _assembled(source, options)
    data = _cropped(_renamed(data, options), options)
    check_fields(data)
    if options.window is not None:
        data = _windows(data, options.window, options.stride or options.window)
    if len(data) < 2:
        count, fix = len(data.times), "import a longer series, or several"
        if options.window is None and count >= 2 * FEWEST_FRAMES:
            fix = f"cut it into several: --window {max(FEWEST_FRAMES, count // 20)}"
        raise EnmaError(f"{source}: holds one trajectory of {counted(count, 'frame')} only; {fix}")
    return write_fields(out, data, name=out.stem)


def check_fields(data: FieldFile) -> None:
    """Raise `EnmaError` if a value is missing, or a channel is constant."""
    wrong = ~np.isfinite(data.u) | ~present(data.u)
    if wrong.any():
        row, frame = np.argwhere(wrong)[0, :2]
        raise EnmaError(
            f"{data.path}: {data.channels[int(np.argwhere(wrong)[0, -1])]} holds {int(wrong.sum()):,} missing or "
            f"infinite values, first at trajectory {row}, frame {frame}; fill them, for example by interpolation, or "
            "leave those places (enma-fast data import --crop) or trajectories out"
        )
    for c, channel in enumerate(data.channels):
        values = data.u[..., c]
        if values.min() == values.max():
            kept = ",".join(name for name in data.channels if name != channel) or "another field"
            raise EnmaError(f"{data.path}: {channel} is {values.flat[0]:g} everywhere; leave it out: --fields {kept}")


def _known_layout(path: Path) -> bool:
    """True for files that `read` takes: The Well's, and PDEBench's 1-D ones."""
    if path.suffix.lower() not in (".h5", ".hdf5", ".hdf") or not path.is_file():
        return False
    known: bool = hdf5.read_file(
        path,
        lambda file, _: "t0_fields" in file or ("tensor" in file and hdf5.get(file, "tensor", "dataset").ndim == 3),
    )
    return known


def _described(path: Path, options: ImportOptions) -> FieldFile:
    """A file that says all that is needed, with what is said otherwise."""
    if options.axes:
        raise EnmaError(f"{path}: names its axes itself; leave out --axes")
    data = read(path, fields=options.fields or None)
    if options.environment:
        if data.environment is not None:
            raise EnmaError(f"{path}: names its environments itself; leave out --environment")
        environment, parameters = _columns(path, data.parameters, options, len(data))
        data = replace(data, environment=environment, parameters=parameters)
    given = dict(zip(SPACE, data.coords, strict=False))
    coords, times = _positions(path, data.u.shape[1:-1], {**given, "time": data.times}, options)
    _check_space(path, coords)
    periodic = _boundaries(path, len(coords), options, data.periodic)
    return replace(data, coords=coords, times=times, periodic=periodic, lengths=lengths_of(coords, periodic))


def _assembled(path: Path, options: ImportOptions) -> FieldFile:
    source = open_source(path, options.fields)
    parts: list[np.ndarray] = []
    channels: list[str] = []
    units: dict[str, str] = {}
    for name, variable in source.fields.items():
        values = _arranged(path, name, variable, options.axes)
        names = [name] if values.shape[-1] == 1 else _components(name, values.shape[-1], source)
        parts.append(values)
        channels += names
        units |= dict.fromkeys(names, variable.unit)
    if len({part.shape[:-1] for part in parts}) > 1:
        shapes = ", ".join(f"{name} {v.values.shape}" for name, v in source.fields.items())
        raise EnmaError(f"{path}: its fields differ in shape ({shapes}); choose those of one shape by --fields")
    u = np.concatenate(parts, axis=-1)
    coords, times = _positions(path, u.shape[1:-1], _placed(source, options.axes), options)
    u, coords = _ascending(u, coords)
    periodic = _boundaries(path, len(coords), options, (source.wraps,) * len(coords))
    _check_space(path, coords)
    environment, parameters = _columns(path, _along_trajectories(source, options.axes), options, len(u))
    return FieldFile(
        path=path,
        name=path.stem,
        u=u,
        channels=tuple(channels),
        times=times,
        coords=coords,
        lengths=lengths_of(coords, periodic),
        periodic=periodic,
        parameters=parameters,
        environment=environment,
        units=units,
    )


def _placed(source: Source, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Coordinates by the axis that they belong to: where the source names its axes, that at their place."""
    own = next(iter(source.fields.values())).axes
    if not wanted or own is None:
        return source.coords
    keys = [AXES.get(axis, axis) for axis in own]
    return {axis: source.coords[key] for axis, key in zip(wanted, keys, strict=True) if key in source.coords}


def _arranged(path: Path, name: str, variable: Variable, wanted: Sequence[str]) -> np.ndarray:
    """Values as float32 `[n, T, *x, c]`, whatever the order of the axes; missing axes have the size 1."""
    values, axes = variable.values, wanted or variable.axes
    if values.dtype.kind not in "fiu":
        raise EnmaError(f"{path}: {name} has dtype {values.dtype}; give real numbers")
    if axes is None:
        example = ",".join(("trajectory", "time", "x", "y", "channel")[: values.ndim])
        raise EnmaError(
            f"{path}: says nothing of the axes of {name}, which are {values.shape}; say them in order, such as "
            f"--axes {example}"
        )
    if len(axes) != values.ndim:
        raise EnmaError(f"{path}: {name} has the axes {values.shape}; --axes names {len(axes)}, {','.join(axes)}")
    known = [AXES.get(axis) for axis in axes]
    for axis, size in zip(axes, values.shape, strict=True):
        if axis not in AXES and size > 1:
            raise EnmaError(
                f"{path}: {name} has an axis '{axis}' of {size}, which is none of {', '.join(NAMES)}; say what "
                "the axes are by --axes, or choose other --fields"
            )
    values = values.squeeze(tuple(i for i, axis in enumerate(known) if axis is None))
    known = [axis for axis in known if axis is not None]
    space = [axis for axis in SPACE if axis in known]
    if "time" not in known or not space or len(set(known)) < len(known):
        raise EnmaError(f"{path}: {name} has the axes {', '.join(axes)}; time and x are needed, each axis once")
    if space != list(usual := SPACE[: len(space)]):
        raise EnmaError(
            f"{path}: {name} has the space axes {' and '.join(space)}; call them {', '.join(usual)} by --axes"
        )
    for axis in ("trajectory", "channel"):
        if axis not in known:
            values, known = values[..., None], [*known, axis]
    order = [known.index(axis) for axis in ("trajectory", "time", *space, "channel")]
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.transpose(order), dtype=np.float32)


def _components(name: str, count: int, source: Source) -> list[str]:
    given = source.coords.get("channel")
    if given is not None and len(given) == count and len(source.fields) == 1:
        return [str(value) for value in given]
    return [f"{name}_{i}" for i in range(count)]


def _positions(
    path: Path, sizes: Sequence[int], known: Mapping[str, np.ndarray], options: ImportOptions
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Positions of the points of each space axis, and times; the options come before the source."""
    spacing, axes = options.spacing, SPACE[: len(sizes) - 1]
    if spacing and len(spacing) not in (1, len(axes)):
        raise EnmaError(f"spacing has {len(spacing)} numbers; give one, or one for each of {', '.join(axes)}")
    steps = dict(zip(axes, spacing * len(axes) if len(spacing) == 1 else spacing, strict=bool(spacing)))
    if options.dt is not None:
        steps["time"] = options.dt
    found, lacking = {}, []
    for axis, size in zip(("time", *axes), sizes, strict=True):
        values = known.get(axis)
        if axis in steps:
            found[axis] = np.arange(size) * steps[axis]
        elif values is None:
            lacking.append(axis)
        else:
            found[axis] = _numbers(path, axis, values, size)
    if lacking:
        fixes = (["--dt 0.05"] if "time" in lacking else []) + (["--spacing 0.1"] if set(lacking) - {"time"} else [])
        raise EnmaError(
            f"{path}: says nothing of the positions along {', '.join(lacking)}; add {' '.join(fixes)} with the steps "
            "between frames and points (1 to count them)"
        )
    _check_axis(path, "time", found["time"], fix="--dt to count the frames as even")
    return tuple(_evened(found[axis]) for axis in axes), _evened(found["time"])


def _evened(values: np.ndarray) -> np.ndarray:
    """Positions that are nearly even, such as years of 365 and 366 days, at their mean step; others as they are."""
    steps = np.diff(values)
    if len(steps) and 1e-6 < np.ptp(steps) / abs(steps.mean()) <= _EVEN:
        return np.linspace(values[0], values[-1], len(values))
    return values


def _numbers(path: Path, axis: str, values: np.ndarray, size: int) -> np.ndarray:
    """Positions as float64; dates, also those of the calendars of `cftime`, in days since the first."""
    if values.shape != (size,):
        raise EnmaError(f"{path}: {axis} has {len(values)} positions for {size} values; save both of one size")
    if values.dtype.kind == "M":
        return (values - values[0]) / np.timedelta64(1, "D")
    if values.dtype.kind == "O" and all(hasattr(value, "calendar") for value in values):
        return np.array([(value - values[0]) / timedelta(days=1) for value in values])
    if values.dtype.kind not in "fiu":
        fix = "--dt" if axis == "time" else "--spacing"
        raise EnmaError(f"{path}: {axis} holds {values.dtype.name}, not numbers; give their step by {fix}")
    return decimals(values)


def _ascending(u: np.ndarray, coords: tuple[np.ndarray, ...]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Fields whose positions ascend: axes that descend, such as latitudes, are turned round."""
    turned = tuple(i for i, x in enumerate(coords) if len(x) > 1 and (np.diff(x) < 0).all())
    if turned:
        u = np.ascontiguousarray(np.flip(u, axis=tuple(2 + i for i in turned)))
    return u, tuple(x[::-1] if i in turned else x for i, x in enumerate(coords))


def _check_space(path: Path, coords: Sequence[np.ndarray]) -> None:
    for axis, x in zip(SPACE, coords, strict=False):
        _check_axis(path, axis, x, fix="--spacing to count the points as even")


def _check_axis(path: Path, axis: str, values: np.ndarray, *, fix: str) -> None:
    steps = np.diff(values)
    if len(values) < 2 or not np.isfinite(values).all():
        raise EnmaError(
            f"{path}: {axis} has {counted(len(values), 'position')} or one that is no number; two are needed"
        )
    if not (steps > 0).all():
        at = int(np.argmax(steps <= 0)) + 1
        what = "is repeated" if steps[at - 1] == 0 else "is not in order"
        raise EnmaError(
            f"{path}: {axis} {values[at]:g} at place {at} {what}; sort the positions with their values and remove "
            "repeated ones"
        )
    if np.ptp(steps) > _EVEN * steps.mean():
        raise EnmaError(
            f"{path}: {axis} has steps from {steps.min():.4g} to {steps.max():.4g}; interpolate to even ones, or give "
            f"{fix}"
        )


def _boundaries(path: Path, dims: int, options: ImportOptions, default: Sequence[bool]) -> tuple[bool, ...]:
    if options.periodic is None:
        return tuple(default)
    unknown = [axis for axis in options.periodic if axis not in SPACE[:dims]]
    if unknown:
        raise EnmaError(f"{path}: has no axis '{unknown[0]}' to be periodic; its axes are {', '.join(SPACE[:dims])}")
    return tuple(axis in options.periodic for axis in SPACE[:dims])


def _along_trajectories(source: Source, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns along the axis of the trajectories; all where the source does not name its axes."""
    own = next(iter(source.fields.values())).axes or ()
    axes = {name for name, axis in zip(own, wanted or own, strict=bool(own)) if AXES.get(axis) == "trajectory"}
    columns = source.columns.items()
    return {name: each.values for name, each in columns if each.axes is None or axes.issuperset(each.axes)}


def _columns(
    path: Path, columns: Mapping[str, np.ndarray], options: ImportOptions, count: int
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """The environment of each trajectory, and the columns of numbers beside it."""
    columns = {name: values for name, values in columns.items() if len(values) == count}
    name = options.environment
    if name is None:
        name = next((known for known in _ENVIRONMENT if known in columns), None)
    elif name not in columns:
        held = ", ".join(columns) or "none"
        raise EnmaError(f"{path}: has no column '{name}' of {count} values; it has {held}")
    environment = None
    if name is not None:
        # Parameters that name an environment are numbered by their values.
        environment = np.unique(columns.pop(name), return_inverse=True)[1].astype(np.int64)
    numbers = {key: values for key, values in columns.items() if values.dtype.kind in "fiu"}
    return environment, {key: values for key, values in numbers.items() if np.isfinite(values).all()}


def _renamed(data: FieldFile, options: ImportOptions) -> FieldFile:
    """The data with the names and units that are given; a unit of the source is not contradicted."""
    channels = options.channels or data.channels
    if len(channels) != len(data.channels) or len(set(channels)) < len(channels):
        raise EnmaError(
            f"{data.path}: has the channels {', '.join(data.channels)}; give as many names, each once, by --channels"
        )
    check_names(channels, kind="channel", where=data.path)
    units = {new: data.units.get(old, "1") for old, new in zip(data.channels, channels, strict=True)}
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


def _cropped(data: FieldFile, options: ImportOptions) -> FieldFile:
    """The part of the places along some axes that is asked for."""
    axes = ("time", *SPACE[: len(data.coords)])
    parts = [slice(None)] * len(axes)
    periodic = list(data.periodic)
    for axis, (first, end) in (options.crop or {}).items():
        if axis not in axes:
            raise EnmaError(f"{data.path}: has no axis '{axis}' to crop; its axes are {', '.join(axes)}")
        size = data.u.shape[1 + axes.index(axis)]
        if not 0 <= first < end - 1 < size:
            raise EnmaError(
                f"{data.path}: {axis} has the places 0 to {size - 1}, of which crop keeps {first}:{end}; give a first "
                f"place and the one after the last, such as {axis}=0:{size}, two places at least"
            )
        parts[axes.index(axis)] = slice(first, end)
        if axis != "time" and end - first < size and options.periodic is None:
            periodic[SPACE.index(axis)] = False
    coords = tuple(x[part] for x, part in zip(data.coords, parts[1:], strict=True))
    return replace(
        data,
        u=np.ascontiguousarray(data.u[(slice(None), *parts)]),
        times=data.times[parts[0]],
        coords=coords,
        lengths=lengths_of(coords, periodic),
        periodic=tuple(periodic),
    )


def _windows(data: FieldFile, window: int, stride: int) -> FieldFile:
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
    )
