"""Generate a data set: environments from `splits`, solutions from the equation, layout from `well`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..utils.files import read_file, remove, write_file
from . import hdf5, splits, well
from .equation import Equation, Values
from .equations import EQUATIONS

# The solver always sees whole chunks, so that a trajectory does not depend on how many groups were asked for.
_GROUPS_PER_CHUNK = 8


def place(equation: str, split: str, out_dir: str | Path, *, force: bool = False) -> Path:
    """The file that :func:`generate` makes; `EnmaError` if it is there, without `force`, or for an unknown name."""
    if equation not in EQUATIONS:
        raise EnmaError(f"equation '{equation}' is unknown; use one of {', '.join(EQUATIONS)}")
    splits.check_split(split)
    path = Path(out_dir) / f"{equation}-{split}.h5"
    if not force and os.path.lexists(path):
        raise EnmaError(f"{path}: is there already; give another --out, or replace it by --force")
    return path


def generate(
    equation: str,
    split: str,
    *,
    groups: int | None = None,
    seed: int = 0,
    out_dir: str | Path,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Solve one split of an equation and write it as `<out_dir>/<equation>-<split>.h5` (The Well layout).

    Trajectories go to the file a few groups at a time, so memory does not grow with their number. What was solved stays
    in a hidden folder beside the file until that is complete, so the same call resumes after an interruption.

    Parameters
    ----------
    equation : one of `EQUATIONS`
    split : "train", "val", "test-in" or "test-out"
    groups : environments of 10 trajectories each; by default 1200, 60, 120, 12 (paper, section C), or as many as the
        equation has
    seed : same seed, same arrays (to the last bit on one machine); the first groups do not depend on `groups`
    out_dir : made if missing
    force : replace a file of that name, in one step; a failed run leaves it alone
    progress : called with (groups done, groups)

    Raises
    ------
    EnmaError
        On an unknown equation or split, a negative seed, too few or many groups, a missing `[data]` extra, a file
        of that name, or a solution that is not finite.
    """
    path = place(equation, split, out_dir, force=force)
    problem = EQUATIONS[equation]
    groups = splits.default_groups(problem, split) if groups is None else groups
    numbers = splits.environments(problem, split, groups=groups, seed=seed)
    values = problem.environments(split).checked(numbers, split, seed)

    size = splits.TRAJECTORIES_PER_GROUP
    # Environments out of distribution are numbered after those in distribution.
    environment = numbers + (problem.inside.count if split == "test-out" else 0)
    scalars = {"environment": environment, **values}
    parts = path.with_name(f"{_hidden(path)}{_key(equation, split, seed)}")
    with hdf5.create_file(path) as file:
        well.write_header(
            file,
            name=path.stem,
            times=problem.times,
            coords=problem.coords,
            periodic=problem.periodic,
            scalars={name: np.repeat(value, size) for name, value in scalars.items()},
        )
        fields = _create_fields(file, problem, groups * size)
        for first in range(0, groups, _GROUPS_PER_CHUNK):
            chunk = [min(g, groups - 1) for g in range(first, first + _GROUPS_PER_CHUNK)]
            part = parts / f"{first}.npy"
            u = _kept(part, _shape(problem, chunk))
            if u is None:
                u = _solved(problem, split, seed, chunk, values).astype(np.float32)
                if len(set(chunk)) == len(chunk):
                    _keep(part, u)
            last = min(first + _GROUPS_PER_CHUNK, groups)
            for c, dataset in enumerate(fields):
                dataset[first * size : last * size] = u[: (last - first) * size, ..., c]
            if progress is not None:
                progress(last, groups)
    for folder in path.parent.glob(f"{_hidden(path)}*"):
        remove(folder)
    return path


def _hidden(path: Path) -> str:
    """How the names of the folders begin that keep what was solved for a file."""
    return f".{path.stem}.parts-"


def _key(equation: str, split: str, seed: int) -> str:
    """A short hash of what a trajectory depends on; another version may solve otherwise."""
    on = (version("enma-fast"), equation, split, seed)
    return hashlib.sha256(repr(on).encode()).hexdigest()[:12]


def _keep(part: Path, u: np.ndarray) -> None:
    part.parent.mkdir(exist_ok=True)
    stream = io.BytesIO()
    np.save(stream, u)
    write_file(part, stream.getvalue())


def _kept(part: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The solutions that an interrupted call has kept, or None if there are none, or not whole."""
    try:
        u = np.load(io.BytesIO(read_file(part)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return u if isinstance(u, np.ndarray) and u.shape == shape and u.dtype == np.float32 else None


def _create_fields(file: Any, problem: Equation, num_trajectories: int) -> list[Any]:
    """One empty scalar field for each channel."""
    shape, dims = (num_trajectories, problem.num_frames, *problem.grid), len(problem.grid)
    shapes = dict.fromkeys(problem.channels, shape)
    fields = well.create_fields(file, shapes, rank=0, num_spatial_dims=dims, units=problem.channels)
    well.create_fields(file, {}, rank=1, num_spatial_dims=dims)
    return fields


def _shape(problem: Equation, chunk: list[int]) -> tuple[int, ...]:
    """The shape `[B, T, *x, c]` of the trajectories of some groups."""
    return len(chunk) * splits.TRAJECTORIES_PER_GROUP, problem.num_frames, *problem.grid, len(problem.channels)


def _solved(problem: Equation, split: str, seed: int, chunk: list[int], values: Values) -> np.ndarray:
    """Trajectories of some groups of a split, float64 [B, T, *x, c]."""
    size = splits.TRAJECTORIES_PER_GROUP
    u0 = np.concatenate([problem.initial_conditions(split, seed=seed, group=g) for g in chunk])
    repeated = {name: np.repeat(value[chunk], size) for name, value in values.items()}
    if problem.spin_up is not None:
        u0 = problem.spin_up(u0, repeated)
    u = problem.solve(u0, repeated)
    expected = _shape(problem, chunk)
    if u.shape != expected:
        raise EnmaError(f"equation {problem.name}: solve gives {u.shape}; its grid and channels ask for {expected}")
    finite = np.isfinite(u).reshape(len(u), -1).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite)) // size
        found = ", ".join(f"{name} {value[chunk[bad]]:g}" for name, value in values.items())
        raise EnmaError(
            f"equation {problem.name}: the solution of group {chunk[bad]} of '{split}' is not finite ({found}); "
            "the solver needs smaller steps, or the parameters other ranges"
        )
    return u
