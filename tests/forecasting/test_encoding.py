"""Observed fields: all of them matter, in any kind of array, and what does not fit is refused before any work."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast, stream
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.codecs.interpolation import grid_points

from .._tiny import distance, model, random_model, waves
from ._inputs import FRAMES, TASKS, inputs


def test_arrays_of_any_float_type_will_do(made, task):
    given = inputs(made, task)
    expected = sample_fields(made, **given)
    for dtype in (np.float32, np.float64):
        arrays = {key: None if value is None else value.numpy().astype(dtype) for key, value in given.items()}
        copies = {key: None if value is None else value.copy() for key, value in arrays.items()}
        assert torch.equal(sample_fields(made, **arrays), expected)
        for key, value in arrays.items():
            assert value is None or np.array_equal(value, copies[key])
    # Strided views too.
    wide = {key: None if value is None else value.repeat_interleave(2, dim=1) for key, value in given.items()}
    views = {key: None if value is None else value[:, ::2] for key, value in wide.items()}
    assert torch.equal(sample_fields(made, **views), expected)


@pytest.mark.parametrize("observed", [3, 5, 7])
def test_every_observed_frame_matters(relative, observed):
    history = waves(2, 1, FRAMES, relative.config.codec)[:, :observed]
    out = sample_fields(relative, history)
    for t in range(observed):
        changed = history.clone()
        changed[:, t] += 0.5
        assert distance(sample_fields(relative, changed), out) > 1e-4


def test_a_frame_that_fills_no_latent_is_forecast_from_the_others(relative):
    # The last of four frames shares its latent with one that is not observed; frames 4 to 7 are forecast.
    history = waves(2, 1, FRAMES, relative.config.codec)[:, :4]
    assert distance(sample_fields(relative, history), sample_fields(relative, history[:, :3])[:, :, 1:]) < 1e-5


def test_frames_beyond_training_are_forecast_with_a_warning(relative, caplog):
    given = inputs(relative, TASKS["temporal"])
    with caplog.at_level(logging.WARNING, logger="enma_fast"):
        sample_fields(relative, **given, num_frames=5)
        list(stream(relative, **given, num_frames=5))
        sample_fields(relative, **given, num_frames=6, warn=False)
        assert caplog.records == []
        out = sample_fields(relative, **given, num_frames=6)
        list(stream(relative, **given, num_frames=6))
    assert out.shape[2] == 6
    assert out.isfinite().all()
    assert [record.getMessage() for record in caplog.records] == [
        "frames beyond 8 were not seen in training of relative"
    ] * 2


def test_a_frame_that_is_not_used_is_said_once(relative, caplog):
    fields = waves(2, 2, FRAMES, relative.config.codec)

    def said(run, observed, **given):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="enma_fast"):
            list(run(relative, fields[::2, :observed] if observed else None, num_frames=2, num_members=2, **given))
        return [record.getMessage() for record in caplog.records]

    expected = (
        "history: of its 4 frames the first 3 are used; relative joins frames after the first in groups of 2, so give "
        "3 or 5"
    )
    for run in (sample_fields, stream):
        assert said(run, 3) == said(run, 5) == []
        assert said(run, 4) == [expected]
        # A context is used whole if it is as long as those of the training, and one frame is an initial condition.
        assert said(run, 1, context=fields[1::2]) == said(run, 0, context=fields[1::2]) == []
    assert said(sample_fields, 4, warn=False) == []


def test_a_context_that_training_did_not_show_is_said(relative, caplog):
    fields = waves(1, 2, FRAMES, relative.config.codec)
    taught = random_model(replace(relative.config, shortest_context=5))
    for made, least in ((relative, FRAMES), (taught, 5)):
        for frames in (FRAMES, 5, 4):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="enma_fast"):
                sample_fields(made, fields[0, :1], context=fields[1, :frames], num_frames=2)
            expected = ["context: of its 4 frames the first 3 are used, as in training"] * (frames == 4)
            expected += [
                f"context: has {frames} frames; relative was trained on contexts of at least {least}, and may forecast "
                "far worse from fewer"
            ] * (frames < least)
            assert [record.getMessage() for record in caplog.records] == expected


def test_a_context_is_whole_or_ends_with_a_whole_latent_frame(relative):
    fields = waves(1, 2, FRAMES + 1, relative.config.codec)

    def forecast(frames):
        return sample_fields(relative, fields[0, :1], context=fields[1, :frames], num_frames=4, warn=False)

    made = {frames: forecast(frames) for frames in (2, 1, 4, 3, FRAMES - 1, FRAMES, FRAMES + 1)}
    assert FRAMES % 2 == 0
    for frames, used in ((2, 1), (4, 3), (FRAMES + 1, FRAMES)):
        assert torch.equal(made[frames], made[used])
    assert not any(torch.equal(made[used], made[other]) for used, other in ((1, 3), (3, FRAMES), (FRAMES - 1, FRAMES)))


@pytest.mark.parametrize("run", [sample_fields, stream], ids=["forecast", "stream"])
@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float64, r"model has float64 weights, fp32 is needed; call model.float\(\)$"),
        (
            torch.bfloat16,
            r"model has bfloat16 weights, fp32 is needed; call model.float\(\) and pass dtype=torch.bfloat16$",
        ),
    ],
    ids=["double", "bfloat16"],
)
def test_a_model_that_was_converted_is_refused(run, dtype, said):
    with pytest.raises(EnmaError, match=f"^{said}"):
        list(run(model().to(dtype), good(model())["history"]))


@pytest.fixture
def there(monkeypatch):
    """Sets the memory of the machine."""
    return lambda size: monkeypatch.setattr("enma_fast.forecasting.request.memory", lambda: size)


def test_memory_is_that_of_the_query(points, there):
    history, where = good(points)["history"][:1], grid_points(points.config.codec)
    # Five frames of 32 grid points are 640 bytes of a member.
    there(3000)
    with pytest.raises(EnmaError, match=r"^forecasts of 8 x 5 frames take .*; use fewer at a time"):
        forecast(points, history, num_members=8)
    assert forecast(points, history, num_members=8, query=where[:2]).torch().shape == (1, 8, 5, 2, 1)
    there(6000)
    assert forecast(points, history, num_members=8).torch().shape == (1, 8, 5, 32, 1)
    with pytest.raises(EnmaError, match=r"^forecasts of 8 x 5 frames take .*; use fewer at a time"):
        forecast(points, history, num_members=8, query=where.repeat(2, 1))


def test_memory_is_that_of_all_rows_that_advance_together(relative, there):
    history = good(relative)["history"][:1]
    # Keys and values of two latent frames, 8 tokens, 2 layers: 8,192 bytes of a member; two frames are 256 bytes.
    options = {"num_members": 8, "chunk": 2}
    there(8 * 8448 - 1)
    with pytest.raises(EnmaError, match=r"^forecasts of 8 x 2 frames take .*; use fewer at a time"):
        stream(relative, history, **options)
    with pytest.raises(EnmaError, match=r"^forecasts of 8 x 5 frames take .*; use fewer at a time"):
        sample_fields(relative, history, **options, stop=lambda number, frame: None)
    assert sample_fields(relative, history, **options).shape == (1, 8, 5, 32, 1)
    assert len(list(stream(relative, history, num_members=7, chunk=2))) == 5
    there(8 * 8448)
    assert len(list(stream(relative, history, **options))) == 5
    # All that is forecast is not in memory at once.
    there(8 * 300)
    assert len(list(stream(relative, history, **options, num_frames=2))) == 2


def test_observations_at_scattered_points(points):
    given = inputs(points, TASKS["temporal"])
    options = points.config.codec
    order = torch.randperm(32)
    where = grid_points(options)[order]
    scattered = given["history"][:, :, order]
    assert distance(sample_fields(points, scattered, points=where), sample_fields(points, **given)) < 1e-4
    few = sample_fields(points, scattered[0, :, :11], points=where[:11].numpy(), num_members=2)
    assert few.shape == (2, 5, 32, 1)
    assert few.isfinite().all()


def good(made):
    fields = waves(2, 2, FRAMES, made.config.codec)
    return {"history": fields[::2, :3], "context": fields[1::2]}


def with_value(u, index, value):
    u = u.clone()
    u[index] = value
    return u


ERRORS = {
    "nothing given": (lambda g: {"history": None}, "history and context are both None"),
    "one frame": (
        lambda g: {"history": g["history"][:, :1]},
        r"history has 1 frame; the model 'relative' needs at least 3, or pass context=",
    ),
    "two frames": (lambda g: {"history": g["history"][:, :2]}, r"history has 2 frames; .*at least 3"),
    "no frame": (
        lambda g: {"history": g["history"][:, :0]},
        r"history has shape \(2, 0, 32, 1\): no trajectory or no frame",
    ),
    "no frame of context": (
        lambda g: {"history": None, "context": g["context"][:, :0]},
        r"context has shape \(2, 0, 32, 1\): no trajectory or no frame",
    ),
    "no trajectory": (lambda g: {"history": g["history"][:0]}, r"history has shape \(0, 3, 32, 1\): no trajectory"),
    "wrong grid": (
        lambda g: {"history": g["history"][:, :, :31]},
        r"history has shape \(2, 3, 31, 1\); the model 'relative' expects \[B, T, 32, 1\]",
    ),
    "a plane": (lambda g: {"history": torch.zeros(1, 1, 3, 32, 32, 1)}, r"history has shape \(1, 1, 3, 32, 32, 1\)"),
    "no channel axis": (lambda g: {"history": g["history"][0, ..., 0]}, r"history has shape \(3, 32\)"),
    "channels": (
        lambda g: {"history": g["history"].expand(-1, -1, -1, 2)},
        "history has 2 channels; the model 'relative' expects 1",
    ),
    "context grid": (
        lambda g: {"context": g["context"][:, :, :16]},
        r"context has shape \(2, 8, 16, 1\); .*\[B, T, 32, 1\]",
    ),
    "context count": (
        lambda g: {"context": g["context"][[0, 1, 0]]},
        "history holds 2 trajectories and context 3; give one context for each, or one",
    ),
    "context without space": (lambda g: {"context": g["context"][0, :, :, 0]}, r"context has shape \(8, 32\)"),
    "nan": (
        lambda g: {"history": with_value(g["history"], (1, 2, 7, 0), float("nan"))},
        "history holds a value that is not finite, first in trajectory 1, frame 2; fill such values, ",
    ),
    "too large for fp32": (
        lambda g: {"history": with_value(g["history"].double(), (0, 1, 7, 0), 1e39)},
        "history holds a value that is not finite, first in trajectory 0, frame 1",
    ),
    "context infinity": (
        lambda g: {"context": with_value(g["context"], (0, 5, 0, 0), float("-inf"))},
        "context holds a value that is not finite, first in trajectory 0, frame 5",
    ),
    "integers": (lambda g: {"history": g["history"].long()}, "history has dtype torch.int64; floating point"),
    "complex": (lambda g: {"history": g["history"].to(torch.complex64)}, "history has dtype torch.complex64"),
    "nothing left": (
        lambda g: {"history": g["context"]},
        "history has 8 frames, as many as relative was trained on; say how many more: num_frames",
    ),
    "numbers": (lambda g: {"trajectories": [0]}, "trajectories names 1 numbers; the input holds 2"),
    "many": (
        lambda g: {"num_members": 2**32},
        r"forecasts of [\d,]+ x [15] frames take [\d,]+ GB, .*; use fewer at a time",
    ),
    "query": (
        lambda g: {"query": torch.zeros(3, 1)},
        "query: the model 'relative' has no interpolation, and its checkpoint no",
    ),
    "points": (lambda g: {"points": torch.zeros(32, 1)}, "points: the model 'relative' has no interpolation"),
}


@pytest.mark.parametrize(
    "run", [sample_fields, lambda *args, **kwargs: list(stream(*args, **kwargs))], ids=["forecast", "stream"]
)
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named_before_anything_is_sampled(relative, name, run):
    change, said = ERRORS[name]
    given = good(relative)
    arguments = {"history": given["history"]} | change(given)
    sampled = []
    hook = relative.dynamics.trunk.register_forward_pre_hook(lambda *_: sampled.append(1))
    with pytest.raises(EnmaError, match=f"^{said}") as caught:
        run(relative, **arguments)
    hook.remove()
    assert "\n" not in str(caught.value)
    assert sampled == []


@pytest.mark.parametrize("run", [sample_fields, stream], ids=["forecast", "stream"])
@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("mask_steps", 1, "--mask-steps"),
        ("flow_steps", 5, "--flow-steps"),
    ],
)
def test_a_one_pass_model_has_no_use_for_mask_steps(models, run, name, value, option):
    made = models["paper-fast"]
    history = inputs(made, TASKS["temporal"])["history"]
    own = made.config.sampling
    said = f"^{name} is {value}; .*: leave out {option} "
    with pytest.raises(EnmaError, match=said):
        list(run(made, history, settings=replace(own, **{name: value})))
    with pytest.raises(EnmaError, match=r"from Python settings=dataclasses\.replace\(model\.config\.sampling, "):
        list(run(made, history, settings=replace(own, **{name: value})))
    # In a model with mask steps the same settings are fine.
    other = models["paper"]
    assert len(list(run(other, history, settings=replace(own, **{name: value})))) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"query": torch.zeros(3, 2)}, r"query has shape \(3, 2\); \[points, 1\] is expected"),
        ({"query": torch.zeros(3)}, r"query has shape \(3,\); \[points, 1\] is expected"),
        ({"query": torch.zeros(0, 1)}, r"query has shape \(0, 1\); \[points, 1\] is expected"),
        (
            {"query": torch.tensor([[float("nan")]])},
            "query holds a coordinate that is not finite; correct it, or leave the point",
        ),
        ({"points": torch.zeros(32, 2)}, r"points has shape \(32, 2\); \[points, 1\] is expected"),
        ({"points": torch.full((32, 1), float("inf"))}, "points holds a coordinate that is not finite"),
        ({"points": torch.zeros(31, 1)}, r"history has shape \(2, 3, 32, 1\); .*expects \[B, T, 31, 1\]"),
    ],
)
def test_bad_coordinates_are_named(points, arguments, said):
    with pytest.raises(EnmaError, match=f"^{said}"):
        sample_fields(points, good(points)["history"], **arguments)
