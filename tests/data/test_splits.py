"""Splits: nothing is drawn twice, splits never meet, and the first groups stay the same."""

import numpy as np
import pytest

from enma_fast.data import EQUATIONS, splits
from enma_fast.errors import EnmaError

KNOWN_CELLS = [385593, 918648, 806902]
KNOWN_UNIFORMS = [0.7874074342539539, 0.6993767482797668, 0.46670383897804946]
SPLITS = tuple(splits.DEFAULT_GROUPS)
IN_DISTRIBUTION = ("train", "val", "test-in")


@pytest.mark.parametrize("equation", ["combined", "advection"])
def test_splits_never_share_an_environment_even_across_seeds(equation: str) -> None:
    cells = {
        (split, seed): splits.environments(EQUATIONS[equation], split, groups=5_000, seed=seed)
        for split in IN_DISTRIBUTION
        for seed in (0, 1)
    }
    for one, first in cells.items():
        assert len(np.unique(first)) == 5_000
        for other, second in cells.items():
            if one[0] != other[0]:
                assert not np.intersect1d(first, second).size, (one, other)


@pytest.mark.each_value
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("groups", [1, 7, 129])
def test_the_first_groups_do_not_depend_on_their_number(split: str, groups: int) -> None:
    many = splits.environments(EQUATIONS["combined"], split, groups=1200, seed=5)
    np.testing.assert_array_equal(
        splits.environments(EQUATIONS["combined"], split, groups=groups, seed=5), many[:groups]
    )


def test_seeds_and_equations_give_other_environments() -> None:
    first = splits.environments(EQUATIONS["combined"], "train", groups=100, seed=0)
    assert not np.array_equal(first, splits.environments(EQUATIONS["combined"], "train", groups=100, seed=1))
    assert not np.array_equal(first, splits.environments(EQUATIONS["advection"], "train", groups=100, seed=0))


def test_environments_are_spread_evenly() -> None:
    cells = splits.environments(EQUATIONS["combined"], "train", groups=10_000, seed=0)
    counts = np.histogram(cells, bins=10, range=(0, 1_000_000))[0]
    # Binomial with standard deviation 30.
    assert np.abs(counts - 1000).max() < 150


def test_known_answers_so_that_a_release_never_changes_the_data() -> None:
    assert splits.environments(EQUATIONS["combined"], "train", groups=3, seed=0).tolist() == KNOWN_CELLS
    u = splits.group_uniforms("combined", "test-in", seed=0, group=2, shape=(3,))
    np.testing.assert_array_equal(u, KNOWN_UNIFORMS)


def test_numbers_of_a_group_are_uniform_and_its_own() -> None:
    u = splits.group_uniforms("combined", "train", seed=0, group=0, shape=(4, 2500))
    assert (u >= 0).all()
    assert (u < 1).all()
    assert abs(u.mean() - 0.5) < 0.02
    assert abs(u.var() - 1 / 12) < 0.005
    keys = [("combined", "train", 0, 1), ("combined", "train", 1, 0), ("combined", "val", 0, 0)]
    for equation, split, seed, group in keys:
        other = splits.group_uniforms(equation, split, seed=seed, group=group, shape=(4, 2500))
        assert not np.isin(other, u).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": "test", "groups": 1, "seed": 0},
            "split 'test'",
        ),
        ({"split": "val", "groups": 0, "seed": 0}, "groups"),
        ({"split": "val", "groups": 50_001, "seed": 0}, "groups is 50001"),
        ({"split": "val", "groups": 1, "seed": -1}, "seed"),
    ],
)
def test_bad_arguments_name_the_fix(arguments: dict, message: str) -> None:
    with pytest.raises(EnmaError, match=message):
        splits.environments(EQUATIONS["combined"], arguments.pop("split"), **arguments)
