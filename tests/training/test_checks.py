"""What a stage refuses before it begins."""

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.commands import train as commands
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import PRETRAINED
from enma_fast.training import recipes
from enma_fast.training.loop import RunOptions
from enma_fast.training.recipes import train

BEFORE: dict[str, dict[str, Any]] = {
    "dynamics": {"tokenizer": PRETRAINED / "combined-fast"},
    "forecasts": {"start": PRETRAINED / "combined-fast"},
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val"):
        shutil.copy(PRETRAINED / "combined-test-in.h5", folder / f"combined-{split}.h5")
    return folder


def refusal(stage: str, data_dir: Path, **changes: Any) -> str:
    """The error of a stage, which leaves no run behind."""
    out = data_dir / "run"
    with pytest.raises(EnmaError) as error:
        train(
            stage, "combined-fast", data_dir=data_dir, options=RunOptions(out=out), **BEFORE.get(stage, {}), **changes
        )
    assert not out.exists()
    return str(error.value)


def test_the_dynamics_refuse_amplitudes(data_dir: Path) -> None:
    found = refusal("dynamics", data_dir, training_changes={"amplitude": [0.5, 1.5]})
    assert found.startswith(
        "amplitude: is a setting of `train tokenizer` and `train forecasts`, not of `train dynamics`"
    )
    assert found.endswith("; leave it at [1, 1]")


def test_the_shortest_context_of_a_model_is_that_of_its_training(data_dir: Path) -> None:
    for stage in ("dynamics", "forecasts", "first-frame"):
        start = {"start": PRETRAINED / "combined-fast"} if stage == "first-frame" else {}
        found = refusal(stage, data_dir, model_changes={"shortest_context": 5}, **start)
        assert found == (
            "shortest_context: is what the training shows; set it by --train-set shortest_context of `train dynamics` "
            "and `train forecasts`"
        )


def test_a_share_of_weights_that_are_not_given_is_refused(data_dir: Path) -> None:
    found = refusal("dynamics", data_dir, training_changes={"start_share": 0.5})
    assert found == "start_share: is the share of weights that a run starts from; add --from, or leave it at 0"
    found = refusal("forecasts", data_dir, training_changes={"start_share": 1.5})
    assert found == "training config: start_share is 1.5; a number from 0 to 1 is needed"


def test_an_emphasis_belongs_to_its_stage_and_to_the_data(data_dir: Path) -> None:
    found = refusal("tokenizer", data_dir, training_changes={"emphasis": [["nu", -1]]})
    assert re.fullmatch(
        r"emphasis: \S+combined-train\.h5 has no parameter 'nu' \(it has: alpha, beta, gamma.*\)", found
    )
    for stage, instead in (("dynamics", "leave it empty"), ("forecasts", "use rollout.emphasis")):
        found = refusal(stage, data_dir, training_changes={"emphasis": [["beta", -1]]})
        assert found == f"emphasis: is a setting of `train tokenizer`, not of `train {stage}`; {instead}"


def test_a_decoder_alone_is_trained_behind_an_encoder_that_is_there(data_dir: Path) -> None:
    found = refusal("tokenizer", data_dir, training_changes={"decoder_only": True})
    assert found == "decoder_only: holds the encoder that a run starts from; add --from, or leave it at false"
    found = refusal("forecasts", data_dir, training_changes={"decoder_only": True})
    assert found == "decoder_only: is a setting of `train tokenizer`, not of `train forecasts`; leave it at false"


@pytest.mark.parametrize("stage", BEFORE)
def test_validation_data_of_another_length_are_refused(stage: str, data_dir: Path) -> None:
    found = refusal(stage, data_dir, model_changes={"num_frames": 25})
    assert found.endswith(
        "combined-val.h5: trajectories have 20 frames and the model's num_frames is 25; add --set num_frames=20"
    )


@pytest.mark.parametrize(
    ("stage", "expected"), [("tokenizer", 500), ("dynamics", 1000), ("forecasts", 500), ("first-frame", 500)]
)
def test_a_stage_is_validated_as_often_from_python_as_by_its_command(
    stage: str, expected: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []
    before = {} if stage == "tokenizer" else BEFORE.get(stage, BEFORE["forecasts"])
    monkeypatch.setattr(recipes, "run", lambda task, options: seen.append(options.validate_every) or {"rel_l2": 1.0})
    for changes in ({}, {"validate_every": 7}):
        options = RunOptions(out=data_dir / "run", stop_after=1, precision="fp32", **changes)
        train(stage, "combined-fast", data_dir=data_dir, options=options, **before)
    assert seen == [expected, 7]
    command = getattr(commands, stage.replace("-", "_"))
    assert inspect.signature(command).parameters["validate_every"].default == expected
