"""Trajectories under one more damping: closed forms, what a batch draws, and what is refused."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from enma_fast.training import forecasts
from enma_fast.training.augment import Augmentation, Damping, Shift, damped
from enma_fast.training.loop import step_generator
from enma_fast.training.ranks import Rank

from .._tiny import forecast_task

DAMPING = ((0.0, 1.0), (4.0, 0.5))


@dataclass(frozen=True, kw_only=True)
class Kept(Augmentation):
    """Changes nothing; a test sees by it what a batch was."""

    kind: str = "kept"


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(forecasts.ForecastStage, "augmentations", (*forecasts.FIELD_AUGMENTATIONS, Kept))


def linear(beta, gamma, delta, *, drag=0.0, length=3.0, times, points=48):
    """Solution of u_t = beta u_xx - gamma u_xxx - delta u_xxxx - drag u from three waves and a mean, float64."""
    x, u = np.arange(points) * length / points, np.full((len(times), points), 0.3) * np.exp(-drag * times)[:, None]
    for n, amplitude, phase in ((1, 0.7, 0.2), (2, -0.4, 1.0), (5, 0.2, 2.0)):
        k = 2 * np.pi * n / length
        decay = np.exp(-(beta * k**2 + delta * k**4 + drag) * times)[:, None]
        u = u + amplitude * decay * np.sin(k * x + phase + gamma * k**3 * times[:, None])
    return torch.from_numpy(u)[None, ..., None]


def test_a_damped_solution_of_a_linear_equation_solves_that_with_the_damping():
    # A trajectory may begin at any time.
    times = 2.5 + 0.05 * np.arange(9)
    given = {"times": times - 2.5, "beta": 0.02, "gamma": 0.01}
    plain = linear(delta=0.0, **given)
    for order, rate, expected in (
        (4.0, 0.003, linear(delta=0.003, **given)),
        (2.0, 0.05, linear(delta=0.0, **(given | {"beta": 0.07}))),
        (0.0, 0.8, linear(delta=0.0, drag=0.8, **given)),
    ):
        found = damped(
            plain, *torch.tensor([[order], [rate]], dtype=torch.float64), times=torch.from_numpy(times), lengths=(3.0,)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (found - plain).abs().max() > 1e-2


def test_waves_of_a_plane_are_damped_by_their_whole_wave_number():
    x, y = torch.arange(12).double() * 2 / 12, torch.arange(10).double() * 5 / 10
    phase = 2 * math.pi * (2 * x[:, None] / 2 + 3 * y / 5)
    u = torch.stack([torch.sin(phase), torch.cos(phase)], -1).expand(2, 3, 12, 10, 2)
    (order, rate), times = torch.tensor([[2.0, 4.0], [1e-3, 0.0]], dtype=torch.float64), torch.tensor([0.0, 1.0, 3.0])
    found = damped(u, order, rate, times=times.double(), lengths=(2.0, 5.0))
    k2 = (2 * math.pi) ** 2 * (1 + (3 / 5) ** 2)
    torch.testing.assert_close(found[0, 2], u[0, 2] * math.exp(-3e-3 * k2), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], u[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("paired", [False, True])
def test_a_share_of_a_batch_is_damped_as_its_environment_would_be(paired, monkeypatch):
    batch = 2_000
    task = forecast_task("relative", batch=batch, augment=(Kept(), Damping(rates=DAMPING, share=0.25)))
    seen, before_it = [], []
    monkeypatch.setattr(Kept, "__call__", lambda self, batch, rng: before_it.extend(batch.fields))
    monkeypatch.setattr(task.model, "encode", lambda u: seen.append(u) or u)
    task.tokens(step_generator(0, 0), slice(None), paired=paired)
    assert len(before_it) == len(seen) == 1 + paired
    before, after = (torch.fft.rfft(u[..., 0].double(), dim=-1) for u in (before_it[-1], seen[-1]))
    # The mean and the first wave at the last frame, of which a drag damps both alike and the other the wave alone.
    gain = (after[:, -1, :2].abs() / before[:, -1, :2].abs()).where(before[:, -1, :2].abs() > 1e-3, torch.nan)
    wave = gain[:, 1]
    untouched = (seen[-1] == before_it[-1]).flatten(1).all(1)
    changed = wave < 1 - 1e-4
    assert 0.2 < changed.double().mean() < 0.3
    assert not (changed & untouched).any()
    torch.testing.assert_close(seen[-1][~changed], before_it[-1][~changed], atol=1e-3, rtol=0)
    time = task.times[-1] - task.times[0]
    k = 2 * math.pi / task.model.config.codec.lengths[0]
    assert wave.nan_to_num(1.0).min() >= math.exp(-time * max(1.0, 0.5 * k**4)) - 1e-4
    # The first frame is as it was.
    torch.testing.assert_close(seen[-1][:, 0], before_it[-1][:, 0], atol=1e-5, rtol=0)
    if paired:
        # A context is of the same environment, so under the same damping.
        other = torch.fft.rfft(seen[0][..., 0].double(), dim=-1)[:, -1, 1].abs()
        other = other / torch.fft.rfft(before_it[0][..., 0].double(), dim=-1)[:, -1, 1].abs()
        there = changed & other.isfinite()
        torch.testing.assert_close(other[there], wave[there], rtol=1e-3, atol=0)


def test_ranks_share_the_draws_of_a_batch(monkeypatch):
    task = forecast_task("relative", batch=6, augment=(Damping(rates=DAMPING, share=0.5), Shift()))
    seen = []
    monkeypatch.setattr(task.model, "encode", lambda u: seen.append(u) or u)
    for rank in (Rank(), Rank(0, 2), Rank(1, 2)):
        task.tokens(step_generator(0, 3), rank.share(6), paired=False)
    assert torch.equal(seen[0], torch.cat(seen[1:]))


def test_a_damping_of_rate_0_changes_nothing():
    task = forecast_task("relative", augment=(Damping(rates=((4.0, 0.0),), share=1.0),))
    kept = forecast_task("relative", augment=(Kept(),))
    found = [each.tokens(step_generator(0, 0), slice(None), paired=True)[0] for each in (kept, task)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
