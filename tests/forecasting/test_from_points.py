"""Forecasts from scattered points of models that read grids, by both implementations of optimal interpolation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.data import read, shipped_file
from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.members import sample_fields, stream_members
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import load_model
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.covariance import FieldCovariance
from enma_fast.models.model import Model

from .._tiny import distance, model, waves, waves_file

pytestmark = pytest.mark.usefixtures("analysis_backend")


@pytest.fixture(scope="module", params=["relative", "plane", "line-local"])
def reading_grids(request) -> Model:
    made = model(request.param)
    tok = made.config.codec
    made.covariance = FieldCovariance.of(waves(6, 2, 8, tok).numpy(), lengths=tok.lengths, periodic=tok.periodic)
    return made


def at_points(made: Model, fields: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Values of `[B, L, *x, c]` at so many grid points of each frame, and the points."""
    grid, flat = grid_points(made.config.codec), fields.flatten(2, -2)
    where = torch.rand(flat.shape[:3], generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :count]
    return {"history": flat.gather(2, where[..., None].expand(-1, -1, -1, flat.shape[-1])), "points": grid[where]}


def test_forecasts_from_enough_points_are_those_from_the_grid(reading_grids):
    """The fields hold one wave, which a quarter of the points give."""
    tok = reading_grids.config.codec
    fields = waves(2, 1, 3, tok)
    given = at_points(reading_grids, fields, math.prod(tok.grid) // 4)
    found = sample_fields(reading_grids, **given, num_members=3)
    assert distance(found, sample_fields(reading_grids, fields, num_members=3)) < 2e-2


@pytest.mark.parametrize("context", [False, True])
def test_a_member_depends_on_its_own_numbers_only(reading_grids, context):
    tok = reading_grids.config.codec
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
    made, tok = reading_grids, reading_grids.config.codec
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
    request = ForecastRequest.of_arrays(given["history"], num_members=4, settings=settings, query=query)
    streamed = torch.stack(list(stream_members(made, request)), 2)
    assert distance(streamed, between) < 1e-5
    alone = sample_fields(
        made, given["history"][1:], num_members=1, first_member=3, settings=settings, query=query, trajectories=[1]
    )
    assert torch.equal(alone[0, 0], between[1, 3])


def test_threads_do_not_change_a_bit(reading_grids):
    given = at_points(reading_grids, waves(4, 1, 3, reading_grids.config.codec), 7)
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
    fields = waves(1, 1, 3, reading_grids.config.codec)
    given = at_points(reading_grids, fields, 5) | arguments
    if given["points"] is None:
        given["history"] = fields
    with pytest.raises(EnmaError, match=f"^{said}"):
        forecast(reading_grids, **given)


def test_errors_of_any_kind(reading_grids):
    fields = waves(1, 1, 3, reading_grids.config.codec)
    given = at_points(reading_grids, fields, 5) | {"num_members": 2}
    expected = forecast(reading_grids, **given, observation_error=0.25).values
    for error in (np.float32(0.25), np.array(0.25), np.array([0.25]), torch.tensor(0.25), [0.25], iter([0.25])):
        assert torch.equal(forecast(reading_grids, **given, observation_error=error).values, expected)
    hash(ForecastRequest(observation_error=[0.1]))


def test_all_points_of_the_grid(reading_grids):
    """Without an error they are the grid; with one they are estimated from."""
    tok = reading_grids.config.codec
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
    given = at_points(made, waves(1, 1, 3, made.config.codec), 5)
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
