"""Vorticity: a flow with a closed form, what is conserved, the spectrum of the beginning, and a refined run."""

import numpy as np
import pytest

from enma_fast.data.equations import vorticity
from enma_fast.data.equations.vorticity import EQUATION, LENGTH, initial_conditions, solve, warmed_up


def values(nu: float, count: int) -> dict[str, np.ndarray]:
    return {"nu": np.full(count, nu)}


def energy_and_enstrophy(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of |u|^2 / 2 and w^2 / 2 over the plane, of fields `[..., 64, 64]`."""
    n = w.shape[-1]
    k = 2 * np.pi * np.fft.fftfreq(n, LENGTH / n)
    k_2 = k[:, None] ** 2 + k**2
    power = np.abs(np.fft.fft2(w) / n**2) ** 2
    inverse = np.divide(1, k_2, out=np.zeros_like(k_2), where=k_2 > 0)
    return (power * inverse).sum((-2, -1)) / 2, power.sum((-2, -1)) / 2


@pytest.mark.parametrize("nu", [1e-2, 1e-4])
def test_taylor_green_vortices_decay_exactly(nu: float) -> None:
    """A product of two cosines carries nothing, so only viscosity acts; the finer solver has its filter besides."""
    x = np.arange(64) * LENGTH / 64
    w0 = np.cos(4 * x)[:, None] * np.cos(4 * x)
    expected = np.exp(-2 * nu * 16 * EQUATION.times)[:, None, None] * w0
    num_frames = 30 if nu > 1e-3 else 2
    times = {"num_frames": num_frames, "spacing": vorticity.FRAME_SPACING, "steps": 1}
    found = vorticity.integrate(w0[None, ..., None], np.array([nu]), **times)
    np.testing.assert_allclose(found[0, ..., 0], expected[:num_frames], atol=1e-12)


def test_energy_and_enstrophy_fall_as_viscosity_tells() -> None:
    nu = 5e-3
    w = solve(warmed_up(initial_conditions("train", seed=0, group=0)[:1], values(nu, 1)), values(nu, 1))[0, ..., 0]
    assert np.abs(w.mean((1, 2))).max() < 1e-12
    energy, enstrophy = energy_and_enstrophy(w)
    assert np.all(np.diff(enstrophy) < 0)
    # dE/dt = -2 nu Z, by the trapezoidal rule over frames.
    lost = 2 * nu * (enstrophy[1:] + enstrophy[:-1]) / 2 * vorticity.FRAME_SPACING
    np.testing.assert_allclose(energy[:-1] - energy[1:], lost, rtol=0.01)


def test_the_beginning_has_the_spectrum_of_the_paper() -> None:
    w0 = np.concatenate([initial_conditions("train", seed=0, group=g) for g in range(4)])[..., 0]
    assert w0.shape == (40, 64, 64)
    k = 2 * np.arange(64 // 2 + 1)
    amplitude = np.abs(np.fft.rfft2(w0) / 64**2)[:, 0, 1:]
    expected = np.sqrt(k * 4 / (3 * np.sqrt(np.pi)) * (k / 10) ** 4 * np.exp(-((k / 10) ** 2)) / 10 / np.pi)[1:]
    np.testing.assert_allclose(amplitude[:, :20], np.broadcast_to(expected[:20], (40, 20)), rtol=1e-9)


@pytest.mark.parametrize("nu", [1e-3, 3e-3])
def test_a_refined_run_agrees(nu: float) -> None:
    """At the least viscosity of each resolution, where the flow is finest, with twice the points and steps."""
    w0 = warmed_up(initial_conditions("train", seed=0, group=5)[:1], values(nu, 1))
    times = {"num_frames": 5, "spacing": vorticity.FRAME_SPACING, "steps": 1}
    w, finer = (vorticity.integrate(w0, np.array([nu]), **times, refine=refine)[0] for refine in (1, 2))
    error = np.linalg.norm((w - finer).reshape(5, -1), axis=1) / np.linalg.norm(finer.reshape(5, -1), axis=1)
    assert error.max() < 0.03


def test_rows_do_not_see_each_other() -> None:
    w0 = initial_conditions("train", seed=0, group=6)[:3]
    nu = {"nu": np.array([1e-3, 4e-3, 9e-3])}
    together = EQUATION.spin_up(w0, nu) if EQUATION.spin_up else w0
    alone = warmed_up(w0[1:2], {"nu": nu["nu"][1:2]})
    np.testing.assert_allclose(together[1:2], alone, atol=1e-13)
