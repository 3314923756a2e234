"""`forecast READINGS.csv`: what sensors read at points that lie anywhere."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import enma_fast
from enma_fast.data import FieldFile, write_fields
from enma_fast.figures.report.reader import StoreReader, store_figure
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.forecasting.scattered import readings_for
from enma_fast.models.checkpoint import COVARIANCE, hashes, load_config, save_model
from enma_fast.models.covariance import FieldCovariance
from enma_fast.runs.prepare import prepare
from enma_fast.store.read import read_forecast
from tests._stacked import stacked

from .._files import contents
from .._runs import ALONE
from .._tiny import model, waves, waves_file

COUNTS = ((9, 12, 7), (12, 5, 8))


def write_table(path: Path, points: np.ndarray, u: np.ndarray) -> Path:
    """Write readings `[B, L, P, d]` and `[B, L, P, c]` as a table, without those that are NaN."""
    rows = [",".join(["trajectory", "frame", *"xy"[: points.shape[-1]], *"uv"[: u.shape[-1]]])]
    for b, t, p in np.argwhere(~np.isnan(points[..., 0])):
        rows.append(",".join(map(repr, [int(b), int(t), *points[b, t, p].tolist(), *u[b, t, p].tolist()])))
    path.write_text("\n".join(rows))
    return path


def checkpoint_of(name: str, folder: Path) -> Path:
    """A model with an interpolation, or with the covariance of its fields."""
    made = model(name)
    tok = made.config.codec
    if not tok.at_points:
        fields = waves(3, 2, made.config.num_frames, tok).numpy()
        made.covariance = FieldCovariance.of(fields, lengths=tok.lengths, periodic=tok.periodic)
    save_model(made, folder)
    return folder


@pytest.fixture(scope="module", params=["points", "plane-paper", "relative", "plane"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(request.param, tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def truth(checkpoint: Path) -> FieldFile:
    config = load_config(checkpoint)
    return waves_file(config, waves(1, 2, config.num_frames, config.codec))


@pytest.fixture
def readings(checkpoint: Path, truth: FieldFile, tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and values of two trajectories, and in the folder `readings.csv` with them; fewer in some frames."""
    rng, tok = np.random.default_rng(1), load_config(checkpoint).codec
    points = rng.uniform(0, tok.lengths, (2, 3, 12, tok.dims)).astype(np.float32)
    u = rng.normal(size=(2, 3, 12, tok.field_channels)).astype(np.float32)
    absent = np.arange(12) >= np.array(COUNTS)[..., None]
    points[absent], u[absent] = np.nan, np.nan
    write_table(tmp_path / "readings.csv", points, u)
    return points, u


def test_members_are_those_of_the_library(
    enma: Callable, checkpoint: Path, readings: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    points, u = readings
    out, options = tmp_path / "run.zarr", ("-c", checkpoint, "--members", 3, "--seed", 4)
    result = enma("forecast", tmp_path / "readings.csv", "--out", out, *options, "--json").json
    found = enma_fast.load_model(checkpoint)
    expected = enma_fast.forecast(found, u, points=points, num_members=3, seed=4).values
    store = read_forecast(out)
    np.testing.assert_array_equal(stacked(store), expected)
    # The store holds what was seen, and no truth.
    axes = "xy"[: points.shape[-1]]
    np.testing.assert_array_equal(np.stack([store[f"{axis}_observed"] for axis in axes], -1), points)
    np.testing.assert_array_equal(stacked(store, "_observed"), u)
    assert store["u_observed"].dims == ("trajectory", "observed_time", "observed_point")
    assert stacked(store, "_truth") is None
    interval = found.config.frame_interval
    np.testing.assert_allclose(store["observed_time"], interval * np.arange(3))
    np.testing.assert_allclose(store["time"], interval * np.arange(3, 8))
    attributes = {"task": "temporal", "observed_frames": 3, "observed_points": 12, "data_file": "readings.csv"}
    assert attributes.items() <= store.attrs.items()
    assert {"history": 3, "points": 12, "num_frames": 5, "num_trajectories": 2}.items() <= result.items()
    # One of the trajectories has its own noise, and sees its own points.
    enma("forecast", tmp_path / "readings.csv", "--out", tmp_path / "one", *options, "--select", 1)
    np.testing.assert_array_equal(stacked(read_forecast(tmp_path / "one")), expected[1:])


def test_the_same_command_continues(
    enma: Callable,
    checkpoint: Path,
    readings: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("-c", checkpoint, "--members", 4, "--chunk", 2, "--quiet")
    assert enma("forecast", "readings.csv", "--out", "whole", *options).status == 0
    command = read_forecast("whole").attrs["command"]
    # A run that is stopped after its first block.
    data = readings_for(load_config(checkpoint), "readings.csv")
    request = ForecastRequest(num_members=4, chunk=2)
    begun = prepare(data, "part", request, checkpoint=checkpoint, command=command, launch=ALONE)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun.execute(stop)
    assert enma("score", "part").error().startswith("part: is not finished; continue it: enma-fast forecast readings")
    result = enma(*shlex.split(command)[1:], "--out", "part", "--chunk", 2, "--json").json
    assert 0 < result["members_sampled"] < 8
    assert contents(Path("part")) == contents(Path("whole"))
    # What it saw can be written again.
    file = Path("part/x_observed/c.1.0.0")
    file.write_bytes(file.read_bytes()[:-1])
    assert enma("verify", "part", "--mark").status == 2
    assert enma("forecast", "readings.csv", "--out", "part", *options, "--json").json["members_sampled"] == 0
    assert contents(Path("part")) == contents(Path("whole"))
    # Other points are another run.
    points, u = readings
    points[1, 2, 3] = points[0, 0, 0]
    write_table(tmp_path / "readings.csv", points, u)
    error = enma("forecast", "readings.csv", "--out", "part", *options).error()
    assert error.startswith("part: belongs to another run: input_sha256 is ")


@pytest.mark.usefixtures("readings")
def test_scores_need_a_truth(enma: Callable, checkpoint: Path, truth: FieldFile, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    options = ("-c", checkpoint, "--members", 3, "--select", 1)
    assert enma("forecast", tmp_path / "readings.csv", "--out", out, *options).status == 0
    said = f"{out}: holds no truth; give a field file that does, its frames 3 to 7: --truth FILE"
    assert enma("score", out).error() == said
    field_file = write_fields(tmp_path / "truth.h5", truth, name="waves")
    scores = enma("score", out, "--truth", field_file, "--json").json
    assert (scores["history"], scores["points"]) == (3, 12)
    # The unit of the scores is what was observed, here of one trajectory.
    seen = stacked(read_forecast(out), "_observed")
    assert scores["crps_relative"] == pytest.approx(scores["crps"] / np.sqrt(np.nanmean(seen**2)), rel=1e-5)
    page = enma("report", out, "--truth", field_file, "--out", tmp_path / "a.html", "--json").json
    assert page["scores"]["crps_relative"] == pytest.approx(scores["crps_relative"], rel=1e-5)


def test_a_truth_of_another_trajectory_is_told(
    enma: Callable, checkpoint: Path, truth: FieldFile, tmp_path: Path
) -> None:
    chosen = np.stack([np.random.default_rng(t).permutation(truth.u[0, 0, ..., 0].size)[:12] for t in range(3)])
    places = np.unravel_index(chosen, truth.u.shape[2:-1])
    frames = np.arange(3)[:, None]
    points = np.stack([x[place] for x, place in zip(truth.coords, places, strict=True)], -1).astype(np.float32)
    field_file = write_fields(tmp_path / "truth.h5", truth, name="waves")
    for number, far in ((0, False), (1, True)):
        u = truth.u[(number, frames, *places)]
        write_table(tmp_path / "readings.csv", points[None], u[None])
        out = tmp_path / f"{number}.zarr"
        assert enma("forecast", tmp_path / "readings.csv", "--out", out, "-c", checkpoint, "--members", 2).status == 0
        run = enma("score", out, "--truth", field_file)
        assert run.status == 0
        assert ("the first frames of trajectory 0" in run.err) == far, run.err


@pytest.mark.usefixtures("readings")
def test_figures_show_what_was_seen(
    enma: Callable, checkpoint: Path, readings: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    out, options = tmp_path / "run.zarr", ("-c", checkpoint, "--members", 3)
    assert enma("forecast", tmp_path / "readings.csv", "--out", out, *options).status == 0
    assert enma("plot", out, "--out", tmp_path / "a.png").status == 0
    assert enma("report", out, "--out", tmp_path / "a.html").status == 0
    assert "5 frames from 3 observed at up to 12 points each" in (tmp_path / "a.html").read_text()
    reader = StoreReader(out)
    assert reader.title(1).endswith("trajectory 1 of readings, seen at up to 12 points")
    figure = store_figure(reader, place=1)
    points, u = readings
    if points.shape[-1] == 1:
        mean = next(axes for axes in figure.axes if axes.get_title("left") == "ensemble mean")
        (drawn,) = (marks for marks in mean.collections if "PathCollection" in type(marks).__name__)
        there = ~np.isnan(points[1, ..., 0])
        times = read_forecast(out)["observed_time"].to_numpy()
        np.testing.assert_allclose(drawn.get_offsets()[:, 0], points[1, ..., 0][there])
        np.testing.assert_allclose(drawn.get_offsets()[:, 1], np.repeat(times, COUNTS[1]))
        np.testing.assert_array_equal(drawn.get_array(), u[1, ..., 0][there])


@pytest.mark.usefixtures("readings")
def test_export_and_plan(enma: Callable, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, options = tmp_path / "run.zarr", ("-c", checkpoint, "--members", 2, "--out", tmp_path / "run.zarr")
    plan = enma("forecast", tmp_path / "readings.csv", *options, "--dry-run", "--json").json
    assert plan["plan"]["members_missing"] == 4
    assert not out.exists()
    assert enma("forecast", tmp_path / "readings.csv", *options).status == 0
    assert enma("verify", out).status == 0
    assert enma("export-netcdf", out, "--out", tmp_path / "run.nc").status == 0
    # That a frame has fewer readings than another is no loss.
    assert "missing" not in caplog.text


def test_errors_of_readings(enma: Callable, tmp_path: Path) -> None:
    grid, attending = (checkpoint_of(name, tmp_path / name) for name in ("plane", "plane-paper"))
    rng, tok = np.random.default_rng(1), load_config(grid).codec
    points = rng.uniform(0, tok.lengths, (1, 3, 9, 2)).astype(np.float32)
    u = rng.normal(size=(1, 3, 9, 2)).astype(np.float32)
    file, out = write_table(tmp_path / "readings.csv", points, u), tmp_path / "run.zarr"
    words = ("forecast", file, "--out", out, "--members", 2)
    said = (
        "observation_error: is that of values at scattered points, for a model without an interpolation; leave it out"
    )
    assert enma(*words, "-c", attending, "--observation-error", "0.1").error() == said
    error = enma(*words, "-c", grid, "--observation-error", "1,2,3").error()
    assert error == "observation_error has 3 numbers; give one, or 2"
    assert not out.exists()
    assert enma(*words, "-c", grid, "--observation-error", "0.1,0.3").status == 0
    store = read_forecast(out)
    assert store.attrs["observation_error"] == [0.1, 0.3]
    assert "--observation-error 0.1,0.3 --members 2" in store.attrs["command"]
    assert store.attrs["covariance_sha256"] == hashes(grid)[COVARIANCE]
    found = enma_fast.load_model(grid)
    told = enma_fast.forecast(found, u, points=points, num_members=2, observation_error=[0.1, 0.3]).values
    np.testing.assert_array_equal(stacked(store), told)
    assert np.abs(told - enma_fast.forecast(found, u, points=points, num_members=2).values).max() > 1e-3
    error = enma(*words, "-c", grid, "--observation-error", "0.1").error()
    assert "observation_error is [0.1, 0.3] there, [0.1] here" in error
    # It is of points alone.
    fields = waves_file(load_config(grid), waves(1, 2, 8, tok))
    field_file = write_fields(tmp_path / "fields.h5", fields, name="waves")
    words = ("forecast", field_file, "--out", tmp_path / "fields.zarr", "-c", grid, "--observation-error", "0.1")
    assert enma(*words).error() == said
    assert enma(*words, "--points", 20, "--members", 1).status == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--history", 4), "--history 4: all 3 frames of {} are observed; leave it out"),
        (("--points", 5), "points: all readings of {} are seen, where they are; leave it out"),
        (
            ("--task", "initial-value"),
            "task initial-value: {} holds readings, from which the temporal task alone forec",
        ),
        (("--select", "1:3"), "--select '1:3': names no trajectory, or one that is not there; there are 2"),
        (("--observation-error", "-1"), "observation_error is [-1.0]; numbers of at least 0 are expected"),
        (("--observation-error", "x"), "--observation-error 'x': write numbers with commas between them"),
    ],
)
@pytest.mark.usefixtures("readings")
def test_what_is_refused(enma: Callable, checkpoint: Path, tmp_path: Path, options: tuple, said: str) -> None:
    file = tmp_path / "readings.csv"
    options = options if "-c" in options else ("-c", checkpoint, *options)
    error = enma("forecast", file, "--out", tmp_path / "run.zarr", *options).error()
    assert error.startswith(said.format(file))
    assert not (tmp_path / "run.zarr").exists()
