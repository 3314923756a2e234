"""The account of a model's training, from records of its runs and from a checkpoint that others may have made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import IN_RUN, METRICS, PRETRAINED, WEIGHTS, sha256
from enma_fast.training.lineage import trace
from enma_fast.training.presets import PRESETS
from enma_fast.utils.dataclass_json import to_json


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A checkpoint with metrics."""
    return Path(shutil.copytree(PRETRAINED / "combined-fast", tmp_path / "begun"))


@pytest.fixture
def run(tmp_path: Path, begun: Path) -> Path:
    """A run of forecasts that started from it."""
    preset = PRESETS["combined-fast"]
    record = {"stage": "forecasts", "preset": "combined-fast", "tokenizer": None, "start": sha256(begun / WEIGHTS)}
    record |= {"model": json.loads(to_json(preset.model)), "training": json.loads(to_json(preset.forecast_training))}
    record |= {"seed": 0, "precision": "auto", "compile": False, "device": "cpu", "ranks": 1, "data": {}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**record, "machine": {}, "versions": {}}))
    return folder


def test_stages_of_the_checkpoint_come_first(run: Path, begun: Path) -> None:
    before = json.loads((begun / METRICS).read_text())["training"]
    found = trace(run, begun=[begun])
    assert list(found) == [*(f"{stage} before" for stage in before), "forecasts"]
    assert all(found[f"{stage} before"] == account for stage, account in before.items())
    (begun / METRICS).unlink()
    assert list(trace(run, begun=[begun])) == ["forecasts"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "[" * 100_000,
        lambda text: "\x00",
        lambda text: "{}",
        lambda text: '{"training": [1]}',
        lambda text: text.replace('"machine"', '"machines"', 1),
        lambda text: text.replace('"steps": ', '"steps": 1e999, "step": ', 1),
        lambda text: text.replace('"ranks": 1', '"ranks": "1"', 1),
    ],
)
def test_metrics_of_another_kind_are_one_line(run: Path, begun: Path, change: Callable[[str], str]) -> None:
    (begun / METRICS).write_text(change((begun / METRICS).read_text()))
    with pytest.raises(EnmaError) as error:
        trace(run, begun=[begun])
    assert str(error.value) == f"{begun / METRICS}: does not say how the model was trained; copy the checkpoint again"


def test_a_run_may_start_from_another_of_its_stage(run: Path, begun: Path, tmp_path: Path) -> None:
    (begun / METRICS).unlink()
    before = Path(shutil.copytree(run, tmp_path / "before"))
    shutil.copytree(begun, before / IN_RUN, ignore=shutil.ignore_patterns("model.safetensors"))
    weights = load_file(begun / WEIGHTS)
    save_file({name: value + 1 for name, value in weights.items()}, before / IN_RUN / WEIGHTS)
    record = json.loads((run / "run.json").read_text()) | {"start": sha256(before / IN_RUN / WEIGHTS)}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(EnmaError, match=r"run: started from weights that none of the given runs has .* --begun-from"):
        trace(run, begun=[begun])
    with pytest.raises(EnmaError, match="before: started from weights that none of the given runs has"):
        trace(run, begun=[before])
    found = trace(run, begun=[begun, before])
    assert list(found) == ["forecasts before", "forecasts"]
    assert "--from runs/forecasts-before --data data --out runs/forecasts " in found["forecasts"]["command"]
    earlier = found["forecasts before"]["command"]
    assert f"--from {begun} --data data --out runs/forecasts-before " in earlier
    # And that one from a third.
    third = Path(shutil.copytree(before, tmp_path / "third"))
    save_file({name: value + 2 for name, value in weights.items()}, third / IN_RUN / WEIGHTS)
    record = json.loads((before / "run.json").read_text()) | {"start": sha256(third / IN_RUN / WEIGHTS)}
    (before / "run.json").write_text(json.dumps(record))
    found = trace(run, begun=[begun, third, before])
    assert list(found) == ["forecasts before", "forecasts before before", "forecasts"]
    commands = [account["command"] for account in found.values()]
    assert f"--from {begun} --data data --out runs/forecasts-before " in commands[0]
    assert "--from runs/forecasts-before --data data --out runs/forecasts-before-before " in commands[1]
    assert "--from runs/forecasts-before-before --data data --out runs/forecasts " in commands[2]


def test_the_command_of_the_flow_names_the_stage_that_it_followed(run: Path, begun: Path, tmp_path: Path) -> None:
    """Also where there was no training on whole forecasts between."""
    dynamics, last = (Path(shutil.copytree(run, tmp_path / name)) for name in ("dynamics", "last"))
    shutil.copytree(begun, dynamics / IN_RUN)
    record = json.loads((run / "run.json").read_text()) | {"start": None}
    for folder, stage, start in (
        (dynamics, "dynamics", None),
        (last, "first-frame", sha256(dynamics / IN_RUN / WEIGHTS)),
    ):
        (folder / "run.json").write_text(json.dumps(record | {"stage": stage, "start": start}))
    found = trace(last, dynamics=dynamics)
    assert "--from runs/dynamics --data data --out runs/first-frame " in found["first-frame"]["command"]


def test_a_command_names_the_tokenizer_that_its_run_was_trained_on(run: Path, begun: Path, tmp_path: Path) -> None:
    """The dynamics were trained on the first of two tokenizers, of which the other learned a new decoder."""
    names = ("first", "other", "dynamics", "last")
    first, other, dynamics, last = (Path(shutil.copytree(run, tmp_path / name)) for name in names)
    weights, record = load_file(begun / WEIGHTS), json.loads((run / "run.json").read_text())
    (begun / METRICS).unlink()
    for number, folder in enumerate((first, other, dynamics)):
        shutil.copytree(begun, folder / IN_RUN, ignore=shutil.ignore_patterns("model.safetensors"))
        save_file({name: value + number for name, value in weights.items()}, folder / IN_RUN / WEIGHTS)
    of_first, of_other, of_dynamics = (sha256(folder / IN_RUN / WEIGHTS) for folder in (first, other, dynamics))
    for folder, stage, tokenizer, start in (
        (first, "tokenizer", None, None),
        (other, "tokenizer", None, of_first),
        (dynamics, "dynamics", of_first, None),
        (last, "forecasts", of_other, of_dynamics),
    ):
        told = record | {"stage": stage, "tokenizer": tokenizer, "start": start}
        (folder / "run.json").write_text(json.dumps(told))
    with pytest.raises(
        EnmaError, match=r"dynamics: was not trained on the tokenizer of any given run; .* --begun-from"
    ):
        trace(last, dynamics=dynamics)
    found = trace(last, tokenizer=other, dynamics=dynamics, begun=[first])
    commands = {label: account["command"] for label, account in found.items()}
    assert "--from runs/tokenizer-before --data" in commands["tokenizer"]
    assert "--tokenizer runs/tokenizer-before --data" in commands["dynamics"]
    assert "--tokenizer runs/tokenizer --from runs/dynamics --data" in commands["forecasts"]
    # The flow of frame 0 may go on with the first one again.
    (last / "run.json").write_text(json.dumps(record | {"tokenizer": of_first, "start": of_dynamics}))
    commands = {k: v["command"] for k, v in trace(last, tokenizer=first, dynamics=dynamics, begun=[other]).items()}
    assert "--from runs/tokenizer --data" in commands["tokenizer before"]


def test_a_run_older_than_a_setting_is_made_again_without_it(run: Path) -> None:
    preset, record = PRESETS["advection-points"], json.loads((run / "run.json").read_text())
    training = json.loads(to_json(preset.dynamics_training))
    assert training.pop("scattered_share") == 0.5
    record |= {"stage": "dynamics", "preset": "advection-points", "start": None}
    record |= {"model": json.loads(to_json(preset.model)), "training": training}
    (run / "run.json").write_text(json.dumps(record))
    command = trace(run)["dynamics"]["command"]
    assert command.endswith("--data data --out runs/dynamics --seed 0 --train-set scattered_share=0.0")


def test_a_command_leaves_out_what_the_training_decides(run: Path, begun: Path) -> None:
    expected = trace(run, begun=[begun])["forecasts"]["command"]
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "model": {**record["model"], "shortest_context": 3}}))
    assert trace(run, begun=[begun])["forecasts"]["command"] == expected


def test_a_setting_that_is_no_more_is_read_over(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    expected = trace(run, begun=[PRETRAINED / "combined-fast"])["forecasts"]["command"]
    retired = {"members": 2, "curriculum_steps": 500, "fairness": 1.0}
    record["training"]["rollout"] = retired | record["training"]["rollout"]
    noise = {"history_noise": [0.003, 0.1], "history_noise_share": 0.0}
    record["training"] = noise | record["training"]
    (run / "run.json").write_text(json.dumps(record, indent=1))
    assert trace(run, begun=[PRETRAINED / "combined-fast"])["forecasts"]["command"] == expected
    record["training"]["history_noise_share"] = 0.5
    (run / "run.json").write_text(json.dumps(record, indent=1))
    with pytest.raises(
        EnmaError, match=r"^run\.json: history_noise_share: unknown key; take it out, or use the version"
    ):
        trace(run, begun=[PRETRAINED / "combined-fast"])


def test_a_head_trained_alone_stands_before_whole_forecasts(run: Path, begun: Path, tmp_path: Path) -> None:
    record, head = json.loads((run / "run.json").read_text()), tmp_path / "head"
    shutil.copytree(begun, head / IN_RUN)
    preset = PRESETS["vorticity-fast"]
    told = record | {"preset": "vorticity-fast", "model": json.loads(to_json(preset.model)), "tokenizer": None}
    training = json.loads(to_json(preset.head_training)) | {"steps": 2600}
    (head / "run.json").write_text(json.dumps(told | {"stage": "head", "start": None, "training": training}))
    forecasts = told | {"stage": "forecasts", "start": sha256(head / IN_RUN / WEIGHTS)}
    forecasts |= {"training": json.loads(to_json(preset.forecast_training))}
    (run / "run.json").write_text(json.dumps(forecasts))
    with pytest.raises(
        EnmaError, match=r"started from weights that none of the given runs has .* by --dynamics, --head"
    ):
        trace(run)
    commands = {label: account["command"] for label, account in trace(run, head=head).items()}
    assert list(commands) == ["head", "forecasts"]
    assert commands["head"] == "enma-fast train head vorticity-fast --data data --out runs/head --seed 0 --steps 2600"
    assert "--from runs/head --data data --out runs/forecasts --seed 0" in commands["forecasts"]
