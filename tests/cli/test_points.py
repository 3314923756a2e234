"""`--points`: the model sees a part of each observed frame."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import read
from enma_fast.figures.report.reader import StoreReader
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.store.read import read_forecast
from tests._stacked import stacked

from .._tiny import COMBINED, random_model, with_points


@pytest.fixture(scope="module")
def seeing_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-points"
    save_model(random_model(replace(COMBINED, codec=with_points(COMBINED.codec))), folder)
    return folder


def test_forecast(enma: Callable, seeing_points: Path, test_in: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "run.zarr", ("-c", seeing_points, "--members", 2, "--select", "3:5", "--seed", 4)
    result = enma("forecast", test_in, "--out", out, *options, "--points", 40, "--json").json
    assert result["points"] == 40
    request = ForecastRequest(num_members=2, seed=4, trajectories=[3, 4], points=40)
    forecast = FileForecast(load_model(seeing_points), read(test_in), request)
    store = read_forecast(out)
    np.testing.assert_allclose(stacked(store), forecast.sample(request), rtol=1e-4, atol=1e-5)
    assert store.attrs["observed_points"] == 40
    assert "--history 3 --points 40 --members 2" in store.attrs["command"]
    # It is another run than one that sees all points, or others.
    for points, there in ((("--points", 41), 41), ((), "nothing")):
        error = enma("forecast", test_in, "--out", out, *options, *points).error()
        assert f"observed_points is 40 there, {there} here" in error
    seen = StoreReader(out)
    drawn = seen.forecast(seen.trajectory(1), 0).observed_places
    assert drawn is not None
    assert drawn.sum(1).tolist() == [40, 40, 40]
    page = tmp_path / "report.html"
    assert enma("report", out, "--out", page).status == 0
    assert "from 3 observed at 40 points each" in page.read_text()


def test_score_and_demo(enma: Callable, seeing_points: Path, test_in: Path, tmp_path: Path) -> None:
    common = ("--members", 2, "--points", 9)
    scored = enma("score", test_in, "-c", seeing_points, *common, "--limit", 1, "--json").json
    one = ("demo", "--checkpoint", seeing_points, "--out", tmp_path, *common, "--trajectories", 1)
    shown = enma(*one, "--json").json
    assert (scored["points"], shown["points"]) == (9, 9)
    assert shown["rel_l2"] == pytest.approx(scored["rel_l2"], rel=1e-4)
    assert shown["paper"] == [[], [], []]
    text = enma(*one).out
    assert "3 frames seen at 9 points, different ones in each" in " ".join(text.split())


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("forecast", ("--points", 0), "points is 0; at least 1"),
        ("score", ("--points", 129), "points is 129; 1 to 128, the points of the grid"),
    ],
)
def test_what_is_refused(
    enma: Callable, seeing_points: Path, test_in: Path, tmp_path: Path, command: str, options: tuple, said: str
) -> None:
    options = options if "-c" in options else ("-c", seeing_points, *options)
    out = ("--out", tmp_path / "x") if command == "forecast" else ()
    assert enma(command, test_in, *out, *options).error().startswith(said)
