"""Fields of a source as channels of a field file: which of them, the order of their axes, and their float32 values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.names import SPACE
from .checks import narrowed
from .drivers import TIME, cycles_of, driver, part_of
from .sources import AXES, NAMES, Source, Variable

log = logging.getLogger("enma_fast")

# Longest value of a coordinate that becomes part of the name of a channel.
_SHORT = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Arranged:
    """A field whose axes are known.

    Attributes
    ----------
    axes : axis of a field file for each axis of the array; None for one of size 1 that is none
    shape : `[n, T, *x]`
    channels : names of its components, and `places` of those that are wanted
    """

    path: Path
    name: str
    variable: Variable
    axes: tuple[str | None, ...]
    shape: tuple[int, ...]
    channels: tuple[str, ...]
    places: tuple[int, ...]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the channels that are wanted."""
        return tuple(self.channels[i] for i in self.places)

    def load(self, parts: Mapping[str, slice]) -> np.ndarray:
        """The wanted channels as float32 `[n, T, *x, c]`, of a part of the places along some axes."""
        first = min(self.places)
        parts = {**parts, "channel": slice(first, max(self.places) + 1)}
        whole = slice(None)
        values = self.variable.values[tuple(whole if axis is None else parts.get(axis, whole) for axis in self.axes)]
        values = values.squeeze(tuple(i for i, axis in enumerate(self.axes) if axis is None))
        order = [axis for axis in self.axes if axis is not None]
        for axis in ("trajectory", "channel"):
            if axis not in order:
                values, order = values[..., None], [*order, axis]
        axes = ("trajectory", "time", *SPACE[: len(self.shape) - 2], "channel")
        values = values.transpose([order.index(axis) for axis in axes])
        if (places := [i - first for i in self.places]) != list(range(values.shape[-1])):
            values = values[..., places]
        return narrowed(self.path, self.wanted, values)


def arranged(source: Source, axes: Sequence[str], wanted: Sequence[str], known: Sequence[str] = ()) -> list[Arranged]:
    """The fields, or components of fields, that are wanted, in their order; by default all that vary in time.

    Those that are `known` are drivers, and no channels.
    """
    path = source.path
    if not wanted:
        names = _usual(source, axes, known)
        return [_arranged(source, name, axes, alone=len(names) == 1) for name in names]
    fields: list[Arranged] = []
    chosen = {name for name in wanted if name in source.fields}
    for name in wanted:
        if name in source.fields:
            fields.append(_arranged(source, name, axes, alone=len(chosen) == len(set(wanted)) == 1))
        else:
            fields.append(_component(source, name, axes))
    twice = [name for name in wanted if list(wanted).count(name) > 1]
    if twice:
        raise EnmaError(f"{path}: --fields names {twice[0]} twice; name each field once")
    return fields


def drivers_of(
    source: Source,
    names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    field: Arranged,
    wanted: Sequence[str],
    parts: Mapping[str, slice],
) -> dict[str, np.ndarray]:
    """Drivers `[n or 1, T or 1, *x or 1s]` of a source, of a part of the places along some axes of a field.

    Names are those of columns, of series and of fields, or of the time of the day and year.
    """
    path, axes = source.path, ("trajectory", "time", *SPACE[: len(field.shape) - 2])
    sizes = dict(zip(axes, field.shape, strict=True))
    drivers: dict[str, np.ndarray] = {}
    for name in names:
        if name == TIME:
            cycles = cycles_of(placed(source, wanted, field.name).get(TIME, np.empty(0)))
            drivers |= {key: driver(key, turns[None], field.shape, where=path) for key, turns in cycles.items()}
            continue
        if name in source.fields:
            values, given = source.fields[name].values, source.fields[name].axes
            values = values[(slice(None),) * values.ndim]
        elif name in source.columns:
            values, given = source.columns[name].values[(slice(None),)], source.columns[name].axes
        elif name in columns:
            values, given = columns[name], ("trajectory",)
        else:
            raise source.lacks(name)
        if given is None:
            drivers[name] = driver(name, values, field.shape, where=path)
            continue
        own = tuple(AXES.get(axis, axis) for axis in given)
        kept = [i for i, axis in enumerate(own) if axis in sizes or values.shape[i] > 1]
        own, values = tuple(own[i] for i in kept), values.reshape([values.shape[i] for i in kept])
        if [values.shape[i] for i in range(len(own))] != [sizes.get(axis) for axis in own]:
            raise EnmaError(
                f"{path}: {name} has the axes {', '.join(given)} of {list(values.shape)}; {field.name} has "
                f"{', '.join(f'{axis} {size}' for axis, size in sizes.items())}: a driver has some of these axes"
            )
        values = values.transpose([own.index(axis) for axis in axes if axis in own])
        drivers[name] = values.reshape([sizes[axis] if axis in own else 1 for axis in axes]).astype(np.float32)
    return part_of(drivers, [parts.get(axis, slice(None)) for axis in axes[1:]])


def _usual(source: Source, axes: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names of the fields that are imported where none are asked for."""
    candidates = [name for name in source.fields if name not in known]
    names = [name for name in candidates if name not in source.bounds] or candidates
    if not names:
        raise EnmaError(f"{source.path}: holds no field but {', '.join(known)}; name fewer by --known")
    varying = [name for name in names if not _static(source.fields[name], axes)]
    if varying and (left := [name for name in names if name not in varying]):
        log.warning("%s: without an axis of time, so left out: %s", source.path, ", ".join(left))
    return varying or names


def _static(variable: Variable, wanted: Sequence[str]) -> bool:
    """True for a field that has fewer axes than are named, or none of time."""
    if wanted:
        return variable.values.ndim < len(wanted)
    return variable.axes is not None and "time" not in (AXES.get(axis) for axis in variable.axes)


def _component(source: Source, name: str, axes: Sequence[str]) -> Arranged:
    """The one component of a field that has this name."""
    alone = len(source.fields) == 1
    for field in source.fields:
        if alone or name.startswith(f"{field}_"):
            parent = _arranged(source, field, axes, alone=alone)
            if name in parent.channels:
                return replace(parent, places=(parent.channels.index(name),))
    raise source.lacks(name)


def _arranged(source: Source, name: str, wanted: Sequence[str], *, alone: bool) -> Arranged:
    path, variable = source.path, source.fields[name]
    values, axes = variable.values, tuple(wanted) or variable.axes
    if values.dtype.kind not in "fiu":
        raise EnmaError(f"{path}: {name} has dtype {values.dtype}; give real numbers")
    if 0 in values.shape:
        raise EnmaError(
            f"{path}: {name} has the shape {values.shape}, so no values; save it with them, or choose --fields"
        )
    if axes is None:
        example = ",".join(("trajectory", "time", "x", "y", "channel")[: values.ndim])
        raise EnmaError(
            f"{path}: says nothing of the axes of {name}, which are {values.shape}; say them in order, such as "
            f"--axes {example}"
        )
    if len(axes) != values.ndim:
        raise EnmaError(f"{path}: {name} has the axes {values.shape}; --axes names {len(axes)}, {','.join(axes)}")
    for axis, size in zip(axes, values.shape, strict=True):
        if axis not in AXES and size > 1:
            raise EnmaError(
                f"{path}: {name} has an axis '{axis}' of {size}, which is none of {', '.join(NAMES)}; say what "
                "the axes are by --axes, or choose other --fields"
            )
    file_axes = _without_levels(tuple(AXES.get(axis) for axis in axes), values.shape)
    present = [axis for axis in file_axes if axis is not None]
    space = [axis for axis in SPACE if axis in present]
    if "time" not in present or not space or len(set(present)) < len(present):
        raise EnmaError(f"{path}: {name} has the axes {', '.join(axes)}; time and x are needed, each axis once")
    if space != list(usual := SPACE[: len(space)]):
        raise EnmaError(
            f"{path}: {name} has the space axes {' and '.join(space)}; call them {', '.join(usual)} by --axes"
        )
    sizes = {axis: size for axis, size in zip(file_axes, values.shape, strict=True) if axis is not None}
    count = sizes.get("channel", 1)
    return Arranged(
        path=path,
        name=name,
        variable=variable,
        axes=file_axes,
        shape=tuple(sizes.get(axis, 1) for axis in ("trajectory", "time", *space)),
        channels=_components(source, name, count, wanted, alone=alone),
        places=tuple(range(count)),
    )


def _without_levels(file_axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The axes of a field; one of space that has one place, such as a height, is none where others have more."""
    if not any(axis in SPACE and size > 1 for axis, size in zip(file_axes, shape, strict=True)):
        return file_axes
    return tuple(None if axis in SPACE and size == 1 else axis for axis, size in zip(file_axes, shape, strict=True))


def placed(source: Source, wanted: Sequence[str], name: str | None = None) -> dict[str, np.ndarray]:
    """Coordinates by the axis that they belong to: where the source names its axes, that at their place.

    They are those of the field `name`, of the first one by default.
    """
    own = source.fields[name or next(iter(source.fields))].axes
    if own is None or (wanted and len(own) != len(wanted)):
        return source.coords
    pairs = zip(wanted or own, own, strict=True)
    return {AXES.get(axis, axis): source.coords[name] for axis, name in pairs if name in source.coords}


def _components(source: Source, name: str, count: int, wanted: Sequence[str], *, alone: bool) -> tuple[str, ...]:
    """Names of the channels of a field, from the values of the coordinate of its components where they are short."""
    if count == 1:
        return (name,)
    given = placed(source, wanted, name).get("channel", np.arange(count))
    plain: list[Any] = given.tolist() if given.dtype.kind in "fiuUSO" else []
    numbers = given.dtype.kind in "fiu"
    if numbers:
        texts = [f"{value:g}" for value in plain]
    else:
        # Of dates no name is made.
        texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in plain]
        texts = texts if all(isinstance(text, str) for text in texts) else []
    if len(set(texts)) != count or (numbers and max(map(len, texts)) > _SHORT):
        texts, numbers = [str(i) for i in range(count)], True
    return tuple(texts) if alone and not numbers else tuple(f"{name}_{text}" for text in texts)
