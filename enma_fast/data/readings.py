"""A table of readings (CSV), as sensors give them: at points that lie anywhere, others in each frame.

    frame,x,u                       trajectory,frame,x,y,u,v
    0,0.125,0.93                    0,0,0.5,0.25,1.2,-0.3
    0,0.61,-0.2                     0,0,1.75,0.5,0.9,0.1
    1,0.13,0.95                     ...

A row is one reading of all channels. Frames are numbered 0, 1, ..., an interval of the model apart, trajectories
likewise, and without that column there is one. Each trajectory has a reading of each frame at least, their
number may differ. The rows may be in any order; two readings of one frame at one point count as two.

Legend: n trajectories, L frames, P points, d space dimensions, c channels.
"""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import EnmaError, first_line
from ..utils.bounds import MOST_FRAMES
from ..utils.names import SPACE, check_names
from ..utils.system import memory
from ..utils.text import counted, shown
from ..utils.untrusted import open_regular
from .missing import NETCDF_FILL

FRAME, TRAJECTORY = "frame", "trajectory"
# The end of a domain in fp32 may lie a little beyond it.
DOMAIN_TOLERANCE = 1e-6
_ENDING = ".csv"


def is_readings(path: Path) -> bool:
    """True if a file is a table of readings, by the ending of its name."""
    return path.suffix.lower() == _ENDING


@dataclass(frozen=True, kw_only=True, eq=False)
class Readings:
    """Readings of a table.

    Attributes
    ----------
    path : the table
    channels : names of the c channels, in the order of their columns
    points : float32 ``[n, L, P, d]``, coordinates; NaN where a frame has fewer than P readings
    u : float32 ``[n, L, P, c]``, values, all finite: a frame with fewer repeats its first one
    """

    path: Path
    channels: tuple[str, ...]
    points: np.ndarray
    u: np.ndarray


def read_readings(path: str | Path, *, lengths: Sequence[float], num_channels: int, needed_by: str) -> Readings:
    """Read a table of readings.

    Parameters
    ----------
    path : CSV file with the columns `frame`, `x` (and `y`, `z`), one for each channel, and perhaps `trajectory`
    lengths : of the domain, which begins at 0, in the unit of the coordinates; one per space dimension
    num_channels : columns of values that are needed
    needed_by : who needs them, for messages

    Raises
    ------
    EnmaError
        One line that names the file, its line and column, and the fix: for a missing or further column, a cell that is
        no number, a point outside the domain, and a frame or trajectory without a reading.
    """
    path, axes = Path(path), SPACE[: len(lengths)]
    table = _read_table(path, lambda names: _check_columns(path, names, axes, num_channels, needed_by))
    channels = [name for name in table.columns if name not in (FRAME, TRAJECTORY, *axes)]
    _check_numbers(table, [*channels, *axes])
    for name, length in zip(axes, lengths, strict=True):
        x = table.columns[name]
        beyond = (x < -DOMAIN_TOLERANCE * length) | (x > (1 + DOMAIN_TOLERANCE) * length)
        table.refuse(beyond, name, f"the domain of {needed_by} is 0 to {length:.6g}")
    frame = _counts(table, FRAME, most=MOST_FRAMES)
    trajectory = _counts(table, TRAJECTORY) if TRAJECTORY in table.columns else np.zeros_like(frame)
    points, u = _packed(table, trajectory, frame, axes, channels)
    return Readings(path=path, channels=tuple(channels), points=points, u=u)


@dataclass(frozen=True)
class _Table:
    """Columns of numbers by name, and the line of the file that each row ends at."""

    path: Path
    columns: dict[str, np.ndarray]
    lines: np.ndarray

    def refuse(self, wrong: np.ndarray, name: str, said: str) -> None:
        """Raise `EnmaError` for the first row that is marked."""
        if wrong.any():
            row = int(wrong.argmax())
            raise EnmaError(f"{self.path}: line {self.lines[row]}, {name} is {self.columns[name][row]:.8g}; {said}")


def _read_table(path: Path, check: Callable[[list[str]], None]) -> _Table:
    """Read all cells as numbers; `check` sees the names of the columns. `EnmaError` for a file that is no table."""
    try:
        with (
            open_regular(path) as descriptor,
            os.fdopen(descriptor, encoding="utf-8-sig", newline="", closefd=False) as file,
        ):
            rows = _rows(file)
            _, head = next(rows, (0, []))
            names = [name.strip() for name in head]
            check(names)
            lines, columns = array("q"), [array("d") for _ in names]
            for line, cells in rows:
                if len(cells) != len(names):
                    raise EnmaError(
                        f"{path}: line {line} has {counted(len(cells), 'cell')}, the header {len(names)}; "
                        "separate cells by commas, and write numbers with a point"
                    )
                lines.append(line)
                for name, cell, column in zip(names, cells, columns, strict=True):
                    column.append(_number(path, line, name, cell))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EnmaError(f"{path}: cannot be read as a table ({first_line(error)}); give a CSV file") from error
    if not lines:
        raise EnmaError(f"{path}: holds no reading; write one in each row below the header")
    values = (np.frombuffer(column, np.float64) for column in columns)
    return _Table(path, dict(zip(names, values, strict=True)), np.frombuffer(lines, np.int64))


def _rows(file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file that are not blank, with the numbers of their lines."""
    reader = csv.reader(file, strict=True)
    return ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))


def _check_columns(path: Path, names: list[str], axes: tuple[str, ...], count: int, needed_by: str) -> None:
    """Raise `EnmaError` unless the columns are those that are needed."""
    if not names:
        raise EnmaError(f"{path}: is empty; its first row has to name the columns, such as frame,x,u")
    if "" in names:
        raise EnmaError(
            f"{path}: column {names.index('') + 1} has no name; give it one, or leave it out (row numbers of pandas: "
            "index=False)"
        )
    if len(names) == 1:
        raise EnmaError(f"{path}: has one column, {shown(names[0])}; separate names and cells by commas")
    check_names(names, kind="column", where=path)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise EnmaError(f"{path}: a column is named {twice[0]!r}, {names.count(twice[0])} of them; give each its name")
    needed = [FRAME, *axes]
    values = f"{counted(count, 'column')} of values" if count > 1 else "one column of values"
    for name in needed:
        if name not in names:
            held, every = ", ".join(map(shown, names)), f"{', '.join(needed)} and {values}"
            raise EnmaError(
                f"{path}: has no column {name!r}, only {held}; {needed_by} needs {every}, named in these letters"
            )
    further = [name for name in SPACE[len(axes) :] if name in names]
    if further:
        raise EnmaError(
            f"{path}: has a column {further[0]!r}; {needed_by} has {counted(len(axes), 'dimension')}, leave it out"
        )
    channels = [name for name in names if name not in (*needed, TRAJECTORY)]
    if len(channels) != count:
        held = f"{counted(len(channels), 'column')} of values ({', '.join(map(shown, channels)) or 'none'})"
        raise EnmaError(f"{path}: has {held}; {needed_by} expects {values}, one for each channel")


def _number(path: Path, line: int, name: str, cell: str) -> float:
    # Python reads 1_0 as 10, and digits of other scripts.
    if cell.isascii() and "_" not in cell:
        with suppress(ValueError):
            return float(cell)
    raise EnmaError(
        f"{path}: line {line}, {name} is {shown(cell)}; write a number, or leave the row out where there is none"
    )


def _check_numbers(table: _Table, names: list[str]) -> None:
    """Raise `EnmaError` for a value that is none in fp32, or stands for a missing one."""
    for name in names:
        with np.errstate(over="ignore"):
            values = table.columns[name].astype(np.float32)
        wrong = ~np.isfinite(values) | (values == NETCDF_FILL)
        table.refuse(wrong, name, "write a finite number, or leave the row out where there is none")


def _counts(table: _Table, name: str, *, most: int | None = None) -> np.ndarray:
    """A column of whole numbers from 0 on."""
    values = table.columns[name]
    table.refuse(~((values >= 0) & (values == np.floor(values)) & (values < 2**53)), name, "write 0, 1, 2, ...")
    if most is not None:
        table.refuse(values >= most, name, f"at most {most:,} frames are possible")
    return values.astype(np.int64)


def _packed(
    table: _Table, trajectory: np.ndarray, frame: np.ndarray, axes: tuple[str, ...], channels: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Points ``[n, L, P, d]`` and values ``[n, L, P, c]``; a frame with fewer readings repeats its first value."""
    trajectories = np.unique(trajectory)
    if trajectories[-1] >= len(trajectories):
        gap = int((trajectories != np.arange(len(trajectories))).argmax())
        raise EnmaError(f"{table.path}: trajectory {gap} has no reading; number trajectories from 0, without a gap")
    n, L = len(trajectories), int(frame.max()) + 1
    place = trajectory * L + frame
    seen = np.unique(place)
    if len(seen) < n * L:
        missing = np.append(seen, n * L) != np.arange(len(seen) + 1)
        b, t = divmod(int(missing.argmax()), L)
        of = f" of trajectory {b}" if TRAJECTORY in table.columns else ""
        raise EnmaError(
            f"{table.path}: frame {t}{of} has no reading; number frames from 0, the same in each trajectory, and give "
            "each one at least"
        )
    count = np.bincount(place)
    P = int(count.max())
    if (size := 4 * n * L * P * (len(axes) + len(channels))) > memory():
        raise EnmaError(
            f"{table.path}: one frame has {P:,} readings; as many in each take {size / 1e9:,.0f} GB, this machine has "
            f"{memory() / 1e9:,.0f} GB; give fewer in it"
        )
    order = np.argsort(place, kind="stable")
    within = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
    points = np.full((n * L, P, len(axes)), np.nan, np.float32)
    u = np.empty((n * L, P, len(channels)), np.float32)
    for i, name in enumerate(axes):
        points[place[order], within, i] = table.columns[name][order]
    for i, name in enumerate(channels):
        values = table.columns[name][order]
        u[..., i] = values[np.cumsum(count) - count, None]
        u[place[order], within, i] = values
    return points.reshape(n, L, P, -1), u.reshape(n, L, P, -1)
