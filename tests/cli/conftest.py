"""Commands run inside the test's process, on a tiny untrained model and on the shipped test file."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from enma_fast.checkpoint import PRETRAINED, save_model
from enma_fast.cli import main
from enma_fast.config import PRESETS, replace
from enma_fast.model import Model

# Changes to combined-small that make it small enough to train in a moment.
TINY_TOKENIZER = {
    "tokenizer.width": 4,
    "tokenizer.max_width": 8,
    "tokenizer.latent_channels": 2,
    "tokenizer.layers": ("space", "space", "space", "time", "residual"),
}
TINY_DYNAMICS = {
    "dynamics.heads": 2,
    "dynamics.width": 16,
    "dynamics.temporal_layers": 1,
    "dynamics.spatial_layers": 1,
    "dynamics.scale_shift_rank": 0,
    "dynamics.flow.width": 16,
    "dynamics.flow.layers": 1,
    "dynamics.flow.time_features": 8,
    "sampling.mask_steps": 2,
    "sampling.flow_steps": 1,
}


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one line of standard output under `--json`."""
        assert self.status == 0, self.err
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])

    def error(self) -> str:
        """The one line of an error in the input."""
        assert self.status == 2, (self.status, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def enma(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command line in this process."""

    def run(*arguments: Any) -> Run:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an untrained model of about ten thousand parameters, for the Combined data set."""
    config = PRESETS["combined-small"].model
    for key, value in {**TINY_TOKENIZER, **TINY_DYNAMICS}.items():
        config = replace(config, {key: value})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(config)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_model(model, folder, card="an untrained model")
    return folder


@pytest.fixture(scope="session")
def test_in() -> Path:
    """The shipped test file: 3 environments of 10 trajectories."""
    return PRETRAINED / "combined-test-in.h5"


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All splits under their names; their contents are the shipped files'."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test-in"):
        shutil.copy(PRETRAINED / "combined-test-in.h5", folder / f"combined-{split}.h5")
    shutil.copy(PRETRAINED / "combined-test-out.h5", folder)
    return folder
