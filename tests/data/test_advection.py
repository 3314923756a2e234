"""The Advection solution against the shifted closed form."""

import numpy as np

from enma_fast.data.equations import advection

TIMES = np.arange(advection.NUM_FRAMES) * advection.FRAME_SPACING


def test_solution_is_the_shifted_sum_of_waves() -> None:
    rng = np.random.default_rng(0)
    num, alpha = 16, np.array([-5.0, 5.0, 0.0, -7.0, 7.0, *np.linspace(-5, 5, 11)])
    amplitude, phase = rng.uniform(-0.5, 0.5, (num, 5)), rng.uniform(0, 2 * np.pi, (num, 5))
    wave = rng.integers(1, 4, (num, 5))

    def field(x_BX: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * wave[..., None] * x_BX[:, None] + phase[..., None]
        return np.sum(amplitude[..., None] * (np.sin(angle) + np.cos(angle)), axis=1)

    x = np.arange(128) / 128
    u = advection.solve(field(np.tile(x, (num, 1))), {"alpha": alpha})
    assert u.dtype == np.float64
    for i, t in enumerate(TIMES):
        np.testing.assert_allclose(u[:, i], field(x - alpha[:, None] * t), atol=1e-12)


def test_a_positive_speed_moves_the_crest_to_the_right() -> None:
    x = np.arange(128) / 128
    u = advection.solve(np.cos(2 * np.pi * x)[None], {"alpha": np.array([1.25])})[0]
    # One frame is 1.25 * 0.05 = 1/16 of the domain, 8 points.
    np.testing.assert_array_equal(u.argmax(axis=1), 8 * np.arange(20) % 128)


def test_initial_conditions_are_sine_cosine_or_both() -> None:
    u0 = np.concatenate([advection.initial_conditions("train", seed=0, group=g) for g in range(60)])
    u_hat = np.abs(np.fft.rfft(u0)) / 64
    np.testing.assert_allclose(u_hat[:, [0, *range(4, 65)]], 0, atol=1e-12)
    # sin + cos of one angle is a wave of sqrt(2) the amplitude: variance (1 + 1 + 2) / 3 of one sine sum.
    np.testing.assert_allclose((u0**2).mean(), 5 / 24 * 4 / 3, rtol=0.1)


def test_speeds_cover_their_ranges_and_never_meet() -> None:
    inside, outside = (
        environments.checked(np.arange(environments.count), split, 0)["alpha"]
        for environments, split in ((advection.EQUATION.inside, "train"), (advection.EQUATION.outside, "test-out"))
    )
    assert (inside.min(), inside.max()) == (-5.0, 5.0)
    assert (outside.min(), outside.max()) == (-7.0, 7.0)
    assert np.abs(outside).min() > 5.0
    assert (outside > 0).mean() == 0.5
    assert len(np.unique(inside)) == len(np.unique(outside)) == 1_000_000
