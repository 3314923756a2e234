"""Symmetries as augmentation: what they carry is a solution, and each environment keeps its own parameters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import EQUATIONS, generate, read
from enma_fast.errors import EnmaError
from enma_fast.training.config import TrainingConfig
from enma_fast.training.symmetries import symmetries, with_boosts

from .._tiny import TRAINING


def test_symmetries_are_the_equations_own():
    asked = replace(TRAINING, amplitude=(0.5, 2.0))
    assert symmetries("combined", asked) == {"amplitude": EQUATIONS["combined"].symmetries["amplitude"]}
    assert symmetries("waves", TRAINING) == {}
    with pytest.raises(EnmaError, match=r"^boost: the equation of waves declares no such symmetry \(it has: none\)"):
        symmetries("waves", replace(TRAINING, boost=0.1))


def test_a_boost_adds_each_environment_once_more_as_a_solution_of_its_own(tmp_path: Path) -> None:
    data = read(generate("advection", "val", out_dir=tmp_path, groups=3))
    config = replace(TRAINING, boost=2.0)
    both = with_boosts(data, "advection", config, seed=5)
    count = len(data)
    assert len(both) == 2 * count
    np.testing.assert_array_equal(both.u[:count], data.u)
    assert len(np.unique(both.environment)) == 2 * len(np.unique(data.environment))
    change = both.parameters["alpha"][count:] - data.parameters["alpha"]
    for environment in np.unique(data.environment):
        assert np.ptp(change[data.environment == environment]) < 1e-12
    assert len(np.unique(change.round(9))) == 3
    expected = EQUATIONS["advection"].solve(
        both.u[count:, 0].astype(np.float64), {"alpha": both.parameters["alpha"][count:]}
    )
    np.testing.assert_allclose(both.u[count:], expected, atol=1e-5)
    again = with_boosts(data, "advection", config, seed=5)
    np.testing.assert_array_equal(again.u, both.u)
    assert with_boosts(data, "advection", TRAINING, seed=5) is data
    # The tokenizer of any data may scale its samples.
    assert with_boosts(data, "waves", replace(TRAINING, amplitude=(0.5, 2.0)), seed=5) is data


def test_a_boost_needs_environments(tmp_path: Path) -> None:
    data = replace(read(generate("advection", "val", out_dir=tmp_path, groups=1)), environment=None)
    with pytest.raises(EnmaError, match="lacks scalars/environment"):
        with_boosts(data, "advection", TrainingConfig(boost=1.0), seed=0)
