"""The linear propagator of periodic domains: right for linear physics, bounded, and aware of its error."""

import math

import pytest
import torch

from enma_fast.models.floors.ladder import roll
from enma_fast.models.floors.spectral import SpectralFloor

GRIDS = {1: (32,), 2: (16, 12), 3: (8, 8, 6)}


def numbers(grid):
    k = [torch.fft.fftfreq(n, 1 / n) for n in grid[:-1]] + [torch.fft.rfftfreq(grid[-1], 1 / grid[-1])]
    return torch.stack(torch.meshgrid(*k, indexing="ij"), -1)


def linear(grid, count, frames, *, seed=0, highest=3, noise=0.0, channels=1):
    """Trajectories that are carried and diffuse, each at rates of its own."""
    generator, dims = torch.Generator().manual_seed(seed), len(grid)
    k = numbers(grid).double()
    first = torch.randn(count, *grid, channels, generator=generator).double()
    waves = torch.fft.rfftn(first, dim=tuple(range(1, 1 + dims))) * (k.abs().amax(-1) <= highest)[..., None]
    speed = torch.rand(count, dims, generator=generator).double() * 0.6 - 0.3
    rate = torch.rand(count, generator=generator).double() * 0.02 + 0.001
    wide = (count, *(1,) * dims)
    symbol = -1j * torch.einsum("...d,bd->b...", k, speed) - rate.view(wide) * k.square().sum(-1)
    frames = [
        torch.fft.irfftn(waves * (symbol * t).exp()[..., None], s=grid, dim=tuple(range(1, 1 + dims)))
        for t in range(frames)
    ]
    u = torch.stack(frames, 1).float()
    return u + noise * torch.randn(u.shape, generator=generator)


def learned(grid, **more):
    floor = SpectralFloor(grid, more.get("channels", 1))
    floor.learn(linear(grid, 120, 8, **more))
    return floor


def error(made, truth):
    return float(((made - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_linear_physics_is_forecast_from_three_frames(dims):
    grid, highest = GRIDS[dims], 3 if dims < 3 else 2
    floor, u = learned(grid, highest=highest), linear(grid, 20, 12, seed=1, highest=highest)
    state = floor.infer(u[:, None, :3])
    assert error(roll(floor, u[:, :3], state, 9), u[:, 3:]) < 1e-3


def test_channels_have_laws_of_their_own():
    one, two = linear((32,), 120, 8), linear((32,), 120, 8, seed=5)
    floor = SpectralFloor((32,), 2)
    floor.learn(torch.cat([one, two], -1))
    u = torch.cat([linear((32,), 20, 12, seed=1), linear((32,), 20, 12, seed=6)], -1)
    assert error(roll(floor, u[:, :3], floor.infer(u[:, None, :3]), 9), u[:, 3:]) < 1e-3


def test_the_law_tells_of_waves_that_the_windows_do_not_show():
    grid = (32,)
    floor = learned(grid)
    seen, other = linear(grid, 20, 3, seed=1, highest=1), linear(grid, 20, 8, seed=1, highest=4)
    state = floor.infer(seen[:, None], own=False)
    assert error(roll(floor, other[:, :1], state, 7), other[:, 1:]) < 0.05
    assert error(other[:, :1].expand(-1, 7, -1, -1), other[:, 1:]) > 0.5


def test_more_windows_tell_more():
    grid = (32,)
    floor, u = learned(grid, noise=0.05), linear(grid, 60, 12, seed=1, noise=0.05)
    windows = torch.stack([u[:, t : t + 3] for t in range(0, 9, 3)], 1)
    last = linear(grid, 60, 18, seed=1)[:, 11:]
    one, all_ = (error(roll(floor, last[:, :1], floor.infer(w), 6), last[:, 1:]) for w in (windows[:, :1], windows))
    assert all_ < one


def test_nothing_grows_whatever_the_frames_show():
    floor = learned((32,))
    u = (
        torch.randn(10, 3, 32, 1, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 4.0, 16.0])[:, None, None]
    )
    state = floor.infer(u[:, None])
    made = roll(floor, u[:, :3], state, 200)
    assert float(state.multiplier.abs().max()) <= 1 + 1e-5
    assert float(made.square().mean((2, 3)).amax()) <= 1.01 * float(u[:, -1].square().mean((1, 2)).max())
    assert torch.isfinite(made).all()


def test_draws_spread_as_the_forecasts_err():
    grid, noise = (32,), 0.05
    floor, u = learned(grid, noise=noise), linear(grid, 100, 12, seed=1, noise=noise)
    state, generator = floor.infer(u[:, None, :3]), torch.Generator().manual_seed(0)
    clean = linear(grid, 100, 12, seed=1)
    normals = torch.randn(16, 100, floor.num_draws, generator=generator)
    members = torch.stack([roll(floor, clean[:, 2:3], floor.draw(state, n), 9)[:, -1] for n in normals])
    skill = (members.mean(0) - clean[:, -1]).square().mean().sqrt()
    assert 0.4 < float(members.std(0).square().mean().sqrt() / skill) < 2.5
    exact = learned(grid)
    u = linear(grid, 20, 12, seed=1)
    state = exact.infer(u[:, None, :3])
    assert error(roll(exact, u[:, :3], exact.draw(state, normals[0, :20]), 9), u[:, 3:]) < 1e-2


def test_a_trajectory_alone_is_inferred_as_among_others():
    floor, u = learned((32,)), linear((32,), 6, 3, seed=1)
    whole = floor.infer(u[:, None])
    for name in ("law", "multiplier", "spread", "residual"):
        torch.testing.assert_close(getattr(floor.infer(u[2:3, None]), name), getattr(whole, name)[2:3])
        torch.testing.assert_close(getattr(whole[torch.tensor([2])], name), getattr(whole, name)[2:3])
    joined = type(whole).join([whole[:2], whole[2:]])
    assert torch.equal(joined.law, whole.law)


def test_fields_of_zeros_stay_finite():
    floor = learned((32,))
    state = floor.infer(torch.zeros(2, 1, 3, 32, 1))
    assert torch.isfinite(floor.step(torch.zeros(2, 3, 32, 1), state)).all()
    assert torch.isfinite(floor.features(state, torch.zeros(2, 1, 3, 32, 1))).all()


def test_coefficients_are_rates():
    """A law of second order is diffusion: its mean over training data is that of their rates."""
    floor = learned((32,))
    rates = floor.law_mean[0, 2] / 8.0**2
    assert math.isclose(float(rates), 0.011, rel_tol=0.2)


def test_frames_that_break_the_law_are_believed():
    """Waves that turn at rates of their own follow no law of low order: their own frames tell, the law does not."""
    grid = (32,)
    floor, k = learned(grid, noise=0.01), numbers(grid).double()[:, 0]
    generator = torch.Generator().manual_seed(4)
    waves = torch.fft.rfft(torch.randn(20, 32, generator=generator).double()) * (k <= 6)
    turn = torch.exp(1j * 3 * torch.rand(20, len(k), generator=generator).double())
    u = torch.stack([torch.fft.irfft(waves * turn**t, n=32) for t in range(8)], 1).float()[..., None]
    state = floor.infer(u[:, None, :3])
    assert error(roll(floor, u[:, 2:3], state, 5), u[:, 3:]) < 0.2
    lawful = floor.views(u[:, 2:3], state)[..., 1]
    assert error(lawful, u[:, 3]) > 0.3


@pytest.mark.parametrize("grid", [(32,), (16, 12)])
def test_one_wave_leaves_several_displacements(grid):
    """Four waves along each axis turn alike at speeds that differ by 2 pi / 4: members have each as it is likely."""
    generator = torch.Generator().manual_seed(0)
    places = sum(torch.meshgrid(*(2 * math.pi * torch.arange(n) / n for n in grid), indexing="ij"))

    def carried(speed, waves, frames):
        t = (speed[:, None] * torch.arange(frames)).view(len(speed), frames, *[1] * len(grid))
        return sum((k * (places - t)).sin() for k in waves).float()[..., None]

    floor = SpectralFloor(grid, 1)
    floor.learn(carried(0.8 * torch.randn(200, generator=generator).double(), (1, 2), 8))
    speeds, apart = torch.linspace(-1.2, 1.2, 9).double(), 2 * math.pi / 4
    state = floor.infer(carried(speeds, (4,), 3)[:, None], own=False)

    def steps(law):
        """By how many multiples the displacement of a law along all axes is off."""
        moved = -law[..., [floor._first[axis] for axis in range(len(grid))]].sum(-1) / 8
        off = (moved - speeds.view(9, *[1] * (moved.ndim - 1))) / apart
        assert float((off - off.round()).abs().max()) < 1e-2
        return off.round()

    normals = torch.randn(600, 9, floor.num_draws, generator=generator)
    drawn = steps(torch.stack([floor.draw(state, n).law[:, 0] for n in normals], 1))
    laws = steps(torch.cat([state.law, state.others[:, 0]], 1))
    chances = torch.cat([torch.zeros(9, 1), state.likely[:, 0], torch.ones(9, 1)], 1).diff(dim=1)
    for row in range(9):
        of_truth = float((drawn[row] == 0).double().mean())
        assert 0.1 < of_truth < 0.9
        for n in drawn[row].unique():
            share, expected = (drawn[row] == n).double().mean(), chances[row][laws[row] == n].sum()
            assert abs(float(share - expected)) < 0.08
    # Who draws nothing has the first law, and a second wave tells which it is.
    assert torch.equal(floor.draw(state, torch.zeros(9, floor.num_draws)).law, state.law)
    assert float(floor.infer(carried(speeds, (3, 4), 3)[:, None], own=False).likely.min()) == 1


def test_one_long_series_is_enough():
    grid = (32,)
    floor = SpectralFloor(grid, 1)
    u = linear(grid, 1, 100, noise=0.01)
    floor.learn(u)
    later = linear(grid, 1, 8)
    assert error(roll(floor, later[:, :1], floor.infer(u[:, None, :20]), 7), later[:, 1:]) < 0.05
