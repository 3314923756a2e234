"""What is known of trajectories beside their fields: parameters, series, static maps and forcing, called drivers.

A driver is an array `[n or 1, T or 1, *x or 1s]` by its name, which broadcasts over trajectories, frames and places.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.text import times

Drivers = Mapping[str, np.ndarray]

# The name by which the place of times in a day and in a year is asked for, and the drivers that it gives.
TIME = "time"
_CYCLES = {"day": 1.0, "year": 365.2425}
# A cycle is told of data that span so much of it, by so many frames at least.
_SPANNED, _FRAMES = 1.0, 4
_TURNS = ("sin", "cos")


def rows_of(drivers: Drivers, rows: Any) -> dict[str, np.ndarray]:
    """Drivers of some of the trajectories."""
    return {name: values if len(values) == 1 else values[rows] for name, values in drivers.items()}


def part_of(drivers: Drivers, parts: Sequence[slice]) -> dict[str, np.ndarray]:
    """Drivers in a part of the times and of the places along each axis of space."""
    sections = {}
    for name, values in drivers.items():
        axes = zip(parts, values.shape[1:], strict=True)
        sections[name] = values[(slice(None), *(part if size > 1 else slice(None) for part, size in axes))]
    return sections


def windows_of(drivers: Drivers, series: np.ndarray, first: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """Drivers of windows of so many frames, by the numbers of their series and of their first frames."""
    windows = {}
    for name, values in drivers.items():
        if values.shape[1] > 1:
            places = (series if len(values) > 1 else np.zeros_like(series))[:, None]
            windows[name] = values[places, first[:, None] + np.arange(window)]
        else:
            windows[name] = values if len(values) == 1 else values[series]
    return windows


def joined(parts: Sequence[Drivers], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Drivers of the trajectories of several files, one after the other; those that all files have."""
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    drivers = {}
    for name in shared:
        each = [part[name] for part in parts]
        if all(len(values) == 1 and np.array_equal(values, each[0], equal_nan=True) for values in each):
            drivers[name] = each[0]
            continue
        shape = np.broadcast_shapes(*(values.shape[1:] for values in each))
        pairs = zip(each, counts, strict=True)
        drivers[name] = np.concatenate([np.broadcast_to(values, (count, *shape)) for values, count in pairs])
    return drivers


def driver(name: str, given: Any, sizes: Sequence[int], *, where: str | Path = "known") -> np.ndarray:
    """A driver from any array of its values; `sizes` are those of trajectories, frames and space.

    Axes may be left out along which it does not vary: all of space, time, trajectories. `EnmaError` if its shape is of
    no driver, or of several.
    """
    values = real_numbers(name, np.asarray(given), where=where)
    if values.ndim == len(sizes) and all(a in (1, b) for a, b in zip(values.shape, sizes, strict=True)):
        return values
    n, T, grid = sizes[0], sizes[1], tuple(sizes[2:])
    shapes = set()
    for rows, frames, places in itertools.product(((), (1,), (n,)), ((), (T,)), ((), grid)):
        if values.shape == (*rows, *frames, *places):
            shapes.add((*(rows or (1,)), *(frames or (1,)), *(places or (1,) * len(grid))))
    if len(shapes) == 1:
        return values.reshape(shapes.pop())
    said = f"{n} trajectories, {T} frames and {times(grid)} points"
    if shapes:
        full = " or ".join(str(list(shape)) for shape in sorted(shapes))
        raise EnmaError(f"{where}: {name} has shape {list(values.shape)}, which may mean {full}; give it in full")
    raise EnmaError(
        f"{where}: {name} has shape {list(values.shape)}; there are {said}: give a value for each trajectory, each "
        "frame, each place, or for several of these in this order"
    )


def real_numbers(name: str, values: np.ndarray, *, where: str | Path) -> np.ndarray:
    """Values of a driver as float32; `EnmaError` for what are no real numbers."""
    if values.dtype.kind not in "fiub":
        raise EnmaError(f"{where}: {name} has dtype {values.dtype}; real numbers are expected")
    return values.astype(np.float32)


def turns_of(dates: np.ndarray) -> dict[str, np.ndarray]:
    """Sine and cosine of the day and of the year at dates (datetime64), of their shape.

    `EnmaError` for what is no date.
    """
    if dates.dtype.kind != "M":
        raise EnmaError(f"{TIME}: dates (datetime64) are expected, not {dates.dtype}")
    days = (dates - np.datetime64("1970-01-01")) / np.timedelta64(1, "D")
    return {
        f"{cycle}_{turn}": getattr(np, turn)(2 * np.pi * days / length).astype(np.float32)
        for cycle, length in _CYCLES.items()
        for turn in _TURNS
    }


def cycles_of(dates: np.ndarray) -> dict[str, np.ndarray]:
    """Those of the cycles that dates `[T]` span, by several frames of each; `EnmaError` where there is none."""
    step = np.diff(dates).mean() / np.timedelta64(1, "D") if len(dates) > 1 and dates.dtype.kind == "M" else np.inf
    spanned = [
        cycle
        for cycle, length in _CYCLES.items()
        if len(dates) * step >= _SPANNED * length and step <= length / _FRAMES
    ]
    cycles = {name: values for name, values in turns_of(dates).items() if name.partition("_")[0] in spanned}
    if not cycles:
        raise EnmaError(f"{TIME}: the dates span no day and no year by {_FRAMES} frames or more; leave it out")
    return cycles


def prolonged(drivers: Drivers, frames: int) -> dict[str, np.ndarray]:
    """Drivers whose cycles go on evenly to so many frames."""
    longer = dict(drivers)
    for cycle in _CYCLES:
        names = [f"{cycle}_{turn}" for turn in _TURNS]
        if all(name in drivers for name in names) and 1 < drivers[names[0]].shape[1] < frames:
            sin, cos = (drivers[name].astype(np.float64) for name in names)
            angle = np.unwrap(np.arctan2(sin, cos), axis=1)
            step = (angle[:, -1:] - angle[:, :1]) / (angle.shape[1] - 1)
            more = np.arange(1, frames - angle.shape[1] + 1).reshape(1, -1, *[1] * (angle.ndim - 2))
            angle = np.concatenate([angle, angle[:, -1:] + step * more], 1)
            longer |= {names[0]: np.sin(angle).astype(np.float32), names[1]: np.cos(angle).astype(np.float32)}
    return longer


def differing(drivers: Drivers) -> list[str]:
    """Names of the drivers that have more than one value."""
    return [name for name, values in drivers.items() if np.nanmin(values) < np.nanmax(values)]
