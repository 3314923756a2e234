"""Small field files to read and to break."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import write  # noqa: E402

from ._importing import N, T, X  # noqa: E402

NUM_TRAJECTORIES, NUM_FRAMES, NUM_POINTS = 6, 4, 8


@pytest.fixture
def line(rng: np.random.Generator) -> np.ndarray:
    """Fields to import, `[N, T, X]`."""
    return rng.normal(size=(N, T, X)).astype(np.float32)


@pytest.fixture
def field_path(tmp_path: Path) -> Path:
    """A good 1-D file: three groups of two trajectories, one field `u`, one parameter `alpha`."""
    rng = np.random.default_rng(0)
    return write(
        tmp_path / "good.h5",
        name="toy-val",
        times=0.05 * np.arange(NUM_FRAMES),
        coords=[np.arange(NUM_POINTS) / NUM_POINTS],
        periodic=[True],
        scalars={"environment": [7, 7, 3, 3, 9, 9], "alpha": np.repeat([0.5, 0.25, 0.75], 2)},
        t0_fields={"u": rng.normal(size=(NUM_TRAJECTORIES, NUM_FRAMES, NUM_POINTS))},
    )


@pytest.fixture
def edit(field_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """Change the good file in place and return its path."""

    def apply(change: Callable[[Any], None]) -> Path:
        with h5py.File(field_path, "r+") as file:
            change(file)
        return field_path

    return apply
