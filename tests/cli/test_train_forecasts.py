"""`enma-fast train forecasts`, on a model that trains in a moment, and trainings that start from earlier weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enma_fast.models.checkpoint import load_model, load_tokenizer, read_tensors, save_model, save_tokenizer, sha256
from enma_fast.training.record import summary

from .._tiny_checkpoint import save_tiny
from .conftest import Run
from .test_train import TINY_DYNAMICS, settings

SHORT = ("--batch", 4, "--precision", "fp32", "--train-set", "warmup_steps=1", "--steps", 4, "--validate-every", 2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_tiny(folder)
    return folder


@pytest.fixture
def train(enma: Callable, data_folder: Path, tiny: Path) -> Callable[..., Run]:
    def run(out: Path, *options: Any, preset: str = "combined-fast", start: Path | None = None) -> Run:
        words = ("train", "forecasts", preset, "--from", start or tiny, "--data", data_folder, "--out", out)
        return enma(*words, *SHORT, *settings(TINY_DYNAMICS), *options)

    return run


@pytest.mark.parametrize("preset", ["combined-small", "combined-fast"])
def test_the_best_forecasts_are_the_checkpoint(train: Callable, tiny: Path, tmp_path: Path, preset: str) -> None:
    folder = tmp_path / "run"
    result = train(folder, "--json", preset=preset).json
    model, before = load_model(folder / "checkpoint"), load_model(tiny)
    assert model.config.dynamics.decoder == {"combined-fast": "one-pass", "combined-small": "masked-flow"}[preset]
    for name, value in before.tokenizer.state_dict().items():
        assert torch.equal(model.tokenizer.state_dict()[name], value), name
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    validations = [entry["validation"] for entry in entries if "validation" in entry]
    assert len(validations) == 2
    assert result["validation"] == summary(folder)["validation"]
    assert result["validation"] in validations
    changed = [n for n, p in before.dynamics.named_parameters() if not torch.equal(p, model.dynamics.get_parameter(n))]
    assert changed
    record = json.loads((folder / "run.json").read_text())
    assert (record["stage"], record["start"]) == ("forecasts", sha256(tiny / "model.safetensors"))


# test_train.py has it for the stages before.
@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights(train: Callable, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(whole, "--json").json
    assert train(parts, "--json", "--stop-after", 3).json["checkpoint"] is None
    assert train(parts, "--json").json["validation"] == result["validation"]
    expected, _ = read_tensors(whole / "checkpoint" / "model.safetensors")
    found, _ = read_tensors(parts / "checkpoint" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_one_pass_model_can_go_on_and_start_the_other_decoder(train: Callable, tmp_path: Path) -> None:
    train(tmp_path / "first")
    again = train(tmp_path / "again", "--json", start=tmp_path / "first").json
    assert again["steps"] == 4
    assert train(tmp_path / "other", preset="combined-small", start=tmp_path / "first").status == 0


def test_a_model_takes_the_tokenizer_that_is_named(
    enma: Callable, train: Callable, data_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    """Any of its kind for whole forecasts, and one with the encoder that it knows for the flow of frame 0."""
    model, folders = load_model(tiny), {name: tmp_path / name for name in ("decoder", "encoder")}
    with torch.no_grad():
        for name, weight in (("decoder", "from_latent.bias"), ("encoder", "conv_in.conv.bias")):
            tokenizer = load_model(tiny).tokenizer
            tokenizer.get_parameter(weight).add_(0.25)
            # It was trained at another weight of the KL divergence.
            config = replace(model.config, tokenizer=replace(model.config.tokenizer, kl_weight=0.5))
            save_tokenizer(tokenizer, config, folders[name])
    for name, folder in folders.items():
        assert train(tmp_path / f"{name}-run", "--tokenizer", folder).status == 0
        taken = load_model(tmp_path / f"{name}-run" / "checkpoint").tokenizer.state_dict()
        expected, _ = load_tokenizer(folder)
        assert all(torch.equal(taken[key], value) for key, value in expected.state_dict().items())
        record = json.loads((tmp_path / f"{name}-run" / "run.json").read_text())
        assert record["tokenizer"] == sha256(folder / "model.safetensors")
    resumed = train(tmp_path / "decoder-run", "--tokenizer", folders["encoder"]).error()
    assert "this run was begun with tokenizer" in resumed
    first = tmp_path / "decoder-run"
    words = ("train", "first-frame", "combined-fast", "--from", first, "--data", data_folder, *SHORT, "--steps", 1)
    words += tuple(settings(TINY_DYNAMICS))
    refused = enma(*words, "--out", tmp_path / "flow", "--tokenizer", folders["encoder"]).error()
    assert refused.endswith(
        "encoder: encodes otherwise than the tokenizer of the model, whose latents its dynamics know; name one that "
        "was trained from it with decoder_only=true, or go on with `train forecasts` first"
    )
    assert enma(*words, "--out", tmp_path / "flow", "--tokenizer", tiny).status == 0
    other = replace(model.config, dataset="advection")
    save_tokenizer(model.tokenizer, other, tmp_path / "other")
    assert (
        train(tmp_path / "run", "--tokenizer", tmp_path / "other")
        .error()
        .endswith("other: is a tokenizer for other data or of other sizes than the model's; name one like it")
    )


def test_a_model_knows_how_short_its_contexts_were(
    enma: Callable, train: Callable, data_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    assert train(tmp_path / "short", "--train-set", "shortest_context=4").status == 0
    whole = ("--train-set", "short_context_share=0")
    assert train(tmp_path / "whole", *whole, start=tmp_path / "short").status == 0
    assert train(tmp_path / "none", "--train-set", "context_share=0").status == 0
    given = ("combined-fast", "--data", data_folder, *SHORT, "--steps", 1, *settings(TINY_DYNAMICS))
    assert enma("train", "first-frame", *given, "--from", tmp_path / "short", "--out", tmp_path / "flow").status == 0
    cut = ("--train-set", "shortest_context=5", "--out", tmp_path / "dynamics")
    assert enma("train", "dynamics", *given, "--tokenizer", tiny, *cut).status == 0
    names = ("short", "whole", "none", "flow", "dynamics")
    found = {name: load_model(tmp_path / name / "checkpoint").config for name in names}
    shortest = {name: config.shortest_context for name, config in found.items()}
    assert shortest == {"short": 4, "whole": None, "none": None, "flow": 4, "dynamics": 5}


def test_dynamics_may_start_from_earlier_weights(enma: Callable, data_folder: Path, tiny: Path, tmp_path: Path) -> None:
    words = ("train", "dynamics", "combined-small", "--tokenizer", tiny, "--data", data_folder, "--batch", 4)
    words += ("--precision", "fp32", "--steps", 1, "--train-set", "learning_rate=1e-12", *settings(TINY_DYNAMICS))
    assert enma(*words, "--out", tmp_path / "run", "--from", tiny).status == 0
    model, before = load_model(tmp_path / "run" / "checkpoint"), load_model(tiny)
    for name, value in before.dynamics.named_parameters():
        torch.testing.assert_close(model.dynamics.get_parameter(name), value, rtol=0, atol=1e-8)


def test_what_cannot_be_begun_is_one_line(train: Callable, tiny: Path, tmp_path: Path) -> None:
    def error(*options: Any, **keywords: Any) -> str:
        line: str = train(tmp_path / "run", *options, **keywords).error()
        return line

    assert error(preset="advection-small").endswith(
        "is a model for combined; the preset advection-small is for advection (for data of another name: --set "
        "dataset=combined)"
    )
    assert "flow.moments.weight has shape (16, 16); config asks for (16, 32)" in error("--set", "dynamics.width=32")
    assert error("--set", "tokenizer.width=8").startswith("tokenizer.width: belongs to the tokenizer's training")
    assert error("--train-set", "rollout.members=1") == (
        "training config: rollout.members is 1; a score of ensembles needs at least 2"
    )
    assert error("--train-set", "rollout=null").startswith("training config: rollout is null")
    assert "rollout.frames is 11; a trajectory has 11 latent frames" in error("--train-set", "rollout.frames=11")
    model = load_model(tiny)
    save_tokenizer(model.tokenizer, model.config, tmp_path / "tokenizer")
    assert "holds a tokenizer only" in error(start=tmp_path / "tokenizer")
    assert not (tmp_path / "run").exists()


def test_another_start_does_not_resume(train: Callable, tiny: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--stop-after", 2)
    model = load_model(tiny)
    with torch.no_grad():
        model.dynamics.temporal.start.add_(1.0)
    save_model(model, tmp_path / "other")
    line = train(tmp_path / "run", start=tmp_path / "other").error()
    assert f"{tmp_path / 'run' / 'run.json'}: this run was begun with start" in line
