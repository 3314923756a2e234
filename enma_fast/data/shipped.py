"""Field files that come with the package: trajectories that no shipped model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import EnmaError
from . import well

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def shipped_file(dataset: str, split: str) -> Path:
    """A shipped test file, or an `EnmaError` that lists them."""
    path = PRETRAINED / f"{dataset}-{split}.h5"
    if not path.is_file():
        known = ", ".join(p.stem for p in sorted(PRETRAINED.glob("*.h5"))) or "none"
        raise EnmaError(f"{dataset}-{split}: no test file of this name is shipped (shipped: {known})")
    return path


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
