"""Stores of fields that have no values at some places."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zarr", reason="needs the [store] extra")
pytest.importorskip("xarray", reason="needs the [store] extra")

import xarray

from enma_fast.data import read, write_fields
from enma_fast.evaluation.scoring import score
from enma_fast.evaluation.store_scores import score_store
from enma_fast.figures.report import write_report
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import load_model
from enma_fast.runs.prepare import prepare
from enma_fast.store.verify import check_store

from .._told import GRID, arrays, field_file, model


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint that is told, of fields with land, and a field file."""
    made = model(masked=True)
    there = np.ones((*GRID, 1), bool)
    there[1:3, 2] = False
    made.codec.take_mask(there)
    made.drivers.learn(arrays())
    made.save(tmp_path / "model")
    data = field_file()
    data = field_file(u=np.where(there, data.u, np.float32(np.nan)))
    return tmp_path / "model", write_fields(tmp_path / "told-test-in.h5", data, name="told-test-in")


def test_a_store_has_gaps_where_there_is_land_and_is_scored_beside_them(
    run: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, file = run
    request = ForecastRequest(num_members=3)
    prepare(file, tmp_path / "a.zarr", request, checkpoint=checkpoint, quantiles=(0.5,)).execute()
    prepare(file, tmp_path / "b.zarr", request, checkpoint=checkpoint).execute()
    assert "not finite" not in caplog.text
    with xarray.open_zarr(tmp_path / "a.zarr") as store:
        gaps = ~np.isfinite(read(file).u[0, 0, ..., 0])
        for name in ("u", "u_mean", "u_spread", "u_quantile", "u_truth", "u_observed"):
            np.testing.assert_array_equal(np.isnan(store[name]), np.broadcast_to(gaps, store[name].shape))
        assert store.attrs["known_inputs"] == ["nu", "wind", "depth", "heat"]
        assert store.attrs["masked"] == pytest.approx(gaps.mean(), abs=1e-6)
    assert check_store(tmp_path / "a.zarr") == []
    expected = score(load_model(checkpoint), read(file), num_members=3)
    found = score_store(tmp_path / "b.zarr")
    for name in ("rel_l2", "crps", "spread_skill", "rmse", "crps_relative"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    said = write_report(tmp_path / "a.zarr", tmp_path / "a.html")
    assert said["scores"]["rel_l2"] == pytest.approx(expected["rel_l2"], rel=1e-5)


def test_a_store_knows_what_the_model_was_told(run: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, file = run

    def digest(**changes: np.ndarray) -> str:
        data = read(file)
        data = field_file(u=data.u, known={**data.known, **changes})
        made = prepare(data, tmp_path / "a.zarr", ForecastRequest(num_members=1), checkpoint=checkpoint)
        return made.layout.attributes["input_sha256"]

    plain = digest()
    assert digest(nu=read(file).known["nu"] + 1) != plain
    assert digest() == plain
