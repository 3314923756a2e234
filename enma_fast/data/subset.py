"""Small representative subsets of a field file: a few trajectories of evenly spread environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import EnmaError
from .fields import FieldFile
from .selection import spread_rows
from .well import read
from .well_writing import write_fields

# By default a subset has at most so many environments, of so many trajectories, and no second one beyond so many bytes.
_MOST_ENVIRONMENTS, _MOST_EACH, _MOST_BYTES = 12, 2, 4_000_000
# A trajectory is faint if the root mean square of every channel is below this share of that of the subset.
_FAINT = 0.1
# How many further trajectories of an environment may take the place of faint ones.
_SPARE = 8


def spread_out(data: FieldFile | str | Path, *, environments: int | None = None, each: int | None = None) -> FieldFile:
    """The first `each` trajectories of `environments` environments, evenly spread over those of a file in its order.

    By default as many environments as there are and as 4 MB hold, from 1 to 12, and two of each, or one where there is
    one. Two of an environment are enough for the tasks that need a context: each is the other's.

    A faint trajectory carries next to nothing: the root mean square of every channel is below a tenth of that of the
    subset. One of the next eight of its environment replaces it; a faint one stays where these are faint too.

    Of a path only these trajectories are read, and these eight where there is a faint one. `EnmaError` if the file has
    no environments, or fewer of them, or of trajectories of one, than are asked for; of a path also as `read`.
    """
    wanted = _MOST_EACH if each is None else each

    def take(spare: int) -> FieldFile:
        if isinstance(data, FieldFile):
            return data.rows(_rows(data.path, data.environment, data.u[:1].nbytes, environments, each, spare))
        return read(
            data,
            select=lambda source: _rows(
                source.path, source.environment, source.num_bytes(1), environments, each, spare
            ),
        )

    few = take(0)
    power = _power(few)
    least = _FAINT**2 * power.mean(0)
    if not (power < least).all(1).any():
        return few
    more = take(_SPARE)
    return more.rows(_strong(more.environment, (_power(more) < least).all(1), wanted))


def _power(data: FieldFile) -> np.ndarray:
    """Mean square of each channel of each trajectory, `[n, c]`."""
    axes = tuple(range(1, data.u.ndim - 1))
    return np.stack([np.square(u[None], dtype=np.float64).mean(axes)[0] for u in data.u])


def _strong(environment: np.ndarray | None, faint: np.ndarray, wanted: int) -> list[int]:
    """The first `wanted` rows of each environment that are not faint, and faint ones where these are too few."""
    assert environment is not None
    rows: list[int] = []
    for group in dict.fromkeys(environment.tolist()):
        group_rows = np.flatnonzero(environment == group)
        # A stable sort: in the order of the file, first those that are not faint.
        rows += sorted(group_rows[np.argsort(faint[group_rows], kind="stable")][:wanted].tolist())
    return rows


def _rows(
    path: Path,
    environment: np.ndarray | None,
    num_bytes: int,
    environments: int | None,
    each: int | None,
    spare: int,
) -> list[int]:
    """The first rows of evenly spread environments, and `spare` more of each; trajectories have so many bytes."""
    wanted = _MOST_EACH if each is None else each
    for name, asked in (("environments", environments), ("each", each)):
        if asked is not None and asked < 1:
            raise EnmaError(f"{name} is {asked}; at least 1 is needed")
    if environment is None:
        raise EnmaError(f"{path}: lacks scalars/environment; add one integer per trajectory, its group")
    # In the order of the file, not of their numbers.
    groups, first_rows = np.unique(environment, return_index=True)
    groups = groups[np.argsort(first_rows)]
    if environments is None:
        held = _MOST_BYTES // (num_bytes * wanted)
        environments = min(max(held, 1), _MOST_ENVIRONMENTS, len(groups))
    if len(groups) < environments:
        raise EnmaError(f"{path}: holds {len(groups)} environments, {environments} are asked for; ask for fewer")
    rows = []
    for group in groups[spread_rows(len(groups), environments)]:
        group_rows = np.flatnonzero(environment == group)[: wanted + spare]
        if each is not None and len(group_rows) < each:
            raise EnmaError(
                f"{path}: environment {group} has {len(group_rows)} trajectories, {each} are asked for; ask for fewer"
            )
        rows += group_rows.tolist()
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
