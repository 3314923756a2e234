"""`enma-fast forecast`, `score` and `plot`."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast import card, cli
from enma_fast.checkpoint import PRETRAINED, load_model, sha256
from enma_fast.config import SamplingConfig
from enma_fast.data import read
from enma_fast.members import forecast
from enma_fast.output import read_forecast, stacked
from enma_fast.scoring import score

TIMED = {"seconds_per_member", "file", "checkpoint"}


@pytest.fixture
def threads() -> Iterator[None]:
    """Give the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_forecast_writes_what_the_library_samples(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    options = ("--checkpoint", tiny, "--members", 3, "--seed", 4, "--history", 5, "--select", "9:12")
    result = enma("forecast", test_in, "--out", out, *options, "--json").json
    data = read(test_in)
    rows = [9, 10, 11]
    expected = forecast(load_model(tiny), data.u[rows, :5], num_members=3, seed=4, trajectories=rows)
    store = read_forecast(out)
    np.testing.assert_allclose(stacked(store), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stacked(store, "_observed"), data.u[rows, :5])
    np.testing.assert_array_equal(stacked(store, "_truth"), data.u[rows, 5:])
    np.testing.assert_allclose(store["time"], data.times[5:])
    np.testing.assert_allclose(store["x"], data.coords[0])
    np.testing.assert_array_equal(store["trajectory"], rows)
    np.testing.assert_array_equal(store["environment"], data.environment[rows])
    np.testing.assert_array_equal(store["alpha"], data.parameters["alpha"][rows])
    assert store.attrs["data_sha256"] == sha256(test_in)
    assert store.attrs["model_sha256"] == sha256(tiny / "model.safetensors")
    assert "--seed 4 --select 9:12" in store.attrs["command"]
    assert (result["num_trajectories"], result["num_members"], result["num_frames"]) == (3, 3, 15)


SETTINGS = ("--mask-steps", 3, "--flow-steps", 4, "--last-flow-steps", 2, "--flow-method", "euler")
SAMPLING = SamplingConfig(mask_steps=3, flow_steps=4, last_flow_steps=2, method="euler", temperature=0.5)


def test_forecast_takes_the_settings_and_writes_them_down(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path
) -> None:
    options = ("-c", tiny, "--members", 2, "--select", "0:2")
    run = enma("forecast", test_in, "--out", tmp_path / "a", *options, *SETTINGS, "--temperature", 0.5, "--json")
    model = load_model(tiny)
    expected = forecast(model, read(test_in).u[:2, :3], num_members=2, trajectories=[0, 1], settings=SAMPLING)
    store = read_forecast(tmp_path / "a")
    np.testing.assert_allclose(stacked(store), expected, rtol=1e-4, atol=1e-5)
    assert run.json["sampling"] == asdict(SAMPLING)
    assert store.attrs["sampling"] == "mask_steps 3, flow_steps 4, last_flow_steps 2, method euler, temperature 0.5"
    assert store.attrs["command"].endswith(" ".join(map(str, (*SETTINGS, "--temperature", 0.5))))
    # One option leaves the others as the model has them; none leaves all.
    assert enma("forecast", test_in, "--out", tmp_path / "b", *options, "--flow-steps", 3).status == 0
    own = "mask_steps 2, flow_steps {}, method midpoint, temperature 1.0"
    assert read_forecast(tmp_path / "b").attrs["sampling"] == own.format(3)
    assert enma("forecast", test_in, "--out", tmp_path / "c", *options).status == 0
    assert read_forecast(tmp_path / "c").attrs["sampling"] == own.format(1)
    assert read_forecast(tmp_path / "c").attrs["command"].endswith("--select 0:2")


def test_generated_trajectories_have_no_truth(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    run = enma("forecast", test_in, "--out", out, "-c", tiny, "--task", "generation", "--members", 2, "--select", 29)
    assert run.status == 0, run.err
    store = read_forecast(out)
    assert stacked(store).shape == (1, 2, 20, 128, 1)
    assert stacked(store, "_truth") is stacked(store, "_observed") is None


def test_forecast_replaces_a_store_only_with_force(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 2)
    assert enma(*command, "--select", 0).status == 0
    assert enma(*command, "--select", 1).error().endswith("exists; choose another --out, or replace it with --force")
    assert read_forecast(out)["trajectory"].to_numpy().tolist() == [0]
    assert enma(*command, "--select", "1:3", "--force").status == 0
    assert read_forecast(out)["trajectory"].to_numpy().tolist() == [1, 2]


@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_score_gives_what_the_library_gives(enma: Callable, tiny: Path, test_in: Path, task: str) -> None:
    options = ("--task", task, "--history", 3, "--members", 2, "--seed", 1, "--limit", 5)
    result = enma("score", test_in, "--checkpoint", tiny, *options, "--json").json
    expected = score(load_model(tiny), read(test_in), task=task, members=2, seed=1, limit=5)
    assert set(result) == {*expected, "file", "checkpoint"}
    assert {k: v for k, v in result.items() if k not in TIMED} == {k: v for k, v in expected.items() if k not in TIMED}


def test_score_takes_the_settings_and_reports_them(enma: Callable, tiny: Path, test_in: Path) -> None:
    options = ("-c", tiny, "--members", 2, "--limit", 2, "--json")
    plain = enma("score", test_in, *options).json
    result = enma("score", test_in, *options, *SETTINGS, "--temperature", 0.5).json
    expected = score(load_model(tiny), read(test_in), members=2, limit=2, settings=SAMPLING)
    assert result["sampling"] == asdict(SAMPLING)
    assert result["crps"] == expected["crps"] != plain["crps"]
    assert plain["sampling"] == asdict(load_model(tiny).config.sampling)


def test_score_shows_the_paper_beside_it(enma: Callable, tiny: Path, test_in: Path, threads: None) -> None:
    run = enma("score", test_in, "-c", tiny, "--members", 2, "--limit", 1, "--threads", 1)
    assert run.status == 0, run.err
    assert torch.get_num_threads() == 1
    rows = {line.split("  ")[0].strip(): line.split() for line in run.out.splitlines() if line.strip()}
    assert rows["ENMA (paper)"][2:] == ["7.86e-3", "-", "1.70e-3", "0.0868", "-", "-"]
    assert "2 members from 3 frames, 17 frames scored, seed 0" in run.out


@pytest.mark.parametrize("task", ["temporal", "initial-value"])
def test_the_model_card_can_be_made_again(enma: Callable, test_in: Path, task: str) -> None:
    metrics = card.read_metrics(PRETRAINED / "combined-small")
    assert metrics is not None, "combined-small has no metrics.json: write it with `enma-fast train publish`"
    (row,) = (row for row in metrics["rows"] if (row["task"], row["split"], row["limit"]) == (task, "test-in", 5))
    options = ("--task", task, "--members", row["num_members"], "--seed", row["seed"], "--limit", 5)
    result = enma("score", test_in, "--checkpoint", "combined-small", *options, "--json").json
    for name in ("rel_l2", "rel_l2_member", "crps", "rmsce", "spread_skill"):
        assert result[name] == pytest.approx(row[name], rel=5e-3), name
    text = (PRETRAINED / "combined-small" / "README.md").read_text()
    assert text == card.card_text(load_model("combined-small").config, metrics)


def test_plot(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from enma_fast import plots

    out, picture = tmp_path / "run.zarr", tmp_path / "a.svg"
    assert enma("forecast", test_in, "--out", out, "-c", tiny, "--members", 4, "--select", "2:4").status == 0
    drawn = []
    original = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure) or original(figure, path))
    result = enma("plot", out, "--out", picture, "--trajectory", 3, "--json").json
    assert result == {"figure": str(picture), "store": str(out), "trajectory": 3}
    assert b"<svg" in picture.read_bytes()
    axes = {axes.get_title("left"): axes for axes in drawn[0].axes}
    truth = axes["truth"].collections[0].get_array()
    np.testing.assert_allclose(truth, read(test_in, select=[3]).u[0, ..., 0])
    assert "ranks, 2 trajectories" in axes
    assert drawn[0].get_suptitle() == "combined-small, temporal: trajectory 3 of combined-test-in"


def test_plot_takes_a_truth_from_a_file(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 2, "--task", "generation", "--select", 5)
    assert enma(*command).status == 0
    assert enma("plot", out, "--out", tmp_path / "a.png").status == 0
    assert enma("plot", out, "--truth", test_in, "--out", tmp_path / "b.png").status == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_plot_names_what_is_not_there(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "run.zarr", tmp_path / "a.png"
    assert enma("forecast", test_in, "--out", out, "-c", tiny, "--members", 2, "--select", "4:6").status == 0
    assert (
        enma("plot", out, "--out", picture, "--trajectory", 7).error() == f"{out}: has no trajectory 7; it holds 4, 5"
    )
    assert enma("plot", out, "--out", picture, "--channel", "w").error() == f"{out}: has no channel 'w'; it holds u"
    assert "no such folder" in enma("plot", tmp_path / "nowhere", "--out", picture).error()
    assert "unknown kind of picture" in enma("plot", out, "--out", tmp_path / "a.docx").error()
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_messages_reach_standard_error_only_while_a_command_runs(enma: Callable, tiny: Path, test_in: Path) -> None:
    import logging

    log = logging.getLogger("enma_fast")
    before = list(log.handlers)
    assert enma("score", test_in, "-c", tiny, "--limit", 1, "--members", 2).status == 0
    assert log.handlers == before
    with cli._log_to_stderr():
        assert len(log.handlers) == len(before) + 1
