"""Observations at scattered points: others in each frame, fewer in some, moved by shifts, drawn from a file's grid."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.evaluation.scoring import score
from enma_fast.forecasting import encoding, members
from enma_fast.forecasting.api import forecast
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.members import sample_fields, stream_members
from enma_fast.forecasting.request import TASKS as NAMED
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.forecasting.scattered import drawn_places, moved, readings_for
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.envelope import Envelope
from enma_fast.sampling.shifts import View, views

from .._tiny import CONFIGS, SQUARE, between_walls, distance, model, random_model, waves, waves_file
from ._inputs import TASKS, inputs

NAN = float("nan")


@pytest.fixture(scope="module", params=["points", "plane-paper"])
def made(request):
    return model(request.param)


def grid_of(made):
    return grid_points(made.config.codec)


def scattered(made, fields, seed=0):
    """All grid points of each frame in an order of its own: values [B, L, P, c] and coordinates [B, L, P, d]."""
    flat = fields.flatten(2, -2)
    order = torch.rand(flat.shape[:3], generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return flat.gather(2, order[..., None].expand_as(flat)), grid_of(made)[order]


@pytest.mark.parametrize("shifts", [None, 3])
@pytest.mark.parametrize("task", TASKS)
def test_frames_with_points_of_their_own(made, task, shifts):
    """The whole grid, in another order in each frame, is the grid."""
    if shifts:
        made = random_model(replace(made.config, sampling=replace(made.config.sampling, shifts=shifts)))
    given = inputs(made, TASKS[task])
    expected = sample_fields(made, **given, num_members=4)
    history, points = (None, None) if given["history"] is None else scattered(made, given["history"])
    context, context_points = (None, None) if given["context"] is None else scattered(made, given["context"], seed=1)
    arguments = {"context": context, "context_points": context_points, "num_members": 4}
    points = context_points if points is None else points
    found = sample_fields(made, history, points=points, **arguments)
    assert distance(found, expected) < 1e-4
    streamed = stream_members(
        made,
        ForecastRequest.of_arrays(history, context, points=points, context_points=context_points, num_members=4),
    )
    assert distance(torch.stack(list(streamed), 2), found) < 1e-5
    # A trajectory does not see the points of another.
    one = {name: x if x is None or isinstance(x, int) else x[1:] for name, x in arguments.items()}
    alone = sample_fields(made, None if history is None else history[1:], points=points[1:], **one, trajectories=[1])
    assert torch.equal(alone[0], found[1])


def test_points_of_all_trajectories(made):
    history, points = scattered(made, inputs(made, TASKS["temporal"])["history"][:1])
    both = history.expand(2, *history.shape[1:]).contiguous()
    found = sample_fields(made, both, points=points[0].numpy(), num_members=2)
    assert torch.equal(found, sample_fields(made, both, points=points.expand(2, -1, -1, -1), num_members=2))
    assert torch.equal(found[0], sample_fields(made, history[0], points=points[0], num_members=2))


def test_a_frame_may_have_fewer_points_than_others(made):
    history, points = scattered(made, inputs(made, TASKS["temporal"])["history"])
    few = [points[:, :, :30].clone(), history[:, :, :30].clone()]
    few[0][:, 1, 11:], few[1][:, 1, 11:] = NAN, NAN
    found = sample_fields(made, few[1], points=few[0], num_members=2)
    assert found.isfinite().all()
    few[1][:, 1, 11:] = 1e30
    assert torch.equal(sample_fields(made, few[1], points=few[0], num_members=2), found)
    whole = sample_fields(made, history[:, :, :30], points=points[:, :, :30], num_members=2)
    assert distance(found, whole) > 1e-4


def test_fields_decoded_in_inference_mode_are_moved_back(monkeypatch):
    """As they are on a GPU, where they may not be written into afterwards."""
    config = replace(CONFIGS["relative"], sampling=replace(CONFIGS["relative"].sampling, shifts=3))
    made = random_model(config)
    given = inputs(made, TASKS["temporal"])
    expected = sample_fields(made, **given, num_members=4)
    monkeypatch.setattr(encoding, "native_codec", lambda tokenizer: None)
    monkeypatch.setattr(members, "map_rows", lambda function, rows, **_: torch.inference_mode()(function)(rows))
    assert distance(sample_fields(made, **given, num_members=4), expected) < 1e-5
    streamed = stream_members(made, ForecastRequest.of_arrays(**given, num_members=4))
    assert distance(torch.stack(list(streamed), 2), expected) < 1e-5


def test_a_moved_point_meets_the_grid_again():
    """The end of a ring is its beginning, whatever rounding makes of a sum."""
    for n, length in ((32, 2 * math.pi), (128, 2 * math.pi), (96, 0.7)):
        options = replace(CONFIGS["points"].codec, grid=(n,), lengths=(length,))
        grid = grid_points(options)
        for amount in range(n):
            torch.testing.assert_close(moved(grid, View((amount,)), options), grid.roll(-amount, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_mirrored_points(task):
    """Between walls shifts are mirror images, of points and of queries as of fields."""
    codec = replace(CONFIGS["points"].codec, periodic=(False,))
    config = replace(CONFIGS["points"], codec=codec, sampling=replace(CONFIGS["points"].sampling, shifts=2))
    made = random_model(config)
    given = inputs(made, TASKS[task])
    whole = sample_fields(made, **given, num_members=3)
    seen = {"points": grid_of(made)} if given["history"] is not None else {"context_points": grid_of(made)}
    assert distance(sample_fields(made, **given, num_members=3, **seen), whole) < 1e-4
    some = [3, 30, 8]
    found = sample_fields(made, **given, num_members=3, query=grid_of(made)[some])
    assert distance(found, whole[..., some, :]) < 1e-5
    alone = sample_fields(made, **given, num_members=3, settings=replace(config.sampling, shifts=None))
    assert torch.equal(alone[..., 0, :, :, :], whole[..., 0, :, :, :])
    assert distance(alone, whole) > 1e-3


def test_points_of_a_square_are_mirrored_and_their_coordinates_exchanged():
    plane = CONFIGS["plane-paper"]
    made = random_model(replace(between_walls(plane, **SQUARE), sampling=replace(plane.sampling, shifts=8)))
    given = inputs(made, TASKS["temporal"])
    whole = sample_fields(made, **given, num_members=8)
    history = given["history"].flatten(2, 3)
    assert distance(sample_fields(made, history, num_members=8, points=grid_of(made)), whole) < 1e-4
    some = [3, 30, 8]
    found = sample_fields(made, **given, num_members=8, query=grid_of(made)[some])
    assert distance(found, whole.flatten(-3, -2)[..., some, :]) < 1e-5
    seen = {
        tuple(moved(torch.tensor([0.1, 0.3]), view, made.config.codec).tolist())
        for view in views(made.config, made.config.sampling)
    }
    assert len(seen) == 8, "the images of a point all lie elsewhere"


def test_absent_points_are_not_compared_with_the_training_data():
    made = model("points")
    u, x = scattered(made, 300 + inputs(made, TASKS["temporal"])["history"])
    made.envelope = Envelope.of(300 + waves(6, 2, 8, made.config.codec).numpy())
    u[:, 1, 20:], x[:, 1, 20:] = NAN, NAN
    assert sample_fields(made, u, points=x, strict=True).isfinite().all()
    u[1, 1, 3] = 0.0
    with pytest.raises(EnmaError, match=r"trajectory 1 lie outside .*values from 0 to"):
        sample_fields(made, u, points=x, strict=True)


def test_what_a_file_does_not_show_is_not_compared():
    made, data = model("points"), file_of(model("points"))
    made.envelope = Envelope.of(data.u)
    places = drawn_places((32,), [0], count=9, num_frames=3, seed=0)[0, 0]
    hidden, shown = next(i for i in range(32) if i not in places), places[0]
    request = ForecastRequest(num_members=1, points=9, trajectories=[0])
    for place, found in ((hidden, []), (shown, [0])):
        changed = replace(data, u=data.u.copy())
        changed.u[0, 0, place] = 1e4
        assert FileForecast(made, changed, request).outside_training(warn=False) == found


def test_a_context_alone_has_its_own_points():
    made = model("points")
    context, points = scattered(made, inputs(made, TASKS["generation"])["context"])
    expected = sample_fields(made, None, context=context, points=points, num_members=2)
    found = sample_fields(made, None, context=context, context_points=points, num_members=2)
    assert torch.equal(found, expected)
    by_api = forecast(made, None, context=context, context_points=points, num_members=2).values
    assert torch.equal(by_api, expected)


def test_coordinates_of_a_field_have_to_be_its_points():
    made, xr = model("points"), pytest.importorskip("xarray")
    u = inputs(made, TASKS["temporal"])["history"][0]
    x = grid_of(made)
    field = xr.DataArray(u.numpy(), dims=("time", "point", "channel"), coords={"x": ("point", x[:, 0].numpy())})
    each = x.expand(3, -1, -1)
    expected = sample_fields(made, u, points=x)
    for points in (x, each, changed(each, (1, 2), NAN)):
        assert distance(torch.tensor(forecast(made, field, points=points, num_members=1).numpy()), expected) < 1e-2
    for points in (x.flip(0), each.flip(1)):
        with pytest.raises(EnmaError, match=r"^history: its coordinate x differs from `points`"):
            forecast(made, field, points=points)


def test_queries_are_moved_by_shifts():
    config = replace(CONFIGS["points"], sampling=replace(CONFIGS["points"].sampling, shifts=3))
    made, some = random_model(config), [3, 30, 8]
    given = inputs(made, TASKS["temporal"])
    whole = sample_fields(made, **given, num_members=4)
    found = sample_fields(made, **given, num_members=4, query=grid_of(made)[some])
    assert distance(found, whole[..., some, :]) < 1e-5
    with_labels = forecast(made, given["history"], num_members=4, query=grid_of(made)[some]).values
    assert torch.equal(with_labels, found)


def test_drawn_points():
    grid = (8, 4)
    both = drawn_places(grid, [3, 5], count=10, num_frames=4, seed=7)
    assert both.shape == (2, 4, 10)
    assert all(len(set(frame)) == 10 for frame in both.reshape(-1, 10).tolist())
    assert both.min() >= 0
    assert both.max() < 32
    assert len({tuple(sorted(frame)) for frame in both.reshape(-1, 10).tolist()}) == 8
    np.testing.assert_array_equal(drawn_places(grid, [5], count=10, num_frames=2, seed=7)[0], both[1, :2])
    np.testing.assert_array_equal(drawn_places(grid, [5], count=6, num_frames=4, seed=7)[0], both[1, :, :6])
    assert (drawn_places(grid, [5], count=10, num_frames=4, seed=8)[0] != both[1]).any()
    assert (drawn_places(grid, [5], count=10, num_frames=4, seed=7, context=True)[0] != both[1]).any()


def file_of(made):
    return waves_file(made.config, waves(3, 2, 8, made.config.codec))


@pytest.mark.parametrize("task", TASKS)
def test_a_file_seen_at_points(made, task):
    data, options = file_of(made), made.config.codec
    common = {"task": NAMED[task], "num_members": 3, "trajectories": [4, 1], "seed": 5}
    whole = FileForecast(made, data, ForecastRequest(**common))
    forecasts = FileForecast(made, data, ForecastRequest(**common, points=len(grid_of(made))))
    forecasts.check()
    assert distance(forecasts.sample(forecasts.request), whole.sample(whole.request)) < 1e-4
    few = FileForecast(made, data, ForecastRequest(**common, points=9))
    found = few.sample(few.request)
    assert distance(found, whole.sample(whole.request)) > 1e-4
    # Parts of a run, as its blocks are, and the arrays by hand.
    part = few.request.part(slice(1, 2), slice(1, 3), chunk=8)
    assert torch.equal(few.sample(part), found[1:, 1:])

    def seen(numbers, frames, context):
        places = drawn_places(options.grid, [4, 1], count=9, num_frames=frames, seed=5, context=context)
        flat = data.u[numbers, :frames].reshape(2, frames, -1, options.field_channels)
        return np.take_along_axis(flat, places[..., None], 2), grid_of(made).numpy()[places]

    observed, has_context = TASKS[task]
    history, points = seen([4, 1], observed, False) if observed else (None, None)
    context, others = seen([5, 0], 8, True) if has_context else (None, None)
    by_hand = sample_fields(
        made,
        history,
        context=context,
        points=others if points is None else points,
        context_points=others,
        **{name: common[name] for name in ("num_members", "trajectories", "seed")},
    )
    assert torch.equal(by_hand, found)


def test_scores_of_fewer_points():
    made = model("points", seed=1)
    data = file_of(made)
    whole, same, few = (score(made, data, num_members=2, points=points) for points in (None, 32, 2))
    assert (whole["points"], same["points"], few["points"]) == (None, 32, 2)
    assert same["rel_l2"] == pytest.approx(whole["rel_l2"], rel=1e-6)
    assert few["rel_l2"] != pytest.approx(whole["rel_l2"], rel=1e-5)


def changed(x, index, value):
    x = x.clone()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda u, x: {"points": changed(x, (0, 1, 2), 7.0)},
            "points has 7; the domain is 0 to 6.28319 along dimension 0",
        ),
        (lambda u, x: {"points": changed(x, (0, 1, 2), -0.5)}, "points has -0.5; the domain is 0 to 6.28319"),
        (lambda u, x: {"points": changed(x, (1, 2), NAN)}, "points: frame 2 of trajectory 1 has no point"),
        (lambda u, x: {"points": x, "query": x[0, 0] - 0.1}, "query has -0.1; the domain is 0 to 6.28319"),
        (
            lambda u, x: {"points": changed(x, (0, 0, 0), float("inf"))},
            "points holds a coordinate that is not finite; correct it, or leave the point out by NaN",
        ),
        (
            lambda u, x: {"points": x[:, :2]},
            "history has 3 frames of 2 trajectories, its points are those of 2 x 2 frames",
        ),
        (
            lambda u, x: {"points": x[0, :2]},
            "history has 3 frames of 2 trajectories, its points are those of 2 frames$",
        ),
        (lambda u, x: {"points": x[..., :5, :]}, r"history has shape \(2, 3, 32, 1\); .*expects \[B, T, 5, 1\]"),
        (
            lambda u, x: {"points": x[None]},
            r"points has shape \(1, 2, 3, 32, 1\); \[points, 1\] is expected, with frames",
        ),
        (lambda u, x: {"history": changed(u, (0, 1, 2), NAN), "points": x}, "history holds a value that is not finite"),
        (lambda u, x: {"context_points": x}, "context_points: there is no context"),
        (
            lambda u, x: {"points": x, "context": u, "context_points": x[:, :1]},
            "context has 3 frames of 2 trajectories, its points are those of 2 x 1 frames; give context_points",
        ),
    ],
)
def test_bad_points_are_named(change, said):
    made = model("points")
    u, x = scattered(made, inputs(made, TASKS["temporal"])["history"])
    with pytest.raises(EnmaError, match=f"^{said}"):
        sample_fields(made, **({"history": u} | change(u, x)))


@pytest.mark.parametrize(
    ("name", "points", "said"),
    [
        ("points", 33, "points is 33; 1 to 32, the points of the grid, are expected"),
        ("points", 0, "points is 0; at least 1"),
        (
            "relative",
            5,
            "points: the model 'relative' has no interpolation, and its checkpoint no covariance; it wor",
        ),
    ],
)
def test_bad_numbers_of_points(name, points, said):
    made = model(name)
    with pytest.raises(EnmaError, match=f"^{said}"):
        score(made, file_of(made), num_members=2, points=points)


READINGS = ("frame,x,u", "0,0.5,1.5", "0,6.25,-2", "1,0.25,3", "2,0,4e-1")


def table(tmp_path, *rows):
    path = tmp_path / "readings.csv"
    path.write_text("\n".join(rows))
    return path


def test_readings_have_the_grid_and_times_of_the_model(tmp_path):
    config = CONFIGS["points"]
    data = readings_for(config, table(tmp_path, *READINGS, "3,1,1", "4,1,1"))
    assert (data.name, data.channels, data.lengths, data.periodic) == ("readings", ("u",), (2 * math.pi,), (True,))
    np.testing.assert_allclose(data.times, np.arange(5) * config.frame_interval)
    np.testing.assert_allclose(data.coords[0], grid_of(model("points"))[:, 0], rtol=1e-6)
    # All frames are observed, whatever `num_history` is.
    forecasts = FileForecast(model("points"), data, ForecastRequest(num_members=2))
    forecasts.check()
    assert (forecasts.num_observed, forecasts.num_frames, forecasts.has_truth) == (5, 3, False)
    found = forecasts.sample(forecasts.request)
    assert torch.equal(found, sample_fields(model("points"), data.u, points=data.points, num_members=2))
    longer = FileForecast(model("points"), data, replace(forecasts.request, num_frames=7))
    assert tuple(longer.sample(longer.request).shape) == (1, 2, 7, 32, 1)


def test_readings_are_compared_with_the_training_data(tmp_path):
    made = model("points")
    made.envelope = Envelope.of(300 + waves(6, 2, 8, made.config.codec).numpy())
    rows = [f"{t},{x},{300 + math.sin(x + t)}" for t in range(3) for x in range(t + 3)]
    for value, found in ((300.5, []), (0.0, [0])):
        data = readings_for(made.config, table(tmp_path, "frame,x,u", *rows, f"2,6,{value}"))
        assert FileForecast(made, data, ForecastRequest()).outside_training(warn=False) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"points": 2}, "points: all readings of .* are seen, where they are; leave it out"),
        ({"task": NAMED["initial-value"]}, "task initial-value: .* holds readings, from which the temporal task alone"),
        ({"task": NAMED["generation"]}, "task generation: .* holds readings"),
        (
            {"num_frames": None},
            ".*readings.csv: holds 8 frames, and points was trained on 8: say how many to forecast .--frames.",
        ),
    ],
)
def test_readings_are_of_the_temporal_task(tmp_path, asked, said):
    further = [f"{t},1,1" for t in range(3, 8)] if "num_frames" in asked else []
    data = readings_for(CONFIGS["points"], table(tmp_path, *READINGS, *further))
    with pytest.raises(EnmaError, match=f"^{said}"):
        FileForecast(model("points"), data, ForecastRequest(**asked)).check()


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("points", READINGS[:-1], "holds 2 frames; points needs at least 3"),
        ("plane-paper", READINGS, "has no column 'y', only 'frame', 'x', 'u'; plane-paper needs frame, x, y and 2 col"),
    ],
)
def test_readings_that_a_model_does_not_take(tmp_path, name, rows, said):
    path = table(tmp_path, *rows)
    with pytest.raises(EnmaError, match=f"^{path}: {said}"):
        readings_for(CONFIGS[name], path)
