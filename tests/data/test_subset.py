"""Subsets of a size that fits into a package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import FieldFile, fields, read, shipped_file, spread_out
from enma_fast.errors import EnmaError


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


@pytest.mark.parametrize(("counts", "expected"), [([1] * 10, 10), ([3, 1, 2], 5)])
def test_by_default_a_subset_takes_what_is_there(counts: list[int], expected: int) -> None:
    axis = np.arange(4) / 4
    data = FieldFile(
        path=Path("few.h5"),
        name="few",
        u=np.zeros((sum(counts), 3, 4, 1), np.float32),
        channels=("u",),
        times=np.arange(3.0),
        coords=(axis,),
        lengths=(1.0,),
        periodic=(True,),
        parameters={},
        environment=np.repeat(np.arange(len(counts)), counts),
    )
    assert len(spread_out(data)) == expected
    with pytest.raises(EnmaError, match=f"holds {len(counts)} environments, 12 are asked for; ask for fewer"):
        spread_out(data, environments=12)
    with pytest.raises(EnmaError, match="has 1 trajectories, 2 are asked for; ask for fewer"):
        spread_out(data, each=2)


def test_a_subset_of_a_file_reads_its_trajectories_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shipped_file("advection", "test-in")
    expected = spread_out(read(path), environments=3)

    def some(dataset: Any, rows: np.ndarray, whole: Callable = fields._read_rows) -> np.ndarray:
        assert len(rows) == 6
        return whole(dataset, rows)

    monkeypatch.setattr(fields, "_read_rows", some)
    found = spread_out(path, environments=3)
    np.testing.assert_array_equal(found.u, expected.u)
    np.testing.assert_array_equal(found.environment, expected.environment)
    np.testing.assert_array_equal(found.parameters["alpha"], expected.parameters["alpha"])
