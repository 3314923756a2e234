"""The comparison on real records: how they are cut, and the tables of their page."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.own_data import FIELD, scored
from benchmarks.own_records import METHODS, RECORDS, RESULTS, SPLITS, _in_boxes, cut, tables
from benchmarks.own_results import load
from enma_fast.data import FieldFile, read, write

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_windows_of_a_split_share_no_month_with_its_test():
    count, window = 54, 6
    months = np.arange(count)
    record = {"u": np.broadcast_to(months[:, None, None], (count, 3, 2)).astype(float)}
    tested = []
    for split in range(SPLITS):
        (train, series, first), (test, _, begun) = cut(record, window, split)
        assert train["u"].shape[1:] == test["u"].shape[1:] == (window, 3, 2)
        seen, held = ({int(t) for at in starts for t in range(at, at + window)} for starts in (first, begun))
        assert not seen & held
        # A series is of consecutive months.
        for part in (0, 1):
            assert (np.diff(first[series == part]) == 1).all()
        tested += sorted(held)
    assert tested == list(months)


def test_anomalies_are_from_the_training_months_of_the_same_name():
    rng = np.random.default_rng(0)
    season = 10 * np.sin(np.arange(60) * np.pi / 6)[:, None, None]
    record = {"u": season + 0.1 * rng.standard_normal((60, 3, 2))}
    (train, _, first), (test, _, begun) = cut(record, 1, 4)
    for month in range(12):
        np.testing.assert_allclose(train["u"][first % 12 == month].mean(0), 0, atol=1e-12)
        climate = record["u"][:48][np.arange(48) % 12 == month].mean(0)
        wanted = record["u"][begun[begun % 12 == month]] - climate
        np.testing.assert_allclose(test["u"][begun % 12 == month][:, 0], wanted, atol=1e-12)


def test_a_box_is_the_mean_of_the_points_that_are_there():
    values = np.array([[1, 3, np.nan, 5], [np.nan, np.nan, 2, 2.0]])
    np.testing.assert_array_equal(_in_boxes(values, 2), [[2, 5], [np.nan, 2]])


def test_scores_leave_out_what_is_masked(tmp_path: Path):
    truth = np.random.default_rng(0).standard_normal((4, 5, 6, 3)).astype(np.float32)
    masked = truth.copy()
    masked[:, :, 2:4] = np.nan

    def rows(name: str, values: np.ndarray) -> FieldFile:
        path = write(
            tmp_path / f"{name}.h5",
            name=name,
            times=np.arange(5),
            coords=[np.arange(values.shape[2]), np.arange(3)],
            periodic=[False, False],
            scalars={"environment": np.arange(4)},
            t0_fields={"u": values},
        )
        return read(path)

    def forecast(data: FieldFile, numbers: range) -> torch.Tensor:
        return 1.5 * torch.from_numpy(data.u[list(numbers), None, 3:])

    mean, scale = np.zeros(1, np.float32), np.ones(1, np.float32)
    alone = np.delete(truth, [2, 3], 2)
    found, wanted = (scored(forecast, rows(*each), mean, scale) for each in (("masked", masked), ("alone", alone)))
    for key in ("rel_l2", "rel_l2_median", "crps"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-6)
    assert found["rel_l2"] == pytest.approx(0.5)


def test_the_page_has_the_tables_of_the_results():
    page = (DOCS / "own-data-results.md").read_text()
    found = dict(tables(load(RESULTS)))
    assert found.keys() == RECORDS.keys()
    for name, table in found.items():
        assert table in page, name


def test_results_have_each_split_and_method_once():
    rows = load(RESULTS)
    found = [(row["record"], row["split"], row["method"]) for row in rows]
    assert len(set(found)) == len(found)
    assert set(found) >= {
        (name, split, method) for name in RECORDS for split in range(1, SPLITS + 1) for method in METHODS
    }
    assert all((row["spread_skill"] is None) == (row["method"] != FIELD) for row in rows)
