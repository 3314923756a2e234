"""Statistics in a store: what is read back, and the one warning about what is damaged."""

from pathlib import Path

import numpy as np
import pytest

from enma_fast.runs.saved_statistics import read_state, write_state
from enma_fast.runs.statistics import Statistics

from .._files import DAMAGES, damaged, with_text

SHAPE, QUANTILES, THRESHOLDS = (2, 3, 1), (0.5,), (0.0,)


def saved(path: Path) -> Statistics:
    fold = Statistics(SHAPE, quantiles=QUANTILES, thresholds=THRESHOLDS)
    fold.update(np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32))
    write_state(path, fold)
    return fold


def test_what_is_saved_is_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.npz"
    assert read_state(path, SHAPE, QUANTILES, THRESHOLDS).num_members == 0
    fold = saved(path)
    found = read_state(path, SHAPE, QUANTILES, THRESHOLDS)
    for name, values in fold.state().items():
        np.testing.assert_array_equal(found.state()[name], values)
    assert not caplog.records


@pytest.mark.parametrize("damage", [*DAMAGES, "text", "array"])
def test_what_is_damaged_is_one_warning(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.npz"
    saved(path)
    if damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(SHAPE))
    else:
        path.write_bytes(with_text(path.read_bytes()) if damage == "text" else damaged(path.read_bytes(), damage))
    found = read_state(path, SHAPE, QUANTILES, THRESHOLDS)
    assert (found.num_members, found.shape) == (0, SHAPE)
    assert [record.message for record in caplog.records] == [f"{path}: is damaged; its trajectory is sampled again"]
