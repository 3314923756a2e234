"""Positions along the axes of imported fields: numbers, dates, steps that are given, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from ..utils.names import SPACE
from ..utils.text import counted
from .fields import decimals

# Times and points may be off an even grid by this part of a step.
_EVEN = 1e-2
# Days of a month.
_MONTH = (28, 31)


def positions(
    path: Path,
    sizes: Sequence[int],
    source_coords: Mapping[str, np.ndarray],
    *,
    dt: float | None,
    spacing: tuple[float, ...],
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Positions of the points of each space axis, and times; steps that are given come before those of the source.

    `sizes` are those of the axes from time on. An axis of space that descends in the source does so with another step.
    """
    axes = SPACE[: len(sizes) - 1]
    if spacing and len(spacing) not in (1, len(axes)):
        raise EnmaError(f"spacing has {len(spacing)} numbers; give one, or one for each of {', '.join(axes)}")
    steps = dict(zip(axes, spacing * len(axes) if len(spacing) == 1 else spacing, strict=bool(spacing)))
    if dt is not None:
        steps["time"] = dt
    coords, lacking = {}, []
    for axis, size in zip(("time", *axes), sizes, strict=True):
        values = source_coords.get(axis)
        if axis in steps:
            coords[axis] = np.arange(size) * steps[axis]
            if values is not None and _descends(values):
                if axis == "time":
                    raise EnmaError(f"{path}: its times descend, so --dt would run them backwards; sort its frames")
                coords[axis] = coords[axis][::-1]
        elif values is None:
            lacking.append(axis)
        else:
            coords[axis] = _numbers(path, axis, values, size)
    if lacking:
        fixes = (["--dt 0.05"] if "time" in lacking else []) + (["--spacing 0.1"] if set(lacking) - {"time"} else [])
        raise EnmaError(
            f"{path}: says nothing of the positions along {', '.join(lacking)}; add {' '.join(fixes)} with the steps "
            "between frames and points (1 to count them)"
        )
    if len(coords["time"]) == 1 and dt is None:
        raise EnmaError(
            f"{path}: holds one frame, so the time between frames is not known; add --dt 0.05 with that of the model, "
            "or import a longer series"
        )
    _check_axis(path, "time", coords["time"], fix="--dt to count the frames as even", fewest=1)
    return tuple(_evened(coords[axis]) for axis in axes), _evened(coords["time"], _off(coords["time"]))


def _evened(values: np.ndarray, off: float = _EVEN) -> np.ndarray:
    """Positions that are nearly even, such as years of 365 and 366 days, at their mean step; others as they are."""
    steps = np.diff(values)
    if len(steps) and 1e-6 < np.ptp(steps) / abs(steps.mean()) <= off:
        return np.linspace(values[0], values[-1], len(values))
    return values


def _off(times: np.ndarray) -> float:
    """Part of a step by which times may be off an even grid: by little, or as the days of months are."""
    steps, (least, most) = np.diff(times), _MONTH
    months = len(steps) > 0 and least <= steps.min() and steps.max() <= most
    return (most - least) / least if months else _EVEN


def _numbers(path: Path, axis: str, values: np.ndarray, size: int) -> np.ndarray:
    """Positions as float64; dates in days since the first, spans in days."""
    if values.shape != (size,):
        raise EnmaError(f"{path}: {axis} has {len(values)} positions for {size} values; save both of one size")
    if values.dtype.kind in "Mm":
        return (values - values[0] if values.dtype.kind == "M" else values) / np.timedelta64(1, "D")
    if values.dtype.kind not in "fiu":
        fix = "--dt" if axis == "time" else "--spacing"
        raise EnmaError(f"{path}: {axis} holds {values.dtype.name}, not numbers; give their step by {fix}")
    return decimals(values)


def _descends(values: np.ndarray) -> bool:
    """True for positions of a source that descend, also where some are missing or repeated."""
    if values.dtype.kind not in "fiuMm":
        return False
    finite = values[~np.isnat(values) if values.dtype.kind in "Mm" else np.isfinite(values)]
    # Differences of unsigned numbers have no sign.
    return len(finite) > 1 and bool((finite[1:] <= finite[:-1]).all() and finite[-1] < finite[0])


def descending(coords: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Numbers of the axes that descend, such as latitudes."""
    return tuple(i for i, x in enumerate(coords) if len(x) > 1 and (np.diff(x) < 0).all())


def check_space(path: Path, coords: Sequence[np.ndarray]) -> None:
    for axis, x in zip(SPACE, coords, strict=False):
        _check_axis(path, axis, x, fix="--spacing to count the points as even")


def _check_axis(path: Path, axis: str, values: np.ndarray, *, fix: str, fewest: int = 2) -> None:
    steps = np.diff(values)
    if len(values) < fewest:
        raise EnmaError(f"{path}: {axis} has {counted(len(values), 'position')}; two are needed")
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise EnmaError(f"{path}: {axis} is missing or no number at place {at}; correct it, or give {fix}")
    if len(values) == 1:
        return
    if not (steps > 0).all():
        at = int(np.argmax(steps <= 0)) + 1
        what = "is repeated" if steps[at - 1] == 0 else "is not in order"
        raise EnmaError(
            f"{path}: {axis} {values[at]:g} at place {at} {what}; sort the positions with their values and remove "
            "repeated ones"
        )
    if np.ptp(steps) > (_off(values) if axis == "time" else _EVEN) * steps.mean():
        raise EnmaError(
            f"{path}: {axis} has steps from {steps.min():.4g} to {steps.max():.4g}; interpolate to even ones, or give "
            f"{fix}"
        )
