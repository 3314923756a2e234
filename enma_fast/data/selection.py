"""Read selected trajectories of a file, and those of a file of contexts; `fields` says which is whose context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from .fields import FieldFile
from .well import read_numbered


def fields_of(
    data: str | Path | FieldFile, select: Sequence[int] | None, *, contexts: bool
) -> tuple[FieldFile, Sequence[int]]:
    """Fields that contain the selected trajectories (and possibly others), and the numbers of the selected ones."""
    if isinstance(data, FieldFile):
        rows = data.trajectories if select is None else list(select)
        _check_rows(rows, data.num_trajectories, data.path)
        return data, rows
    path = Path(data)

    def chosen(total: int) -> Sequence[int]:
        rows = range(total) if select is None else list(select)
        _check_rows(rows, total, path)
        return rows

    # The file is opened once: that takes a process of its own.
    fields = read_numbered(path, chosen, contexts=contexts)
    return fields, range(fields.num_trajectories) if select is None else list(select)


def context_of(path: Path, rows: Sequence[int]) -> FieldFile:
    """Context trajectories for `rows` from another file, or the one for all; `FileForecast.check` refuses too few."""
    return read_numbered(path, lambda total: [row for row in rows if 1 < total > row] or [0])


def spread_rows(total: int, count: int) -> np.ndarray:
    """Up to `count` of `total` trajectories, spread evenly, so that many environments are among them."""
    count = min(count, total)
    return np.arange(count) * total // count


def share_of(total: int, share: float) -> int:
    """How many a share of `total` trajectories or points is, one at least."""
    return max(1, round(share * total))


def _check_rows(rows: Sequence[int], total: int, path: Path) -> None:
    if not len(rows):
        raise EnmaError(f"{path}: no trajectory is selected; it has {total}")
    if max(rows) >= total:
        raise EnmaError(f"{path}: trajectory {max(rows)} is selected; it has 0 to {total - 1}")
