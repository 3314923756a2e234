"""Subsets of a size that fits into a package."""

from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import FieldFile, spread_out


@pytest.mark.parametrize(("points", "expected"), [(16, 12), (64, 4), (256, 1)])
def test_by_default_a_subset_has_at_most_a_dozen_environments_and_four_megabytes(points: int, expected: int) -> None:
    axis = np.arange(points) / points
    data = FieldFile(
        path=Path("planes.h5"),
        name="planes",
        u=np.broadcast_to(np.float32(0), (30, 30, points, points, 1)),
        channels=("u",),
        times=np.arange(30.0),
        coords=(axis, axis),
        lengths=(1.0, 1.0),
        periodic=(True, True),
        parameters={},
        environment=np.repeat(np.arange(15), 2),
    )
    assert len(spread_out(data)) == 2 * expected
