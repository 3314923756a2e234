"""Streamed statistics against numpy over all members: the same values, however the members come."""

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enma_fast.errors import EnmaError
from enma_fast.runs.statistics import EXACT, Statistics, bytes_needed

SHAPE = (3, 5, 2)
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
THRESHOLDS = (-0.5, 0.1, 2.0)

Sampler = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def ensemble(num_members: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_members, *shape)).astype(np.float32)


def folded(
    members: np.ndarray, quantiles: Sequence[float] = QUANTILES, thresholds: Sequence[float] = THRESHOLDS
) -> Statistics:
    statistics = Statistics(members.shape[1:], quantiles=quantiles, thresholds=thresholds)
    statistics.update(members)
    return statistics


def results(statistics: Statistics) -> list[np.ndarray]:
    return [statistics.mean(), statistics.spread(), statistics.exceedance(), statistics.quantile()]


def assert_same_bits(first: Statistics, second: Statistics) -> None:
    for a, b in zip(results(first), results(second), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
    one, other = first.state(), second.state()
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("num_members", [2, 3, 64, EXACT, EXACT + 1, 700])
def test_moments_and_exceedance_are_those_of_numpy(num_members: int) -> None:
    members = ensemble(num_members)
    exact = members.astype(np.float64)
    statistics = folded(members)
    assert statistics.num_members == num_members
    mean, spread, exceedance, quantile = results(statistics)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(spread, exact.std(0, ddof=1), rtol=1e-7)
    np.testing.assert_array_equal(exceedance, [(exact > t).mean(0).astype(np.float32) for t in THRESHOLDS])
    assert quantile.shape == (len(QUANTILES), *SHAPE)
    assert {a.dtype for a in (mean, spread, exceedance, quantile)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("num_members", [1, 2, 7, EXACT])
def test_quantiles_of_few_members_are_those_of_numpy(num_members: int) -> None:
    members = ensemble(num_members)
    expected = np.quantile(members.astype(np.float64), QUANTILES, axis=0, method="linear").astype(np.float32)
    np.testing.assert_array_equal(folded(members).quantile(), expected)


def test_a_threshold_is_compared_in_double_precision() -> None:
    # The float32 of 0.1 is greater than 0.1.
    members = np.full((4, 1), 0.1, np.float32)
    np.testing.assert_array_equal(folded(members, thresholds=[0.1]).exceedance(), [[1.0]])
    np.testing.assert_array_equal(folded(members, thresholds=[float(np.float32(0.1))]).exceedance(), [[0.0]])


def test_a_single_member_has_no_spread(recwarn: pytest.WarningsRecorder) -> None:
    members = ensemble(1)
    statistics = folded(members)
    assert np.isnan(statistics.spread()).all()
    np.testing.assert_array_equal(statistics.mean(), members[0])
    np.testing.assert_array_equal(statistics.quantile(), np.broadcast_to(members[0], (5, *SHAPE)))
    assert not recwarn.list


def test_a_large_offset_costs_no_accuracy() -> None:
    members = (1e6 + ensemble(1000)).astype(np.float32)
    exact = members.astype(np.float64)
    statistics = folded(members)
    np.testing.assert_array_equal(statistics.mean(), exact.mean(0).astype(np.float32))
    np.testing.assert_allclose(statistics.spread(), exact.std(0, ddof=1), rtol=1e-6)
    assert np.abs(statistics.quantile() - np.quantile(exact, QUANTILES, axis=0)).max() < 0.2


@given(st.lists(st.integers(0, 150), min_size=1, max_size=6), st.integers(0, 6))
def test_the_division_into_calls_changes_no_bit(sizes: list[int], saved_before: int) -> None:
    members = ensemble(max(1, sum(sizes)), (2, 3))
    whole = folded(members)
    parts = Statistics((2, 3), quantiles=QUANTILES, thresholds=THRESHOLDS)
    for call, part in enumerate(np.split(members, np.cumsum(sizes))):
        if call == saved_before:
            parts = Statistics.restore(parts.state())
        parts.update(part)
    assert_same_bits(whole, parts)


@pytest.mark.parametrize("shape", [(1,), (4099,)])
def test_members_one_by_one_change_no_bit_across_the_layout(shape: tuple[int, ...]) -> None:
    members = ensemble(EXACT + 5, shape)
    single = Statistics(shape, quantiles=QUANTILES, thresholds=THRESHOLDS)
    for member in members:
        single.update(member[None])
    assert_same_bits(folded(members), single)


def test_a_value_does_not_depend_on_the_others() -> None:
    members = ensemble(300, (5000,))
    alone = folded(np.ascontiguousarray(members[:, 4321:4322]))
    for a, b in zip(results(folded(members)), results(alone), strict=True):
        np.testing.assert_array_equal(a[..., 4321:4322], b)


@pytest.mark.parametrize("num_members", [0, 1, 100, EXACT, EXACT + 1, 400])
def test_a_saved_fold_goes_on_with_the_same_bits(tmp_path: Path, num_members: int) -> None:
    members = ensemble(450)
    first = Statistics(SHAPE, quantiles=QUANTILES, thresholds=THRESHOLDS)
    first.update(members[:num_members])
    np.savez(tmp_path / "state.npz", **first.state())
    first.update(members[num_members:])
    with np.load(tmp_path / "state.npz") as state:
        second = Statistics.restore(state)
    assert (second.num_members, second.shape) == (num_members, SHAPE)
    assert (second.quantiles, second.thresholds) == (QUANTILES, THRESHOLDS)
    second.update(members[num_members:])
    assert_same_bits(first, second)


@pytest.mark.parametrize("num_members", [10, 300])
def test_a_state_is_a_copy(num_members: int) -> None:
    statistics = folded(ensemble(num_members))
    state = statistics.state()
    kept = {name: array.copy() for name, array in state.items()}
    restored = Statistics.restore(state)
    for fold in (statistics, restored):
        fold.update(ensemble(10, seed=1))
    for name, array in state.items():
        np.testing.assert_array_equal(array, kept[name])


def test_a_state_holds_no_more_than_the_members_seen() -> None:
    assert folded(ensemble(10)).state()["members"].shape == (10, *SHAPE)
    state = folded(ensemble(300)).state()
    np.testing.assert_array_equal(state["counts"].sum(0), 300)
    assert "counts" not in folded(ensemble(300), quantiles=()).state()


SAMPLERS: dict[str, Sampler] = {
    "gaussian": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "lognormal": lambda rng, shape: np.exp(rng.normal(size=shape)),
    "negative lognormal": lambda rng, shape: -np.exp(rng.normal(size=shape)),
    "two modes": lambda rng, shape: rng.normal(size=shape) + 10 * (rng.random(shape) < 0.5),
    "two sharp modes": lambda rng, shape: 0.01 * rng.normal(size=shape) + (rng.random(shape) < 0.5),
    "heavy tails": lambda rng, shape: rng.standard_t(3, size=shape),
    "cauchy": lambda rng, shape: rng.standard_cauchy(size=shape),
    "often zero": lambda rng, shape: np.where(rng.random(shape) < 0.8, 0, rng.exponential(size=shape)),
    "nearly equal": lambda rng, shape: 1e6 + 0.1 * rng.normal(size=shape),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("num_members", "typical", "largest"), [(1000, 0.025, 0.2), (10000, 0.02, 0.15)])
def test_quantiles_of_many_members(
    rng: np.random.Generator, name: str, num_members: int, typical: float, largest: float
) -> None:
    """Errors in units of the spread; sampling alone leaves 0.12 and 0.04 of a Gaussian's quantile 0.01 open."""
    members = SAMPLERS[name](rng, (num_members, 50)).astype(np.float32)
    statistics = folded(members)
    exact = np.quantile(members.astype(np.float64), QUANTILES, axis=0)
    error = (statistics.quantile() - exact) / statistics.spread()
    assert np.sqrt((error**2).mean()) < typical
    assert np.abs(error).max() < largest


def test_an_outlier_among_the_first_costs_the_others_nothing(rng: np.random.Generator) -> None:
    members = rng.normal(size=(1000, 50)).astype(np.float32)
    members[7] = 1e6
    error = folded(members).quantile() - np.quantile(members.astype(np.float64), QUANTILES, axis=0)
    assert np.abs(error).max() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 3e38, 1e-45])
def test_equal_members_are_given_back_exactly(value: float) -> None:
    members = np.full((EXACT + 50, 2), value, np.float32)
    statistics = folded(members)
    np.testing.assert_array_equal(statistics.mean(), members[0])
    np.testing.assert_array_equal(statistics.spread(), 0)
    np.testing.assert_array_equal(statistics.quantile(), np.broadcast_to(members[0], (5, 2)))


def test_members_that_differ_after_the_layout() -> None:
    """Two values, the second not among the first members: quantiles are exact where the ensemble is."""
    members = np.full((1000, 2), 0.3, np.float32)
    members[600:, 1] = -7
    quantile = folded(members, quantiles=(0.1, 0.3, 0.5, 0.9)).quantile()
    np.testing.assert_array_equal(quantile[:, 0], np.float32(0.3))
    np.testing.assert_allclose(quantile[:, 1], [-7, -7, 0.3, 0.3], atol=0.2)
    np.testing.assert_array_equal(quantile[2:, 1], np.float32(0.3))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-30, 1.0, 1e30]),
    st.integers(EXACT + 1, 600),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5, unique=True),
)
def test_quantiles_lie_within_the_members_in_order(
    seed: int, unit: float, num_members: int, levels: list[float]
) -> None:
    """Values from a few levels to wild ones, over the whole range of float32."""
    rng = np.random.default_rng(seed)
    shape = (num_members, 8)
    wild = unit * rng.standard_cauchy(shape) ** 3
    few = unit * rng.integers(-2, 3, size=shape)
    members = np.clip(np.where(rng.random(8) < 0.5, wild, few), -3e38, 3e38).astype(np.float32)
    quantile = folded(members, quantiles=sorted(levels)).quantile()
    assert (np.diff(quantile, axis=0) >= 0).all()
    assert (quantile >= members.min(0)).all()
    assert (quantile <= members.max(0)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_members(dtype: torch.dtype) -> None:
    members = torch.from_numpy(ensemble(20)).to(dtype).requires_grad_()
    statistics = Statistics(SHAPE, quantiles=QUANTILES, thresholds=THRESHOLDS)
    statistics.update(members)
    assert_same_bits(statistics, folded(members.detach().float().numpy()))


def test_members_that_are_not_contiguous() -> None:
    members = ensemble(20, (4, 3))
    statistics = Statistics((4, 3), quantiles=QUANTILES, thresholds=THRESHOLDS)
    statistics.update(members.transpose(2, 1, 0).copy().transpose(2, 1, 0))
    assert_same_bits(statistics, folded(members))


def test_without_quantiles_and_thresholds() -> None:
    statistics = folded(ensemble(300), (), ())
    assert statistics.quantile().shape == statistics.exceedance().shape == (0, *SHAPE)


@pytest.mark.parametrize("field", ["quantiles", "thresholds"])
@pytest.mark.parametrize(
    "numbers", [[0.5, 0.5], [0.5, 0.1], [np.nan], [0.5, np.inf], ["half"], [[0.1], [0.2]], 0.5, None]
)
def test_bad_lists_are_refused(field: str, numbers: object) -> None:
    with pytest.raises(EnmaError, match=field) as error:
        Statistics(SHAPE, **{field: numbers})
    assert "\n" not in str(error.value)
    with pytest.raises(EnmaError, match=field):
        bytes_needed(SHAPE, **{"quantiles": (), "thresholds": (), field: numbers}, saved=False)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95.0])
def test_quantiles_are_levels(level: float) -> None:
    with pytest.raises(EnmaError, match="quantiles"):
        Statistics(SHAPE, quantiles=[level])


@pytest.mark.parametrize("shape", [(), (3, 0, 1), (2.5,), 3])
def test_bad_shapes_are_refused(shape: object) -> None:
    with pytest.raises(EnmaError, match="shape"):
        Statistics(shape)


@pytest.mark.parametrize("before", [0, 5, EXACT - 1])
def test_bad_members_leave_the_fold_as_it_was(before: int) -> None:
    statistics = Statistics(SHAPE, quantiles=QUANTILES, thresholds=THRESHOLDS)
    untouched = Statistics(SHAPE, quantiles=QUANTILES, thresholds=THRESHOLDS)
    for fold in (statistics, untouched):
        fold.update(ensemble(before))
    for value in (np.nan, np.inf, -np.inf):
        members = ensemble(10)
        members[6, 2, 4, 1] = members[8, 0, 0, 0] = value
        with pytest.raises(EnmaError, match="number 6"):
            statistics.update(members)
    with pytest.raises(EnmaError, match="number 0"):
        statistics.update(np.full((1, *SHAPE), 1e300))
    for wrong in (ensemble(3, (3, 5)), ensemble(3, (3, 5, 1)), ensemble(1)[0], np.float32(0)):
        with pytest.raises(EnmaError, match="members"):
            statistics.update(wrong)
    for wrong in (np.ones((2, *SHAPE), int), torch.ones(2, *SHAPE, dtype=torch.int64), np.full((2, *SHAPE), "1")):
        with pytest.raises(EnmaError, match="give float32"):
            statistics.update(wrong)
    for fold in (statistics, untouched):
        fold.update(ensemble(20, seed=1))
    assert_same_bits(statistics, untouched)


def test_results_need_members() -> None:
    statistics = Statistics(SHAPE, quantiles=QUANTILES, thresholds=THRESHOLDS)
    for result in (statistics.mean, statistics.spread, statistics.exceedance, statistics.quantile):
        with pytest.raises(EnmaError, match="members yet"):
            result()


@pytest.mark.parametrize("num_members", [10, 300])
def test_damaged_states_are_refused(num_members: int) -> None:
    state = folded(ensemble(num_members)).state()
    for name, array in state.items():
        with pytest.raises(EnmaError, match=f"'{name}' is missing"):
            Statistics.restore({key: value for key, value in state.items() if key != name})
        if name not in ("shape", "quantiles", "thresholds", "num_members"):
            for wrong in (array[..., :1], array.astype(np.int16)):
                with pytest.raises(EnmaError, match=f"'{name}' is .*, not "):
                    Statistics.restore({**state, name: wrong})
    for wrong in (np.array(-1), np.array(2.0), np.array([3])):
        with pytest.raises(EnmaError, match="'num_members'"):
            Statistics.restore({**state, "num_members": wrong})


@pytest.mark.parametrize("shape", [(2, 3), (17, 128, 1), (9000,)])
@pytest.mark.parametrize(
    ("quantiles", "thresholds"),
    [((), ()), ((), THRESHOLDS), (QUANTILES, ()), (np.linspace(0.01, 0.99, 99), THRESHOLDS)],
)
@pytest.mark.parametrize("num_members", [70, 300])
def test_memory_stays_below_the_bound(
    shape: tuple[int, ...], quantiles: Sequence[float], thresholds: Sequence[float], num_members: int
) -> None:
    members = ensemble(10, shape)
    folded(members)
    bound = bytes_needed(shape, quantiles, thresholds, saved=False)
    tracemalloc.start()
    try:
        statistics = Statistics(shape, quantiles=quantiles, thresholds=thresholds)
        for _ in range(num_members // 10):
            statistics.update(members)
        kept = results(statistics)
        peak = tracemalloc.get_traced_memory()[1]
        kept_state = statistics.state()
        peak_saved = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= bound
    assert peak_saved <= bytes_needed(shape, quantiles, thresholds, saved=True)
    size = int(np.prod(shape))
    assert sum(array.nbytes for array in kept) == 4 * size * (2 + len(quantiles) + len(thresholds))
    if num_members > EXACT:
        # A bound that is far too large is of no use for a plan.
        assert sum(array.nbytes for array in kept_state.values()) > (bound - 10 * 2**20) / 2
