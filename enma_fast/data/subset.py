"""Small representative subsets of a field file: a few trajectories of evenly spread environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import EnmaError
from .fields import FieldFile
from .well import read, write_fields

# By default a subset has at most so many environments, and no second one beyond so many bytes.
_MOST_ENVIRONMENTS, _MOST_BYTES = 12, 4_000_000


def spread_out(data: FieldFile, *, environments: int | None = None, each: int = 2) -> FieldFile:
    """The first `each` trajectories of `environments` environments, evenly spread over those of a file in its order.

    By default as many environments as 4 MB hold, from 1 to 12. Two of an environment are enough for the tasks that need
    a context: each is the other's. `EnmaError` if the file has no environments, or too few of them, or too few
    trajectories of one.
    """
    if environments is None:
        held = _MOST_BYTES // (data.u[:1].nbytes * max(each, 1))
        environments = min(max(held, 1), _MOST_ENVIRONMENTS)
    if environments < 1 or each < 1:
        raise EnmaError(f"environments is {environments} and each {each}; at least 1 is needed of both")
    if data.environment is None:
        raise EnmaError(f"{data.path}: lacks scalars/environment; add one integer per trajectory, its group")
    # In the order of the file, not of their numbers.
    there, first = np.unique(data.environment, return_index=True)
    there = there[np.argsort(first)]
    if len(there) < environments:
        raise EnmaError(f"{data.path}: holds {len(there)} environments, {environments} are asked for; ask for fewer")
    rows = []
    for i in range(environments):
        group = there[i * len(there) // environments]
        found = np.flatnonzero(data.environment == group)[:each]
        if len(found) < each:
            raise EnmaError(
                f"{data.path}: environment {group} has {len(found)} trajectories, {each} are asked for; ask for fewer"
            )
        rows += found.tolist()
    return data.rows(rows)


def subset(
    path: str | Path, out: str | Path, *, environments: int | None = None, each: int = 2, force: bool = False
) -> Path:
    """Write the trajectories that `spread_out` selects from a field file to a new file.

    Name, frames, positions, parameters and numbers of environments are kept; each channel becomes a scalar field.

    Raises
    ------
    EnmaError
        As `read` and `spread_out`; if `out` exists, unless with `force`, or cannot be written.
    """
    out = Path(out)
    if out.exists() and not force:
        raise EnmaError(f"{out}: exists; choose another --out, or use --force")
    data = spread_out(read(path), environments=environments, each=each)
    return write_fields(out, data, name=data.name)
