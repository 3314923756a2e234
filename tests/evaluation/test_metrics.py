"""Scores against scoringrules, uncertainty-toolbox, hand calculations and ensembles of known calibration."""

import json
from math import sqrt

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import (
    Scores,
    crps,
    rank_histogram,
    relative_l2,
    rmsce,
    rmsce_rank,
    spread_skill,
)

QUANTILES = ["rel_l2_median", "rel_l2_q90"]
CALIBRATED = ["spread_skill_low", "spread_skill_high"]
OTHERS = ["rel_l2_member", "crps", "crps_relative", "rmsce", "rmsce_rank", "spread_skill", "spread", "rmse"]
NEEDS_SPREAD = ["rmsce", "rmsce_rank", "spread_skill", "spread"]


def gaussian(*shape, members, spread=1.0, dtype=torch.float64, seed=0):
    """Truth and members from the same law about an unknown centre, the members' deviations times `spread`."""
    generator = torch.Generator().manual_seed(seed)
    centre, deviation = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    noise = torch.randn(shape[0], members, *shape[1:], generator=generator, dtype=dtype)
    return 3.0 * centre[:, None] + spread * noise, 3.0 * centre + deviation


def frame(tensor, t, *, members):
    return tensor[:, :, t : t + 1] if members else tensor[:, t : t + 1]


def assert_same(got, expected, rel=1e-12):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(got[name], value, rel)
        else:
            assert got[name] == pytest.approx(value, rel=rel), name


def test_relative_l2_by_hand():
    truth = torch.tensor([[[[3.0], [0.0]], [[0.0], [4.0]]], [[[1.0], [1.0]], [[1.0], [1.0]]]])
    pred = truth.clone()
    pred[0, 0, 0, 0] += 3.0
    pred[0, 1, 0, 0] += 4.0
    pred[1] *= 1.5
    assert relative_l2(pred, truth).tolist() == [1.0, 0.5]
    assert relative_l2(pred, truth, per_frame=True).tolist() == [[1.0, 1.0], [0.5, 0.5]]


def test_relative_l2_matches_numpy_on_channels_and_two_dimensions():
    rng = np.random.default_rng(0)
    pred, truth = rng.normal(size=(2, 3, 5, 4, 7, 2))
    axes = (1, 2, 3, 4)
    expected = np.sqrt(((pred - truth) ** 2).sum(axes) / (truth**2).sum(axes))
    per_frame = np.sqrt(((pred - truth) ** 2).sum(axes[1:]) / (truth**2).sum(axes[1:]))
    np.testing.assert_allclose(relative_l2(pred, truth).numpy(), expected, rtol=1e-13)
    np.testing.assert_allclose(relative_l2(pred, truth, per_frame=True).numpy(), per_frame, rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_relative_l2_of_float32_fields_neither_under_nor_overflows(scale):
    truth = torch.full((1, 2, 9, 1), scale)
    assert relative_l2(1.25 * truth, truth).item() == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("members", [2, 3, 16, 33])
def test_crps_is_that_of_scoringrules(members):
    scoringrules = pytest.importorskip("scoringrules")
    ensemble, truth = gaussian(3, 4, 11, 2, members=members, spread=0.6)
    oracle = scoringrules.crps_ensemble(truth.numpy(), ensemble.numpy(), m_axis=1, estimator="fair")
    assert crps(ensemble, truth).item() == pytest.approx(oracle.mean(), rel=1e-12)
    np.testing.assert_allclose(crps(ensemble, truth, per_frame=True).numpy(), oracle.mean((0, 2, 3)), rtol=1e-12)


def test_crps_of_one_member_is_the_mean_absolute_error():
    ensemble, truth = gaussian(3, 4, 5, 1, members=1)
    assert crps(ensemble, truth).item() == pytest.approx((ensemble[:, 0] - truth).abs().mean().item())


def test_crps_of_equal_members_is_the_mean_absolute_error():
    ensemble, truth = gaussian(3, 4, 5, 1, members=1)
    expected = (ensemble[:, 0] - truth).abs().mean().item()
    assert crps(ensemble.expand(-1, 7, -1, -1, -1), truth).item() == pytest.approx(expected, rel=1e-12)


def test_fair_crps_does_not_depend_on_the_number_of_members():
    # For truth and members from N(0, 1) it is E|x - y| / 2 = 1 / sqrt(pi).
    for members in (2, 5, 32):
        ensemble, truth = gaussian(200, 1, 500, 1, members=members)
        assert crps(ensemble, truth).item() == pytest.approx(1 / sqrt(np.pi), rel=0.02)


def test_crps_survives_a_large_offset():
    ensemble, truth = gaussian(2, 3, 50, 1, members=8)
    assert crps(ensemble + 1e6, truth + 1e6).item() == pytest.approx(crps(ensemble, truth).item(), rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("members", [2, 16])
def test_rmsce_is_that_of_uncertainty_toolbox(members, spread):
    calibration = pytest.importorskip("uncertainty_toolbox.metrics_calibration")
    ensemble, truth = gaussian(2, 3, 101, 2, members=members, spread=spread)

    def oracle(ensemble, truth):
        mean, std = ensemble.mean(1), ensemble.std(1, correction=1)
        return calibration.root_mean_squared_calibration_error(
            mean.flatten().numpy(), std.flatten().numpy(), truth.flatten().numpy(), num_bins=100
        )

    assert rmsce(ensemble, truth).item() == pytest.approx(oracle(ensemble, truth), rel=1e-12)
    frames = [oracle(frame(ensemble, t, members=True), frame(truth, t, members=False)) for t in range(3)]
    assert rmsce(ensemble, truth, per_frame=True).tolist() == pytest.approx(frames, rel=1e-12)


def test_rmsce_where_all_members_agree():
    levels = np.linspace(0, 1, 100)
    # The sum of three equal numbers, divided by three, need not be the number.
    truth = torch.rand(1, 1, 1000, 1, dtype=torch.float64)
    agree = truth[:, None].expand(-1, 3, -1, -1, -1)
    # A truth that agrees too lies in every interval; one that does not, only in the unbounded one.
    assert rmsce(agree, truth).item() == pytest.approx(np.sqrt(((1 - levels) ** 2).mean()), rel=1e-12)
    outside = np.sqrt((levels[:-1] ** 2).sum() / 100)
    assert rmsce(agree, truth + 1).item() == pytest.approx(outside, rel=1e-12)
    assert spread_skill(agree, truth + 1).item() == 0.0


@pytest.mark.parametrize("members", [2, 3, 9, 64])
def test_an_exchangeable_ensemble_is_calibrated(members):
    # 60,000 points.
    ensemble, truth = gaussian(50, 2, 600, 1, members=members, dtype=torch.float32, seed=members)
    assert spread_skill(ensemble, truth).item() == pytest.approx(1.0, abs=0.01)
    assert rmsce_rank(ensemble, truth).item() < 0.005
    histogram = rank_histogram(ensemble, truth)
    # Five standard errors of each bin.
    flat = 1 / (members + 1)
    assert (histogram - flat).abs().max() < 5 * sqrt(flat / truth.numel())
    assert histogram.sum().item() == pytest.approx(1.0, rel=1e-12)


def test_a_gaussian_from_many_members_is_calibrated_and_from_few_is_not():
    many, few = (rmsce(*gaussian(50, 2, 600, 1, members=members)).item() for members in (64, 4))
    assert many < 0.01 < few


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_a_wrong_spread_shows(spread):
    ensemble, truth = gaussian(50, 2, 500, 1, members=16, spread=spread)
    # The mean's error is the truth's deviation and a sixteenth of the members' variance.
    expected = spread * sqrt(17 / 16) / sqrt(1 + spread**2 / 16)
    assert (expected < 0.6) if spread < 1 else (expected > 1.7)
    assert spread_skill(ensemble, truth).item() == pytest.approx(expected, rel=0.01)
    assert rmsce_rank(ensemble, truth).item() > 0.1
    histogram = rank_histogram(ensemble, truth)
    edges, middle = histogram[[0, -1]].mean(), histogram[7:10].mean()
    assert edges > 3 * middle if spread < 1 else middle > 3 * edges


def test_rank_histogram_by_hand_with_ties():
    members = torch.tensor([1.0, 2.0, 2.0]).reshape(1, 3, 1, 1, 1)

    def ranks(value):
        return rank_histogram(members, torch.full((1, 1, 1, 1), value)).tolist()

    assert ranks(0.0) == [1.0, 0.0, 0.0, 0.0]
    assert ranks(1.0) == [0.5, 0.5, 0.0, 0.0]
    assert ranks(1.5) == [0.0, 1.0, 0.0, 0.0]
    assert ranks(2.0) == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3], rel=1e-15)
    assert ranks(3.0) == [0.0, 0.0, 0.0, 1.0]


def test_rmsce_rank_by_hand():
    members = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1, 1, 1)
    levels = np.linspace(0, 1, 100)
    # Rank 1 of 0..2: a position uniform on [1/3, 2/3], all inside the central interval from p = 1/3 on.
    middle = np.minimum(3 * levels, 1)
    # Rank 2: uniform on [2/3, 1], reached from p = 1/3 on.
    above = np.maximum(0, (3 * levels - 1) / 2)
    for value, coverage in ((0.0, middle), (5.0, above), (-5.0, above)):
        expected = np.sqrt(((coverage - levels) ** 2).mean())
        assert rmsce_rank(members, torch.full((1, 1, 1, 1), value)).item() == pytest.approx(expected, rel=1e-12)


def test_rmsce_rank_is_the_average_over_randomly_broken_ties():
    # Fields on a coarse grid of values: most points have ties.
    ensemble, truth = (field.mul(0.4).round() for field in gaussian(4, 1, 1000, 1, members=5))
    tied = (ensemble == truth[:, None]).sum(1)
    assert (tied > 1).float().mean() > 0.2
    rng = np.random.default_rng(1)
    below = (ensemble < truth[:, None]).sum(1).numpy()
    levels = np.linspace(0, 1, 100)
    draws = 50
    coverage = np.zeros(100)
    for _ in range(draws):
        rank = below + np.floor(rng.random(below.shape) * (tied.numpy() + 1))
        position = (rank + rng.random(below.shape)) / 6
        coverage += (np.abs(position.flatten()[:, None] - 0.5) <= levels / 2).mean(0) / draws
    expected = np.sqrt(((coverage - levels) ** 2).mean())
    assert rmsce_rank(ensemble, truth).item() == pytest.approx(expected, abs=2e-3)


def test_spread_skill_by_hand():
    # Variance 2, mean error 1, two members: sqrt(3/2 * 2 / 1).
    ensemble = torch.tensor([0.0, 2.0]).reshape(1, 2, 1, 1, 1)
    assert spread_skill(ensemble, torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(sqrt(3.0), rel=1e-12)


@pytest.mark.parametrize("score", [rmsce, rmsce_rank, rank_histogram, spread_skill])
def test_per_frame_is_the_score_of_that_frame(score):
    ensemble, truth = gaussian(3, 4, 20, 2, members=6, spread=0.7)
    frames = score(ensemble, truth, per_frame=True)
    for t in range(4):
        alone = score(frame(ensemble, t, members=True), frame(truth, t, members=False))
        torch.testing.assert_close(frames[t], alone, rtol=1e-12, atol=0)


def test_scores_agree_with_the_single_functions():
    ensemble, truth = gaussian(4, 5, 6, 7, 2, members=9, spread=0.8)
    scores = Scores()
    scores.update(ensemble, truth)
    result = scores.result()
    names = {"rel_l2", *QUANTILES, *OTHERS, *CALIBRATED}
    assert set(result) == {*names, "num_members", "num_trajectories", "per_frame"}
    assert set(result["per_frame"]) == {"rel_l2", *OTHERS}
    assert (result["num_members"], result["num_trajectories"]) == (9, 4)
    for name, function in (
        ("crps", crps),
        ("rmsce", rmsce),
        ("rmsce_rank", rmsce_rank),
        ("spread_skill", spread_skill),
    ):
        assert result[name] == pytest.approx(function(ensemble, truth).item(), rel=1e-12)
        expected = function(ensemble, truth, per_frame=True).tolist()
        assert result["per_frame"][name] == pytest.approx(expected, rel=1e-12)

    mean = ensemble.mean(1)
    errors = relative_l2(mean, truth).numpy()
    assert [result[name] for name in QUANTILES] == pytest.approx(np.quantile(errors, [0.5, 0.9]).tolist(), rel=1e-12)
    assert result["rel_l2"] == pytest.approx(relative_l2(mean, truth).mean().item(), rel=1e-12)
    assert result["per_frame"]["rel_l2"] == pytest.approx(
        relative_l2(mean, truth, per_frame=True).mean(0).tolist(), rel=1e-12
    )
    singles = torch.stack([relative_l2(ensemble[:, k], truth) for k in range(9)])
    assert result["rel_l2_member"] == pytest.approx(singles.mean().item(), rel=1e-12)
    frames = torch.stack([relative_l2(ensemble[:, k], truth, per_frame=True) for k in range(9)])
    assert result["per_frame"]["rel_l2_member"] == pytest.approx(frames.mean((0, 1)).tolist(), rel=1e-12)
    assert result["spread"] == pytest.approx(ensemble.var(1).mean().sqrt().item(), rel=1e-12)
    assert result["rmse"] == pytest.approx((mean - truth).square().mean().sqrt().item(), rel=1e-12)
    torch.testing.assert_close(scores.rank_histogram(), rank_histogram(ensemble, truth), rtol=1e-12, atol=0)
    levels, coverage = scores.reliability()
    assert (levels - coverage).square().mean().sqrt().item() == pytest.approx(result["rmsce"], rel=1e-12)
    json.dumps(result, allow_nan=False)


def test_relative_crps_is_in_units_of_what_was_observed():
    ensemble, truth = gaussian(3, 2, 8, 1, members=4)
    observed = torch.tensor([1.0, 10.0, 0.1]).double()[:, None, None, None] * gaussian(3, 5, 8, 1, members=1)[1]
    scores = Scores()
    scores.update(ensemble, truth, observed)
    rms = observed.square().mean((1, 2, 3)).sqrt()
    each = [crps(ensemble[b : b + 1], truth[b : b + 1], per_frame=True) / rms[b] for b in range(3)]
    result = scores.result()
    assert result["crps_relative"] == pytest.approx(torch.stack(each).mean().item(), rel=1e-12)
    assert result["per_frame"]["crps_relative"] == pytest.approx(torch.stack(each).mean(0).tolist(), rel=1e-12)
    # In another unit it is the same, and it needs no more than an observation that is not zero.
    scaled = Scores()
    scaled.update(280 * ensemble, 280 * truth, 280 * observed)
    assert scaled.result()["crps_relative"] == pytest.approx(result["crps_relative"], rel=1e-12)
    own = Scores()
    own.update(ensemble, truth)
    expected = [crps(ensemble[b : b + 1], truth[b : b + 1]) / truth[b].square().mean().sqrt() for b in range(3)]
    assert own.result()["crps_relative"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-12)
    nothing = Scores()
    nothing.update(ensemble, truth, 0 * observed)
    assert nothing.result()["crps_relative"] is None
    with pytest.raises(EnmaError, match="observed"):
        nothing.update(ensemble, truth, observed[:2])
    assert nothing.num_trajectories == 3


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [5, 1, 1]], ids=str)
def test_any_partition_into_batches_gives_the_same_bits(sizes):
    ensemble, truth = gaussian(7, 3, 17, 1, members=5, dtype=torch.float32)
    observed = truth[:, :2] + 0.5
    whole, parts = Scores(), Scores()
    whole.update(ensemble, truth, observed)
    for members, fields, seen in zip(ensemble.split(sizes), truth.split(sizes), observed.split(sizes), strict=True):
        parts.update(members, fields, seen)
    assert parts.result() == whole.result()


def test_merged_parts_give_the_result_of_the_whole():
    ensemble, truth = gaussian(7, 3, 17, 1, members=5)
    whole, merged = Scores(), Scores()
    whole.update(ensemble, truth)
    for rows in (slice(4, 7), slice(0, 0), slice(0, 4)):
        part = Scores()
        if rows.stop > rows.start:
            part.update(ensemble[rows], truth[rows])
        merged.merge(part)
    assert_same(merged.result(), whole.result())


def test_merging_leaves_the_other_as_it_was():
    ensemble, truth = gaussian(4, 2, 8, 1, members=3)
    first, second = Scores(), Scores()
    second.update(ensemble[:2], truth[:2])
    before = second.result()
    first.merge(second)
    first.update(ensemble[2:], truth[2:])
    assert second.result() == before
    assert first.num_trajectories == 4


def test_grids_of_different_size_pool_their_points():
    small, large = gaussian(1, 2, 5, 1, members=4), gaussian(1, 2, 20, 1, members=4, seed=1)
    scores = Scores()
    scores.update(*small)
    scores.update(*large)
    expected = (5 * crps(*small) + 20 * crps(*large)).item() / 25
    assert scores.result()["crps"] == pytest.approx(expected, rel=1e-12)


def test_numpy_and_torch_give_the_same():
    ensemble, truth = gaussian(2, 3, 8, 1, members=4, dtype=torch.float32)
    first, second = Scores(), Scores()
    first.update(ensemble, truth)
    second.update(ensemble.numpy(), truth.numpy())
    assert first.result() == second.result()


def test_one_member_has_errors_but_no_spread():
    ensemble, truth = gaussian(3, 2, 8, 1, members=1)
    scores = Scores()
    scores.update(ensemble, truth)
    result = scores.result()
    assert [result[name] for name in CALIBRATED] == [None, None]
    for name in NEEDS_SPREAD:
        assert result[name] is None
        assert result["per_frame"][name] == [None, None]
    assert result["rel_l2"] == result["rel_l2_member"]
    assert result["rel_l2"] == pytest.approx(relative_l2(ensemble[:, 0], truth).mean().item(), rel=1e-12)
    assert result["crps"] == pytest.approx((ensemble[:, 0] - truth).abs().mean().item(), rel=1e-12)
    json.dumps(result, allow_nan=False)


def test_a_perfect_forecast():
    truth = gaussian(2, 3, 8, 1, members=1)[1]
    scores = Scores()
    scores.update(truth[:, None].expand(-1, 3, -1, -1, -1), truth)
    result = scores.result()
    for name in ("rel_l2", "rel_l2_member", "crps", "spread", "rmse"):
        assert result[name] == pytest.approx(0.0, abs=1e-15)
    assert result["spread_skill"] is None
    # The truth is tied with all members: nothing speaks against calibration.
    assert result["rmsce_rank"] == pytest.approx(0.0, abs=1e-12)


def test_a_zero_frame_has_no_relative_error_and_spoils_nothing_else():
    ensemble, truth = gaussian(2, 3, 8, 1, members=4)
    truth[1, 0] = 0.0
    scores = Scores()
    scores.update(ensemble, truth)
    result = scores.result()
    assert result["per_frame"]["rel_l2"][0] is None
    assert result["per_frame"]["rel_l2"][1] > 0
    assert result["rel_l2"] == pytest.approx(relative_l2(ensemble.mean(1), truth).mean().item(), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["ensemble", "truth"])
def test_values_that_are_not_finite_are_refused_and_nothing_is_added(which, value):
    ensemble, truth = gaussian(3, 2, 8, 1, members=4)
    scores = Scores()
    scores.update(ensemble, truth)
    before = scores.result()
    broken = {"ensemble": ensemble.clone(), "truth": truth.clone()}
    broken[which][2, 1, 1, 0] = value
    with pytest.raises(EnmaError, match=rf"^{which} holds"):
        scores.update(**broken)
    assert scores.result() == before
    for function in (crps, rmsce, rmsce_rank, rank_histogram, spread_skill):
        with pytest.raises(EnmaError, match=f"{which} holds"):
            function(**broken)
    if which == "truth":
        with pytest.raises(EnmaError, match="truth holds"):
            relative_l2(ensemble[:, 0], broken["truth"])


@pytest.mark.parametrize("function", [rmsce, rmsce_rank, rank_histogram, spread_skill])
def test_calibration_of_one_member_is_refused(function):
    with pytest.raises(EnmaError, match="at least 2"):
        function(*gaussian(2, 2, 8, 1, members=1))


@pytest.mark.parametrize(
    ("ensemble", "truth"),
    [
        ((2, 4, 3, 8, 1), (2, 3, 9, 1)),
        ((2, 4, 3, 8, 1), (2, 4, 8, 1)),
        ((2, 3, 8, 1), (2, 3, 8, 1)),
        ((2, 4, 3), (2, 3)),
        ((0, 4, 3, 8, 1), (0, 3, 8, 1)),
        ((2, 0, 3, 8, 1), (2, 3, 8, 1)),
        ((2, 4, 0, 8, 1), (2, 0, 8, 1)),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused_by_name(ensemble, truth):
    scores = Scores()
    with pytest.raises(EnmaError, match="ensemble"):
        scores.update(torch.ones(ensemble), torch.ones(truth))
    assert scores.num_trajectories == 0


def test_relative_l2_refuses_what_it_cannot_score():
    truth = torch.ones(3, 2, 4, 1)
    with pytest.raises(EnmaError, match="pred"):
        relative_l2(torch.ones(3, 2, 5, 1), truth)
    truth[1] = 0.0
    with pytest.raises(EnmaError, match="trajectory 1"):
        relative_l2(torch.ones_like(truth), truth)


def test_other_numbers_of_members_or_frames_are_refused():
    scores, other = Scores(), Scores()
    scores.update(*gaussian(2, 3, 8, 1, members=4))
    before = scores.result()
    with pytest.raises(EnmaError, match="members"):
        scores.update(*gaussian(2, 3, 8, 1, members=5))
    other.update(*gaussian(2, 6, 8, 1, members=4))
    with pytest.raises(EnmaError, match="members"):
        scores.merge(other)
    assert scores.result() == before


def test_a_result_of_nothing_is_refused():
    for ask in (Scores().result, Scores().rank_histogram, Scores().reliability):
        with pytest.raises(EnmaError, match="no trajectory"):
            ask()
