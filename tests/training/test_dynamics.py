"""Training the dynamics: latents and their file, pairs of one environment, validation, and a loss that falls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from enma_fast.errors import EnmaError
from enma_fast.models.codecs.conv import ConvCodec
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.codecs.points import PointsCodec
from enma_fast.training.augment import CutContexts, Scattered, Shift, Strides
from enma_fast.training.dynamics import DynamicsStage, DynamicsTask
from enma_fast.training.latents import Latents, encode_all, sub_token_shifts
from enma_fast.training.loop import run, step_generator
from enma_fast.training.ranks import Rank
from enma_fast.training.recipes import RECIPES
from enma_fast.training.rollouts import environments

from .._tiny import CONFIGS, dynamics_task, stage, waves
from ._run import LEARNING, options, read_log


@pytest.mark.parametrize("name", ["relative", "plane"])
def test_latents_hold_every_shift(name):
    options = CONFIGS[name].codec
    torch.manual_seed(0)
    tokenizer = ConvCodec(options).eval()
    fields = waves(2, 2, 4, options)
    latents = encode_all(tokenizer, fields, torch.tensor([0, 0, 1, 1]), shift=True)
    # Two parts of a token along a ring; the wall of the plane cannot be shifted.
    assert latents.z.shape == (2, 4, 3, torch.Size(options.token_grid).numel(), options.latent_channels)
    assert latents.z.dtype == torch.float16
    torch.testing.assert_close(latents.mean, latents.z.float().flatten(0, -2).mean(0), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(latents.std, latents.z.float().flatten(0, -2).std(0), rtol=1e-2, atol=1e-3)
    with torch.no_grad():
        for shift in (0, 1, 5):
            parts, tokens = shift % 2, shift // 2
            stored = latents.z[parts].float().unflatten(2, options.token_grid).roll(tokens, dims=2).flatten(2, -2)
            exact = tokenizer.encode(fields.roll(shift, dims=2))
            torch.testing.assert_close(stored, exact, rtol=2e-3, atol=2e-3)
        plain = encode_all(tokenizer, fields, torch.tensor([0, 0, 1, 1]), shift=False)
        fewer = encode_all(tokenizer, fields, torch.tensor([0, 0, 1, 1]), shift=True, most_shifts=1)
    assert torch.equal(plain.z, latents.z[:1])
    assert torch.equal(fewer.z, latents.z[:1])


def test_fewer_shifts_are_evenly_spaced():
    options = CONFIGS["plane"].codec
    combined = RECIPES["combined-fast"].model.codec
    assert [amount for (amount,) in sub_token_shifts(combined, shift=True)] == list(range(8))
    assert [amount for (amount,) in sub_token_shifts(combined, shift=True, most=3)] == [0, 2, 5]
    assert sub_token_shifts(combined, shift=True, most=20) == sub_token_shifts(combined, shift=True)
    # The wall of the plane cannot be shifted.
    assert sub_token_shifts(options, shift=True, most=2) == [(0, 0), (1, 0)]
    assert sub_token_shifts(options, shift=False, most=2) == [(0, 0)]


def test_the_moments_are_those_of_the_latents_of_all_batches():
    options = CONFIGS["relative"].codec
    torch.manual_seed(0)
    tokenizer = ConvCodec(options).eval()
    # Three batches, the last of them smaller.
    fields = 3 + waves(7, 5, 4, options)
    latents = encode_all(tokenizer, fields, torch.arange(35), shift=True)
    with torch.no_grad():
        z = torch.stack([tokenizer.encode(fields.roll(shift, dims=2)) for shift in (0, 1)])
    torch.testing.assert_close(latents.z, z.half(), rtol=2e-3, atol=1e-4)
    flat = z.flatten(0, -2).double()
    torch.testing.assert_close(latents.mean, flat.mean(0).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(latents.std, flat.std(0).float(), rtol=1e-6, atol=0)


def test_latents_come_back_from_their_file(tmp_path):
    latents = dynamics_task("relative").train
    latents.save(tmp_path / "latents.safetensors")
    again = Latents.load(tmp_path / "latents.safetensors")
    assert again.scattered is None
    for key in ("z", "environment", "mean", "std"):
        assert torch.equal(getattr(again, key), getattr(latents, key))
    replace(latents, scattered=latents.z + 1).save(tmp_path / "scattered.safetensors")
    assert torch.equal(Latents.load(tmp_path / "scattered.safetensors").scattered, latents.z + 1)


def test_latents_of_scattered_points_are_of_the_same_fields(monkeypatch):
    options = CONFIGS["points"].codec
    torch.manual_seed(0)
    tokenizer = PointsCodec(options).eval()
    fields, environment = waves(2, 20, 4, options), torch.arange(40)

    def latents_of(fewest, seed=3):
        monkeypatch.setattr(Scattered, "fewest", fewest)
        return encode_all(tokenizer, fields, environment, shift=True, scattered=Scattered(), seed=seed)

    whole = latents_of(1.0)
    # All points in another order.
    torch.testing.assert_close(whole.scattered, whole.z, rtol=2e-3, atol=2e-3)
    latents = latents_of(0.2)
    for name in ("z", "mean", "std"):
        assert torch.equal(getattr(latents, name), getattr(whole, name))
    error = (latents.scattered.float() - latents.z.float()).flatten(2).norm(dim=-1)
    assert (error > 0).float().mean() > 0.9
    again, other = latents_of(0.2), latents_of(0.2, seed=4)
    assert torch.equal(again.scattered, latents.scattered)
    assert not torch.equal(other.scattered, latents.scattered)
    # Fewer points, larger errors.
    more = latents_of(0.8)
    assert error.norm() > 1.2 * (more.scattered.float() - more.z.float()).norm()


def test_half_of_the_trajectories_are_observed_at_points_that_stay(monkeypatch):
    options, seen = CONFIGS["points"].codec, []
    tokenizer = PointsCodec(options).eval()
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda *given: seen.append(given) or encode(*given))
    fields = waves(2, 32, 4, options)
    encode_all(tokenizer, fields, torch.arange(64), shift=False, scattered=Scattered())
    grid, stays, shares = grid_points(options), [], []
    scattered = [given for given in seen if len(given) == 3]
    assert [len(given[0]) for given in scattered] == [16] * 4
    for (values, points, valid), u in zip(scattered, fields.split(16), strict=True):
        place = (points[..., None, :] == grid).all(-1).int().argmax(-1)
        assert torch.equal(values, u.gather(2, place[..., None]))
        for places, there in zip(place, valid, strict=True):
            sets = [set(frame[mask].tolist()) for frame, mask in zip(places, there, strict=True)]
            assert all(len(s) == there[0].sum() for s in sets)
            stays.append(all(s == sets[0] for s in sets))
            shares.append(len(sets[0]) / len(grid))
    assert 20 <= sum(stays) <= 44
    assert min(shares) < 0.35
    assert max(shares) > 0.65
    assert all(0.17 < share <= 1.0 for share in shares)


class Capture(nn.Module):
    """Stands in for the dynamics and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, segments, draws):
        self.given.append((segments, draws))
        return torch.zeros(()), {}


def numbered_task(**changes):
    """Trajectory i of 12, in six environments, has latents i everywhere."""
    task = dynamics_task("relative")
    z = torch.arange(12.0).view(1, 12, 1, 1, 1).expand(2, 12, 5, 16, 2).half()
    environment = torch.tensor([5, 5, 3, 3, 9, 9, 0, 0, 7, 7, 1, 1])
    latents = Latents(z, environment, torch.zeros(2), torch.ones(2))
    return again(task, {1: latents}, **{"batch": 64} | changes), environment


def again(task, latents, *, val_contexts=True, **changes):
    """The same dynamics on other latents, by a stage of other settings."""
    trained = stage(DynamicsStage, task.model.config, **changes)
    contexts = task.val_contexts if val_contexts else None
    return DynamicsTask(task.model, trained, latents=latents, val=task.val, val_contexts=contexts, members=2)


def test_some_contexts_are_short():
    """In half of the steps with a context it has its first 2 to 5 latent frames, those of 3 frames or more."""
    task, _ = numbered_task(context_share=0.5, augment=(Shift(), CutContexts()))
    capture = Capture()
    for step in range(800):
        task.loss(capture, step_generator(0, step), Rank())
    lengths = [[z.shape[1] for z in segments] for segments, _ in capture.given]
    assert lengths == [[noise.shape[1] for noise in draws.noise] for _, draws in capture.given]
    assert {target for *_, target in lengths} == {5}
    pairs = [pair for pair in lengths if len(pair) == 2]
    counts = np.bincount([context for context, _ in pairs], minlength=6) / len(pairs)
    np.testing.assert_allclose(counts, [0, 0, 1 / 8, 1 / 8, 1 / 8, 5 / 8], atol=0.06)


def test_pairs_are_two_trajectories_of_one_environment():
    task, environment = numbered_task(context_share=1.0)
    capture = Capture()
    for step in range(4):
        task.loss(capture, step_generator(0, step), Rank())
    chosen = []
    for segments, draws in capture.given:
        assert [s.shape for s in segments] == [(32, 5, 8, 4)] * 2
        assert [n.shape[:3] for n in draws.noise] == [(32, 5, 8)] * 2
        rows = [s[:, 0, 0, 0].long() for s in segments]
        assert all(
            torch.equal(s, r.view(-1, 1, 1, 1).expand_as(s).float()) for s, r in zip(segments, rows, strict=True)
        )
        assert torch.equal(environment[rows[0]], environment[rows[1]])
        assert (rows[0] != rows[1]).all()
        chosen += rows
    # Every trajectory is met, as context and as target.
    assert torch.cat(chosen[::2]).unique().numel() == torch.cat(chosen[1::2]).unique().numel() == 12


def test_the_share_of_pairs_is_as_asked_for():
    task, _ = numbered_task(context_share=0.25)
    capture = Capture()
    for step in range(200):
        task.loss(capture, step_generator(0, step), Rank())
    lengths = [len(segments) for segments, _ in capture.given]
    assert sum(n == 2 for n in lengths) / 200 == pytest.approx(0.25, abs=0.08)
    # The same number of trajectories either way.
    assert {len(segments) * segments[0].shape[0] for segments, _ in capture.given} == {64}


def test_segments_are_standardised_and_shifted_by_whole_tokens():
    task = dynamics_task("relative", batch=32, context_share=0.0)
    capture = Capture()
    task.loss(capture, step_generator(0, 0), Rank())
    (segments,), _ = capture.given[0]
    stored = (task.train.z.float() - task.train.mean) / task.train.std
    turns = torch.stack([stored.roll(s, dims=3) for s in range(16)])
    candidates = turns.flatten(0, 2).view(-1, 5, 8, 4)
    which = [(candidates - z).abs().amax((1, 2, 3)).argmin().item() for z in segments]
    for i, z in zip(which, segments, strict=True):
        torch.testing.assert_close(z, candidates[i], rtol=1e-6, atol=1e-6)
    # Shifts by several numbers of whole tokens, and by both parts of one.
    assert len({i // (2 * 12) for i in which}) > 8
    assert {i // 12 % 2 for i in which} == {0, 1}


def scattered_task(share, context_share=0.5):
    """Trajectory i of 12, in six environments, has latents i everywhere, and i + 1/2 where it is seen at points."""
    task, _ = numbered_task()
    latents = replace(task.train, scattered=task.train.z + 0.5)
    augment = (Shift(), Scattered(share=share))
    return again(task, {1: latents}, batch=64, context_share=context_share, augment=augment)


@pytest.mark.parametrize("paired", [False, True])
def test_contexts_and_first_frames_are_read_as_seen_at_points(paired):
    task = scattered_task(0.5, context_share=float(paired))
    capture = Capture()
    for step in range(40):
        task.loss(capture, step_generator(0, step), Rank())
    counts = torch.zeros(6)
    for segments, draws in capture.given:
        # What is scored are the latents of whole grids, and what is read differs from them by latent frames.
        assert all((z == z.round()).all() for z in segments)
        frames = [history[..., 0, 0] for history in draws.history]
        assert all(
            torch.equal(history, f[..., None, None].expand_as(history))
            for history, f in zip(draws.history, frames, strict=True)
        )
        target = frames[-1]
        assert set(target.unique().tolist()) <= {0.0, 0.5}
        # The first few, one at least, and never all.
        assert (target[:, 1:] <= target[:, :-1]).all()
        counts += torch.bincount((2 * target).sum(1).long(), minlength=6)
        if paired:
            # A pair is seen at points together, of the context all frames.
            assert torch.equal(frames[0], target[:, :1].expand_as(frames[0]))
    assert counts[0] / counts.sum() == pytest.approx(0.5, abs=0.05)
    assert counts[5] == 0
    # Log-uniform: one frame of five with the probability log 2 / log 5.
    assert counts[1] / counts[1:].sum() == pytest.approx(0.43, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_losses_are_computed_under_autocast(share):
    plain = dynamics_task("points")
    latents = replace(plain.train, scattered=plain.train.z + 0.5 if share else None)
    task = again(plain, {1: latents}, augment=(Shift(), *([Scattered(share=share)] if share else [])))
    exact, _ = task.loss(task.module, step_generator(0, 0), Rank())
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = task.loss(task.module, step_generator(0, 0), Rank())
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_latents_of_points_are_of_the_same_places():
    task = dynamics_task("relative")
    z = torch.randint(0, 100, task.train.z.shape, generator=torch.Generator().manual_seed(0)).half()
    latents = replace(task.train, z=z, scattered=z + 0.5, mean=torch.full((2,), 3.0), std=torch.full((2,), 2.0))
    scattered = again(task, {1: latents}, batch=32, augment=(Shift(), Scattered(share=1.0)))
    capture = Capture()
    for step in range(4):
        scattered.loss(capture, step_generator(0, step), Rank())
    for segments, draws in capture.given:
        for z, history in zip(segments, draws.history, strict=True):
            assert {0.25} <= set(history.unique().tolist()) <= {0.0, 0.25}
            assert z.unique().numel() > 50


def test_validation_shows_few_points_where_training_does(monkeypatch):
    plain = dynamics_task("points")
    latents = replace(plain.train, scattered=plain.train.z)

    def scores(fewest):
        monkeypatch.setattr(Scattered, "fewest", fewest)
        task = again(plain, {1: latents}, augment=(Shift(), Scattered()))
        found = task.validate()
        merit = found["rel_l2"] + found["rel_l2_ivp"] + found["rel_l2_points"]
        assert task.merit(found) == pytest.approx(merit)
        return found

    whole, few = scores(1.0), scores(0.25)
    keys = ("rel_l2", "rel_l2_member", "spread_skill", "crps")
    assert set(whole) - set(plain.validate()) == {f"{key}_points" for key in keys}
    # All points in another order.
    for key in keys:
        assert whole[f"{key}_points"] == pytest.approx(whole[key], rel=1e-4)
    assert few["rel_l2"] == whole["rel_l2"]
    assert abs(few["rel_l2_points"] / few["rel_l2"] - 1) > 1e-3


def test_batches_are_of_one_stride_each():
    task, _ = numbered_task()
    # Every second frame of trajectory i has latents i + 100.
    latents = replace(task.train, z=task.train.z[:, :, :3] + 100, mean=torch.full((2,), 7.0))
    augment = (Shift(), Strides(steps=(1, 2, 1)))
    strided = again(task, {1: task.train, 2: latents}, batch=64, augment=augment)
    capture = Capture()
    for step in range(200):
        strided.loss(capture, step_generator(0, step), Rank())
    frames = [{s.shape[1] for s in segments} for segments, _ in capture.given]
    assert all(len(lengths) == 1 for lengths in frames)
    assert sum(lengths == {3} for lengths in frames) / 200 == pytest.approx(1 / 3, abs=0.1)
    for (segments, draws), lengths in zip(capture.given, frames, strict=True):
        assert all(noise.shape[1] in lengths for noise in draws.noise)
        # Standardised as those of every frame are.
        assert all(((s >= 100) == (lengths == {3})).all() for s in segments)


def test_groups_hold_trajectories_of_one_environment():
    numbers = torch.tensor([4, 7, 4, 7, 7, 4])
    assert environments(numbers).tolist() == [[0, 2, 5], [1, 3, 4]]
    # Each trajectory begins a group of as many as the smallest environment has.
    assert environments(torch.tensor([4, 7, 4, 7, 7])).tolist() == [[0, 2], [2, 0], [1, 3], [3, 4], [4, 1]]
    assert environments(torch.tensor([3, 8, 5]), paired=False).tolist() == [[0], [2], [1]]


def test_pairs_need_two_trajectories_of_every_environment():
    task = dynamics_task("relative")
    latents = replace(task.train, environment=torch.tensor([0, 0, *range(1, 11)]))
    with pytest.raises(EnmaError, match="every environment needs two or more trajectories, or set context_share=0"):
        again(task, {1: latents})
    alone = again(task, {1: latents}, context_share=0.0, val_contexts=False)
    loss, _ = alone.loss(alone.module, step_generator(0, 0), Rank())
    assert loss.isfinite()
    scores = alone.validate()
    assert set(scores) == {"rel_l2", "rel_l2_member", "spread_skill", "crps"}
    assert alone.merit(scores) == scores["rel_l2"]


def test_the_model_gets_the_statistics_of_its_latents():
    task = dynamics_task("relative")
    assert torch.equal(task.model.latent_mean, task.train.mean)
    assert torch.equal(task.model.latent_std, task.train.std)


def test_validation_rolls_out_two_tasks():
    scores = dynamics_task("relative").validate()
    keys = ("rel_l2", "rel_l2_member", "spread_skill", "crps")
    assert scores.keys() == {f"{key}{suffix}" for key in keys for suffix in ("", "_ivp")}
    assert scores["rel_l2"] != scores["rel_l2_ivp"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_dynamics_learn(optimizer, tmp_path):
    run(dynamics_task("relative", optimizer=optimizer, **LEARNING), options(tmp_path, validate_every=1000))
    losses = [entry["loss"] for entry in read_log(tmp_path) if "loss" in entry]
    assert sum(losses[-5:]) / 5 < sum(losses[:3]) / 3 - 0.3
