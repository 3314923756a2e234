"""The environments of imported trajectories: columns that are equal where the physics is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from .sources import AXES, NAMES, Source

# Columns that number the environments, where none is asked for.
_ENVIRONMENT = ("environment", "env_id", "env")


def along_trajectories(
    source: Source, field: str, wanted: Sequence[str]
) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Columns along the axis of the trajectories of a field, and which of them are only their numbers.

    All columns where the source does not name its axes.
    """
    own = source.fields[field].axes or ()
    axes = {name for name, axis in zip(own, wanted or own, strict=bool(own)) if AXES.get(axis) == "trajectory"}
    columns = {
        name: each.values[(slice(None),)]
        for name, each in source.columns.items()
        if each.axes is None or axes.issuperset(each.axes)
    }
    return columns, frozenset(name for name in columns if name in axes and name in NAMES["trajectory"])


def environments(
    path: Path,
    columns: Mapping[str, np.ndarray],
    asked: str | None,
    count: int,
    counted: frozenset[str] = frozenset(),
) -> tuple[np.ndarray | None, dict[str, np.ndarray], tuple[str, ...]]:
    """The environment of each trajectory, the columns of numbers, and the names of the columns that were asked for.

    `asked` may name several columns, with commas between them. Their values are numbered in order, unless one of them
    is text, which a field file does not hold: then the number of an environment is a hash of its values, the same in
    every file. `counted` are columns that number the trajectories, and are no parameters.
    """
    columns = {name: values for name, values in columns.items() if len(values) == count}
    numbers = {
        name: values
        for name, values in columns.items()
        if values.dtype.kind in "fiu" and name not in counted and np.isfinite(values).all()
    }
    # Under that name a field file holds what comes of it.
    numbers.pop("environment", None)
    if asked is None:
        column = next((name for name in _ENVIRONMENT if name in columns), None)
        if column is None:
            return None, numbers, ()
        numbers.pop(column, None)
        return _numbered(path, {column: columns[column]}), numbers, ()
    names = (asked,) if asked in columns else tuple(part.strip() for part in asked.split(","))
    for name in names:
        if name not in columns:
            held = ", ".join(columns) or "none"
            raise EnmaError(f"{path}: has no column '{name}' of {count} values; it has {held}")
    chosen = {name: columns[name] for name in names}
    environment = _numbered(path, chosen)
    if names == ("environment",):
        # Numbers that the file gives its own environments.
        return environment, numbers, ()
    return environment if numbers.keys() >= set(names) else _hashed(chosen), numbers, names


def _numbered(path: Path, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Numbers of the different values of some columns, int64 from 0 on in the order of the values."""
    for name, values in columns.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise EnmaError(
                f"{path}: {name} is NaN at trajectory {int(np.argmax(np.isnan(values)))}, so its environment is not "
                "known; fill it in, for example by a value of its own for each such trajectory"
            )
    ranks = [np.unique(_plain(values), return_inverse=True)[1] for values in columns.values()]
    return np.unique(np.stack(ranks, axis=1), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _plain(values: np.ndarray) -> np.ndarray:
    """The values, bytes as text."""
    return np.array([value.decode(errors="replace") for value in values]) if values.dtype.kind == "S" else values


def _hashed(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = zip(*(_plain(values).tolist() for values in columns.values()), strict=True)
    texts = ["\0".join(map(str, row)).encode() for row in rows]
    return np.array([int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) for text in texts], np.int64)
