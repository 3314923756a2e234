"""Checks of imported fields: missing values, values beyond float32, constant channels, and names of a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from ..utils.names import ENDS, SPACE, check_names, name_twice
from ..utils.text import counted
from .fields import FieldFile
from .missing import present, undeclared_fill

# Axes of a forecast store that a field file has not, and the column of its environments.
_STORE = ("trajectory", "time", "realization", "observed_time", "quantile", "threshold", "environment", "zarr.json")
# Most that rounding to float32 may change, as a part of the spread; a spread below so much of the mean is none.
_ROUNDING, _NO_SPREAD = 0.01, 1e-12
_LEAVE_OUT = "leave those places (enma-fast data import --crop) or trajectories out"
# Difference of two places that are one, as a part of that of neighbours.
_REPEATED = 1e-3


def narrowed(path: Path, channels: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Values `[n, T, *x, c]` as float32; `EnmaError` if it cannot hold them, or not how they differ."""
    with np.errstate(over="ignore"):
        short = np.ascontiguousarray(values, dtype=np.float32)
    if np.can_cast(values.dtype, np.float32):
        return short
    for c, channel in enumerate(channels):
        # A frame at a time, so that no second copy in fp64 is needed.
        frames = [(values[:, t, ..., c], short[:, t, ..., c]) for t in range(values.shape[1])]
        for wide, narrow in frames:
            beyond = np.isinf(narrow) & np.isfinite(wide)
            if beyond.any():
                raise EnmaError(
                    f"{path}: {channel} reaches {wide[beyond][0]:g}, and float32 ends at 3.4e+38; give it in larger "
                    "units"
                )
        if not all(np.isfinite(narrow).all() for _, narrow in frames):
            # Refused by `check_values`, where it says which are missing.
            continue
        mean = np.mean([wide.mean(dtype=np.float64) for wide, _ in frames])
        spread, error = (
            np.sqrt(np.mean([np.square(wide - of, dtype=np.float64).mean() for wide, of in pairs]))
            for pairs in ([(wide, mean) for wide, _ in frames], frames)
        )
        if spread > _NO_SPREAD * abs(mean) and error > _ROUNDING * spread:
            raise EnmaError(
                f"{path}: {channel} varies by {spread:.3g} about {mean:.6g}, which float32 rounds away; subtract the "
                "mean first"
            )
    return short


def check_values(data: FieldFile) -> None:
    """Raise `EnmaError` if a value is missing, but for those of a mask, which are missing in all frames."""
    wrong, mask = ~np.isfinite(data.u) | ~present(data.u), data.mask
    if mask is not None:
        wrong[:, :, ~mask] = ~np.isnan(data.u[:, :, ~mask])
        if not mask.any(axis=tuple(range(mask.ndim - 1))).all():
            raise EnmaError(f"{data.path}: a channel has no values at all; {_LEAVE_OUT}")
    if wrong.any():
        row, frame = np.argwhere(wrong)[0, :2]
        raise EnmaError(
            f"{data.path}: {data.channels[int(np.argwhere(wrong)[0, -1])]} holds {int(wrong.sum()):,} missing or "
            f"infinite values, first at trajectory {row}, frame {frame}, not in place in all frames as those of land; "
            f"fill them, for example by interpolation, or {_LEAVE_OUT}"
        )
    everywhere = None if mask is None else mask.all(-1)
    for name, values in data.known.items():
        gaps = np.isnan(values).any(axis=(0, 1))
        if np.isinf(values).any() or (gaps & (True if everywhere is None else everywhere)).any():
            raise EnmaError(
                f"{data.path}: {name}, which is told, is missing or infinite where there are fields; fill it"
            )
    for c, channel in enumerate(data.channels):
        values = data.u[..., c] if mask is None else data.u[:, :, mask[..., c], c]
        if (fill := undeclared_fill(values)) is not None:
            empty = values == fill
            row, frame = np.argwhere(empty)[0, :2]
            raise EnmaError(
                f"{data.path}: {channel} is {fill:g} at {counted(int(empty.sum()), 'place')}, first at trajectory "
                f"{row}, frame {frame}, and elsewhere from {values[~empty].min():g} to {values[~empty].max():g}: that "
                f"number stands for missing values; fill them, for example by interpolation, or {_LEAVE_OUT}"
            )


def constant_channels(data: FieldFile) -> dict[str, float]:
    """Channels that have one value everywhere, and that value."""
    low, high = (of(data.u, axis=tuple(range(data.u.ndim - 1))) for of in (np.nanmin, np.nanmax))
    return {name: float(a) for name, a, b in zip(data.channels, low, high, strict=True) if a == b}


def leave_out(data: FieldFile, names: Iterable[str], command: str = "") -> str:
    """The advice to import all channels but these, by the option --fields of a command."""
    left = set(names)
    others = ",".join(name for name in data.channels if name not in left)
    return f"leave it out: {command}--fields {others}" if others else "import another field"


def repeated_ends(data: FieldFile) -> tuple[str, ...]:
    """Periodic axes whose last place shows the first one again, such as longitudes 0 and 360."""

    def apart(i: int, a: int, b: int) -> float:
        return float(np.abs(data.u.take(a, axis=2 + i) - data.u.take(b, axis=2 + i)).max())

    def repeats(i: int) -> bool:
        rounding = _REPEATED * apart(i, 0, 1)
        # Fields that are alike in a mirror have equal ends too.
        return apart(i, 0, -1) <= rounding < apart(i, 1, -2)

    return tuple(axis for i, axis in enumerate(SPACE[: len(data.coords)]) if data.periodic[i] and repeats(i))


def check_store_names(data: FieldFile) -> None:
    """Raise `EnmaError` if a column cannot name an array, or a forecast of the data would have two of one name."""
    check_names(data.parameters, kind="column", where=data.path)
    others = [*_STORE, *SPACE[: len(data.coords)]]
    name = name_twice(data.channels, data.parameters, others)
    if name is None:
        return
    if name in data.parameters:
        raise EnmaError(
            f"{data.path}: the parameter {name} has the name of another array of a forecast; rename it in the source"
            + ("" if name in others else ", or the channel by --channels")
        )
    channel = next(channel for channel in data.channels if name in [f"{channel}{end}" for end in ENDS])
    raise EnmaError(
        f"{data.path}: channel {channel} gives a forecast two arrays named {name}; choose other names by --channels"
    )
