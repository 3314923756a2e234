"""Small representative subsets of a field file: a few trajectories of evenly spread environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import EnmaError
from .fields import FieldFile
from .well import read, write_fields

# By default a subset has at most so many environments, and no second one beyond so many bytes.
_MOST_ENVIRONMENTS, _MOST_BYTES = 12, 4_000_000


def spread_out(data: FieldFile | str | Path, *, environments: int | None = None, each: int = 2) -> FieldFile:
    """The first `each` trajectories of `environments` environments, evenly spread over those of a file in its order.

    By default as many environments as 4 MB hold, from 1 to 12. Two of an environment are enough for the tasks that need
    a context: each is the other's. Of a path only these trajectories are read. `EnmaError` if the file has no
    environments, or too few of them, or too few trajectories of one; of a path also as `read`.
    """
    if isinstance(data, FieldFile):
        return data.rows(_rows(data.path, data.environment, data.u[:1].nbytes, environments, each))
    return read(
        data,
        select=lambda source: _rows(source.path, source.environment, source.num_bytes(1), environments, each),
    )


def _rows(path: Path, environment: np.ndarray | None, num_bytes: int, environments: int | None, each: int) -> list[int]:
    """The rows that `spread_out` selects, of trajectories of so many bytes each."""
    if environments is None:
        held = _MOST_BYTES // (num_bytes * max(each, 1))
        environments = min(max(held, 1), _MOST_ENVIRONMENTS)
    if environments < 1 or each < 1:
        raise EnmaError(f"environments is {environments} and each {each}; at least 1 is needed of both")
    if environment is None:
        raise EnmaError(f"{path}: lacks scalars/environment; add one integer per trajectory, its group")
    # In the order of the file, not of their numbers.
    there, first = np.unique(environment, return_index=True)
    there = there[np.argsort(first)]
    if len(there) < environments:
        raise EnmaError(f"{path}: holds {len(there)} environments, {environments} are asked for; ask for fewer")
    rows = []
    for i in range(environments):
        group = there[i * len(there) // environments]
        found = np.flatnonzero(environment == group)[:each]
        if len(found) < each:
            raise EnmaError(
                f"{path}: environment {group} has {len(found)} trajectories, {each} are asked for; ask for fewer"
            )
        rows += found.tolist()
    return rows


def subset(
    path: str | Path, out: str | Path, *, environments: int | None = None, each: int = 2, force: bool = False
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
