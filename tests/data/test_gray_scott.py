"""Gray-Scott: what diffusion and reaction conserve, the rest state, and smaller steps."""

import numpy as np

from enma_fast.data.equations import gray_scott
from enma_fast.data.equations.gray_scott import EQUATION, initial_conditions, solve


def values(feed: float, kill: float, count: int) -> dict[str, np.ndarray]:
    return {"F": np.full(count, feed), "k": np.full(count, kill)}


def test_initial_conditions_are_four_squares() -> None:
    u0 = initial_conditions("train", seed=0, group=0)
    assert u0.shape == (10, 32, 32, 2)
    changed = u0[..., 1] == 1.0
    assert np.array_equal(changed, u0[..., 0] == 0.0)
    assert np.all(u0[~changed] == [0.95, 0.05])
    # Squares may overlap, none is lost.
    counts = changed.sum((1, 2))
    assert counts.max() == 36
    assert counts.min() >= 9
    assert not np.array_equal(u0, initial_conditions("train", seed=0, group=1))
    assert not np.array_equal(u0, initial_conditions("val", seed=0, group=0))


def test_without_feed_the_total_is_conserved() -> None:
    u0 = initial_conditions("train", seed=0, group=0)[:2]
    u = solve(u0, values(0.0, 0.0, 2))
    total = u.sum((2, 3, 4))
    np.testing.assert_allclose(total, np.broadcast_to(total[:, :1], total.shape), rtol=1e-12)
    assert np.abs(u[:, 1] - u[:, 0]).max() > 0.1


def test_the_state_without_v_is_at_rest() -> None:
    rest = np.broadcast_to([1.0, 0.0], (1, 32, 32, 2))
    np.testing.assert_array_equal(solve(rest, values(0.03, 0.06, 1))[:, -1], rest)


def test_small_waves_decay_as_the_grid_diffuses_them() -> None:
    """Without v a wave of u obeys the heat equation of the 5-point Laplacian with feed."""
    x = np.arange(32)
    wave = np.cos(2 * np.pi * 3 * x / 32)
    u0 = np.zeros((1, 32, 32, 2))
    u0[..., 0] = 1 + wave[:, None]
    feed = 0.04
    rate = gray_scott.DIFFUSION[0] * (2 * np.cos(2 * np.pi * 3 / 32) - 2) / gray_scott.SPACING**2 - feed
    times = EQUATION.times
    expected = 1 + np.exp(rate * times)[:, None, None] * wave[:, None]
    found = solve(u0, values(feed, 0.06, 1))[0, ..., 0]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-8)


def test_smaller_steps_change_nothing() -> None:
    u0 = initial_conditions("train", seed=0, group=3)[:1]
    u, finer = (solve(u0, values(0.035, 0.063, 1), steps_per_frame=n)[:, :6] for n in (50, 200))
    assert np.linalg.norm(u - finer) < 2e-5 * np.linalg.norm(finer)


def test_shifted_squares_give_the_shifted_solution() -> None:
    u0 = initial_conditions("train", seed=0, group=4)[:1]
    moved = np.roll(u0, (5, -7), (1, 2))
    u, w = (solve(x, values(0.03, 0.06, 1))[:, :3] for x in (u0, moved))
    np.testing.assert_allclose(np.roll(u, (5, -7), (2, 3)), w, atol=1e-12)
