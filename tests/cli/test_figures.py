"""`enma-fast plot` and `enma-fast report`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enma_fast.cli import main
from enma_fast.data import read
from enma_fast.drawing import plots
from enma_fast.evaluation.metrics import Scores
from enma_fast.figures import report
from enma_fast.store.read import read_forecast
from tests._made import create_store
from tests._stacked import stacked


@pytest.fixture(scope="module")
def stores(tiny: Path, test_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two stores that the command has written."""
    folder = tmp_path_factory.mktemp("stores")
    common = ("forecast", str(test_in), "-c", str(tiny), "--quiet", "--out")
    assert main([*common, str(folder / "run.zarr"), "--members", "4", "--select", "2:4"]) == 0
    options = ("--members", "2", "--task", "generation", "--select", "5")
    assert main([*common, str(folder / "generated.zarr"), *options]) == 0
    return folder


@pytest.fixture
def store(stores: Path, tmp_path: Path) -> Path:
    """Four members of trajectories 2 and 3."""
    return Path(shutil.copytree(stores / "run.zarr", tmp_path / "run.zarr"))


@pytest.fixture
def generated(stores: Path, tmp_path: Path) -> Path:
    """A store without a truth."""
    return Path(shutil.copytree(stores / "generated.zarr", tmp_path / "generated.zarr"))


@pytest.fixture
def plane(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A store of a field in two dimensions."""
    out = tmp_path / "plane.zarr"
    coords = [np.arange(6.0), np.arange(5.0)]
    facts = {"channels": ["u"], "times": np.arange(4.0), "coords": coords, "attributes": {"observed_frames": 0}}
    with create_store(out, **facts, trajectories=[0], num_members=3) as made:
        made.put(0, rng.normal(size=(1, 3, 4, 6, 5, 1)).astype(np.float32))
    return out


def test_plot(enma: Callable, store: Path, test_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, drawn = tmp_path / "a.svg", []
    original = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure) or original(figure, path))
    result = enma("plot", store, "--out", picture, "--trajectory", 3, "--json").json
    assert result == {"figure": str(picture), "store": str(store), "trajectory": 3}
    assert b"<svg" in picture.read_bytes()
    axes = {axes.get_title("left"): axes for axes in drawn[0].axes}
    truth = axes["truth"].collections[0].get_array()
    np.testing.assert_allclose(truth, read(test_in, select=[3]).u[0, ..., 0])
    assert "ranks, 2 trajectories" in axes
    pooled = Scores()
    data = read_forecast(store)
    pooled.update(stacked(data), stacked(data, "_truth"))
    curve = axes[f"reliability, RMSCE {pooled.result()['rmsce']:.3f}"].lines[1]
    np.testing.assert_allclose(curve.get_ydata(), pooled.reliability()[1])
    assert len(axes["spread and skill"].lines) == 2
    assert drawn[0].get_suptitle() == "combined-small, temporal: trajectory 3 of combined-test-in"


def test_the_picture_is_beside_the_store_by_default(enma: Callable, store: Path) -> None:
    assert enma("plot", store, "--json").json["figure"] == str(store.with_suffix(".png"))
    assert store.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_plot_takes_a_truth_from_a_file(enma: Callable, generated: Path, test_in: Path, tmp_path: Path) -> None:
    assert enma("plot", generated, "--out", tmp_path / "a.png").status == 0
    assert enma("plot", generated, "--truth", test_in, "--out", tmp_path / "b.png").status == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_plot_names_what_is_not_there(enma: Callable, store: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    message = f"{store}: has no trajectory 7; it holds 2, 3"
    assert enma("plot", store, "--out", picture, "--trajectory", 7).error() == message
    assert enma("plot", store, "--out", picture, "--channel", "w").error() == f"{store}: has no channel 'w'; it holds u"
    assert "no such folder" in enma("plot", tmp_path / "nowhere", "--out", picture).error()
    assert "unknown kind of picture" in enma("plot", store, "--out", tmp_path / "a.docx").error()
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_movie(enma: Callable, plane: Path, store: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    assert enma("plot", plane, "--out", tmp_path / "a.gif").status == 0
    with image.open(tmp_path / "a.gif") as movie:
        assert movie.n_frames == 4
    assert enma("plot", store, "--out", tmp_path / "b.gif").error().endswith("end --out in .png for this one on a line")
    assert not (tmp_path / "b.gif").exists()


def test_a_truth_of_another_grid_is_refused(enma: Callable, plane: Path, test_in: Path) -> None:
    message = enma("report", plane, "--truth", test_in).error()
    assert message == f"{test_in}: the grid is 128 points; {plane} has 6 x 5"


def test_report(enma: Callable, store: Path, tmp_path: Path) -> None:
    result = enma("report", store, "--json").json
    pooled = Scores()
    data = read_forecast(store)
    pooled.update(stacked(data), stacked(data, "_truth"), stacked(data, "_observed"))
    expected = pooled.result()
    assert {name: result["scores"][name] for name in expected} == expected
    page = tmp_path / "run.html"
    assert (result["report"], result["num_bytes"]) == (str(page), page.stat().st_size)
    assert (result["num_trajectories"], result["num_members"]) == (2, 4)
    text = page.read_text()
    for name in ("model_sha256", "data_sha256", "versions", "command"):
        assert data.attrs[name] in text, name
    run = enma("report", store, "--out", tmp_path / "b.html")
    assert run.status == 0, run.err
    assert f"report: {tmp_path / 'b.html'} (" in run.out


@pytest.mark.usefixtures("undrawn")
def test_report_takes_a_truth_from_a_file(enma: Callable, generated: Path, test_in: Path) -> None:
    assert enma("report", generated, "--json").json["scores"] is None
    result = enma("report", generated, "--truth", test_in, "--json").json
    pooled = Scores()
    pooled.update(stacked(read_forecast(generated)), read(test_in, select=[5]).u)
    assert result["scores"]["crps"] == pooled.result()["crps"]
    # Another draw is no truth.
    assert result["scores"]["rmse"] is None


def test_a_report_needs_a_place(enma: Callable, store: Path, tmp_path: Path) -> None:
    assert enma("report", store, "--out", tmp_path / "a.pdf").error().endswith("end --out in .html")
    assert enma("report", store, "--out", tmp_path).error().startswith(f"{tmp_path}: is a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_figure_that_cannot_be_written_is_refused_before_the_work(
    enma: Callable, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "StoreReader", lambda *_: pytest.fail("the store was read"))
    assert "eps, gif, jpeg, " in enma("plot", store, "--out", tmp_path / "a.pgn").error()
    (tmp_path / "a file").touch()
    assert "cannot be written" in enma("plot", store, "--out", tmp_path / "a file" / "a.png").error()
