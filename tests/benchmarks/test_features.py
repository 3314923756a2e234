"""Training of a feature network: it learns the parameters, and the command writes what is read again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("h5py", reason="needs the [data] extra")

from benchmarks import features
from enma_fast.data import PRETRAINED, read
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import read_tensors


def test_parameters_are_learned_and_what_cannot_be_is_refused() -> None:
    data = read(PRETRAINED / "combined-test-in.h5")
    _, report = features.train(data, data, steps=60, seed=0)
    # The environments of test data have delta 0.
    assert set(report["explained"]) == {"alpha", "beta", "gamma"}
    # Diffusion shows most.
    assert report["explained"]["beta"] > 0.3
    with pytest.raises(EnmaError, match="parameter varies"):
        features.train(data.rows([0, 1]), data, steps=1, seed=0)
    with pytest.raises(EnmaError, match="periodic line"):
        features.train(replace(data, periodic=(False,)), data, steps=1, seed=0)


def test_the_command_writes_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        shutil.copy(PRETRAINED / "combined-test-in.h5", tmp_path / f"combined-{split}.h5")
    out = tmp_path / "combined-features.safetensors"
    words = ["features", "combined", "--data", str(tmp_path), "--out", str(out), "--steps", "2", "--seed", "3"]
    monkeypatch.setattr("sys.argv", words)
    features.main()
    assert json.loads(capsys.readouterr().out)["seed"] == 3
    tensors, told = read_tensors(out)
    assert (told["frames"], told["channels"], told["parameters"], told["steps"]) == ("20", "1", "3", "2")
    torch.manual_seed(3)
    before = features.FeatureNetwork(20, 1, 3).state_dict()
    assert before.keys() == tensors.keys()
    assert not torch.equal(before["hidden.weight"], tensors["hidden.weight"])
    torch.testing.assert_close(before["hidden.weight"], tensors["hidden.weight"], rtol=0, atol=5e-3)
