"""`enma-fast train tokenizer`, `train dynamics` and `train publish`, on a model that trains in a moment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enma_fast.data import DEFAULT_GROUPS, read
from enma_fast.evaluation.scoring import score
from enma_fast.models.checkpoint import load_model, load_tokenizer, read_tensors, sha256
from enma_fast.models.envelope import Envelope
from enma_fast.training import card, lineage
from enma_fast.training.record import summary

from .._tiny_checkpoint import TINY_DYNAMICS, TINY_TOKENIZER
from .conftest import Run


def settings(changes: dict[str, Any]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """Run folders of a tokenizer and of dynamics, trained for a few steps."""
    from enma_fast.cli import main

    folder = tmp_path_factory.mktemp("runs")
    common = ["--data", str(data_folder), "--batch", "4", "--precision", "fp32"]
    tokenizer, dynamics = str(folder / "tokenizer"), str(folder / "dynamics")
    words = ["train", "tokenizer", "combined-small", "--out", tokenizer, *common, "--steps", "40", "--seed", "3"]
    assert main([*words, *settings(TINY_TOKENIZER), "--train-set", "warmup_steps=5"]) == 0
    words = ["train", "dynamics", "combined-small", "--tokenizer", tokenizer, "--out", dynamics, *common]
    assert main([*words, "--steps", "6", *settings(TINY_DYNAMICS)]) == 0
    return folder


@pytest.fixture
def train(enma: Callable, data_folder: Path) -> Callable[..., Run]:
    """Train the tokenizer or, on the one in `tokenizer`, the dynamics."""

    def run(out: Path, *options: Any, tokenizer: Path | None = None) -> Run:
        stage = ("tokenizer", "combined-small") if tokenizer is None else ("dynamics", "combined-small")
        given = settings(TINY_TOKENIZER) if tokenizer is None else settings(TINY_DYNAMICS)
        extra = () if tokenizer is None else ("--tokenizer", tokenizer)
        common = ("--data", data_folder, "--out", out, "--batch", 4, "--precision", "fp32")
        return enma("train", *stage, *extra, *common, *given, *options)

    return run


def averaged(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights in the state of a run."""
    tensors, _ = read_tensors(folder / "state.safetensors")
    return {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}


def test_tokenizer_learns_and_leaves_its_averaged_weights(runs: Path, data_folder: Path) -> None:
    folder = runs / "tokenizer"
    tokenizer, config = load_tokenizer(folder / "checkpoint")
    assert config.tokenizer.layers == TINY_TOKENIZER["tokenizer.layers"]
    for name, value in averaged(folder).items():
        assert torch.equal(tokenizer.state_dict()[name], value), name
    done = summary(folder)
    assert done["steps"] == 40
    u = torch.from_numpy(read(data_folder / "combined-val.h5").u)
    error = (tokenizer.decode(tokenizer.encode(u), 20) - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    assert done["validation"]["rel_l2"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert done["validation"]["rel_l2"] < 0.99, "forty steps are better than nothing"


def test_dynamics_checkpoint_joins_tokenizer_and_averaged_dynamics(runs: Path) -> None:
    model = load_model(runs / "dynamics" / "checkpoint")
    tokenizer, _ = load_tokenizer(runs / "tokenizer" / "checkpoint")
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(model.tokenizer.state_dict()[name], value), name
    for name, value in averaged(runs / "dynamics").items():
        assert torch.equal(model.dynamics.state_dict()[name], value), name
    latents, meta = read_tensors(runs / "dynamics" / "latents-train.safetensors")
    assert meta["tokenizer"].startswith(sha256(runs / "tokenizer" / "checkpoint" / "model.safetensors"))
    assert torch.equal(model.latent_mean, latents["mean"])
    assert latents["z"].shape[1:3] == (24, 11)
    assert model.config.tokenizer.layers == TINY_TOKENIZER["tokenizer.layers"], "the tokenizer's config is kept"


def test_validation_is_that_of_the_library(runs: Path, data_folder: Path) -> None:
    done = summary(runs / "dynamics")["validation"]
    model, data = load_model(runs / "dynamics" / "checkpoint"), read(data_folder / "combined-val.h5")
    # Validation numbers its trajectories as this file does: it has fewer than validation takes.
    for name, task in (("", "temporal"), ("_ivp", "initial-value")):
        expected = score(model, data, task=task, num_members=8)
        assert done[f"rel_l2{name}"] == pytest.approx(expected["rel_l2"], rel=1e-4)
        assert done[f"crps{name}"] == pytest.approx(expected["crps"], rel=1e-4)


def test_data_of_another_name_go_through_all_stages(enma: Callable, data_folder: Path, tmp_path: Path) -> None:
    """With a tokenizer whose 2 latent places the preset's patch does not fit."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val"):
        shutil.copy(data_folder / f"combined-{split}.h5", folder / f"waves-{split}.h5")
    tokenizer = TINY_TOKENIZER | {
        "dataset": "waves",
        "tokenizer.layers": [*["space"] * 6, "time"],
        "dynamics.patch": [1],
    }
    dynamics = TINY_DYNAMICS | {"dataset": "waves", "dynamics.patch": [1]}

    def train(stage: str, *options: Any) -> Run:
        common = ("--data", folder, "--out", tmp_path / stage, "--batch", 4, "--precision", "fp32", "--steps", 1)
        given = tokenizer if stage == "tokenizer" else dynamics
        return enma(
            "train", stage, "combined-small", *common, *options, *settings(given), "--train-set", "warmup_steps=1"
        )

    assert train("tokenizer").status == 0
    assert train("dynamics", "--tokenizer", tmp_path / "tokenizer").status == 0
    assert train("forecasts", "--from", tmp_path / "dynamics").status == 0
    config = load_model(tmp_path / "forecasts" / "checkpoint").config
    assert (config.dataset, config.dynamics.patch, config.token_grid) == ("waves", (1,), (2,))


def test_a_lossless_tokenizer_needs_no_training(enma: Callable, data_folder: Path, tmp_path: Path) -> None:
    """And behind it a local head is trained alone, then on whole forecasts."""
    tokenizer = {
        "tokenizer.layers": ["time"],
        "tokenizer.width": 4,
        "tokenizer.max_width": 4,
        "tokenizer.latent_channels": 4,
        "tokenizer.kernel_ends": 3,
        "tokenizer.stride_ends": 2,
        "tokenizer.variational": False,
    }
    local = {"width": 16, "layers": 2, "modes": 4}
    dynamics = TINY_DYNAMICS | {"dynamics.decoder": "one-pass", "dynamics.local": local, "dynamics.patch": [16]}

    def train(stage: str, given: dict[str, Any], *options: Any) -> Run:
        common = ("--data", data_folder, "--batch", 4, "--precision", "fp32", "--steps", 1)
        return enma("train", stage, "combined-small", *common, *settings(given), *options)

    error = train("tokenizer", tokenizer, "--out", tmp_path / "tokenizer").error()
    assert error.endswith("nothing to train; go on with `train dynamics`, without --tokenizer")
    error = train("dynamics", dynamics, "--out", tmp_path / "refused").error()
    assert error == "train dynamics: starts from a trained checkpoint; name its run folder"
    done = train("dynamics", tokenizer | dynamics, "--out", tmp_path / "dynamics")
    assert done.status == 0, done.err
    before = tmp_path / "dynamics"
    for stage in ("head", "forecasts"):
        done = train(stage, dynamics, "--from", before, "--out", tmp_path / stage)
        assert done.status == 0, done.err
        before = tmp_path / stage
    model = load_model(before / "checkpoint")
    assert model.config.tokenizer.lossless
    u = torch.randn(2, 20, 128, 1)
    assert torch.equal(model.tokenizer.decode(model.tokenizer.encode(u), 20), u)


def test_a_stopped_run_resumes_to_the_same_weights(runs: Path, train: Callable, tmp_path: Path) -> None:
    whole, parts, tokenizer = tmp_path / "whole", tmp_path / "parts", runs / "tokenizer"
    options = ("--steps", 4, "--validate-every", 2, "--json")
    result = train(whole, *options, tokenizer=tokenizer).json
    assert (result["steps"], result["checkpoint"]) == (4, str(whole / "checkpoint"))
    stopped = train(parts, *options, "--stop-after", 2, tokenizer=tokenizer).json
    assert (stopped["steps"], stopped["checkpoint"]) == (2, None)
    assert not (parts / "checkpoint").exists()
    resumed = train(parts, *options, tokenizer=tokenizer).json
    assert resumed["validation"] == result["validation"]
    expected, _ = read_tensors(whole / "checkpoint" / "model.safetensors")
    found, _ = read_tensors(parts / "checkpoint" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_begun_before_runs_could_start_from_weights_goes_on(runs: Path, train: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "dynamics", tmp_path / "run"))
    record = json.loads((folder / "run.json").read_text())
    del record["start"]
    # Nor did it have this setting, whose default is how training was before.
    del record["training"]["clip_norm"]
    (folder / "run.json").write_text(json.dumps(record))
    assert train(folder, "--steps", 6, "--json", tokenizer=runs / "tokenizer").json["steps"] == 6
    record["training"]["gone"] = 1
    (folder / "run.json").write_text(json.dumps(record))
    error = train(folder, "--steps", 6, tokenizer=runs / "tokenizer").error()
    assert "run.json: training: gone: unknown key; take it out, or use the version of enma_fast" in error


def test_dynamics_learn_from_faster_physics(runs: Path, train: Callable, tmp_path: Path) -> None:
    tokenizer, run = runs / "tokenizer", tmp_path / "run"
    done = train(run, "--steps", 3, "--train-set", "strides=[1,2]", "--json", tokenizer=tokenizer).json
    assert done["steps"] == 3
    every, meta = read_tensors(run / "latents-train.safetensors")
    second, meta_second = read_tensors(run / "latents-train-2.safetensors")
    # Of ten frames the last one would fill half of a latent frame.
    assert (every["z"].shape[2], second["z"].shape[2]) == (11, 5)
    assert meta_second["tokenizer"] == meta["tokenizer"] + "-stride-2"
    # Frame 0 is the same, and frames 2 and 4 are not frames 1 and 2.
    assert torch.equal(every["z"][:, :, 0], second["z"][:, :, 0])
    assert not torch.equal(every["z"][:, :, 1], second["z"][:, :, 1])
    assert torch.equal(load_model(run / "checkpoint").latent_mean, every["mean"])
    error = train(tmp_path / "long", "--train-set", "strides=[1,20]", tokenizer=tokenizer).error()
    assert error == "strides: a stride of 20 leaves 1 of 20 frames, none to forecast; take a smaller one"
    assert not (tmp_path / "long").exists()
    resumed = train(run, "--steps", 3, "--train-set", "strides=[1,2]", "--json", tokenizer=tokenizer).json
    assert resumed["validation"] == done["validation"]
    error = train(tmp_path / "other", "--train-set", "strides=[2]").error()
    assert error == "strides: is a setting of `train dynamics`, not of `train tokenizer`"
    error = train(tmp_path / "other", "--train-set", "scattered_share=0.1").error()
    assert error == "scattered_share: is a setting of `train dynamics`, not of `train tokenizer`; leave it at 0"
    error = train(tmp_path / "other", "--train-set", "encoded_shifts=1").error()
    assert error == "encoded_shifts: is a setting of `train dynamics`, not of `train tokenizer`; leave it at null"


@pytest.mark.slow
def test_dynamics_learn_from_scattered_points(
    runs: Path, train: Callable, enma: Callable, data_folder: Path, tmp_path: Path
) -> None:
    words = ("--steps", 2, "--train-set", "scattered_share=0.5", "--train-set", "point_fraction=[0.25,0.75]")
    error = train(tmp_path / "refused", *words, tokenizer=runs / "tokenizer").error()
    assert error == "scattered_share: the tokenizer has no interpolation and sees whole grids; leave it at 0"
    assert not (tmp_path / "refused").exists()
    tokenizer, dynamics = tmp_path / "tokenizer", tmp_path / "dynamics"
    data = ("--data", data_folder, "--batch", 4, "--precision", "fp32")
    preset = "combined-points-small"
    done = enma("train", "tokenizer", preset, *data, *settings(TINY_TOKENIZER), "--steps", 1, "--out", tokenizer)
    assert done.status == 0, done.err
    command = ("train", "dynamics", preset, *data, *settings(TINY_DYNAMICS), "--tokenizer", tokenizer)
    done = enma(*command, *words, "--out", dynamics, "--json").json
    assert {"rel_l2", "rel_l2_ivp", "rel_l2_points"} <= set(done["validation"])
    latents, meta = read_tensors(dynamics / "latents-train.safetensors")
    assert latents["scattered"].shape == latents["z"].shape
    assert meta["tokenizer"].endswith("-scattered-0.25-0.75-0")


def test_a_finished_run_writes_its_checkpoint_again(runs: Path, train: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "dynamics", tmp_path / "run"))
    before = sha256(folder / "checkpoint" / "model.safetensors")
    shutil.rmtree(folder / "checkpoint")
    result = train(folder, "--steps", 6, "--json", tokenizer=runs / "tokenizer").json
    assert result["validation"] == summary(runs / "dynamics")["validation"]
    assert sha256(folder / "checkpoint" / "model.safetensors") == before


def test_other_settings_do_not_resume(runs: Path, train: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "dynamics", tmp_path / "run"))
    tokenizer = runs / "tokenizer"

    def error(*options: Any) -> str:
        return train(folder, "--steps", 6, *options, tokenizer=tokenizer).error()

    begun = f"{folder / 'run.json'}: this run was begun with"
    remedy = "choose an empty --out or the same settings"
    assert error("--set", "dynamics.width=24") == f"{begun} model.dynamics.width 16, not 24; {remedy}"
    assert error("--train-set", "weight_decay=0.5").startswith(f"{begun} training.weight_decay 0.0001, not 0.5")
    assert error("--seed", 9) == f"{begun} seed 0, not 9; {remedy}"
    remedy = "leave it at auto, or choose an empty --out"
    assert error("--precision", "bf16") == f"precision is bf16: {folder} was begun in fp32; {remedy}"
    (folder / "run.json").write_text("{")
    assert error() == f"{folder / 'run.json'}: is not JSON; begin the run again in an empty folder"


@pytest.mark.parametrize("begun", ["bf16", "fp32"])
def test_a_run_goes_on_in_the_format_it_began_in(
    train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    """Where another processor resumes it, on which the other one is faster."""

    def fastest(name: str) -> None:
        monkeypatch.setattr("enma_fast.training.loop.fast_bf16", lambda device: name == "bf16")

    options = ("--steps", 4, "--precision", "auto")
    fastest(begun)
    assert train(tmp_path / "whole", *options).status == 0
    assert train(tmp_path / "parts", *options, "--stop-after", 2).status == 0
    assert json.loads((tmp_path / "parts/run.json").read_text())["precision"] == begun
    fastest({"bf16": "fp32", "fp32": "bf16"}[begun])
    assert train(tmp_path / "parts", *options).status == 0
    whole, parts = (averaged(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert train(tmp_path / "other", *options).status == 0
    other = averaged(tmp_path / "other")
    assert not all(torch.equal(other[name], value) for name, value in whole.items())


def test_a_validation_trajectory_of_zeros_is_refused_before_the_first_step(
    runs: Path, enma: Callable, data_folder: Path, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    with h5py.File(data / "combined-val.h5", "r+") as file:
        file["t0_fields/u"][5, 3:] = 0
    common = ("--data", data, "--out", tmp_path / "run", "--steps", 1, "--batch", 4, "--json")
    dynamics = ("train", "dynamics", "combined-small", "--tokenizer", runs / "tokenizer", *settings(TINY_DYNAMICS))
    message = (
        "combined-val.h5: trajectory 5 is 0 throughout, so its relative error is not defined; leave it out of the "
        "validation data"
    )
    assert enma(*dynamics, *common).error().endswith(message)
    with h5py.File(data / "combined-val.h5", "r+") as file:
        file["t0_fields/u"][5] = 0
    tokenizer = ("train", "tokenizer", "combined-small", *settings(TINY_TOKENIZER))
    assert enma(*tokenizer, *common).error().endswith(message)
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_run_that_never_took_a_step_does_not_bind_the_next(train: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(folder, "--steps", 1, "--train-set", "learning_rate=1e-9").status == 0
    (folder / "state.safetensors").unlink()
    result = train(folder, "--steps", 1, "--json").json
    assert json.loads((folder / "run.json").read_text())["training"]["learning_rate"] == 4e-3
    assert (result["steps"], len((folder / "log.jsonl").read_text().splitlines())) == (1, 2)


def test_a_tokenizer_is_no_model(enma: Callable, runs: Path, test_in: Path, train: Callable, tmp_path: Path) -> None:
    error = enma("score", test_in, "--checkpoint", runs / "tokenizer" / "checkpoint").error()
    assert error.endswith("holds a tokenizer only; train the dynamics on it: enma-fast train dynamics")
    unfinished = tmp_path / "tokenizer"
    assert train(unfinished, "--steps", 2, "--stop-after", 1).status == 0
    error = train(tmp_path / "run", tokenizer=unfinished).error()
    assert error == f"{unfinished}: this run has no checkpoint yet; let it finish first"


def test_publish_measures_and_writes_a_card(
    enma: Callable, runs: Path, data_folder: Path, test_in: Path, tmp_path: Path
) -> None:
    out = tmp_path / "published"
    command = ("train", "publish", runs / "dynamics", "--tokenizer", runs / "tokenizer", "--data", data_folder)
    result = enma(*command, "--out", out, "--limit", 2, "--seed", 1, "--json").json
    metrics = card.read_metrics(out)
    assert result == {"checkpoint": str(out), **metrics}
    cases = {(row["task"], row["split"], row["num_members"], row["packed"]) for row in metrics["rows"]}
    assert cases == {(task, split, k, packed) for task, k, _, packed in card.CASES for split in card.SPLITS}
    assert len(cases) == len(metrics["rows"])
    enma(*command, "--out", tmp_path / "small", "--limit", 1, "--members", 16)
    small = card.read_metrics(tmp_path / "small")
    assert {row["num_members"] for row in small["rows"]} == {16}
    assert {row["task"] for row in small["rows"]} == {task for task, *_ in card.CASES}
    assert " --members 16\n" in (tmp_path / "small" / "README.md").read_text()

    model = load_model(out)
    row = metrics["rows"][0]
    expected = score(model, read(test_in), num_members=16, seed=1, limit=2)
    for name in ("rel_l2", "crps", "rmsce", "spread_skill", "num_trajectories", "num_parameters"):
        assert row[name] == pytest.approx(expected[name], rel=1e-5), name
    u = torch.from_numpy(read(test_in).u)
    error = (model.tokenizer.decode(model.tokenizer.encode(u), 20) - u).flatten(1).norm(dim=1)
    relative = (error / u.flatten(1).norm(dim=1)).mean().item()
    assert metrics["tokenizer"]["rel_l2"] == pytest.approx(relative, rel=1e-4)

    text = (out / "README.md").read_text()
    assert text == card.card_text(model.config, metrics)
    assert "| temporal | test-in | 2 | 16 |" in text
    assert "| temporal | test-in | ENMA | 7.86e-03 | 1.70e-03 | 8.68e-02 | - |" in text
    assert "| temporal | test-in, packed | 2 | 16 |" in text
    assert "--task temporal --history 3 --members 16 --seed 1 --limit 2" in text
    # Files of the data folder are smaller than the paper's.
    assert metrics["data"] == {split: len(read(data_folder / f"combined-{split}.h5")) for split in DEFAULT_GROUPS}
    for split, size in metrics["data"].items():
        groups = -(-size // 10)
        assert f"\nenma-fast data generate combined --out data --split {split} --groups {groups}  # the first" in text
    some = card.card_text(model.config, metrics | {"data": {"train": 25}})
    assert "\nenma-fast data generate combined --out data --split train --groups 3  # the first 25 of" in some
    whole = card.card_text(model.config, metrics | {"data": {"train": 12_000, "test-out": 120}})
    assert "\nenma-fast data generate combined --out data\n" in whole
    # The checkpoint says what the model was trained on.
    assert model.envelope is not None
    train_file = read(data_folder / "combined-train.h5")
    assert model.envelope.to_json() == Envelope.of(train_file.u, train_file.channels).to_json()
    assert {row["num_outside"] for row in metrics["rows"] if row["split"] == "test-in"} <= {0, 1}
    assert {
        row["num_outside"] for row in metrics["rows"] if (row["task"], row["split"]) == ("temporal", "test-out")
    } == {2}
    assert set(enma("verify", out, "--json").json["files"]) == {
        "config.json",
        "model.safetensors",
        "README.md",
        "metrics.json",
        "domain.json",
        "covariance.safetensors",
    }


def test_the_card_names_commands_that_make_the_run_again(
    enma: Callable, runs: Path, data_folder: Path, tmp_path: Path
) -> None:
    import shlex

    record = json.loads((runs / "tokenizer" / "run.json").read_text())
    command = lineage._train_command(record, {}, out="tokenizer").replace("data data", f"data {data_folder}")
    words = shlex.split(command.replace("runs/tokenizer", str(tmp_path / "again")))
    assert words[:4] == ["enma-fast", "train", "tokenizer", "combined-small"]
    assert enma(*words[1:]).status == 0
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert {key: again[key] for key in ("model", "training", "seed")} == {
        key: record[key] for key in ("model", "training", "seed")
    }
    weights = Path("checkpoint") / "model.safetensors"
    assert sha256(tmp_path / "again" / weights) == sha256(runs / "tokenizer" / weights)


def test_publish_refuses_runs_that_do_not_belong_together(
    enma: Callable, runs: Path, data_folder: Path, train: Callable, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert train(other, "--steps", 1).status == 0
    out = tmp_path / "out"

    def error(run: Path, tokenizer: Path) -> str:
        command = ("train", "publish", run, "--tokenizer", tokenizer, "--data", data_folder, "--out", out)
        found = enma(*command).error()
        assert not out.exists()
        return found

    assert error(runs / "dynamics", other).startswith(f"{runs / 'dynamics'}: was not trained on the tokenizer of")
    assert error(runs / "tokenizer", runs / "tokenizer").endswith(
        "is a run of the tokenizer, not of the dynamics, head, forecasts or first-frame"
    )
    assert error(tmp_path, runs / "tokenizer").startswith(f"{tmp_path / 'run.json'}: no such file")


def test_publish_replaces_nothing_but_checkpoints(
    enma: Callable, runs: Path, data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("about something else")
    command = ("train", "publish", runs / "dynamics", "--tokenizer", runs / "tokenizer", "--data", data_folder)
    error = enma(*command, "--out", tmp_path).error()
    assert error == f"{tmp_path}: exists and is not a checkpoint; choose another --out"
    assert (tmp_path / "README.md").read_text() == "about something else"


def test_a_training_that_diverges_ends_with_status_1_and_one_line(train: Callable[..., Run], tmp_path: Path) -> None:
    done = train(tmp_path, "--steps", 60, "--train-set", "learning_rate=1e30", "--train-set", "warmup_steps=0")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: step ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "checkpoint").exists()
