"""Generate a data set: environments from `splits`, solutions from the equation, layout from `well`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from . import hdf5, splits, well
from .equations import advection, combined

EQUATIONS = {"combined": combined, "advection": advection}
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

    Parameters
    ----------
    equation : "combined" or "advection"
    split : "train", "val", "test-in" or "test-out"
    groups : environments of 10 trajectories each; by default 1200, 60, 120, 12 (paper, section C)
    seed : same seed, same arrays (to the last bit on one machine); the first groups do not depend on `groups`
    out_dir : made if missing
    force : replace a file of that name, in one step; a failed run leaves it alone
    progress : called with (groups done, groups)

    Raises
    ------
    EnmaError
        On an unknown equation or split, a negative seed, too few or many groups, a missing `[data]` extra, or a file
        of that name.
    """
    path = place(equation, split, out_dir, force=force)
    problem = EQUATIONS[equation]
    groups = splits.DEFAULT_GROUPS[split] if groups is None else groups
    cells = splits.environments(equation, split, groups=groups, seed=seed)
    values = problem.parameters(cells, split, seed=seed)

    size = splits.TRAJECTORIES_PER_GROUP
    # The test-out grid is another one, so its environments are numbered after those in distribution.
    environment = cells + (splits.GRID_SIZE if split == "test-out" else 0)
    scalars = {"environment": environment, **values}
    with hdf5.create_file(path) as file:
        well.write_header(
            file,
            name=path.stem,
            times=np.arange(problem.NUM_FRAMES) * problem.FRAME_SPACING,
            coords=[np.arange(problem.NUM_POINTS) * problem.LENGTH / problem.NUM_POINTS],
            periodic=[True],
            scalars={name: np.repeat(value, size) for name, value in scalars.items()},
        )
        shape = (groups * size, problem.NUM_FRAMES, problem.NUM_POINTS)
        (u,) = well.create_fields(file, {"u": shape}, rank=0, num_spatial_dims=1)
        well.create_fields(file, {}, rank=1, num_spatial_dims=1)
        for first in range(0, groups, _GROUPS_PER_CHUNK):
            chunk = [min(g, groups - 1) for g in range(first, first + _GROUPS_PER_CHUNK)]
            u0_BX = np.concatenate([problem.initial_conditions(split, seed=seed, group=g) for g in chunk])
            u_BTX = problem.solve(u0_BX, {name: np.repeat(value[chunk], size) for name, value in values.items()})
            last = min(first + _GROUPS_PER_CHUNK, groups)
            u[first * size : last * size] = u_BTX[: (last - first) * size]
            if progress is not None:
                progress(last, groups)
    return path
