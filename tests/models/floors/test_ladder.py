"""The share of a correction for a trajectory, and the floors that are the same for all."""

import math

import pytest
import torch

from enma_fast.models.floors.dataset import DampedPersistence, InverseModel, MultiModelMean, ObservedMean, Persistence
from enma_fast.models.floors.ladder import forecast_error, known_share, roll


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def damped(count, frames, rate, *, seed=0, noise=0.0):
    """Fields that return to a mean map at a rate."""
    mean = normals(6, 5, 1, seed=9)
    u = [normals(count, 6, 5, 1, seed=seed)]
    for t in range(frames - 1):
        u.append(rate * u[-1] + noise * normals(count, 6, 5, 1, seed=seed + t + 1))
    return mean + torch.stack(u, 1)


def test_a_correction_counts_where_it_was_right():
    off = normals(4, 2, 20)
    correction = torch.stack([off[0], -off[1], 0.5 * off[2], 100 * normals(2, 20, seed=1)])
    share = known_share(correction, off)
    assert share[0] == pytest.approx(1)
    assert share[1] == 0
    assert share[2] == 1
    assert share[3] < 0.02


def test_damped_persistence_finds_mean_and_rate():
    floor = DampedPersistence((6, 5), 1)
    floor.learn(damped(400, 6, 0.7, noise=0.3))
    assert float(floor.rate) == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(floor.mean, normals(6, 5, 1, seed=9), atol=0.1, rtol=0)
    u = damped(50, 6, 0.7, seed=30)
    own, still = (forecast_error(f, u[:, None, :3], u) for f in (floor, Persistence()))
    assert own < 0.1 < still


def test_fields_return_to_what_observed_frames_tell():
    """All points share a level, each has one of its own, and noise is forgotten from frame to frame."""
    land = torch.zeros(6, 5, 1)
    land[:2] = 1

    def around_levels(count, seed):
        level = 2 * normals(count, 1, 1, 1, seed=seed) + 0.5 * normals(count, 6, 5, 1, seed=seed + 1)
        frames = level[:, None] + 0.8 * normals(count, 9, 6, 5, 1, seed=seed + 2)
        return normals(6, 5, 1, seed=9) * (1 - land) + frames * (1 - land)

    u = around_levels(100, 50)
    floor, damped_floor = ObservedMean((6, 5), 1), DampedPersistence((6, 5), 1)
    for each in (floor, damped_floor):
        each.learn(around_levels(400, 0))
    own, damped_error = (forecast_error(f, u[:, None, :3], u, known=3) for f in (floor, damped_floor))
    assert own < 0.8 * damped_error
    variance, noise = 0.5**2, 0.8**2 / 3
    assert float(floor.weights[0]) == pytest.approx(variance / (variance + noise), abs=0.05)
    assert float(floor.weights[:2].sum()) == pytest.approx(1, abs=0.05)
    assert float(floor.returning) < 0.05
    state = floor.infer(u[:, None, :3])
    assert bool((roll(floor, u[:, :3], state, 4)[:, :, :2] == 0).all())
    # The frames of another trajectory tell nothing of this one's level.
    context = floor.infer(u[:, None, :3], own=False)
    torch.testing.assert_close(floor.step(u[:, :1], context), damped_floor.step(u[:, :1], None))
    torch.testing.assert_close(floor.step(u[3:5, :3], state[3:5]), floor.step(u[:, :3], state)[3:5])


def test_the_inverse_model_finds_what_oscillates():
    """Two patterns that turn into each other, which damped persistence cannot forecast."""
    patterns = torch.linalg.qr(normals(30, 2))[0]

    def turning(count, seed):
        phase = normals(count, 1, seed=seed) * 3
        angle = phase + 0.6 * torch.arange(10)
        flat = torch.stack([angle.cos(), angle.sin()], -1) @ patterns.T
        return (flat + 0.02 * normals(count, 10, 30, seed=seed + 1)).unflatten(2, (6, 5))[..., None]

    model, base = InverseModel((6, 5), 1), DampedPersistence((6, 5), 1)
    for floor in (model, base):
        floor.learn(turning(60, 0))
    u = turning(20, 50)
    errors = [forecast_error(f, u[:, None, :3], u, known=2) for f in (model, base)]
    assert errors[0] < 0.3 < errors[1]


def test_the_mean_of_two_floors():
    u = damped(40, 6, 0.7, noise=0.5)
    each = MultiModelMean((6, 5), 1), ObservedMean((6, 5), 1), InverseModel((6, 5), 1)
    for floor in each:
        floor.learn(u)
    mean, *others = (floor.step(u[:, :3], floor.infer(u[:, None, :3])) for floor in each)
    torch.testing.assert_close(mean, sum(others) / 2)
    assert each[0].reads == each[2].reads


def test_a_single_series_is_cut_into_blocks_of_time():
    model = InverseModel((6, 5), 1, lags=1)
    u = damped(1, 200, 0.8, noise=0.5)
    model.learn(u)
    assert forecast_error(model, u[:, None, :2], u[:, :3], known=2) < 1.5
    assert torch.isfinite(model.weights).all()


def test_fewer_frames_than_lags_are_completed_by_the_first():
    model = InverseModel((6, 5), 1, lags=3)
    model.learn(damped(30, 8, 0.8, noise=0.2))
    u = normals(2, 1, 6, 5, 1)
    state = model.infer(u[:, None])
    torch.testing.assert_close(model.step(u, state), model.step(u.expand(-1, 3, -1, -1, -1), state))


def test_a_forecast_that_is_lost_is_infinitely_wrong():
    class Growing(Persistence):
        def step(self, past, state):
            return 100 * past[:, -1]

    u = damped(4, 6, 0.9)
    assert forecast_error(Growing(), u[:, None, :3], u) == math.inf
    assert forecast_error(Persistence(), u[:, None, :3], u) < 2
    assert roll(Persistence(), u[:, :2], None, 3).shape == (4, 3, 6, 5, 1)
