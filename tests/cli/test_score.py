"""`enma-fast score` of a field file, and of a forecast store."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast import cli
from enma_fast.commands.terminal import number
from enma_fast.config import SamplingConfig
from enma_fast.data import read, shipped
from enma_fast.evaluation.scoring import score
from enma_fast.evaluation.store_scores import score_store
from enma_fast.models.checkpoint import PRETRAINED, load_model
from enma_fast.training import card
from tests._made import create_store

TIMED = {"seconds_per_member", "file", "checkpoint"}
SETTINGS = ("--mask-steps", 3, "--flow-steps", 4)


SAMPLING = SamplingConfig(mask_steps=3, flow_steps=4, temperature=0.5)


@pytest.fixture
def threads() -> Iterator[None]:
    """Give the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tiny: Path, test_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecast of trajectories 2 and 3, written by the command."""
    from enma_fast.cli import main

    path = tmp_path_factory.mktemp("stores") / "run.zarr"
    options = ("--out", path, "-c", tiny, "--members", 3, "--seed", 4, "--select", "2:4")
    assert main([str(argument) for argument in ("forecast", test_in, *options)]) == 0
    return path


@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_score_gives_what_the_library_gives(enma: Callable, tiny: Path, test_in: Path, task: str) -> None:
    options = ("--task", task, "--history", 3, "--members", 2, "--seed", 1, "--limit", 5)
    result = enma("score", test_in, "--checkpoint", tiny, *options, "--json").json
    expected = score(load_model(tiny), read(test_in), task=task, num_members=2, seed=1, limit=5)
    assert set(result) == {*expected, "file", "checkpoint"}
    assert {k: v for k, v in result.items() if k not in TIMED} == {k: v for k, v in expected.items() if k not in TIMED}


def test_score_takes_the_settings_and_reports_them(enma: Callable, tiny: Path, test_in: Path) -> None:
    options = ("-c", tiny, "--members", 2, "--limit", 2, "--json")
    plain = enma("score", test_in, *options).json
    result = enma("score", test_in, *options, *SETTINGS, "--temperature", 0.5).json
    expected = score(load_model(tiny), read(test_in), num_members=2, limit=2, settings=SAMPLING)
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
    assert run.out.splitlines()[0].rstrip().endswith("temporal: 1 trajectory")


def test_a_model_that_leaves_with_the_next_release_is_a_line(
    enma: Callable, test_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "LEAVING", {"combined-small": "combined"})
    usual = warnings.showwarning
    run = enma("score", test_in, "--checkpoint", "combined-small", "--members", 2, "--limit", 1)
    assert run.status == 0, run.err
    (line,) = run.err.splitlines()
    assert line.startswith("the model combined-small will be removed")
    assert line.endswith("combined")
    assert warnings.showwarning is usual


@pytest.mark.parametrize("task", ["temporal", "initial-value"])
def test_the_model_card_can_be_made_again(enma: Callable, test_in: Path, task: str) -> None:
    metrics = card.read_metrics(PRETRAINED / "combined-small")
    assert metrics is not None, "combined-small has no metrics.json: write it with `enma-fast publish`"
    (row,) = (row for row in metrics["rows"] if (row["task"], row["split"], row["packed"]) == (task, "test-in", True))
    assert row["num_trajectories"] == 24
    options = ("--task", task, "--members", row["num_members"], "--seed", row["seed"])
    result = enma("score", test_in, "--checkpoint", "combined-small", *options, "--json").json
    for name in ("rel_l2", "rel_l2_median", "rel_l2_member", "crps", "crps_relative", "rmsce", "spread_skill"):
        assert result[name] == pytest.approx(row[name], rel=5e-3), name
    assert result["num_outside"] == row["num_outside"]
    text = (PRETRAINED / "combined-small" / "README.md").read_text()
    section = text.partition("## Training\n\n")[2].partition("\n\n## Limits")[0]
    assert text == card.card_text(load_model("combined-small").config, metrics, section)


def test_messages_reach_standard_error_only_while_a_command_runs(enma: Callable, tiny: Path, test_in: Path) -> None:
    import logging

    log = logging.getLogger("enma_fast")
    before = list(log.handlers)
    assert enma("score", test_in, "-c", tiny, "--limit", 1, "--members", 2).status == 0
    assert log.handlers == before
    with cli._log_to_stderr():
        assert len(log.handlers) == len(before) + 1


def test_a_store_is_scored_as_its_members_were_when_they_were_sampled(
    enma: Callable, store: Path, tiny: Path, test_in: Path
) -> None:
    result = enma("score", store, "--json").json
    assert result == json.loads(json.dumps(score_store(store)))
    whole = enma("score", store, "--truth", test_in, "--json").json
    assert whole == {**result, "truth": str(test_in)}
    assert (result["num_members"], result["num_trajectories"], result["num_frames"]) == (3, 2, 17)
    assert (result["dataset"], result["split"], result["task"]) == ("combined", "test-in", "temporal")
    assert (result["seed"], result["history"], result["store"], result["truth"]) == (4, 3, str(store), None)
    assert "mask_steps" in result["sampling"]
    sampled = enma("score", test_in, "-c", tiny, "--members", 3, "--seed", 4, "--limit", 2, "--json").json
    assert set(sampled) - set(result) == {"seconds_per_member", "num_parameters", "file", "checkpoint"}


def test_the_paper_stands_beside_it(enma: Callable, store: Path) -> None:
    run = enma("score", store)
    assert run.status == 0, run.err
    rows = {line.split("  ")[0].strip(): line.split() for line in run.out.splitlines() if line.strip()}
    assert rows["ENMA (paper)"][2:] == ["7.86e-3", "-", "1.70e-3", "0.0868", "-", "-"]
    assert f"3 members from 3 frames, 17 frames scored, seed 4; {store}" in " ".join(run.out.split())


def test_out_holds_the_same_as_json(enma: Callable, store: Path, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.json"
    result = enma("score", store, "--out", out, "--json").json
    assert json.loads(out.read_text()) == result
    result = enma("score", test_in, "-c", tiny, "--members", 2, "--limit", 1, "--out", out, "--json").json
    assert json.loads(out.read_text()) == result
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "a.json", tmp_path):
        error = enma("score", store, "--out", bad).error()
        assert error == f"--out {bad}: cannot be written; choose another place"


@pytest.mark.parametrize(
    "option", [("--members", 2), ("--seed", 0), ("--task", "temporal"), ("--limit", 1), ("-c", "combined-small")]
)
def test_options_that_would_change_nothing_are_refused(enma: Callable, store: Path, option: tuple) -> None:
    name = "--checkpoint" if option[0] == "-c" else option[0]
    error = enma("score", store, *option).error()
    assert error == f"{name}: {store} is a forecast store, scored as it is; leave the option out"


def test_what_is_no_store_has_no_truth_beside_it(enma: Callable, test_in: Path, tmp_path: Path) -> None:
    error = enma("score", test_in, "--truth", test_in).error()
    assert error == f"--truth: {test_in} is a field file, which holds its truth; leave the option out"
    (tmp_path / "empty").mkdir()
    error = enma("score", tmp_path / "empty", "--truth", test_in).error()
    assert error == f"{tmp_path / 'empty'}: is not a Zarr store; give one written by `enma-fast forecast`"
    assert "no such folder" in enma("score", tmp_path / "no.zarr", "--truth", test_in).error()


def test_an_error_in_the_truth_is_one_line(enma: Callable, store: Path, tmp_path: Path) -> None:
    assert enma("score", store, "--truth", tmp_path / "no.h5").error().startswith(f"{tmp_path / 'no.h5'}: no such file")


def test_another_truth_is_told_on_standard_error(enma: Callable, store: Path, test_in: Path, tmp_path: Path) -> None:
    import h5py

    copy = tmp_path / "copy.h5"
    copy.write_bytes(test_in.read_bytes())
    with h5py.File(copy, "a") as file:
        file.attrs["note"] = "the same trajectories"
    run = enma("score", store, "--truth", copy, "--json")
    assert "SHA-256 is not data_sha256" in run.err
    assert run.json["rel_l2"] == enma("score", store, "--json").json["rel_l2"]


def test_what_lies_outside_the_training_data_is_told_or_refused(enma: Callable, tmp_path: Path) -> None:
    from enma_fast.models.checkpoint import PRETRAINED

    strange, out = PRETRAINED / "combined-test-out.h5", tmp_path / "run.zarr"
    select = ("--select", "4:6", "--members", 2)
    for command in (("forecast", strange, "--out", out, *select), ("score", strange, "--members", 1, "--limit", 1)):
        error = enma(*command, "--strict").error()
        assert error.startswith(f"{strange}: the observed frames of trajectory ")
        assert " lie outside what combined-fast was trained on: " in error
        assert error.endswith("; check unit and physics, or leave out strict")
        assert not out.exists()
    run = enma("forecast", strange, "--out", out, *select, "--json")
    assert run.json["outside_training"] == [4, 5]
    assert "trajectory 4 (and of 1 more) lie outside what combined-fast was trained on" in run.err
    shown = " ".join(enma("score", out).out.split())
    assert "observed frames outside the training data: 2 trajectories" in shown
    result = enma("score", out, "--json").json
    median, tail = (f"{result[name]:.3g}" for name in ("rel_l2_median", "rel_l2_q90"))
    assert f"rel_l2 is a mean over trajectories; their median is {median}, their 90 % quantile {tail}" in shown
    assert f"crps / RMS of the observed frames: {result['crps_relative']:.3g}" in shown
    mass = next(each for each in result["physics"]["quantities"] if each["name"] == "mass")
    assert f"physics, relative to the observed amplitude: mass changes by {number(mass['violation'])} (truth:" in shown
    assert "the ENMA paper does not say" not in shown, "it has no calibration out of distribution"


def test_each_channel_has_a_row_and_a_large_one_is_named(enma: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 4, 6, 2)) * [1, 100] + [0, 1e5]
    with create_store(
        tmp_path / "run.zarr",
        channels=("u", "p"),
        times=np.arange(4.0),
        coords=[np.arange(6.0)],
        trajectories=[0, 1],
        num_members=3,
        truth=truth,
        units={"p": "Pa"},
        attributes={"task": "temporal", "observed_frames": 3, "seed": 0, "model": "flow", "data_name": "flow"},
    ) as store:
        store.put(0, rng.normal(size=(2, 3, 4, 6, 2)) * [1, 100] + [0, 1e5])
    found = enma("score", tmp_path / "run.zarr", "--json").json["channels"]
    assert found == score_store(tmp_path / "run.zarr")["channels"]
    shown = enma("score", tmp_path / "run.zarr").out
    rows = {line.split("  ")[0].strip(): line.split()[2:] for line in shown.splitlines() if line.strip()}
    for name, row in (("u (1)", found["u"]), ("p (Pa)", found["p"])):
        assert rows[name] == [number(row[key]) for key in ("rel_l2", "rmse", "crps", "spread_skill")]
    words = " ".join(shown.split())
    assert "p, of RMS 1e+05, rules the scores of all channels and hides u of " in words
    assert "Relative L2 is relative to the whole field, and p is " in words
