"""Subsets of a size that fits into a package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import PRETRAINED, FieldFile, fields, read, shipped_file, spread_out, write
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
    with pytest.raises(EnmaError, match=f"{len(counts)} environments"):
        spread_out(data, environments=12)
    with pytest.raises(EnmaError, match="1 trajectories"):
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


@pytest.mark.parametrize("path", sorted(PRETRAINED.glob("*.h5")), ids=lambda path: path.stem)
def test_no_trajectory_of_a_shipped_file_carries_next_to_nothing(path: Path) -> None:
    u = read(path).u.astype(np.float64)
    each = np.sqrt((u**2).mean(tuple(range(1, u.ndim - 1))))
    assert (each >= 0.1 * np.sqrt((each**2).mean(0))).any(1).all()


@pytest.mark.parametrize(
    ("amplitudes", "expected"),
    [
        # Two environments of four trajectories. In the first one: a faint one is replaced by the next.
        ([0.04, 1, 1, 1, 1, 1, 1, 1], [1, 2, 4, 5]),
        # One stays faint where there is only one other.
        ([0.04, 0.04, 1, 0.04, 1, 1, 1, 1], [0, 2, 4, 5]),
        # Below the others and not faint.
        ([0.2, 1, 1, 1, 1, 1, 1, 1], [0, 1, 4, 5]),
        # A whole environment at rest is physics.
        ([0.04, 0.04, 0.04, 0.04, 1, 1, 1, 1], [0, 1, 4, 5]),
        ([0.0] * 8, [0, 1, 4, 5]),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_a_trajectory_of_next_to_nothing_is_replaced_within_its_environment(
    amplitudes: list[float], expected: list[int], from_file: bool, tmp_path: Path
) -> None:
    # The channels have other units; one that is not faint is enough.
    axis = np.arange(8) / 8
    waves = np.sin(2 * np.pi * (axis + np.arange(3)[:, None] / 7))[..., None] * np.array([1.0, 1e3])
    path = write(
        tmp_path / "waves.h5",
        name="waves",
        times=np.arange(3.0),
        coords=(axis,),
        periodic=(True,),
        scalars={"environment": np.repeat([7, 3], 4), "number": np.arange(8)},
        t0_fields={name: np.multiply.outer(amplitudes, waves[..., c]) for c, name in enumerate("pq")},
    )
    found = spread_out(path if from_file else read(path), each=2)
    assert found.parameters["number"].tolist() == expected
    assert found.environment.tolist() == [7, 7, 3, 3]
