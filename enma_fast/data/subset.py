"""Small representative subsets of a field file: a few trajectories of evenly spread environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import EnmaError
from .fields import FieldFile
from .selection import spread_rows
from .well import read, write_fields

# By default a subset has at most so many environments, of so many trajectories, and no second one beyond so many bytes.
_MOST_ENVIRONMENTS, _MOST_EACH, _MOST_BYTES = 12, 2, 4_000_000


def spread_out(data: FieldFile | str | Path, *, environments: int | None = None, each: int | None = None) -> FieldFile:
    """The first `each` trajectories of `environments` environments, evenly spread over those of a file in its order.

    By default as many environments as there are and as 4 MB hold, from 1 to 12, and two of each, or one where there is
    one. Two of an environment are enough for the tasks that need
    a context: each is the other's. Of a path only these trajectories are read. `EnmaError` if the file has no
    environments, or fewer of them, or of trajectories of one, than are asked for; of a path also as `read`.
    """
    if isinstance(data, FieldFile):
        return data.rows(_rows(data.path, data.environment, data.u[:1].nbytes, environments, each))
    return read(
        data,
        select=lambda source: _rows(source.path, source.environment, source.num_bytes(1), environments, each),
    )


def _rows(
    path: Path, environment: np.ndarray | None, num_bytes: int, environments: int | None, each: int | None
) -> list[int]:
    """The rows that `spread_out` selects, of trajectories of so many bytes each."""
    wanted = _MOST_EACH if each is None else each
    for name, asked in (("environments", environments), ("each", each)):
        if asked is not None and asked < 1:
            raise EnmaError(f"{name} is {asked}; at least 1 is needed")
    if environment is None:
        raise EnmaError(f"{path}: lacks scalars/environment; add one integer per trajectory, its group")
    # In the order of the file, not of their numbers.
    there, first = np.unique(environment, return_index=True)
    there = there[np.argsort(first)]
    if environments is None:
        held = _MOST_BYTES // (num_bytes * wanted)
        environments = min(max(held, 1), _MOST_ENVIRONMENTS, len(there))
    if len(there) < environments:
        raise EnmaError(f"{path}: holds {len(there)} environments, {environments} are asked for; ask for fewer")
    rows = []
    for group in there[spread_rows(len(there), environments)]:
        found = np.flatnonzero(environment == group)[:wanted]
        if each is not None and len(found) < each:
            raise EnmaError(
                f"{path}: environment {group} has {len(found)} trajectories, {each} are asked for; ask for fewer"
            )
        rows += found.tolist()
    return rows


def subset(
    path: str | Path, out: str | Path, *, environments: int | None = None, each: int | None = None, force: bool = False
) -> Path:
    """Write the trajectories that `spread_out` selects from a field file to a new file.

    Name, frames, positions, parameters and numbers of environments are kept; each channel becomes a scalar field.

    Raises
    ------
    EnmaError
        As `spread_out`; if `out` exists, unless with `force`, or cannot be written.
    """
    out = Path(out)
    if out.exists() and not force:
        raise EnmaError(f"{out}: exists; choose another --out, or use --force")
    data = spread_out(path, environments=environments, each=each)
    return write_fields(out, data, name=data.name)
