"""Optimal interpolation: what it must equal in closed form, draws that are as far from the truth as they say."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.data import read, shipped_file
from enma_fast.errors import EnmaError
from enma_fast.forecasting import analysis, encoding
from enma_fast.forecasting.analysis import HISTORY, Draw
from enma_fast.forecasting.api import forecast
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.members import sample_fields, stream_members
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import load_model
from enma_fast.models.covariance import FieldCovariance
from enma_fast.models.interpolation import grid_points
from enma_fast.models.model import Model

from .._covariance import GRIDS, covariance_on, points_of
from .._extension import ISAS, needs_native
from .._tiny import distance, model, waves, waves_file

ROOT = Path(__file__).parents[2]
BACKENDS = [pytest.param("reference"), pytest.param("native", marks=needs_native)]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this file by both implementations."""
    monkeypatch.setattr(analysis, "analyse", partial(OURS, backend=request.param))
    monkeypatch.setattr(encoding, "analyse", analysis.analyse)


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


@pytest.fixture(scope="module", params=["relative", "plane", "line-local"])
def reading_grids(request) -> Model:
    made = model(request.param)
    tok = made.config.tokenizer
    made.covariance = FieldCovariance.of(waves(6, 2, 8, tok).numpy(), lengths=tok.lengths, periodic=tok.periodic)
    return made


def at_points(made: Model, fields: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Values of `[B, L, *x, c]` at so many grid points of each frame, and the points."""
    grid, flat = grid_points(made.config.tokenizer), fields.flatten(2, -2)
    where = torch.rand(flat.shape[:3], generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :count]
    return {"history": flat.gather(2, where[..., None].expand(-1, -1, -1, flat.shape[-1])), "points": grid[where]}


def test_forecasts_from_enough_points_are_those_from_the_grid(reading_grids):
    """The fields hold one wave, which a quarter of the points give."""
    tok = reading_grids.config.tokenizer
    fields = waves(2, 1, 3, tok)
    given = at_points(reading_grids, fields, math.prod(tok.grid) // 4)
    found = sample_fields(reading_grids, **given, num_members=3)
    assert distance(found, sample_fields(reading_grids, fields, num_members=3)) < 2e-2


@pytest.mark.parametrize("context", [False, True])
def test_a_member_depends_on_its_own_numbers_only(reading_grids, context):
    tok = reading_grids.config.tokenizer
    fields = waves(2, 2, 8, tok)
    frames = 1 if context else 3
    given = at_points(reading_grids, fields[::2, :frames], 5)
    if context:
        other = at_points(reading_grids, fields[1::2], 6)
        given |= {"context": other["history"], "context_points": other["points"]}
    whole = sample_fields(reading_grids, **given, num_members=20)
    assert whole.isfinite().all()
    assert distance(whole[:, 0], whole[:, 16]) > 1e-4, "the same field, other noise"
    one = {name: x[1:] for name, x in given.items()}
    for member in (0, 3, 17):
        alone = sample_fields(reading_grids, **one, num_members=1, first_member=member, trajectories=[1])
        assert torch.equal(alone[0, 0], whole[1, member])
    # One context for both trajectories is that of each.
    if context:
        shared = given | {"context": given["context"][:1], "context_points": given["context_points"][:1]}
        both = sample_fields(reading_grids, **shared, num_members=2)
        each = {"context": given["context"][:1].expand(2, *given["context"].shape[1:])}
        each |= {"context_points": given["context_points"][:1].expand(2, *given["context_points"].shape[1:])}
        assert torch.equal(both, sample_fields(reading_grids, **(given | each), num_members=2))


@pytest.mark.parametrize("shifts", [None, 3])
def test_queries(reading_grids, shifts):
    """On the grid its values; between its points those of the waves that meet it, of all frames, streamed or not."""
    made, tok = reading_grids, reading_grids.config.tokenizer
    settings = replace(made.config.sampling, shifts=shifts)
    given = {"history": waves(2, 1, 3, tok), "num_members": 4, "settings": settings}
    whole = sample_fields(made, **given)
    grid = grid_points(tok)
    found = sample_fields(made, **given, query=grid)
    assert distance(found, whole.flatten(3, -2)) < 1e-5
    query = torch.rand(5, tok.dims, generator=torch.Generator().manual_seed(1)) * torch.tensor(tok.lengths)
    between = sample_fields(made, **given, query=query)
    assert tuple(between.shape) == (*whole.shape[:3], 5, tok.field_channels)
    if tok.dims == 1:
        # Trigonometric interpolation, written as a sum over the points of the ring (Dirichlet's kernel).
        apart = (query - grid.T)[..., None].double() * math.pi / tok.lengths[0]
        n = tok.grid[0]
        kernel = (torch.sin(n * apart) / torch.tan(apart) / n)[..., 0]
        expected = torch.einsum("qx,...xc->...qc", kernel, whole.double())
        torch.testing.assert_close(between.double(), expected, rtol=1e-4, atol=1e-4)
    streamed = torch.stack(
        list(stream_members(made, ForecastRequest(num_members=4, settings=settings), given["history"], query=query)), 2
    )
    assert distance(streamed, between) < 1e-5
    alone = sample_fields(
        made, given["history"][1:], num_members=1, first_member=3, settings=settings, query=query, trajectories=[1]
    )
    assert torch.equal(alone[0, 0], between[1, 3])


def test_threads_do_not_change_a_bit(reading_grids):
    given = at_points(reading_grids, waves(4, 1, 3, reading_grids.config.tokenizer), 7)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(sample_fields(reading_grids, **given, num_members=3))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"points": None, "observation_error": 0.1}, "observation_error: is that of values at scattered points"),
        ({"observation_error": -1.0}, r"observation_error is -1.0; numbers of at least 0 are expected"),
        ({"observation_error": math.inf}, r"observation_error is inf; numbers of at least 0 are expected"),
        ({"observation_error": [0.1] * 3}, "observation_error has 3 numbers; give one"),
        ({"observation_error": "12"}, "observation_error is '12'; a number, or one for each channel, is expected"),
    ],
)
def test_bad_errors_are_named(reading_grids, arguments, said):
    fields = waves(1, 1, 3, reading_grids.config.tokenizer)
    given = at_points(reading_grids, fields, 5) | arguments
    if given["points"] is None:
        given["history"] = fields
    with pytest.raises(EnmaError, match=f"^{said}"):
        forecast(reading_grids, **given)


def test_errors_of_any_kind(reading_grids):
    fields = waves(1, 1, 3, reading_grids.config.tokenizer)
    given = at_points(reading_grids, fields, 5) | {"num_members": 2}
    expected = forecast(reading_grids, **given, observation_error=0.25).values
    for error in (np.float32(0.25), np.array(0.25), np.array([0.25]), torch.tensor(0.25), [0.25], iter([0.25])):
        assert torch.equal(forecast(reading_grids, **given, observation_error=error).values, expected)
    hash(ForecastRequest(observation_error=[0.1]))


def test_all_points_of_the_grid(reading_grids):
    """Without an error they are the grid; with one they are estimated from."""
    tok = reading_grids.config.tokenizer
    data = waves_file(reading_grids.config, waves(1, 2, 8, tok))
    points = math.prod(tok.grid)
    whole = FileForecast(reading_grids, data, ForecastRequest(num_members=2))
    every = FileForecast(reading_grids, data, ForecastRequest(num_members=2, points=points))
    noisy = FileForecast(reading_grids, data, ForecastRequest(num_members=2, points=points, observation_error=0.5))
    for forecasts in (whole, every, noisy):
        forecasts.check()
    expected = whole.sample(whole.request)
    assert torch.equal(every.sample(every.request), expected)
    assert distance(noisy.sample(noisy.request), expected) > 1e-4


def test_an_error_is_none_of_a_model_with_an_interpolation():
    made = model("points")
    given = at_points(made, waves(1, 1, 3, made.config.tokenizer), 5)
    with pytest.raises(EnmaError, match=r"^observation_error: .* for a model without an interpolation; leave it out"):
        forecast(made, **given, observation_error=0.1)
    assert forecast(made, **given, observation_error=0.0, num_members=1).values.isfinite().all()


@pytest.mark.parametrize("seen", [64, 26])
def test_shipped_models_forecast_from_few_points(seen):
    """Fields of these equations hold few waves: a fifth of the points gives the forecast of the whole grid."""
    for equation in ("combined", "advection"):
        made, data = load_model(f"{equation}-fast"), read(shipped_file(equation, "test-in"))
        truth = torch.from_numpy(data.u[::4])
        given = at_points(made, truth[:, :3], seen)
        errors = []
        for arguments in ({"history": truth[:, :3]}, given):
            mean = enma_fast.forecast(made, **arguments, num_members=16).values.mean(1)
            off = (mean - truth[:, 3 : 3 + mean.shape[1]]).flatten(1).norm(dim=1)
            errors.append((off / truth[:, 3 : 3 + mean.shape[1]].flatten(1).norm(dim=1)).mean().item())
        assert errors[1] < 1.1 * errors[0]


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


def test_values_that_are_no_such_fields_are_told(caplog):
    made, data = load_model("combined-fast"), read(shipped_file("combined", "test-in"))
    given = at_points(made, torch.from_numpy(data.u[:4, :3]), 40)
    forecast(made, **given, num_members=1)
    assert not caplog.text
    noise = 0.02 * torch.randn(given["history"].shape, generator=torch.Generator().manual_seed(1))
    noisy = given | {"history": given["history"] + noise}
    forecast(made, **noisy, num_members=1)
    assert (
        "history: the values of 4 of 4 trajectories are no fields such as combined-fast was trained on" in caplog.text
    )
    caplog.clear()
    forecast(made, **noisy, num_members=1, observation_error=0.02)
    assert not caplog.text
    sample_fields(made, **noisy, num_members=1, warn=False)
    assert not caplog.text
    with pytest.raises(EnmaError, match=r"^history: the values of .* give the error that the values have"):
        forecast(made, **noisy, num_members=1, strict=True)
    with pytest.raises(EnmaError, match="no field of finite values fits the values; check their unit"):
        forecast(made, **given | {"history": 3e38 * given["history"].sign()}, num_members=1)


def test_readings_with_errors_are_followed_less():
    """Told of it, members are calibrated: without, they believe the noise."""
    made, data = load_model("combined-fast"), read(shipped_file("combined", "test-in"))
    truth = torch.from_numpy(data.u)
    given = at_points(made, truth[:, :3], 40)
    noise = 0.02 * torch.randn(given["history"].shape, generator=torch.Generator().manual_seed(1))
    given["history"] = given["history"] + noise
    ratios, errors = [], []
    for error in (0.0, 0.02):
        found = enma_fast.forecast(made, **given, num_members=16, observation_error=error).values
        off = found.mean(1) - truth[:, 3 : 3 + found.shape[2]]
        errors.append(off.square().mean().sqrt().item())
        ratios.append(((17 / 16 * found.var(1).mean()) / off.square().mean()).sqrt().item())
    assert errors[1] < errors[0]
    assert ratios[0] < 0.75
    assert 0.75 < ratios[1] < 1.35
    np.testing.assert_array_less(0, errors)
