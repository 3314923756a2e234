"""`enma-fast demo`: its numbers are those of the library, its files are what it says they are."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import read, shipped_file
from enma_fast.evaluation.scoring import score_forecast
from enma_fast.figures import demo
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import load_model
from enma_fast.store.layout import TOGETHER
from enma_fast.store.read import read_forecast
from tests._stacked import stacked

from .._files import contents

PROMISED = {
    "rel_l2",
    "rel_l2_member",
    "crps",
    "rmsce",
    "spread_skill",
    "num_members",
    "seconds_per_member",
    "num_parameters",
}


def test_a_file_of_few_trajectories_is_forecast_whole(
    enma: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAJECTORIES", 1000)
    result = enma("demo", "--checkpoint", tiny, "--out", tmp_path, "--members", 2, "--json").json
    assert result["num_trajectories"] == len(read(shipped_file("combined", "test-in")))


def test_numbers_and_files(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, draw = [], demo.store_figure
    monkeypatch.setattr(demo, "store_figure", lambda store, **given: figures.append(given) or draw(store, **given))
    result = enma(
        "demo", "--checkpoint", tiny, "--out", tmp_path, "--members", 5, "--trajectories", 5, "--seed", 2, "--json"
    ).json
    assert set(result) >= PROMISED
    rows = [0, 4, 9, 14, 19]
    model, data = load_model(tiny), read(test_in)
    request = ForecastRequest(num_members=5, seed=2, trajectories=rows)
    expected = score_forecast(FileForecast(model, data, request))
    for name in (
        "rel_l2",
        "rel_l2_median",
        "rel_l2_q90",
        "rel_l2_member",
        "crps",
        "crps_relative",
        "rmsce",
        "spread_skill",
    ):
        assert result[name] == pytest.approx(expected[name], rel=1e-4), name
    assert (result["num_members"], result["num_trajectories"]) == (5, 5)
    cases = [(row["task"], row["split"], row["num_members"]) for row in result["rows"]]
    assert cases == [("temporal", "test-in", 5), ("temporal", "test-out", 5), ("initial-value", "test-in", 5)]
    assert result["paper"][0][-1]["rel_l2"] == 7.86e-3
    store = read_forecast(result["store"])
    assert store["trajectory"].to_numpy().tolist() == rows
    np.testing.assert_array_equal(stacked(store, "_truth"), data.u[rows, 3:])
    samples = stacked(store)
    truth = data.u[rows, 3:].reshape(5, -1)
    error = np.linalg.norm(samples.mean(1).reshape(5, -1) - truth, axis=1) / np.linalg.norm(truth, axis=1)
    assert result["rel_l2"] == pytest.approx(error.mean(), rel=1e-5)
    # The median of five errors, which is not that of the first trajectory.
    median = int(np.argsort(error)[2])
    assert median != 0
    assert result["figure_trajectory"] == rows[median]
    (drawn,) = figures
    assert f"trajectory {rows[median]} of the file" in drawn["title"]
    assert drawn["place"] == median
    words = ("--checkpoint", str(tiny), "--members", "5", "--seed", "2", "--trajectories", "5")
    assert (store.attrs["command"], store.attrs["seed"]) == (shlex.join(["enma-fast", "demo", *words]), 2)
    assert store.attrs[TOGETHER] == model.config.codec.time_factor
    assert len(store.attrs["model_sha256"]) == len(store.attrs["data_sha256"]) == 64
    assert Path(result["figure"]).read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.png", "forecast.zarr"]
    # Again, over the files of the first run.
    run = enma("demo", "--checkpoint", tiny, "--out", tmp_path, "--members", 2, "--trajectories", 1)
    assert run.status == 0, run.err
    assert read_forecast(tmp_path / "forecast.zarr")["u"].shape == (1, 2, 17, 128)


def test_the_shipped_model_beside_the_paper(enma: Callable, tmp_path: Path) -> None:
    run = enma("demo", "--out", tmp_path, "--members", 3, "--trajectories", 2)
    assert run.status == 0, run.err
    assert run.err == "", "progress is for terminals"
    table = {line.split("  ")[0].strip(): line.split() for line in run.out.splitlines() if line.strip()}
    assert float(table["this model"][2]) < 0.3, "it forecasts"
    assert table["ENMA, paper"][2:] == ["7.86e-3", "-", "1.70e-3", "0.0868", "-", "0.102", "-", "0.0156"]
    assert float(table["this model"][8]) <= float(table["this model"][7]), "the median beside the mean"
    assert "Trajectories found outside the training data: 0 of 2 in distribution, 2 of 2 out of it." in " ".join(
        run.out.split()
    )
    assert table["FNO, paper"][2] == "0.133"
    for name in ("forecast.zarr", "demo.png"):
        assert str(tmp_path / name) in run.out


def test_too_many_trajectories(enma: Callable, tiny: Path, tmp_path: Path) -> None:
    run = enma("demo", "--checkpoint", tiny, "--out", tmp_path / "new", "--trajectories", 25)
    assert run.error() == "trajectories is 25; combined-test-in.h5 holds 1 to 24"
    assert not (tmp_path / "new").exists()


def test_a_damaged_store_of_it_is_made_again_by_the_command_that_is_named(
    enma: Callable, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a folder"
    words = ("demo", "--checkpoint", tiny, "--members", 2, "--seed", 5, "--trajectories", 1)
    enma(*words, "--out", out)
    before = contents(out / "forecast.zarr")
    chunk = next((out / "forecast.zarr" / "u").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    found = json.loads(enma("verify", out / "forecast.zarr", "--mark", "--json").out)
    assert [damage["marked"] for damage in found["damaged"]] == [True]
    assert found["command"] == shlex.join(["enma-fast", *map(str, words), "--out", str(out)])
    enma(*shlex.split(found["command"])[1:])
    assert contents(out / "forecast.zarr") == before
