"""Every declared symmetry carries solutions to solutions: before and after the solver it is the same."""

import numpy as np
import pytest

from enma_fast.data import EQUATIONS

AMOUNTS = {"amplitude": np.array([0.4, 1.0, 1.9]), "boost": np.array([-0.7, 0.0, 1.3])}
CASES = [(name, symmetry) for name, problem in EQUATIONS.items() for symmetry in problem.symmetries]


@pytest.mark.parametrize(("name", "symmetry"), CASES)
def test_a_transformed_solution_is_the_solution_of_the_transformed_problem(name, symmetry):
    problem = EQUATIONS[name]
    u0 = problem.initial_conditions("train", seed=0, group=3)[:3]
    parameters = problem.inside.checked(np.array([12_345, 500_000, 987_654]), "train", 0)
    amount = AMOUNTS[symmetry]
    apply = problem.symmetries[symmetry]
    expected, changed = apply(problem.solve(u0, parameters), parameters, amount)
    start, _ = apply(u0[:, None], parameters, amount)
    found = problem.solve(start[:, 0], changed)
    np.testing.assert_allclose(found, expected, atol=2e-7)
    moved = np.abs(expected - problem.solve(u0, parameters)).max((1, 2, 3))
    assert moved[1] < 1e-9, "a neutral amount changes nothing"
    assert moved[0] > 0.1
    assert moved[2] > 0.1
