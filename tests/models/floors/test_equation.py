"""The floor that finds an equation: its terms, its solver, and what it infers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from enma_fast.models.floors.equation_search import EquationFloor
from enma_fast.models.floors.exponential import Propagator
from enma_fast.models.floors.ladder import forecast_error, forecaster, roll
from enma_fast.models.floors.lattice import LatticePropagator
from enma_fast.models.floors.terms import Terms


def coefficients(terms, rows, **named):
    """`[B, P]` with these coefficients of terms by name: one number, or one for each of the rows."""
    made = torch.zeros(rows, terms.num, dtype=torch.float64)
    for name, value in named.items():
        channel, term = int(name[0]), name[2:]
        made[:, terms.names.index((channel, term))] = torch.as_tensor(value, dtype=torch.float64)
    return made


def solved(terms, given, first, frames, steps=16, source=None):
    """Frames `[B, frames, *x, c]` of an equation, with sources `[B, *x, c]` in a frame."""
    growth = torch.full((terms.channels,), 2.0, dtype=torch.float64)
    added = None if source is None else terms.transform(source)
    propagator = Propagator.of(terms, given, steps, torch.complex128, growth, added)
    waves, made = terms.transform(first), [first]
    for _ in range(frames - 1):
        waves = propagator(waves)
        made.append(terms.fields(waves))
    return torch.stack(made, 1).float()


def smooth(rows, grid, channels=1, *, waves=3, seed=0):
    """Fields `[B, *x, c]` of few low waves."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in grid), indexing="ij")
    made = np.zeros((rows, *grid, channels))
    for row in range(rows):
        for c in range(channels):
            for _ in range(2 * waves):
                k = rng.integers(-waves, waves + 1, len(grid))
                phase = sum(a * b for a, b in zip(k, axes, strict=True)) + rng.uniform(0, 2 * np.pi)
                made[row, ..., c] += rng.normal() * np.cos(phase) / (1 + np.abs(k).sum())
    return torch.from_numpy(made)


def burgers(rows, *, frames=8, n=32, seed=0, **more):
    """Trajectories of Burgers' equation, whose viscosities differ, and their coefficients."""
    terms = Terms((n,), 1, lattice=False)
    rng = np.random.default_rng(seed)
    given = coefficients(terms, rows, **{"0 lap u0": rng.uniform(0.02, 0.1, rows), "0 u0 d0 u0": -0.1}, **more)
    return solved(terms, given, smooth(rows, (n,), seed=seed), frames), given


@pytest.fixture(scope="module")
def learned():
    fields, _ = burgers(24)
    floor = EquationFloor((32,), 1)
    floor.learn(fields)
    return floor


def found(floor):
    return {floor.terms.names[j] for j in torch.nonzero(floor.active)[:, 0].tolist()}


def own(fields):
    return fields[:, None, :3]


@pytest.mark.parametrize("lattice", [False, True])
def test_terms_are_derivatives_and_products(lattice):
    terms = Terms((24, 16), 1, lattice=lattice)
    x, y = (2 * math.pi * torch.arange(n, dtype=torch.float64) / n for n in (24, 16))
    u = (torch.cos(2 * x)[:, None] * torch.sin(y))[None, ..., None]
    values = dict(zip(terms.names, terms.values(u), strict=True))
    unit = math.pi / 8
    slope = [math.sin(4 * math.pi / 24) / unit, math.sin(2 * math.pi / 16) / unit]
    square = sum((2 - 2 * math.cos(2 * math.pi * k / n)) / unit**2 for k, n in ((2, 24), (1, 16)))
    if not lattice:
        slope = [4 * math.pi / 24 / unit, 2 * math.pi / 16 / unit]
        square = slope[0] ** 2 + slope[1] ** 2
    dx = -slope[0] * torch.sin(2 * x)[:, None] * torch.sin(y)
    dy = slope[1] * torch.cos(2 * x)[:, None] * torch.cos(y)
    for name, expected in (
        ("d0 u0", dx),
        ("lap u0", -square * u[0, ..., 0]),
        ("lap lap u0", square**2 * u[0, ..., 0]),
        ("u0 u0 u0", u[0, ..., 0] ** 3),
        ("u0 d1 u0", u[0, ..., 0] * dy),
        # A single wave carries itself nowhere.
        ("p1 u0 d0 u0 - p0 u0 d1 u0", torch.zeros(24, 16, dtype=torch.float64)),
        ("1", torch.ones(24, 16, dtype=torch.float64)),
    ):
        torch.testing.assert_close(values[0, name][0], expected, rtol=0, atol=1e-11)


def test_products_of_waves_have_no_aliases():
    """The square of the waves of 16 points, as far as these points hold it, is that of 64 points."""
    coarse, fine = Terms((16,), 1, lattice=False), Terms((64,), 1, lattice=False)
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(2, 8, generator=generator, dtype=torch.complex128)
    waves[:, 0] = 0

    def square(terms, n):
        padded = torch.zeros(2, 1, n // 2 + 1, dtype=torch.complex128)
        padded[:, 0, :8] = waves * n
        return terms.change(padded, coefficients(terms, 2, **{"0 u0 u0": 1.0}), [terms.names.index((0, "u0 u0"))]) / n

    torch.testing.assert_close(square(coarse, 16)[..., :8], square(fine, 64)[..., :8])


def test_steps_are_of_fourth_order_and_exact_for_linear_terms():
    terms = Terms((32,), 1, lattice=False)
    first = smooth(2, (32,))
    linear = {"0 lap u0": 0.05, "0 d0 lap u0": 0.3}
    given = coefficients(terms, 2, **linear, **{"0 u0 u0": -0.3})
    exact = solved(terms, given, first, 2, steps=128)[:, 1].double()
    errors = [float((solved(terms, given, first, 2, steps=s)[:, 1].double() - exact).norm()) for s in (4, 8)]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.5
    given = coefficients(terms, 2, **linear)
    torch.testing.assert_close(solved(terms, given, first, 9, steps=1), solved(terms, given, first, 9, steps=4))
    # Burgers' equation against the classical Runge-Kutta method with many steps in physical space.
    given = coefficients(terms, 2, **{"0 lap u0": 0.05, "0 u0 d0 u0": -0.1})
    k = torch.fft.rfftfreq(32, 1 / 32, dtype=torch.float64)
    scale = 2 * math.pi / 32 / (math.pi / 8)

    def rate(u):
        v = torch.fft.rfft(u)
        slope = torch.fft.irfft(1j * k * scale * torch.where(k == 16, 0, v), n=32)
        return 0.05 * torch.fft.irfft(-((k * scale) ** 2) * v, n=32) - 0.1 * u * slope

    u, h = first[..., 0], 1 / 200
    for _ in range(200):
        a = rate(u)
        b = rate(u + h / 2 * a)
        c = rate(u + h / 2 * b)
        u = u + h / 6 * (a + 2 * b + 2 * c + rate(u + h * c))
    torch.testing.assert_close(solved(terms, given, first, 2, steps=8)[:, 1, :, 0].double(), u, rtol=0, atol=2e-4)


def test_an_equation_is_found_and_solved(learned):
    assert found(learned) == {(0, "lap u0"), (0, "u0 d0 u0")}
    assert not bool(learned.lattice)
    fields, given = burgers(6, seed=1)
    state = learned.infer(own(fields))
    torch.testing.assert_close(state.coefficients / learned.unit, given, rtol=2e-2, atol=1e-3)
    assert forecast_error(learned, own(fields), fields, known=3) < 2e-3
    # Another trajectory of the same physics tells it as well.
    others, _ = burgers(6, seed=1)
    assert forecast_error(learned, others[:, None, 2:5], fields, own=False) < 2e-3


def test_a_linear_term_that_no_training_data_had_is_inferred(learned):
    fields, given = burgers(6, seed=2, **{"0 lap lap u0": -0.02})
    state = learned.infer(own(fields))
    place = learned.terms.names.index((0, "lap lap u0"))
    torch.testing.assert_close(state.coefficients[:, place] / learned.unit[place], given[:, place], rtol=0.1, atol=0)
    assert forecast_error(learned, own(fields), fields, known=3) < 1e-2


def test_frames_with_errors_are_held_by_what_training_data_say(learned):
    """Errors that no term explains: coefficients stay plausible, and are as far from the truth as draws say."""
    fields, given = burgers(40, frames=12, seed=5)
    seen = fields[:, :3] + 0.2 * smooth(120, (32,), waves=8, seed=9).view(40, 3, 32, 1).float()
    state, chosen = learned.infer(own(seen)), learned.chosen
    truth = given[:, chosen] * learned.unit[chosen]
    spread = learned.covariance.diagonal()[chosen].sqrt()
    off = state.coefficients[:, chosen] - truth
    # Fits that believe the frames are further off than the mean is.
    pairs, mean, nothing = learned.pairs(own(seen)), learned.mean[None], torch.zeros(len(chosen), len(chosen)).double()
    free = (
        learned.fitted(pairs, mean.expand(40, -1), chosen, nothing, mean, steps=20)[0].coefficients[:, chosen] - truth
    )
    assert float((free / spread).square().mean().sqrt()) > 1.5
    assert float((off / spread).square().mean().sqrt()) < 1.0
    root = state.root[:, : len(chosen), : len(chosen)]
    sizes = torch.linalg.solve(root, off[..., None])[..., 0].square().mean(1).sqrt()
    assert 0.4 < float(sizes.median()) < 4
    # Exact frames are believed.
    exact = learned.infer(own(fields)).coefficients[:, chosen] - truth
    assert float((exact / spread)[:, 0].abs().max()) < 1e-3


def test_what_is_zero_to_the_terms_keeps_an_equation_simple():
    """Standardised fields of the same data; about another zero the flow would carry waves by its mean too."""
    fields, _ = burgers(24)
    mean, scale = 1.5, 2.0
    floor = EquationFloor((32,), 1, zero=[-mean / scale])
    shifted = (fields - mean) / scale
    floor.learn(shifted)
    assert found(floor) == {(0, "lap u0"), (0, "u0 d0 u0")}
    assert forecast_error(floor, own(shifted), shifted, known=3) < 2e-3


def test_a_steady_source_is_found_that_differs_between_trajectories():
    def forced(seed):
        terms, rng = Terms((32,), 1, lattice=False), np.random.default_rng(seed)
        given = coefficients(terms, 16, **{"0 lap u0": rng.uniform(0.02, 0.1, 16), "0 u0 d0 u0": -0.1})
        source = 0.1 * smooth(16, (32,), seed=seed + 100)
        return solved(terms, given, smooth(16, (32,), seed=seed), 8, source=source), source

    floor = EquationFloor((32,), 1)
    floor.learn(forced(0)[0])
    assert bool(floor.forced)
    assert found(floor) == {(0, "lap u0"), (0, "u0 d0 u0")}
    fields, source = forced(1)
    state = floor.infer(own(fields))
    told = floor.terms.fields(state.source.to(torch.complex128))
    assert float((told - source).norm() / source.norm()) < 1e-2
    assert forecast_error(floor, own(fields), fields, known=3) < 2e-3
    # Other trajectories have none, and keep the equation simple.
    floor.learn(burgers(16)[0])
    assert not bool(floor.forced)


@pytest.mark.parametrize("lattice", [False, True])
def test_two_channels_react_and_diffuse(lattice):
    terms = Terms((12, 12), 2, lattice=lattice)
    feed = torch.linspace(0.02, 0.06, 12)
    given = coefficients(
        terms,
        12,
        **{"0 lap u0": 0.3, "1 lap u1": 0.15, "0 u0 u1 u1": -0.4, "1 u0 u1 u1": 0.4, "0 1": feed, "0 u0": -feed},
        **{"1 u1": -0.2},
    )
    first = 0.5 + 0.3 * smooth(12, (12, 12), 2, waves=5)
    floor = EquationFloor((12, 12), 2)
    floor.learn(solved(terms, given, first, 10))
    assert {(0, "u0 u1 u1"), (1, "u0 u1 u1"), (0, "lap u0"), (1, "lap u1")} <= found(floor)
    assert bool(floor.lattice) == lattice
    fields = solved(terms, given, 0.5 + 0.3 * smooth(12, (12, 12), 2, waves=5, seed=1), 10)
    assert forecast_error(floor, own(fields), fields, known=3) < 1e-2


@pytest.mark.parametrize(("grid", "names"), [((15,), ["d0 lap u0", "u0 d0 u1"]), ((12, 10), ["d1 u0", "u1 d1 u1"])])
def test_steps_on_the_points_of_a_lattice_are_those_of_waves(grid, names):
    terms = Terms(grid, 2, lattice=True)
    both = {f"0 {name}": 0.02 for name in names} | {"0 u0": -0.1, "0 lap u0": 0.2, "0 lap u1": 0.1, "0 1": 0.05}
    both |= {"0 lap lap u0": -0.01, "1 lap u1": 0.1, "1 u0 u0 u1": -0.3, "1 d0 u1": 0.1}
    given = coefficients(terms, 3, **both)
    active = [j for j in range(terms.num_linear, terms.num) if given[0, j] != 0]
    fields = smooth(3, grid, 2)
    waves = terms.transform(fields)
    change = terms.fields(terms.rates(given) * waves + terms.change(waves, given, active))
    torch.testing.assert_close(terms.rate(fields.movedim(-1, 1), given, terms.used(given)).movedim(1, -1), change)

    growth = torch.full((2,), 0.5, dtype=torch.float64)
    # One grows faster than a wave may, and one would be unstable.
    given[1, terms.names.index((0, "u0"))] = 0.8
    given[2, terms.names.index((0, "lap u0"))] = 9.0
    steps = LatticePropagator.of(terms, given, 40, torch.complex128, growth)
    (left, _), (stable, on_points) = steps.parts
    assert stable.tolist() == (~left).tolist() == [True, False, False]
    assert isinstance(on_points, LatticePropagator)
    exponential = Propagator.of(terms, given, 40, torch.complex128, growth)
    torch.testing.assert_close(steps(waves), exponential(waves), rtol=1e-6, atol=1e-6)
    twice = waves.repeat_interleave(2, 0)
    torch.testing.assert_close(steps.repeated(2)(twice), steps(waves).repeat_interleave(2, 0))
    # A flow is not told by neighbours.
    if len(grid) == 2:
        flow = coefficients(terms, 1, **{"0 p1 u0 d0 u0 - p0 u0 d1 u0": 0.1})
        assert isinstance(LatticePropagator.of(terms, flow, 40, torch.complex128, growth), Propagator)


def test_a_trajectory_is_inferred_as_alone(learned):
    """But for the last bits, as several threads transform one row in another order than many."""
    fields, _ = burgers(5, seed=3)
    fields[2] *= 1.5
    together = learned.infer(own(fields))
    for row in range(5):
        alone = learned.infer(own(fields[row : row + 1]))
        torch.testing.assert_close(together.coefficients[row], alone.coefficients[0], rtol=1e-3, atol=1e-6)
        frame = learned.step(fields[row : row + 1, :3], alone)
        torch.testing.assert_close(learned.step(fields[:, :3], together)[row], frame[0], rtol=0, atol=1e-4)


def test_members_draw_coefficients_about_their_mean(learned):
    fields, _ = burgers(2, seed=4)
    state = learned.infer(own(fields))
    assert torch.equal(learned.draw(state, torch.zeros(2, learned.num_draws)).coefficients, state.coefficients)
    many = state[torch.zeros(4000, dtype=torch.int64)]
    drawn = learned.draw(many, torch.randn(4000, learned.num_draws, generator=torch.Generator().manual_seed(0)))
    places = torch.nonzero(learned.active)[:, 0]
    moved = (drawn.coefficients - state.coefficients[:1])[:, places]
    covariance = (state.root[0] @ state.root[0].T)[: len(places), : len(places)]
    torch.testing.assert_close(torch.cov(moved.T), covariance, rtol=0.15, atol=0.05 * float(covariance.max()))
    wrong = learned.draw(state, torch.full((2, learned.num_draws), 1e9))
    assert bool(learned.step(fields[:, :3], wrong).isfinite().all())


def test_a_frame_that_would_be_lost_is_the_last_one(learned):
    fields, _ = burgers(2, seed=5)
    state = learned.infer(own(fields))
    state.coefficients[0] = 1e8
    frame = learned.step(fields[:, :3], state)
    assert torch.equal(frame[0], fields[0, 2])
    assert not torch.equal(frame[1], fields[1, 2])


def test_weights_are_all_that_it_knows(learned):
    fields, _ = burgers(3, seed=6)
    other = EquationFloor((32,), 1)
    other.load_state_dict(learned.state_dict())
    base, views = forecaster(other, other.infer(own(fields)))(fields[:, :3])
    assert torch.equal(base, learned.step(fields[:, :3], learned.infer(own(fields))))
    assert views.shape == (*base.shape, 1)
    features = other.features(other.infer(own(fields)), own(fields))
    assert features.shape == (3, other.num_features)
    assert bool(features.isfinite().all())


def test_constant_fields_have_an_equation_too():
    floor = EquationFloor((16,), 2)
    fields = torch.cat([smooth(6, (16,)).float()[:, None].repeat(1, 6, 1, 1), torch.ones(6, 6, 16, 1)], -1)
    floor.learn(fields)
    assert forecast_error(floor, own(fields), fields, known=3) < 1e-3


def test_a_context_whose_frames_lack_waves_is_solved_on_a_finer_grid(learned):
    """Waves that steepen, of which frames hold a quarter: a finer grid explains some of what its frames lack."""
    finest = Terms((128,), 1, lattice=False, spacings=[0.25])
    viscosity = np.random.default_rng(3).uniform(0.01, 0.015, 4)
    given = coefficients(finest, 4, **{"0 lap u0": viscosity, "0 u0 d0 u0": -0.1})
    propagator = Propagator.of(finest, given, 64, torch.complex128, learned.growth)
    waves, held = finest.transform(3 * smooth(4, (128,), seed=3)), []
    for _ in range(12):
        held.append(torch.cat([waves[..., :16] / 4, torch.zeros_like(waves[..., :1])], -1))
        waves = propagator(waves)
    truth = torch.stack([learned.terms.fields(each) for each in held], 1).float()
    state = learned.infer(truth[:, None], own=False)
    assert bool(state.finer.all())
    coarse = replace(state, finer=torch.zeros(4, dtype=torch.bool))
    solved, on_grid = (roll(learned, truth[:, :1], each, 11) - truth[:, 1:] for each in (state, coarse))
    assert bool((solved.flatten(1).norm(dim=1) < 0.5 * on_grid.flatten(1).norm(dim=1)).all())
