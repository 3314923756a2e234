"""The Combined solver against exact solutions, a refined step, exponax, an independent method, and the shipped data."""

import sys

import numpy as np
import pytest

from enma_fast.data import EQUATIONS, read, shipped_file, splits
from enma_fast.data.equations import combined

POINTS = 256
TIMES = np.arange(combined.NUM_FRAMES) * combined.FRAME_SPACING


def coefficients(*rows: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    return dict(zip(combined.PARAMETERS, np.array(rows, dtype=float).T, strict=True))


# Least damping and weakest dispersion first: the worst case of the ranges.
WORST, TYPICAL, OUT = (1.0, 5e-4, 0.01, 0.0), (0.75, 0.2, 0.5, 0.0), (0.75, 0.2, 0.5, 0.75)
CORNERS = coefficients(WORST, WORST, WORST, (1, 5e-4, 1, 0), (1, 0.5, 0.01, 0), (0.5, 0.5, 1, 0), TYPICAL, OUT)


@pytest.fixture(scope="module")
def u0() -> np.ndarray:
    return combined.initial_conditions("train", seed=0, group=0)[:8]


def relative(u: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Relative L2 per trajectory."""
    axes = tuple(range(1, reference.ndim))
    return np.sqrt(np.sum((u - reference) ** 2, axes) / np.sum(reference**2, axes))


def runge_kutta_reference(u0: np.ndarray, row: tuple[float, ...], steps: int) -> np.ndarray:
    """Classical RK4 on complex FFTs, non-conservative u u_x, no dealiasing; 20 frames on 128 points."""
    alpha, beta, gamma, delta = row
    k = np.fft.fftfreq(len(u0), 1 / len(u0))
    linear = -beta * k**2 + 1j * gamma * k**3 - delta * k**4

    def rate(v: np.ndarray) -> np.ndarray:
        u, u_x = np.fft.ifft(v).real, np.fft.ifft(1j * k * v).real
        return linear * v - alpha * np.fft.fft(u * u_x)

    dt, v, frames = combined.FRAME_SPACING / steps, np.fft.fft(u0), [u0]
    for _ in range(combined.NUM_FRAMES - 1):
        for _ in range(steps):
            k1 = rate(v)
            k2 = rate(v + dt / 2 * k1)
            k3 = rate(v + dt / 2 * k2)
            k4 = rate(v + dt * k3)
            v = v + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        frames.append(np.fft.ifft(v).real)
    return np.array(frames)[:, :: len(u0) // combined.NUM_POINTS]


def test_linear_part_is_the_exact_fourier_solution(u0: np.ndarray) -> None:
    rows = [(0.0, 5e-4, 0.01, 0.0), (0.0, 0.5, 1.0, 0.0), (0.0, 0.2, 0.5, 0.75)]
    u = combined.solve(u0[:3], coefficients(*rows))
    k = np.arange(POINTS // 2 + 1)
    for u_TX, initial, (_, beta, gamma, delta) in zip(u, u0, rows, strict=False):
        growth = np.exp((-beta * k**2 + 1j * gamma * k**3 - delta * k**4) * TIMES[:, None])
        exact = np.fft.irfft(np.fft.rfft(initial) * growth, n=POINTS)[:, ::2]
        np.testing.assert_allclose(u_TX, exact, atol=1e-10)


def test_one_mode_decays_and_travels_as_on_paper() -> None:
    x, (_, beta, gamma, delta) = np.arange(POINTS) * combined.LENGTH / POINTS, (0, 0.3, 0.4, 0.6)
    u = combined.solve(np.sin(2 * x)[None], coefficients((0.0, beta, gamma, delta)))[0]
    t, x = TIMES[:, None], x[None, ::2]
    # u_t = -gamma u_xxx carries exp(i k x) to exp(i (k x + gamma k^3 t)): leftwards for gamma > 0.
    np.testing.assert_allclose(u, np.exp(-(4 * beta + 16 * delta) * t) * np.sin(2 * x + 8 * gamma * t), atol=1e-10)


def test_convection_is_alpha_u_ux_not_half_of_it() -> None:
    # Inviscid, before the shock: u keeps its value along x + alpha u0(x) t; u0 = sin x / 2, alpha = 0.8.
    x = np.arange(POINTS) * combined.LENGTH / POINTS
    u = combined.solve(0.5 * np.sin(x)[None], coefficients((0.8, 0.0, 0.0, 0.0)))[0]
    foot = np.tile(x[::2], (combined.NUM_FRAMES, 1))
    for _ in range(100):
        foot = x[::2] - 0.8 * 0.5 * np.sin(foot) * TIMES[:, None]
    np.testing.assert_allclose(u, 0.5 * np.sin(foot), atol=1e-8)


def test_the_step_is_fourth_order_with_dispersion(u0: np.ndarray) -> None:
    rows = coefficients((1.0, 0.05, 0.3, 0.0))
    u = [combined.solve(u0[:1], rows, steps_per_frame=s) for s in (5, 10, 20)]
    ratio = np.abs(u[0] - u[1]).max() / np.abs(u[1] - u[2]).max()
    assert 12 < ratio < 20


def test_half_the_step_changes_nothing(u0: np.ndarray) -> None:
    coarse = combined.solve(u0, CORNERS)
    fine = combined.solve(u0, CORNERS, steps_per_frame=2 * combined._STEPS_PER_FRAME)
    assert relative(coarse, fine).max() < 1e-7


def test_the_largest_start_there_can_be_is_resolved() -> None:
    # All five terms alike, which has probability zero, with the least damping: the steepest fronts.
    x = np.arange(POINTS) * combined.LENGTH / POINTS
    u0 = np.stack([2.5 * np.sin(wave * x) for wave in (1, 2, 3)])
    rows = coefficients(WORST, WORST, WORST)
    fine = combined.solve(u0, rows, steps_per_frame=4 * combined._STEPS_PER_FRAME)
    assert relative(combined.solve(u0, rows), fine).max() < 1e-4


def test_twice_the_points_change_nothing() -> None:
    u0 = combined.initial_conditions("train", seed=0, group=0, num_points=512)[:3]
    rows = coefficients(WORST, WORST, OUT)
    coarse = combined.solve(u0[:, ::2], rows)
    assert relative(combined.solve(u0, rows, steps_per_frame=40), coarse).max() < 1e-5


@pytest.mark.parametrize(("row", "steps"), [((1.0, 5e-4, 0.01, 0.0), 500), ((0.6, 0.1, 0.01, 0.0), 500)])
def test_agrees_with_an_independent_method(u0: np.ndarray, row: tuple[float, ...], steps: int) -> None:
    u = combined.solve(u0[:1], coefficients(row))[0]  # type: ignore[arg-type]
    reference = runge_kutta_reference(u0[0], row, steps)
    assert relative(u[None], reference[None]).item() < 1e-5


def test_mass_is_conserved_and_energy_never_grows(u0: np.ndarray) -> None:
    u = combined.solve(u0, CORNERS)
    np.testing.assert_allclose(u.mean(axis=2), u0.mean(axis=1)[:, None] + 0 * u.mean(axis=2), atol=1e-12)
    energy = (u**2).mean(axis=2)
    assert (np.diff(energy, axis=1) <= 1e-9 * energy[:, :1]).all()


def test_a_shifted_start_gives_the_shifted_solution(u0: np.ndarray) -> None:
    rows = coefficients(WORST)
    u, shifted = combined.solve(u0[:1], rows), combined.solve(np.roll(u0[:1], 20, axis=1), rows)
    np.testing.assert_allclose(shifted, np.roll(u, 10, axis=2), atol=1e-10)


def test_a_trajectory_does_not_depend_on_its_batch(u0: np.ndarray) -> None:
    both = combined.solve(u0, CORNERS)
    swapped = combined.solve(u0[::-1], {key: value[::-1] for key, value in CORNERS.items()})
    np.testing.assert_array_equal(both, swapped[::-1])


def test_frame_0_is_the_initial_condition_on_every_other_point(u0: np.ndarray) -> None:
    u = combined.solve(u0, CORNERS)
    assert u.dtype == np.float64
    assert u.shape == (8, 20, 128)
    np.testing.assert_array_equal(u[:, 0], u0[:, ::2])


@pytest.mark.slow
@pytest.mark.parametrize("row", [(1.0, 5e-4, 0.0, 0.0), (0.75, 0.2, 0.0, 0.75)])
def test_agrees_with_exponax_where_its_coefficients_suffice(u0: np.ndarray, row: tuple[float, ...]) -> None:
    """Without dispersion: exponax 0.2 keeps the real part of its coefficients."""
    pytest.importorskip("jax", reason="needs the [test] extra")
    import jax

    exponax = pytest.importorskip("exponax", reason="needs the [test] extra")
    alpha, beta, _, delta = row
    with jax.enable_x64(True):
        stepper = exponax.stepper.generic.GeneralConvectionStepper(
            1,
            combined.LENGTH,
            POINTS,
            combined.FRAME_SPACING / combined._STEPS_PER_FRAME,
            linear_coefficients=(0.0, 0.0, beta, 0.0, -delta),
            convection_scale=alpha,
            single_channel=True,
            conservative=True,
            order=4,
            num_circle_points=32,
        )
        steps = (combined.NUM_FRAMES - 1) * combined._STEPS_PER_FRAME
        last = exponax.repeat(stepper, steps)(jax.numpy.asarray(u0[:1]))
    u = combined.solve(u0[:1], coefficients(row))  # type: ignore[arg-type]
    np.testing.assert_allclose(u[0, -1], np.asarray(last)[0, ::2], atol=1e-12)


@pytest.mark.parametrize("split", ["test-in", "test-out"])
def test_shipped_data_are_what_the_solver_gives(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("exponax", "jax"):
        monkeypatch.setitem(sys.modules, module, None)
    equation, data = EQUATIONS["combined"], read(shipped_file("combined", split), select=slice(0, 8))
    inside = equation.inside.count if split == "test-out" else 0
    numbers = splits.environments(equation, split, groups=splits.default_groups(equation, split), seed=0)
    groups = [int(np.flatnonzero(numbers + inside == number)[0]) for number in data.environment[::2]]
    u0 = np.concatenate([combined.initial_conditions(split, seed=0, group=group)[:2] for group in groups])
    values = {
        name: np.repeat(value[groups], 2)
        for name, value in equation.environments(split).checked(numbers, split, 0).items()
    }
    u = combined.solve(u0, values).astype(np.float32)
    np.testing.assert_allclose(u, data.u[..., 0], rtol=2e-7, atol=1e-13)


def test_initial_conditions_hold_three_wave_numbers_within_the_amplitudes() -> None:
    u0 = np.concatenate([combined.initial_conditions("val", seed=3, group=g) for g in range(40)])
    u_hat = np.abs(np.fft.rfft(u0)) / (POINTS / 2)
    np.testing.assert_allclose(u_hat[:, [0, *range(4, POINTS // 2 + 1)]], 0, atol=1e-12)
    assert (u_hat[:, 1:4] > 1e-3).mean(axis=0).min() > 0.8
    assert np.abs(u0).max() < 2.5
    # Five terms of variance <A^2> <sin^2> = 1/12 * 1/2 each.
    np.testing.assert_allclose((u0**2).mean(), 5 / 24, rtol=0.1)


def test_parameters_lie_on_the_grid_within_their_ranges() -> None:
    inside_of, outside_of = combined.EQUATION.inside, combined.EQUATION.outside
    inside = inside_of.checked(np.array([0, 999_999, 123_456]), "train", 0)
    for name, (interval,) in inside_of.ranges.items():
        np.testing.assert_allclose(inside[name][:2], interval)
    np.testing.assert_allclose(inside["alpha"][2], 0.5 + 0.5 * 12 / 99)
    np.testing.assert_allclose(inside["beta"][2], 5e-4 + 0.4995 * 34 / 99)
    np.testing.assert_allclose(inside["gamma"][2], 0.01 + 0.99 * 56 / 99)
    assert (inside["delta"] == 0).all()

    outside = outside_of.checked(np.arange(500), "test-out", 0)
    delta = outside.pop("delta")
    assert delta.min() >= 0.5
    assert delta.max() <= 1.0
    assert np.ptp(delta) > 0.4
    for name, value in outside.items():
        np.testing.assert_array_equal(value, inside_of.values(np.arange(500), "train", 0)[name])
