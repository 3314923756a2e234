"""Members depend on their numbers only, come frame by frame, and stop where they are told to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from enma_fast.config import SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import stream
from enma_fast.forecasting.members import _window, sample_fields
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.model import Model
from enma_fast.sampling.engine import Engine
from enma_fast.sampling.noise import trajectory_seed
from enma_fast.sampling.reference import trajectory
from enma_fast.training.recipes import RECIPES

from .._tiny import CONFIGS, distance, shaken, waves
from ._inputs import FRAMES, TASKS, inputs, single


def test_a_forecast_is_encode_sample_decode(made, task):
    given = inputs(made, task)
    out = sample_fields(made, **given, num_members=3, seed=11)
    observed = task[0]
    assert out.shape == (2, 3, FRAMES - observed, *made.config.codec.grid, made.config.codec.field_channels)
    assert out.dtype == torch.float32
    b, k = 1, 2
    alone = {key: None if value is None else made.encode(value[b : b + 1]) for key, value in given.items()}
    # Latent j holds frames 2j - 1 and 2j: what is not wholly observed is generated.
    history = torch.zeros(1, 0, 8, alone["context"].shape[-1]) if observed == 0 else alone["history"]
    assert history.shape[1] == {0: 0, 1: 1, 3: 2}[observed]
    latents = trajectory(
        made.dynamics,
        [part for part in (alone["context"], history) if part is not None],
        num_latents=5,
        seeds=torch.tensor([trajectory_seed(11, b)]),
        members=torch.tensor([k]),
    )
    fields = made.decode(torch.cat([history, *(z[:, None] for z in latents)], dim=1), FRAMES)
    assert distance(out[b, k], fields[0, observed:]) < 1e-4


def test_a_trajectory_without_a_batch_loses_that_axis(made, task):
    given = single(inputs(made, task), 0)
    out = sample_fields(made, **given, num_members=3)
    assert out.shape == (3, FRAMES - task[0], *made.config.codec.grid, made.config.codec.field_channels)
    batched = {key: None if value is None else value[None] for key, value in given.items()}
    assert torch.equal(sample_fields(made, **batched, num_members=3)[0], out)


def test_the_result_can_be_worked_with(relative):
    out = sample_fields(relative, **inputs(relative, TASKS["temporal"]))
    assert not out.is_inference()
    out.requires_grad_().mul(2).sum().backward()
    assert torch.equal(out.grad, torch.full_like(out, 2.0))


def test_a_member_depends_on_its_numbers_only(made, task):
    given = inputs(made, task)
    whole = sample_fields(made, **given, num_members=3, seed=4)
    assert distance(sample_fields(made, **given, num_members=1, first_member=2, seed=4), whole[:, 2:]) < 1e-4
    assert distance(sample_fields(made, **given, num_members=3, seed=4, chunk=4), whole) < 1e-4
    second = sample_fields(made, **single(given, 1), num_members=3, seed=4, trajectories=[1])
    assert distance(second, whole[1]) < 1e-4
    swapped = {key: None if value is None else value.flip(0) for key, value in given.items()}
    turned = sample_fields(made, **swapped, num_members=3, seed=4, trajectories=[1, 0])
    assert distance(turned.flip(0), whole) < 1e-4


def test_members_trajectories_and_seeds_have_their_own_noise(relative):
    history = inputs(relative, TASKS["temporal"])["history"]
    same = history[:1].expand_as(history)
    out = sample_fields(relative, same, num_members=2, seed=4)
    other = sample_fields(relative, same, num_members=2, seed=5)
    different = [out[0, 0], out[0, 1], out[1, 0], out[1, 1], other[0, 0]]
    for i, a in enumerate(different):
        for b in different[:i]:
            assert distance(a, b) > 1e-2


def test_a_shorter_forecast_is_the_beginning(made, task):
    given = inputs(made, task)
    whole = sample_fields(made, **given, num_members=2)
    for count in range(1, whole.shape[2]):
        assert distance(sample_fields(made, **given, num_members=2, num_frames=count), whole[:, :, :count]) < 1e-5


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_stream_is_the_forecast_frame_by_frame(made, task, frames, batched):
    given = inputs(made, task) if batched else single(inputs(made, task), 1)
    expected = sample_fields(made, **given, num_members=2, num_frames=frames, seed=3)
    found = list(stream(made, **given, num_members=2, num_frames=frames, seed=3))
    assert len(found) == frames
    assert distance(torch.stack(found, dim=-made.config.codec.dims - 2), expected) < 1e-4


def at_most(limits):
    """A `stop` that lets member k keep ``limits[k]`` frames, and the numbers of the frames it was called with."""
    calls = []

    def stop(number, frame):
        calls.append(number)
        mask = number + 1 >= torch.tensor(limits)
        assert frame.shape[: mask.ndim] == mask.shape
        return mask

    return stop, calls


@pytest.mark.parametrize("chunk", [64, 4, 1])
def test_a_stopped_member_is_nan_and_the_others_keep_their_bits(made, task, chunk):
    given = inputs(made, task)
    expected = sample_fields(made, **given, num_members=3, seed=5, chunk=chunk)
    limits = [[2, 9, 1], [3, 4, 2]]
    stop, calls = at_most(limits)
    found = sample_fields(made, **given, num_members=3, seed=5, chunk=chunk, stop=stop)
    assert calls == list(range(FRAMES - task[0]))
    for b in range(2):
        for k in range(3):
            assert torch.equal(found[b, k, : limits[b][k]], expected[b, k, : limits[b][k]])
            assert found[b, k, limits[b][k] :].isnan().all()
    assert not found.is_inference()


def test_a_stop_sees_each_frame_once_with_what_is_stopped_gone(made, task):
    given = single(inputs(made, task), 1)
    whole = sample_fields(made, **given, num_members=3, chunk=2)
    frames = []

    def stop(number, frame):
        assert number == len(frames)
        frames.append(frame.clone())
        return torch.tensor([False, number == 1, False])

    out = sample_fields(made, **given, num_members=3, stop=stop, chunk=2)
    for t, frame in enumerate(frames):
        assert distance(frame[::2], whole[::2, t]) < 1e-4
        assert frame[1].isnan().all() == (t > 1)
    assert torch.equal(out[::2], whole[::2])


@pytest.fixture
def decided(monkeypatch):
    """Rows and latent frames that the engine has made, by the order of the chunks."""
    counts, made = [], Engine.trajectory

    def counted(self, *args, **kwargs):
        place = len(counts)
        counts.append([len(kwargs["seeds"]), 0])
        for z in made(self, *args, **kwargs):
            counts[place][1] += 1
            yield z

    monkeypatch.setattr(Engine, "trajectory", counted)
    return counts


@pytest.mark.parametrize("backend", [None, "reference"])
def test_what_has_stopped_is_sampled_no_further(relative, decided, backend):
    history = inputs(relative, TASKS["temporal"])["history"][0]
    run = {"num_members": 5, "chunk": 2, "backend": backend}
    # Five frames: 3 and 4 are one latent frame, 5 and 6 the next, 7 the last.
    sample_fields(relative, history, **run)
    assert decided == [[2, 3], [2, 3], [1, 3]]
    decided.clear()
    stop, calls = at_most([1, 2, 3, 1, 2])
    out = sample_fields(relative, history, **run, stop=stop)
    assert decided == [[2, 1], [2, 2], [1, 1]]
    assert calls == [0, 1, 2]
    assert out.isfinite().all(-1).all(-1).sum(-1).tolist() == [1, 2, 3, 1, 2]
    decided.clear()
    stop, calls = at_most([1, 2, 3, 1, 2])
    frames = list(stream(relative, history, **run, stop=stop))
    assert decided == [[2, 1], [2, 2], [1, 1]]
    assert len(frames) == len(calls) == 3
    assert distance(torch.stack(frames, 1).nan_to_num(), out[:, :3].nan_to_num()) < 1e-5
    # The frames that came with the last one are dropped.
    decided.clear()
    assert len(list(stream(relative, history, **run, stop=lambda number, frame: True))) == 1
    assert decided == [[2, 1], [2, 1], [1, 1]]


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_stream_yields_as_soon_as_a_frame_is_decided(relative, decided, backend):
    history = inputs(relative, TASKS["temporal"])["history"]
    counts = [decided[0][1] for _ in stream(relative, history, backend=backend)]
    # Frames 3 and 4 come with one latent frame, frames 5 and 6 with the next, then frame 7.
    assert counts == [1, 1, 2, 2, 3]


def test_a_stop_may_depend_on_the_values(relative):
    history = inputs(relative, TASKS["temporal"])["history"]
    whole = sample_fields(relative, history, num_members=4)
    peak = whole.abs().amax((3, 4))
    limit = peak.median()
    for chunk in (1, 3, 8):
        out = sample_fields(
            relative, history, num_members=4, chunk=chunk, stop=lambda number, frame: frame.abs().amax((2, 3)) > limit
        )
        after = (peak > limit).cumsum(2) - (peak > limit).int() > 0
        assert torch.equal(out.isnan().all(-1).all(-1), after)
        assert 0 < after.sum() < after.numel()


ANSWERS = {
    "none": (lambda: None, [5, 5]),
    "false": (lambda: False, [5, 5]),
    "true": (lambda: True, [1, 1]),
    "numpy bool": (lambda: np.bool_(True), [1, 1]),
    "tensor bool": (lambda: torch.tensor(True), [1, 1]),
    "list": (lambda: [True, False], [1, 5]),
    "numpy mask": (lambda: np.array([False, True]), [5, 1]),
    "xarray mask": (lambda: xr.DataArray([False, True], dims="realization"), [5, 1]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_stop_answers_as_it_likes(relative, name):
    answer, kept = ANSWERS[name]
    history = inputs(relative, TASKS["temporal"])["history"][0]
    out = sample_fields(relative, history, num_members=2, stop=lambda number, frame: answer() if number == 0 else None)
    assert out.isfinite().all(-1).all(-1).sum(-1).tolist() == kept


@pytest.mark.parametrize("answer", [1, [0, 1], [True], [[True, False]], "yes", np.array([0.5, 0.1])])
def test_a_wrong_answer_is_named(relative, answer):
    history = inputs(relative, TASKS["temporal"])["history"][0]
    with pytest.raises(EnmaError, match=r"^stop returned .*; None, a bool or a boolean mask \[2\] is expected"):
        sample_fields(relative, history, num_members=2, stop=lambda number, frame: answer)


def test_an_error_in_a_stop_comes_through(relative):
    history = inputs(relative, TASKS["temporal"])["history"]
    with pytest.raises(ZeroDivisionError):
        sample_fields(relative, history, stop=lambda number, frame: number // 0)
    assert sample_fields(relative, history).isfinite().all()


PRESET_NAMES = [
    "combined-small",
    "advection-small",
    "combined-points-small",
    pytest.param("vorticity-small", marks=pytest.mark.slow),
    pytest.param("combined-paper", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_stream_has_the_bits_of_the_forecast(name, one_thread):
    """The latest latents decide a frame: the same bits as from all of them, on the CPU, at the presets' sizes."""
    preset = RECIPES[name].model
    tok = preset.codec
    # Only the shapes of the dynamics matter here.
    small = {"context": replace(preset.context, width=32, heads=2, layers=1), "trunk": replace(preset.trunk, layers=1)}
    config = replace(preset, **small, sampling=SamplingConfig(mask_steps=1, flow_steps=1))
    frames = (_window(tok) + 3) * tok.time_factor
    made = shaken(Model(config).eval().requires_grad_(False), scale=0.1)
    history = waves(1, 1, 3, tok)
    expected = sample_fields(made, history, num_members=2, num_frames=frames)
    found = torch.stack(list(stream(made, history, num_members=2, num_frames=frames)), 2)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_frame_depends_on_latents_before_its_window(models, name):
    made = models[name]
    config, window = made.config, _window(made.config.codec)
    z = torch.randn(1, window + 2, config.num_tokens, config.token_channels)
    other = z.clone()
    other[:, :2] += 10
    last = made.decode(z)[:, -config.codec.time_factor :]
    assert torch.equal(made.decode(other)[:, -config.codec.time_factor :], last)
    assert distance(made.decode(z[:, 2:])[:, -config.codec.time_factor :], last) < 1e-5


def test_the_grid_as_query_points_gives_the_grid(points):
    given = inputs(points, TASKS["temporal"])
    options = points.config.codec
    grid = grid_points(options)
    out = sample_fields(points, **given, num_members=2)
    assert distance(sample_fields(points, **given, num_members=2, query=grid), out) < 1e-5
    some = torch.tensor([4, 30, 0])
    assert distance(sample_fields(points, **given, num_members=2, query=grid[some].numpy()), out[..., some, :]) < 1e-5
    streamed = torch.stack(list(stream(points, **given, num_members=2, query=grid[some])), dim=2)
    assert distance(streamed, out[..., some, :]) < 1e-4


def test_query_points_on_a_plane(models):
    plane = models["plane-paper"]
    given = inputs(plane, TASKS["initial-value"])
    options = plane.config.codec
    grid = grid_points(options)
    out = sample_fields(plane, **given)
    assert out.shape == (2, 1, 7, 16, 8, 2)
    assert distance(sample_fields(plane, **given, query=grid), out.flatten(3, 4)) < 1e-5


def test_a_cooler_one_pass_model_spreads_less(models):
    made = models["relative-fast"]
    given, own = inputs(made, TASKS["initial-value"]), made.config.sampling
    spread = [
        sample_fields(made, **given, num_members=8, settings=replace(own, temperature=factor)).std(1).mean().item()
        for factor in (0.0, 0.3, 1.0)
    ]
    assert spread[0] < 1e-5 < spread[1] < spread[2]
