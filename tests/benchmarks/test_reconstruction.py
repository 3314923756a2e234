"""Reconstruction from a share of the points, and on finer grids."""

import json

import numpy as np
import pytest
import torch

from benchmarks import reconstruction
from enma_fast.data import write
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import save_model
from enma_fast.models.model import Model
from enma_fast.utils.dataclass_json import replace

from .._tiny import CONFIGS, shaken, waves

CONFIG = CONFIGS["points"].codec


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconstruction")
    for name, changes in (("points", {}), ("relative", {}), ("walls", {"codec.periodic": [False]})):
        torch.manual_seed(0)
        config = replace(CONFIGS["relative" if name == "relative" else "points"], changes)
        save_model(shaken(Model(config)), folder / name)
    u = waves(2, 3, 5, CONFIG)[..., 0].numpy()
    write(
        folder / "waves.h5",
        name="waves",
        times=0.05 * np.arange(5),
        coords=[np.arange(32) * CONFIG.lengths[0] / 32],
        periodic=[True],
        scalars={"environment": np.repeat([0, 1], 3)},
        t0_fields={"u": u},
    )
    return folder


class Perfect:
    """Knows the field but for a factor: what is tested is the measure."""

    def __init__(self, wrong=0.0):
        self.config, self.wrong = CONFIG, wrong

    def encode(self, u, points=None):
        self.seen = u
        return u

    def decode(self, z, frames, query=None):
        n = 32 if query is None else len(query)
        phase = torch.arange(frames)[:, None] * 0.3 + 2 * torch.pi * torch.arange(n) / n
        field = torch.sin(phase) + 0.5 * torch.cos(3 * phase)
        return ((1 + self.wrong) * field)[None, ..., None].expand(len(z), -1, -1, -1)


@pytest.mark.parametrize("wrong", [0.0, 0.25])
def test_errors_are_those_of_the_whole_field(wrong):
    model, truth = Perfect(wrong), Perfect().decode(torch.zeros(3), 4)
    found = reconstruction.reconstruction_errors(model, truth, share=0.5, seed=0)
    assert model.seen.shape == (3, 4, 16, 1)
    torch.testing.assert_close(found, torch.full((3,), wrong, dtype=torch.float64), atol=1e-6, rtol=1e-5)
    found = reconstruction.finer_errors(model, truth, factor=4)
    torch.testing.assert_close(found, torch.full((3,), wrong, dtype=torch.float64), atol=1e-6, rtol=1e-5)


def test_the_finer_truth_has_the_values_of_the_grid():
    class Shown(Perfect):
        def decode(self, z, frames, query=None):
            fine = torch.zeros(1, 1, 64, 1)
            fine[:, :, ::2] = z
            return fine

    u = torch.tensor([1.0, -1.0]).repeat(16).view(1, 1, 32, 1)
    # Between its points the highest wave of the grid is zero.
    assert reconstruction.finer_errors(Shown(), u, factor=2).item() < 1e-6


def test_points_are_of_a_trajectory_and_a_seed():
    fields = torch.arange(32.0).view(1, 1, 32, 1).expand(2, 3, 32, 1)
    seen = []
    for seed in (0, 0, 1):
        model = Perfect()
        reconstruction.reconstruction_errors(model, fields, share=0.25, seed=seed)
        seen.append(model.seen)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0][:, 0], seen[0][:, 2])
    assert not torch.equal(seen[0][0], seen[0][1])
    assert len(seen[0][0, 0].unique()) == 8


def test_the_command(files, capsys):
    words = [str(files / "points"), "--data", str(files / "waves.h5"), "--shares", "1,0.5", "--finer", "2", "--json"]
    assert reconstruction.main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    cases = [(row.get("share"), row.get("finer"), row["trajectories"]) for row in found]
    assert cases == [(1.0, None, 6), (0.5, None, 6), (None, 2, 6)]
    assert all(row["rel_l2"] > 0 for row in found)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("relative", [], "has no interpolation"),
        ("points", ["--shares", "0"], "a share is above 0"),
        ("walls", ["--finer", "2"], "periodic lines"),
        ("nothing", [], "neither a folder nor a shipped model"),
    ],
)
def test_what_cannot_be_measured_is_said(name, words, message, files, capsys):
    assert reconstruction.main([str(files / name), "--data", str(files / "waves.h5"), *words]) == 2
    assert message in capsys.readouterr().err


def test_rows_raise_what_the_command_prints(files):
    with pytest.raises(EnmaError, match="share"):
        reconstruction.rows(str(files / "points"), str(files / "waves.h5"), shares=[2.0], finer=[], seed=0, limit=None)
