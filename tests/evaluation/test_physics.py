"""Physics of forecasts: spectra of known waves, quantities that solvers keep, and members that break them."""

import numpy as np
import pytest

from enma_fast.data.equations import EQUATIONS
from enma_fast.domain import Domain
from enma_fast.evaluation.physics import Physics, _periods, _shells


def solved(name, rows=2):
    """Trajectories of a 1-D equation, by its own solver, float64 `[rows, T, X, 1]`."""
    equation = EQUATIONS[name]
    start = equation.initial_conditions("val", seed=0, group=0)[:rows]
    middle = {key: np.full(rows, np.mean(ranges[0])) for key, ranges in equation.inside.ranges.items()}
    return equation.solve(start, middle | ({"alpha": np.full(rows, 3.3)} if name == "advection" else {}))


@pytest.mark.parametrize("name", ["combined", "advection"])
def test_solutions_keep_what_their_equation_says(name):
    u = solved(name)
    physics = Physics(name, u.shape[2:-1], 1)
    for row in u:
        physics.add([row[None, 3:]], row[3:], row[:3])
    found = physics.result()
    assert found["spectrum_error"] == pytest.approx(0, abs=1e-12)
    assert found["energy_error"] == pytest.approx(0, abs=1e-12)
    assert [q["name"] for q in found["quantities"]] == ["mass", "energy"]
    for quantity in found["quantities"]:
        assert quantity["truth"] == quantity["violation"] < 1e-10


def test_members_that_gain_mass_and_energy_are_seen():
    u = solved("combined", rows=1)[0]
    observed, truth = u[:3], u[3:]
    amplitude = np.sqrt(np.square(observed).mean())
    drifting = truth + 0.1 * np.arange(1, 18)[:, None, None]
    physics = Physics("combined", (128,), 1)
    physics.add([truth[None], drifting[None]], truth, observed)
    mass, energy = physics.result()["quantities"]
    # One of two members is exact; the other drifts by 0.1 a frame.
    expected = 0.5 * 0.1 * np.sqrt(np.square(np.arange(1, 18)).mean()) / amplitude
    assert mass["violation"] == pytest.approx(expected, rel=1e-6)
    means = np.square(np.concatenate([observed[-1:], drifting])).mean((1, 2)) / 2 / amplitude**2
    assert energy["violation"] == pytest.approx(np.maximum(0, np.diff(means)).sum() / 2, rel=1e-6)
    assert energy["truth"] < 1e-10 < physics.result()["energy_error"]


def test_the_spectrum_of_a_wave_is_at_its_wave_number():
    x = 2 * np.pi * np.arange(32) / 32
    y = 2 * np.pi * np.arange(16) / 16
    field = (np.sin(3 * x)[:, None] * np.cos(4 * y)[None])[None, ..., None]
    physics = Physics("mine", Domain((32, 16), (1.0, 1.0), (True, True)), 1)
    physics.add([10 * field[None]], field)
    spectra = physics.spectra()
    # sqrt(3^2 + 4^2), and power by Parseval: the truth has amplitude 1 in its own unit.
    assert spectra["wave_number"] == [5]
    np.testing.assert_allclose([spectra["truth"], spectra["members"]], [[1.0], [100.0]], rtol=1e-12)
    assert physics.result()["spectrum_error"] == pytest.approx(2.0)
    assert physics.result()["quantities"] == []


def test_walls_are_mirrored():
    x = (np.arange(32) + 0.5) / 32
    field = np.cos(3 * np.pi * x)[None, :, None]
    physics = Physics("mine", (32,), 1)
    physics.add([field[None]], field)
    # Three half waves between the walls.
    assert physics.spectra()["wave_number"] == [3]


@pytest.mark.parametrize("periodic", [(False, False), (False, True)])
def test_waves_of_one_length_have_one_wave_number_in_all_directions(periodic):
    dx, grid = 0.1, (8, 64)
    lengths = tuple(dx * (n if wraps else n - 1) for n, wraps in zip(grid, periodic, strict=True))
    x, y = ((np.arange(n) + 0.5) * dx for n in grid)
    longest = 64 * dx * (1 if periodic[1] else 2)
    # Whole and half waves of 8 points: as long along one side as along the other.
    length = 8 * dx
    for wave in (np.cos(2 * np.pi * x / length)[:, None] + 0 * y, np.cos(2 * np.pi * y / length) + 0 * x[:, None]):
        physics = Physics("mine", Domain(grid, lengths, periodic), 1)
        physics.add([wave[None, None, ..., None]], wave[None, ..., None])
        assert physics.spectra()["wave_number"] == [round(longest / length)]


def test_the_shells_of_a_square_between_walls_are_those_of_its_mirrored_points():
    shell, numbers = _shells(_periods(Domain((64, 64), (63 / 64, 63 / 64), (False, False))))
    k = np.fft.fftfreq(128, 1 / 128)
    np.testing.assert_array_equal(shell, np.minimum(np.rint(np.hypot(k[:, None], k)), 65))
    np.testing.assert_array_equal(numbers, np.arange(65))


def test_a_coarse_forecast_lacks_the_short_waves(rng):
    truth = rng.normal(size=(4, 64, 1))
    smooth = (truth + np.roll(truth, 1, 1)) / 2
    physics = Physics("mine", Domain((64,), (1.0,), (True,)), 1)
    physics.add([smooth[None]], truth)
    spectra = physics.spectra()
    gain = np.array(spectra["members"]) / spectra["truth"]
    np.testing.assert_allclose(gain, np.cos(np.pi * np.array(spectra["wave_number"]) / 64) ** 2, atol=1e-9)
    assert physics.result()["spectrum_error"] > 0.3


def test_blocks_of_members_add_up(rng):
    u = solved("combined", rows=1)[0]
    members = u[3:] + 0.1 * rng.normal(size=(6, 17, 128, 1))
    whole, parts = Physics("combined", (128,), 1), Physics("combined", (128,), 1)
    whole.add([members], u[3:], u[:3])
    parts.add((members[k : k + 2] for k in (0, 2, 4)), u[3:], u[:3])
    for key, value in whole.result().items():
        if key != "quantities":
            assert parts.result()[key] == pytest.approx(value, rel=1e-12)
    violations = [[q["violation"] for q in each.result()["quantities"]] for each in (whole, parts)]
    np.testing.assert_allclose(*violations, rtol=1e-12)


def test_concentrations_below_zero_are_seen():
    truth = np.broadcast_to([1.0, 0.2], (4, 32, 32, 2))
    field = truth[None, 1:] + [0.05, -0.3]
    physics = Physics("gray_scott", (32, 32), 2)
    physics.add([field], truth[1:], truth[:1])
    (quantity,) = physics.result()["quantities"]
    assert quantity["name"] == "outside the range"
    # 0.05 above 1 and 0.1 below 0, in units of the amplitude.
    assert quantity["violation"] == pytest.approx(0.15 / np.sqrt((1 + 0.2**2) / 2))
    assert quantity["truth"] == 0


def test_an_equation_of_other_channels_is_not_that_equation():
    assert Physics("gray_scott", (32, 32), 1).quantities == ()
    assert Physics("combined", (32, 32), 1).quantities == ()


def test_nothing_is_said_of_nothing():
    physics = Physics("combined", (8,), 1)
    physics.add([np.zeros((1, 2, 8, 1))], np.zeros((2, 8, 1)))
    assert physics.result() is None


@pytest.mark.parametrize(
    ("lengths", "periodic", "mirrored"),
    [
        ((1.0, 1.0), (True, True), False),
        ((1.0, 1.0), (False, False), True),
        ((3.0, 1.0), (True, False), False),
        # Eight points, half a step beyond each wall: 16 / 7.
        ((2.0, 1.0), (True, False), True),
    ],
)
def test_which_period_is_the_longest(lengths, periodic, mirrored):
    assert Physics("own", Domain((8, 8), lengths, periodic), 1).mirrored == mirrored
