"""Shipped files: models, and trajectories that no shipped model was trained on.

The package holds the smaller models, and the test files of one. The distribution `MODELS` of the same repository holds
the others. A checkout has all of them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from . import well

PRETRAINED = Path(__file__).parents[1] / "pretrained"
MODELS = "enma-fast-models"
# What it holds; all else that is shipped lies in PRETRAINED.
IN_MODELS = (
    *("advection-fast", "advection-points", "combined-small", "gray-scott-fast", "vorticity-fast", "wave-fast"),
    *(
        f"{name}-{split}.h5"
        for name in ("advection", "gray_scott", "vorticity", "wave")
        for split in ("test-in", "test-out")
    ),
)
# Models that the next release removes, and those of the same equations that are more accurate.
LEAVING = {
    "advection-fast": "advection",
    "advection-points": "advection",
    "gray-scott-fast": "gray-scott",
    "vorticity-fast": "vorticity",
    "wave-fast": "wave",
}


def shipped_paths(pattern: str) -> Iterator[Path]:
    """Shipped files and folders by their path in the folder of shipped files, which may hold `*`."""
    spec = importlib.util.find_spec(MODELS.replace("-", "_"))
    folders = [PRETRAINED, *map(Path, (spec and spec.submodule_search_locations) or ())]
    for folder in folders:
        yield from sorted(folder.glob(pattern))


def remedy_for(name: str) -> str:
    """How to get a shipped file or model that is not here; empty where there is none of this name."""
    return f"; it comes with pip install {MODELS}" if name in IN_MODELS else ""


def warn_of_leaving(name: str) -> None:
    """A `FutureWarning` if the next release removes a shipped model, once in a process."""
    if name in LEAVING:
        warnings.warn(
            f"the model {name} will be removed in the next release; use {LEAVING[name]}", FutureWarning, stacklevel=2
        )


def shipped_file(dataset: str, split: str) -> Path:
    """A shipped test file, or an `EnmaError` that lists them."""
    name = f"{dataset}-{split}.h5"
    # A name is no pattern.
    paths = [path for path in shipped_paths("*.h5") if path.name == name]
    if not paths:
        shipped = ", ".join(path.stem for path in shipped_paths("*.h5")) or "none"
        raise EnmaError(f"{name.removesuffix('.h5')}: no such test file (shipped: {shipped}){remedy_for(name)}")
    return paths[0]


def example(dataset: str = "combined", *, trajectory: int = 0, frames: int = 3) -> np.ndarray:
    """Observed frames to forecast from, of a trajectory that the shipped model has not seen.

    Parameters
    ----------
    dataset
        Of the shipped test file.
    trajectory
        Its number in the file.
    frames
        How many of its first frames; 20 are the whole trajectory.

    Returns
    -------
    numpy.ndarray
        ``[frames, *grid, c]`` fp32.

    Raises
    ------
    EnmaError
        If there is no such file, trajectory or number of frames, or the extra ``data`` is not installed.
    """
    fields = well.read(shipped_file(dataset, "test-in"), select=[trajectory])
    if not 1 <= frames <= len(fields.times):
        raise EnmaError(f"frames is {frames}; a trajectory has {len(fields.times)}")
    return fields.u[0, :frames]
