"""The classical alternative: parameters that are found again, and members that spread as far as the fit is unsure."""

import sys

import numpy as np
import pytest

from benchmarks import classical, pareto
from enma_fast.data import read
from enma_fast.models.checkpoint import PRETRAINED, save_model
from enma_fast.models.model import Model

from .._tiny import COMBINED

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def data():
    return read(PRETRAINED / "combined-test-in.h5", select=[0, 10, 20])


def test_parameters_are_found_again(data):
    for row in range(3):
        values, _ = classical.fit(data.u[row, :3, :, 0])
        truth = [data.parameters[name][row] for name in classical.FITTED]
        np.testing.assert_allclose(values, truth, rtol=0.02)


def test_noise_makes_the_members_spread(data):
    exact = data.u[0, :3, :, 0].astype(float)
    noise = np.random.default_rng(0).standard_normal(exact.shape)
    noise[0] = 0.0
    spread = []
    for level in (1e-4, 1e-2):
        _, root = classical.fit(exact + level * noise)
        spread.append(np.sqrt((root**2).sum(1)))
    # The root of the covariance grows as the noise.
    np.testing.assert_allclose(spread[1] / spread[0], 100, rtol=0.5)


@pytest.mark.slow
def test_its_scores_stand_under_the_table(data, tmp_path, monkeypatch, capsys):
    result = classical.measure(data, rows=[0, 2], observed=3, members=4, seed=0)
    assert result["rel_l2"] < 0.01
    assert result["crps"] < 1e-3
    assert 0 < result["seconds_min"] <= result["seconds_per_member"] <= result["seconds_max"]
    save_model(Model(COMBINED), tmp_path / "tiny")
    arguments = ["--checkpoint", tmp_path / "tiny", "--members", 2, "--limit", 1, "--rounds", 1, "--chunk", 2]
    arguments += ["--no-compile"]
    monkeypatch.setattr(sys, "argv", ["pareto", *map(str, arguments), "--solver", "--out", str(tmp_path / "a.png")])
    pareto.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("fitted solver")
    assert (tmp_path / "a.png").is_file()
