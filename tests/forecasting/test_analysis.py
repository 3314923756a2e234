"""Optimal interpolation: what it must equal in closed form, draws that are as far from the truth as they say."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from enma_fast.forecasting import analysis
from enma_fast.forecasting.analysis import HISTORY, Draw
from enma_fast.models.covariance import FieldCovariance

from .._covariance import GRIDS, covariance_on, points_of
from .._extension import ISAS, needs_native
from .._tiny import distance

pytestmark = pytest.mark.usefixtures("analysis_backend")

ROOT = Path(__file__).parents[2]
OURS = analysis.analyse


def analyse(*arguments, **options) -> torch.Tensor:
    """The fields alone."""
    return analysis.analyse(*arguments, **options)[0]


def drawn_fields(covariance: FieldCovariance, count: int, frames: int, seed: int = 0) -> torch.Tensor:
    """Fields `[count, frames, *x, c]` with these statistics in space and time."""
    generator = torch.Generator().manual_seed(seed)
    power, correlation = covariance.by_wave
    apart = torch.arange(frames)[:, None] - torch.arange(frames)
    root = torch.linalg.cholesky(correlation[..., None, None] ** (apart**2) + 1e-9 * torch.eye(frames).double())
    normals = torch.randn(count, frames, *power.shape, generator=generator, dtype=torch.float64)
    amplitudes = torch.einsum("mctl,blmc->btmc", root, normals) * power.sqrt()
    return torch.stack([covariance.on_grid(amplitudes[..., c]) for c in range(covariance.channels)], -1)


def some_points(name: str, frames: int, count: int, seed: int = 0) -> torch.Tensor:
    """Numbers of grid points `[frames, count]`, others in each frame."""
    total = len(points_of(name))
    return torch.rand(frames, total, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :count]


def covariance_between(covariance: FieldCovariance, one, other, apart: int) -> torch.Tensor:
    """Covariance of channel 0 at points `[P, d]` and `[Q, d]` so many frames apart, by the sum over all waves."""
    power, correlation = (x[:, 0] for x in covariance.by_wave)
    return torch.einsum(
        "pm,qm,m->pq", covariance.waves(one), covariance.waves(other), power * correlation ** (apart**2)
    )


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("error", [0.0, 0.3])
def test_the_analysis_is_the_conditional_mean(name, error):
    """Of a Gaussian field in space and time, by its formula over the observations of all three frames at once."""
    covariance = covariance_on(name)
    covariance = replace(covariance, mean=covariance.mean + 2)
    grid, where = points_of(name), some_points(name, 3, 3)
    field = drawn_fields(covariance, 1, 3)[0] + 2
    values = field.flatten(1, -2).gather(1, where[..., None]) + error * torch.randn(3, 3, 1).double()
    found = analyse(covariance, values, grid[where], errors=(error,) if error else ())
    between = torch.cat(
        [torch.cat([covariance_between(covariance, grid[a], grid[b], s - t) for t, b in enumerate(where)], 1)
         for s, a in enumerate(where)]
    )  # fmt: skip
    own = 1e-7 * covariance.by_wave[0].sum() + error**2
    weights = torch.linalg.solve(between + own * torch.eye(9), values.flatten() - 2)
    for t in range(3):
        to_grid = torch.cat([covariance_between(covariance, grid, grid[b], s - t) for s, b in enumerate(where)], 1)
        torch.testing.assert_close(found[0, t].flatten().double(), 2 + to_grid @ weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", GRIDS)
def test_frames_that_are_seen_at_the_same_points(name):
    """Each is estimated from its own values alone."""
    covariance = covariance_on(name)
    grid, (where,) = points_of(name), some_points(name, 1, 4)
    values = drawn_fields(covariance, 1, 4)[0].flatten(1, -2)[:, where]
    together = analyse(covariance, values, grid[where])
    for t in range(4):
        torch.testing.assert_close(together[:, t : t + 1], analyse(covariance, values[t : t + 1], grid[where]))
    # A single frame has no neighbour in time, however its points are given.
    alone = analyse(covariance, values[:1], grid[where][None])
    torch.testing.assert_close(alone, together[:, :1], rtol=0, atol=1e-5)


def test_neighbours_in_time_help_where_their_points_differ():
    covariance = covariance_on("plane")
    covariance = replace(covariance, correlation=torch.full_like(covariance.correlation, 0.98))
    fields, grid = drawn_fields(covariance, 40, 5), points_of("plane")
    errors = {"own": 0.0, "same": 0.0}
    for i, u in enumerate(fields):
        where = some_points("plane", 5, 12, seed=i)
        flat = u.flatten(1, -2)
        own = analyse(covariance, flat.gather(1, where[..., None]), grid[where])
        same = analyse(covariance, flat[:, where[0]], grid[where[0]])
        errors["own"] += (own[0] - u).square().mean().item()
        errors["same"] += (same[0] - u).square().mean().item()
    assert errors["own"] < 0.5 * errors["same"]


def test_too_many_observations_for_neighbours():
    covariance, generator = covariance_on("ring"), torch.Generator().manual_seed(0)
    points = 1.5 * torch.rand(4, 1100, 1, generator=generator, dtype=torch.float64)
    values = torch.sin(2 * math.pi / 1.5 * points + torch.arange(4)[:, None, None])
    found = analyse(covariance, values, points)
    for t in range(4):
        alone = analyse(covariance, values[t : t + 1], points[t])
        torch.testing.assert_close(found[:, t : t + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("count", "error"), [(3, 0.0), (6, 0.0), (6, 0.5)])
@pytest.mark.parametrize("own", [False, True])
def test_draws_are_as_far_from_the_truth_as_from_each_other(count, error, own):
    """Over many fields drawn from the statistics, at a single frame, where they are exact."""
    covariance = covariance_on("plane")
    fields, grid = drawn_fields(covariance, 300, 1), points_of("plane")
    generator = torch.Generator().manual_seed(3)
    spread, wrong = 0.0, 0.0
    for i, u in enumerate(fields):
        (where,) = some_points("plane", 1, count, seed=i)
        values = u.flatten(1, -2)[:, where]
        values = values + error * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        points = grid[where][None] if own else grid[where]
        draw = Draw(seed=i, numbers=torch.arange(4), step=HISTORY)
        made = analyse(covariance, values, points, draw, errors=(error,) if error else ())
        mean = analyse(covariance, values, points, errors=(error,) if error else ())
        spread += (made - mean).square().mean().item()
        wrong += (mean - u).square().mean().item()
    assert math.sqrt(spread / wrong) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("shared", [False, True])
def test_draws_of_frames_whose_values_have_errors(shared):
    """Errors differ between frames, so neighbours in time reduce them, and draws know by how much."""
    covariance, grid = covariance_on("plane"), points_of("plane")
    covariance = replace(covariance, correlation=torch.full_like(covariance.correlation, 1 - 1e-6))
    generator = torch.Generator().manual_seed(3)
    spread, wrong, alone = 0.0, 0.0, 0.0
    for i, u in enumerate(drawn_fields(covariance, 100, 3)):
        where = some_points("plane", 3, 12, seed=i)
        where = where[:1].expand(3, -1) if shared else where
        values = u.flatten(1, -2).gather(1, where[..., None])
        values = values + 3 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        points = grid[where[0]] if shared else grid[where]
        draw = Draw(seed=i, numbers=torch.arange(4), step=HISTORY)
        made = analyse(covariance, values, points, draw, errors=(3.0,))[:, 1]
        mean = analyse(covariance, values, points, errors=(3.0,))[:, 1]
        spread += (made - mean).square().mean().item()
        wrong += (mean - u[1]).square().mean().item()
        one = analyse(covariance, values[1:2], points if shared else points[1:2], errors=(3.0,))[:, 0]
        alone += (one - u[1]).square().mean().item()
    assert math.sqrt(spread / wrong) == pytest.approx(1, abs=0.12)
    assert wrong < 0.9 * alone


def test_one_reading_at_the_mean_leaves_the_rest_open():
    """Draws do not shrink to nothing with it."""
    covariance = covariance_on("plane")
    draw = Draw(seed=5, numbers=torch.arange(8), step=HISTORY)
    made = analyse(covariance, torch.zeros(1, 1, 1), points_of("plane")[:1], draw)
    assert made.std(0).mean() > 0.8 * covariance.by_wave[0].sum().sqrt()


def test_draws_fit_what_is_seen_and_their_size_follows_it():
    covariance, grid = covariance_on("plane", channels=2), points_of("plane")
    where = some_points("plane", 3, 10)
    values = drawn_fields(covariance, 1, 3)[0].flatten(1, -2).gather(1, where[..., None].expand(-1, -1, 2))
    draw = Draw(seed=5, numbers=torch.arange(3), step=HISTORY)
    made = analyse(covariance, values, grid[where], draw)
    seen = made.flatten(2, -2).gather(2, where[None, ..., None].expand(3, -1, -1, 2))
    torch.testing.assert_close(seen.double(), values.expand_as(seen), rtol=0, atol=0.02)
    assert (made[0] - made[1]).abs().max() > 0.1
    # Draws depend on their numbers alone, and on the seed.
    torch.testing.assert_close(
        analyse(covariance, values, grid[where], replace(draw, numbers=torch.tensor([2]))), made[2:]
    )
    assert distance(analyse(covariance, values, grid[where], replace(draw, seed=6)), made) > 0.01
    larger = analyse(covariance, 100 * values, grid[where], draw)
    # Of 30 observations; a few more would be as good as what the statistics say.
    assert 80 < (larger.std(0).mean() / made.std(0).mean()).item() < 100
    analysed = 100 * analyse(covariance, values, grid[where])
    torch.testing.assert_close(analyse(covariance, 100 * values, grid[where]), analysed, rtol=1e-4, atol=1e-3)


@needs_native
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("error", [0.0, 0.2])
@pytest.mark.parametrize("own", [False, True])
def test_both_implementations_agree(name, error, own):
    """Frames of up to 150 points, several blocks of the factorisation, in two channels."""
    covariance, generator = covariance_on(name, channels=2), torch.Generator().manual_seed(4)
    _, lengths, _ = GRIDS[name]
    points = (torch.rand(4, 150, len(lengths), generator=generator) * torch.tensor(lengths)).float()
    values = torch.randn(4, 150, 2, generator=generator)
    if own:
        points[1, 3:], points[2, 77:] = math.nan, math.nan
    else:
        points = points[0]
    errors = (error, 2 * error) if error else ()
    for draw in (None, Draw(seed=9, numbers=torch.tensor([0, 5, 16]), step=HISTORY)):
        (ours, size), (expected, known) = (
            OURS(covariance, values, points, draw, errors=errors, backend=name) for name in ("native", "reference")
        )
        assert ours.shape == expected.shape
        # Noise that is no field, without its error: amplitudes are sums of numbers that cancel.
        assert distance(ours, expected) < (1e-6 if error else 1e-4)
        assert size == pytest.approx(known, rel=1e-6)


@needs_native
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("last", [0, 1, 20])
def test_both_implementations_agree_where_short_waves_do_not_last(periodic, last):
    """So frames have fewer waves in common than one frame has, or none."""
    generator = torch.Generator().manual_seed(4)
    deviation = 1 / (1 + torch.arange(33 if periodic else 64))[:, None].double()
    correlation = 0.9 * (torch.arange(len(deviation)) < last)[:, None].double()
    covariance = FieldCovariance(torch.zeros(1).double(), deviation, correlation, (64,), (1.5,), (periodic,))
    points, values = 1.5 * torch.rand(4, 30, 1, generator=generator), torch.randn(4, 30, 1, generator=generator)
    ours, expected = (OURS(covariance, values, points, errors=(0.2,), backend=b)[0] for b in ("native", "reference"))
    assert distance(ours, expected) < 1e-6


@pytest.mark.slow
@needs_native
def test_bits_depend_on_no_instruction_set():
    program = """
import hashlib, torch
from enma_fast.forecasting.analysis import HISTORY, Draw, analyse
from tests._covariance import covariance_on
points = torch.rand(3, 90, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0])
values = torch.randn(3, 90, 2, generator=torch.Generator().manual_seed(1))
draw = Draw(seed=1, numbers=torch.arange(3), step=HISTORY)
made, _ = analyse(covariance_on("plane", channels=2), values, points, draw, errors=[0.1], backend="native")
print(hashlib.sha256(made.numpy().tobytes()).hexdigest())
"""
    found = set()
    for isa in {"scalar", "avx2", "avx512"} & set(ISAS):
        environment = os.environ | {"ENMA_ISA": isa, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_points_given_twice_and_frames_with_fewer_points():
    covariance, grid, where = covariance_on("ring"), points_of("ring"), some_points("ring", 3, 4)
    values = drawn_fields(covariance, 1, 3)[0].gather(1, where[..., None])
    points = grid[where]
    plain = analyse(covariance, values, points)
    twice = analyse(covariance, torch.cat([values, values], 1), torch.cat([points, points], 1))
    torch.testing.assert_close(twice, plain, rtol=0, atol=1e-3)
    fewer = torch.cat([points, torch.full_like(points, math.nan)], 1)
    torch.testing.assert_close(analyse(covariance, torch.cat([values, 0 * values + 1e9], 1), fewer), plain)


def test_a_channel_that_never_varies_is_its_mean():
    covariance = covariance_on("ring", channels=2)
    deviation = covariance.deviation.clone()
    deviation[..., 1] = 0
    covariance = replace(covariance, deviation=deviation, mean=torch.tensor([0.0, 7.0]).double())
    where = some_points("ring", 2, 3)
    values = torch.ones(2, 3, 2).double()
    draw = Draw(seed=0, numbers=torch.arange(2), step=HISTORY)
    made = analyse(covariance, values, points_of("ring")[where], draw)
    assert (made[..., 1] == 7).all()
    assert made.isfinite().all()


@pytest.mark.parametrize("name", GRIDS)
def test_the_size_of_observations(name):
    """That of fields with these statistics is about 1, with the error that is given too, and large of other fields."""
    covariance, grid = covariance_on(name), points_of(name)
    sizes = {0.0: [], 0.5: []}
    generator = torch.Generator().manual_seed(3)
    for i, u in enumerate(drawn_fields(covariance, 50, 1)):
        (where,) = some_points(name, 1, 4, seed=i)
        values = u.flatten(1, -2)[:, where]
        noise = 0.5 * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        given = {"errors": (0.5,)}
        sizes[0.0].append(analysis.analyse(covariance, values, grid[where])[1] ** 2)
        sizes[0.5].append(analysis.analyse(covariance, values + noise, grid[where], **given)[1] ** 2)
    for found in sizes.values():
        assert np.sqrt(np.mean(found)) == pytest.approx(1, abs=0.12)
    everywhere = torch.zeros(1, len(grid), 1).double()
    everywhere[0, ::2] = 1
    deviation = torch.zeros_like(covariance.deviation)
    deviation.view(-1)[0] = 1
    flat = replace(covariance, deviation=deviation)
    assert analysis.analyse(flat, everywhere, grid)[1] > 8, "no constant field"
