"""`enma-fast train RECIPE` and `enma-fast publish`, on a model that trains in a moment."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enma_fast import forecast
from enma_fast.cli import main
from enma_fast.data import read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.scoring import score
from enma_fast.models.checkpoint import load_model, read_tensors, sha256
from enma_fast.models.envelope import Envelope
from enma_fast.training import card
from enma_fast.training.loop import RunOptions
from enma_fast.training.recipes import RECIPES, read_recipe, to_toml
from enma_fast.training.run import read_record, train

from .._tiny_checkpoint import tiny_config
from .conftest import Run

OPTIMIZER = {"kind": "muon", "learning_rate": 2e-3, "warmup_steps": 2}
USUAL: dict[str, Any] = {"batch": 4, "optimizer": OPTIMIZER}
SHIFT, CUT = {"kind": "shift"}, {"kind": "cut-contexts"}
STAGES: list[dict[str, Any]] = [
    {"kind": "tokenizer", "steps": 12, "augment": [{"kind": "amplitude", "between": [0.8, 1.25]}, SHIFT]},
    {"kind": "dynamics", "steps": 4, "by_flow": True, "augment": [SHIFT, {"kind": "strides", "steps": [1, 2]}, CUT]},
    {"kind": "forecasts", "steps": 4, "augment": [{"kind": "late-start", "share": 0.5}, SHIFT, CUT]},
    {"kind": "first-frame", "steps": 2, "augment": [SHIFT]},
]


def written(path: Path, *stages: dict[str, Any], seed: int = 3, **model: Any) -> Path:
    """A recipe of a tiny one-pass model with these stages."""
    from enma_fast.training.recipes import Recipe
    from enma_fast.utils.dataclass_json import from_json

    document = {"model": tiny_config("combined-fast", **model), "stage": [USUAL | stage for stage in stages]}
    recipe = from_json(Recipe, json.dumps({"seed": seed, **document}), source=path.name)
    path.write_text(to_toml(recipe))
    assert read_recipe(path) == recipe
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipe") / "tiny.toml", *STAGES)


@pytest.fixture(scope="module")
def run(recipe: Path, data_folder: Path) -> Path:
    """A finished run folder."""
    out = recipe.parent / "run"
    words = ["train", recipe, "--data", data_folder, "--out", out, "--precision", "fp32"]
    assert main([str(word) for word in words]) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "checkpoint" / "model.safetensors")[0]


def test_a_recipe_trains_all_its_stages(run: Path, recipe: Path, data_folder: Path, enma: Callable) -> None:
    before = weights(run / "tokenizer")
    for stage, trained in (
        ("dynamics", ("dynamics.", "latent_")),
        ("forecasts", ("dynamics.",)),
        ("first-frame", ("dynamics.initial.velocity.",)),
    ):
        after = weights(run / stage)
        changed = {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}
        assert changed, stage
        assert all(name.startswith(trained) for name in changed), stage
        before = after
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    latents = [read_tensors(run / "dynamics" / f"latents-train-{n}.safetensors")[0] for n in (1, 2)]
    # Of ten frames the last one would fill half of a latent frame.
    assert [z["z"].shape[2] for z in latents] == [11, 5]
    assert torch.equal(latents[0]["mean"], before["latent_mean"])
    model = load_model(run)
    assert model.config.shortest_context == 3
    assert model.envelope is not None
    train_file = read(data_folder / "combined-train.h5")
    assert model.envelope.to_json() == Envelope.of(train_file.u, train_file.channels).to_json()
    assert (run / "recipe.toml").read_text() == recipe.read_text()
    text = (run / "checkpoint" / "README.md").read_text()
    for said in (
        recipe.read_text().strip(),
        "seed 3",
        sha256(data_folder / "combined-train.h5")[:16],
        "| forecasts | 4 ",
    ):
        assert said in text
    words = ("--members", 2, "--select", "0:1", "--out", recipe.parent / "forecast.zarr", "--json")
    made = enma("forecast", data_folder / "combined-val.h5", "-c", run, *words)
    assert made.json["model"] == model.config.name


def test_validation_is_that_of_the_library(run: Path, data_folder: Path) -> None:
    done = json.loads(read_tensors(run / "forecasts" / "best.safetensors")[1]["scores"])
    model, data = load_model(run / "forecasts"), read(data_folder / "combined-val.h5")
    # Validation numbers its trajectories as this file does: it has fewer than validation takes.
    for name, task in (("", "temporal"), ("_ivp", "initial-value")):
        expected = score(model, data, task=task, num_members=8)
        assert done[f"rel_l2{name}"] == pytest.approx(expected["rel_l2"], rel=1e-4)
        assert done[f"crps{name}"] == pytest.approx(expected["crps"], rel=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(run: Path, recipe: Path, data_folder: Path, tmp_path: Path) -> None:
    """Stopped within a stage, and between two."""
    for steps in (5, 12, 18, None):
        options = RunOptions(out=tmp_path, precision="fp32", stop_after=steps)
        model = train(read_recipe(recipe), options=options, data_dir=data_folder)
        assert (model is None) == (steps is not None)
    assert model is not None
    assert all(torch.equal(value, weights(run)[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_weights(
    run: Path, recipe: Path, data_folder: Path, tmp_path: Path, enma: Callable
) -> None:
    words = ("train", recipe, "--data", data_folder, "--out", tmp_path / "run", "--precision", "fp32")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "enma_fast", *map(str, words)], env=os.environ | threads)
    while not (tmp_path / "run" / "dynamics" / "latents-train-1.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert enma(*words).status == 0
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], value) for name, value in weights(run).items())


def test_another_recipe_or_data_do_not_go_on(run: Path, recipe: Path, data_folder: Path, enma: Callable) -> None:
    def error(source: Path, *options: Any, data: Path = data_folder) -> str:
        line: str = enma("train", source, "--data", data, "--out", run, *options).error()
        return line

    assert "run.json: this run was begun with another recipe: 'seed = 3', not 'seed = 9'" in error(recipe, "--seed", 9)
    other = written(recipe.parent / "other.toml", *STAGES[:1], seed=3)
    assert "this run was begun with another recipe" in error(other)
    moved = recipe.parent / "data"
    shutil.copytree(data_folder, moved)
    shutil.copy(moved / "combined-test-out.h5", moved / "combined-train.h5")
    assert "this run was begun with other data" in error(recipe, data=moved)
    assert "begun in fp32" in error(recipe, "--precision", "bf16")
    damaged = Path(shutil.copytree(run, recipe.parent / "damaged"))
    (damaged / "run.json").write_text("{")
    words = ("train", recipe, "--data", data_folder, "--out", damaged)
    assert "run.json: is not JSON" in enma(*words).error()


def test_a_run_begins_with_the_weights_of_another(run: Path, data_folder: Path, tmp_path: Path, enma: Callable) -> None:
    recipe = written(tmp_path / "codec.toml", STAGES[0] | {"steps": 2}, shortest_context=3)
    words = ("train", recipe, "--data", data_folder, "--precision", "fp32")
    done = enma(*words, "--out", tmp_path / "run", "--from", run, "--json").json
    assert done["training"]["start"] == sha256(run / "checkpoint" / "model.safetensors")
    before, after = weights(run), weights(tmp_path / "run")
    changed = {name for name, value in after.items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.startswith("codec.") for name in changed)
    assert "this run was begun with other start" in enma(*words, "--out", tmp_path / "run").error()


def test_a_lossless_codec_needs_no_stage(data_folder: Path, tmp_path: Path, enma: Callable) -> None:
    """And behind it a local head is trained alone, then on whole forecasts."""
    lossless = {
        "codec": {"kind": "blocks", "lengths": [2 * math.pi]},
        "initial": {"kind": "flow", "width": 16, "layers": 1, "time_features": 8},
        "step": {"kind": "local", "width": 16, "layers": 2, "modes": 4},
        "context.patch": [16],
    }
    stages = [STAGES[1], {"kind": "head", "steps": 2, "augment": [SHIFT]}, STAGES[2] | {"steps": 1}]
    words = ("--data", data_folder, "--precision", "fp32")
    refused = written(tmp_path / "refused.toml", STAGES[0], **lossless)
    assert "nothing to train" in enma("train", refused, *words, "--out", tmp_path / "refused").error()
    recipe = written(tmp_path / "lossless.toml", *stages, **lossless)
    assert enma("train", recipe, *words, "--out", tmp_path / "run").status == 0
    model = load_model(tmp_path / "run")
    u = torch.randn(2, 20, 128, 1)
    assert torch.equal(model.codec.decode(model.codec.encode(u), 20), u)
    assert [path.name for path in (tmp_path / "run").glob("*/log.jsonl")]


def test_a_run_goes_on_in_the_format_it_began_in(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another processor resumes it, on which the other one is faster."""
    recipe = read_recipe(written(tmp_path / "short.toml", STAGES[0]))
    for faster, steps in (("bf16", 2), ("fp32", None)):
        monkeypatch.setattr("enma_fast.training.loop.fast_bf16", lambda device, faster=faster: faster == "bf16")
        train(recipe, options=RunOptions(out=tmp_path / "run", stop_after=steps), data_dir=data_folder)
        assert read_record(tmp_path / "run")["precision"] == "bf16"


def test_a_validation_trajectory_of_zeros_is_refused_before_the_first_step(
    recipe: Path, data_folder: Path, tmp_path: Path, enma: Callable
) -> None:
    h5py = pytest.importorskip("h5py")
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    with h5py.File(data / "combined-val.h5", "r+") as file:
        file["t0_fields/u"][5] = 0
    error = enma("train", recipe, "--data", data, "--out", tmp_path / "run").error()
    assert "combined-val.h5: trajectory 5 is 0 throughout" in error
    assert not list((tmp_path / "run").glob("*/state.safetensors"))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('kind = "shift"', 'kind = "shaft"', "stage.0.augment"),
        ("steps = 12", "steps = 0", "stage.0: tokenizer: steps is 0"),
        ("steps = 12", 'steps = "many"', "stage.0.steps"),
        ("steps = 12", "steps = 12\nmask_ratio = [0, 1]", "stage.0.mask_ratio"),
        ('kind = "muon"', 'kind = "sgd"', "stage.0.optimizer.kind"),
        ("width = 16", "width = 30", "context.width"),
        ("seed = 3", "seed", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_one_line(
    recipe: Path, tmp_path: Path, enma: Callable, old: str, new: str, named: str
) -> None:
    text = recipe.read_text()
    assert old in text
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace(old, new, 1))
    error = enma("train", bad, "--out", tmp_path / "run").error()
    assert error.startswith(f"{bad}: ")
    assert named in error
    assert not (tmp_path / "run").exists()


def test_bad_places_of_a_training(recipe: Path, data_folder: Path, tmp_path: Path, enma: Callable) -> None:
    out, nowhere = tmp_path / "run", tmp_path / "nowhere"

    def error(*arguments: object) -> str:
        line: str = enma("train", *arguments).error()
        return line

    assert error("combined-huge", "--out", out).startswith("recipe 'combined-huge' is unknown")
    assert "no such file" in error(tmp_path / "none.toml", "--out", out)
    assert f"{nowhere / 'combined-train.h5'}: no such file; make it" in error(recipe, "--data", nowhere, "--out", out)
    for option, value in (("--precision", "fp8"), ("--device", "abacus")):
        assert value in error(recipe, "--data", data_folder, "--out", out, option, value)
    assert not out.exists()
    no_folder = tmp_path / "a file"
    no_folder.write_text("something else")
    assert "cannot be written" in error(recipe, "--data", data_folder, "--out", no_folder)


def test_a_recipe_of_an_equation_makes_its_data(tmp_path: Path) -> None:
    recipe = written(tmp_path / "tiny.toml", STAGES[0] | {"steps": 1})
    recipe.write_text(recipe.read_text() + "\n[data]\ntrain = 2\nval = 1\n")
    assert train(read_recipe(recipe), options=RunOptions(out=tmp_path / "run", precision="fp32")) is not None
    assert [len(read(tmp_path / "run" / "data" / f"combined-{split}.h5")) for split in ("train", "val")] == [20, 10]
    other = written(tmp_path / "other.toml", STAGES[0], dataset="waves")
    with pytest.raises(EnmaError, match="--data"):
        train(read_recipe(other), options=RunOptions(out=tmp_path / "other"))


@pytest.mark.slow
def test_a_recipe_finds_its_equation_and_solves_it(test_in: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES["combined"], data={"train": 12, "val": 3, "test-in": 1, "test-out": 1})
    runs, members = [tmp_path / "run", tmp_path / "other"], []
    for seed, out in enumerate(runs):
        options = RunOptions(out=out, precision="fp32")
        data = runs[0] / "data" if seed else None
        card.train_recipe(dataclasses.replace(recipe, seed=seed), options=options, data_dir=data)
        members.append(forecast(load_model(out), read(test_in).u[0, :3], num_members=2))
    np.testing.assert_array_equal(*members)
    assert score(load_model(runs[0]), read(test_in), num_members=4)["rel_l2_median"] < 1e-4

    metrics = card.publish(runs[0], out=tmp_path / "card", limit=2, members=16)
    text = (tmp_path / "card" / "README.md").read_text()
    assert text == card.card_text(recipe.model, metrics, card.training_text(metrics["training"]))
    assert metrics["training"]["stages"]["field"]["cpu_seconds"] > 0.1
    assert metrics["learned"]["name"] == "combined-fast"
    digest = hashlib.sha256((runs[0] / "recipe.toml").read_bytes()).hexdigest()
    for said in ("    u_t = ", "no network", "`combined-fast`", "1.10e-02", digest[:16]):
        assert said in text
    assert "The tokenizer" not in text


def test_publish_measures_and_writes_a_card(
    enma: Callable, run: Path, recipe: Path, data_folder: Path, test_in: Path, tmp_path: Path
) -> None:
    out = tmp_path / "published"
    command = ("publish", run, "--data", data_folder)
    result = enma(*command, "--out", out, "--limit", 2, "--seed", 1, "--json").json
    metrics = card.read_metrics(out)
    assert result == {"checkpoint": str(out), **metrics}
    cases = {(row["task"], row["split"], row["num_members"], row["packed"]) for row in metrics["rows"]}
    assert cases == {(task, split, k, packed) for task, k, _, packed in card.CASES for split in card.SPLITS}
    assert len(cases) == len(metrics["rows"])
    enma(*command, "--out", tmp_path / "small", "--limit", 1, "--members", 16, "--half")
    small = card.read_metrics(tmp_path / "small")
    assert {row["num_members"] for row in small["rows"]} == {16}
    assert {row["task"] for row in small["rows"]} == {task for task, *_ in card.CASES}
    assert "fp16" in (tmp_path / "small" / "README.md").read_text()

    model = load_model(out)
    row = metrics["rows"][0]
    expected = score(model, read(test_in), num_members=16, seed=1, limit=2)
    for name in ("rel_l2", "crps", "rmsce", "spread_skill", "num_trajectories", "num_parameters"):
        assert row[name] == pytest.approx(expected[name], rel=1e-5), name
    u = torch.from_numpy(read(test_in).u)
    error = (model.codec.decode(model.codec.encode(u), 20) - u).flatten(1).norm(dim=1)
    relative = (error / u.flatten(1).norm(dim=1)).mean().item()
    assert metrics["tokenizer"]["rel_l2"] == pytest.approx(relative, rel=1e-4)

    text = (out / "README.md").read_text()
    assert text == card.card_text(model.config, metrics, card.training_text(metrics["training"]))
    for said in (
        "| temporal | test-in | 2 | 16 |",
        "| temporal | test-in | ENMA | 7.86e-03 | 1.70e-03 | 8.68e-02 | - |",
        "| temporal | test-in, packed | 2 | 16 |",
        "--task temporal --history 3 --members 16 --seed 1 --limit 2",
        recipe.read_text().strip(),
        sha256(data_folder / "combined-train.h5")[:16],
        ", Torch ",
        "| tokenizer | 12 | 48 | 0.0",
    ):
        assert said in text
    assert {
        row["num_outside"] for row in metrics["rows"] if (row["task"], row["split"]) == ("temporal", "test-out")
    } == {2}
    files = {"config.json", "model.safetensors", "README.md", "metrics.json", "domain.json", "covariance.safetensors"}
    assert set(enma("verify", out, "--json").json["files"]) == files


def test_publish_replaces_nothing_but_checkpoints(enma: Callable, run: Path, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about something else")
    error = enma("publish", run, "--data", data_folder, "--out", tmp_path).error()
    assert error == f"{tmp_path}: exists and is not a checkpoint; choose another --out"
    assert (tmp_path / "README.md").read_text() == "about something else"
    assert "recipe.toml" in enma("publish", tmp_path, "--data", data_folder, "--out", tmp_path / "new").error()


def test_a_training_that_diverges_ends_with_status_1_and_one_line(
    data_folder: Path, tmp_path: Path, enma: Callable[..., Run]
) -> None:
    stage = STAGES[0] | {"steps": 60, "optimizer": {"learning_rate": 1e30, "warmup_steps": 0}}
    recipe = written(tmp_path / "wild.toml", stage)
    done = enma("train", recipe, "--data", data_folder, "--out", tmp_path / "run", "--precision", "fp32")
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("error: step ")
    assert not (tmp_path / "run" / "checkpoint").exists()
