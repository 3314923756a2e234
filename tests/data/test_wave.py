"""The damped wave equation: plane waves inside, its border, damping, and smaller steps."""

import numpy as np

from enma_fast.data.equations import wave
from enma_fast.data.equations.wave import EQUATION, SPACING, initial_conditions, solve


def values(speed: float, damping: float, count: int) -> dict[str, np.ndarray]:
    return {"c": np.full(count, speed), "k": np.full(count, damping)}


def test_initial_conditions_are_sums_of_bumps() -> None:
    u0 = np.concatenate([initial_conditions("train", seed=0, group=g) for g in range(8)])
    assert u0.shape == (80, 64, 64, 1)
    assert u0.min() >= 0
    assert 0.9 < u0.max() <= wave.MOST_TERMS
    assert len(np.unique(u0.reshape(80, -1), axis=0)) == 80


def test_a_narrow_bump_runs_as_on_an_infinite_plane() -> None:
    """By its Fourier integral over a plane of 8 times the length, before it meets the border."""
    speed, damping, s = 250.0, 20.0, 0.07
    x = np.arange(64) * SPACING
    bump = np.exp(-((x - 0.5) ** 2) / (2 * s**2))
    u0 = (bump[:, None] * bump)[None, ..., None]
    found = solve(u0, values(speed, damping, 1))[0, :6, ..., 0]

    n = 512
    y = (np.arange(n) - 224) * SPACING
    wide = np.exp(-((y - 0.5) ** 2) / (2 * s**2))
    k = 2 * np.pi * np.fft.fftfreq(n, SPACING)
    k_2 = k[:, None] ** 2 + k[None, : n // 2 + 1] ** 2
    omega = np.sqrt(np.maximum(speed**2 * k_2 - damping**2 / 4, 1e-30))
    start = np.fft.rfft2(wide[:, None] * wide)
    for frame, t in enumerate(EQUATION.times[:6]):
        carried = np.exp(-damping * t / 2) * (np.cos(omega * t) + damping / 2 * np.sin(omega * t) / omega)
        exact = np.fft.irfft2(start * carried, s=(n, n))[224:288, 224:288]
        assert np.linalg.norm(found[frame] - exact) < 4e-3 * np.linalg.norm(exact), frame


def test_corners_keep_their_value_and_border_rows_move_along_themselves() -> None:
    u0 = initial_conditions("train", seed=0, group=1)[:2]
    u = solve(u0, values(400.0, 5.0, 2))
    for i in (slice(0, 2), slice(-2, None)):
        for j in (slice(0, 2), slice(-2, None)):
            np.testing.assert_array_equal(u[:, :, i, j], np.broadcast_to(u0[:, None, i, j], u[:, :, i, j].shape))
    assert np.abs(u[:, -1, 0] - u[:, 0, 0]).max() > 1e-3


def test_damping_takes_from_the_motion() -> None:
    u0 = initial_conditions("train", seed=0, group=2)[:1]
    free, damped = (solve(u0, values(300.0, k, 1)) for k in (0.0, 50.0))
    # Every wave of the plane has decayed after the time 1 / c.
    assert np.linalg.norm(damped[:, -1] - damped[:, -2]) < 0.97 * np.linalg.norm(free[:, -1] - free[:, -2])


def test_smaller_steps_change_little() -> None:
    u0 = initial_conditions("train", seed=0, group=3)[:1]
    u, finer = (solve(u0, values(550.0, 0.0, 1), steps_per_frame=n) for n in (16, 48))
    assert np.linalg.norm(u - finer) < 5e-3 * np.linalg.norm(finer)
