"""Field models by the engine in C++: the numbers of PyTorch, and bits that nothing else changes."""

import math
from dataclasses import replace

import pytest
import torch

from enma_fast.config import SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.models.drivers import Told
from enma_fast.models.floors.ladder import roll
from enma_fast.sampling.engine import Engine, engine_for

from .._extension import needs_native
from .._tiny_field import field_model, solutions, told, waves
from .._told import KNOWN

pytestmark = needs_native

FRAMES = 7
CASES = [
    {"floor": "persistence", "grid": (13,), "periodic": (False,)},
    {"floor": "persistence", "grid": (12, 10), "periodic": (True, False), "channels": 2, "block": 2},
    {"floor": "damped persistence", "grid": (9, 7), "periodic": (False, False), "middle_layers": 1},
    {"floor": "linear inverse model", "grid": (8, 6), "periodic": (True, False), "channels": 2},
    {"floor": "observed mean", "grid": (8, 6), "periodic": (True, False), "channels": 2},
    {"floor": "observed mean", "grid": (7,), "noise": 0, "member": 0},
    {"floor": "multi-model mean", "grid": (8, 6), "periodic": (True, False), "channels": 2},
    {"floor": "linear inverse model", "grid": (5,), "noise": 0, "member": 0},
    {"floor": "waves", "grid": (16,), "channels": 2},
    {"floor": "waves", "grid": (15,)},
    {"floor": "waves", "grid": (8, 12), "periodic": (True, True), "channels": 2},
    {"floor": "waves", "grid": (9, 7), "periodic": (True, True)},
    {"floor": "vibration", "grid": (16,), "periodic": (False,), "channels": 2},
    {"floor": "vibration", "grid": (8, 11), "periodic": (False, True)},
    {"floor": "diffusion", "grid": (5, 6), "periodic": (True, False), "channels": 2},
    {"floor": "diffusion", "grid": (19,)},
]
EQUATIONS = [
    {"floor": "equation", "grid": (16,)},
    {"floor": "equation", "grid": (15,), "channels": 2},
    {"floor": "equation", "grid": (18, 9), "periodic": (True, True)},
    {"floor": "equation", "grid": (9, 20), "periodic": (True, True), "channels": 2},
    {"floor": "equation", "grid": (8, 12), "periodic": (True, True), "channels": 2, "block": 2},
    {"floor": "equation", "grid": (13, 11), "periodic": (True, True)},
    {"floor": "equation", "grid": (11, 12), "periodic": (True, True), "channels": 2},
]
# With a driver of each kind, some of them, and masks.
TOLD = [
    {"floor": "persistence", "grid": (13,), "periodic": (False,), "known": KNOWN},
    {"floor": "waves", "grid": (8, 12), "periodic": (True, True), "channels": 2, "block": 2, "known": KNOWN},
    {"floor": "diffusion", "grid": (19,), "known": KNOWN[:1]},
    {"floor": "damped persistence", "grid": (8, 6), "periodic": (True, False), "channels": 2, "masked": True},
    {"floor": "linear inverse model", "grid": (9, 7), "periodic": (False, False), "masked": True, "known": KNOWN[1:]},
]
CASES += EQUATIONS + TOLD
SOME = CASES[1:13:3] + EQUATIONS[::2] + TOLD[::2]


def name(case):
    more = ("-told" if "known" in case else "") + ("-masked" if "masked" in case else "")
    return f"{case['floor']}-{'x'.join(map(str, case['grid']))}{more}"


def trajectory(made, history, members, *, context=None, backend=None, first_seed=7, chosen=None, **settings):
    """Members [B, K, T, *x, c] in units of the model; `chosen` of the trajectories whose drivers there are."""
    segments = []
    for part, seed in ((context, 1), (history, 0)):
        if part is None:
            continue
        drivers = told(made, 6, FRAMES if part is history else part.shape[1], seed=seed)
        drivers = drivers and drivers[torch.arange(len(part)) if chosen is None else torch.tensor(chosen)]
        segments.append(made.encode(part) if drivers is None else Told(made.encode(part), drivers))
    rows = torch.arange(len(history)).repeat_interleave(len(members))
    engine = Engine(made.dynamics, backend=backend)
    steps = engine.trajectory(
        segments,
        num_latents=FRAMES,
        seeds=rows + first_seed,
        members=torch.tensor(members).repeat(len(history)),
        groups=rows,
        settings=SamplingConfig(**settings),
    )
    fields = made.decode(torch.stack(list(steps), 1)).unflatten(0, (len(history), len(members)))
    if made.codec.mask is not None:
        assert torch.equal(fields.isnan(), ~made.codec.mask.expand_as(fields))
    return fields.nan_to_num(0.0)


def tolerance(made):
    """Of members in units of their deviation. Small differences tell a source from coefficients."""
    forced = getattr(made.dynamics.context.floor, "forced", None)
    return 2e-4 if forced is None else 3e-3 if forced else 5e-4


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("known", [1, 2, 4])
def test_members_are_those_of_pytorch(case, known):
    made = field_model(**case)
    assert Engine(made.dynamics).backend == "native"
    fields = waves(made.config, 12, seed=5)
    context = fields[6:] if known < 3 else None
    native, reference = (
        trajectory(made, fields[:6, :known], [0, 3, 5], context=context, backend=backend)
        for backend in ("native", "reference")
    )
    scale = float(reference.std())
    torch.testing.assert_close(native, reference, atol=tolerance(made) * scale, rtol=1e-3)
    assert float((reference[:, 0] - reference[:, 1]).abs().max()) > 1e-2 * scale
    if case in EQUATIONS:
        # These leave little to correct.
        return
    # The correction counts, and by how much is inferred.
    made.dynamics.step.model.size.zero_()
    floor = trajectory(made, fields[:6, :known], [0, 3, 5], context=context, backend="native")
    assert float((native - floor).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("case", CASES[8:12], ids=name)
def test_members_of_single_waves_have_one_of_several_laws(case):
    made = field_model(**case)
    made.dynamics.step.model.size.zero_()
    fields, grid = waves(made.config, 3, FRAMES, seed=5), made.config.codec.grid
    places = sum(torch.meshgrid(*(2 * math.pi * torch.arange(n) / n for n in grid), indexing="ij"))
    turns = torch.tensor([0.4, 1.0, 1.7])[:, None] * torch.arange(FRAMES)
    one = (3 * places + turns.view(3, FRAMES, *[1] * len(grid))).sin()[..., None].expand_as(fields).contiguous()
    native, reference = (
        trajectory(made, fields[:, :1], list(range(24)), context=one, backend=backend)
        for backend in ("native", "reference")
    )
    torch.testing.assert_close(native, reference, atol=tolerance(made) * float(reference.std()), rtol=1e-3)
    assert float(native[:, :, 1].std(1).square().mean().sqrt()) > 0.1 * float(fields.std())


@pytest.mark.parametrize("case", SOME, ids=name)
def test_settings_of_members(case):
    made = field_model(**case)
    history = waves(made.config, 1, 3, seed=5)
    for temperature in (0.0, 0.5):
        native, reference = (
            trajectory(made, history, [0, 1], backend=backend, temperature=temperature)
            for backend in ("native", "reference")
        )
        torch.testing.assert_close(native, reference, atol=tolerance(made) * float(reference.std()), rtol=1e-3)
        assert torch.equal(native[:, 0], native[:, 1]) is (temperature == 0)


@pytest.mark.parametrize("case", SOME, ids=name)
def test_bits_of_a_member_depend_on_no_other_and_on_no_thread(case):
    made = field_model(**case)
    history, threads = waves(made.config, 3, 3, seed=5), torch.get_num_threads()
    whole = trajectory(made, history, list(range(5)))
    try:
        torch.set_num_threads(3)
        assert torch.equal(trajectory(made, history, list(range(5))), whole)
        for member in range(5):
            alone = trajectory(made, history[1:2], [member], first_seed=8, chosen=[1])
            assert torch.equal(alone[0, 0], whole[1, member])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [EQUATIONS[2], EQUATIONS[4], EQUATIONS[5]], ids=name)
@pytest.mark.parametrize("known", [1, 4])
def test_terms_that_only_this_trajectory_has(case, known):
    """What the equation of the training data leaves unexplained is found in its reserve of terms."""
    made = field_model(**case)
    floor = made.dynamics.context.floor
    fields = solutions(made.config, 6, FRAMES, seed=5, more={"d1 u0": 0.2})
    reserve = floor.terms.names.index((0, "d1 u0"))
    state = floor.infer(fields[:3, None, :3])
    found, truth = state.coefficients[:, reserve] / floor.unit[reserve], torch.full((3,), 0.2).double()
    torch.testing.assert_close(found, truth, atol=1e-2, rtol=0)
    context = fields[3:] if known < 3 else None
    # Covariances are those of small differences of forecasts in single precision: members of PyTorch move by 1e-3 where
    # the last bits of what is known do.
    for temperature, close in ((0.0, tolerance(made)), (1.0, 3e-3)):
        native, reference = (
            trajectory(made, fields[:3, :known], [0, 3], context=context, backend=backend, temperature=temperature)
            for backend in ("native", "reference")
        )
        torch.testing.assert_close(native, reference, atol=close * float(reference.std()), rtol=1e-3)


@pytest.mark.parametrize("case", [EQUATIONS[0], EQUATIONS[2], EQUATIONS[4]], ids=name)
@pytest.mark.parametrize("known", [1, 4])
def test_waves_that_a_grid_does_not_hold(case, known):
    """Trajectories that a finer grid explains are solved on it, beside others that are not."""
    made = field_model(**case)
    floor = made.dynamics.context.floor
    fields = solutions(made.config, 6, FRAMES, seed=5, finer=True)
    state = floor.infer(fields[:3, None, :3])
    assert bool(state.finer[1:].all())
    assert float(state.misfit[1:].max()) < 1e-6
    coarse = replace(state, finer=torch.zeros(3, dtype=torch.bool))
    solved, on_grid = (roll(floor, fields[:3, :1], each, 1)[1:, 0] - fields[1:3, 1] for each in (state, coarse))
    assert 10 * float(solved.norm()) < float(on_grid.norm())
    context = fields[3:] if known < 3 else None
    native, reference = (
        trajectory(made, fields[:3, :known], [0, 3], context=context, backend=backend, temperature=0.0)
        for backend in ("native", "reference")
    )
    torch.testing.assert_close(native, reference, atol=tolerance(made) * float(reference.std()), rtol=1e-3)


@pytest.mark.parametrize("case", EQUATIONS[:5:2], ids=name)
def test_frames_with_errors(case):
    made = field_model(**case)
    fields = waves(made.config, 3, 4, seed=5)
    fields += 0.3 * torch.randn(fields.shape, generator=torch.Generator().manual_seed(2))
    floor = made.dynamics.context.floor
    state = floor.infer(fields[:, None, :3])
    assert float(state.misfit.min()) > 1e-2
    away = (state.coefficients - floor.mean) / floor.covariance.diagonal().sqrt()
    assert float(away[:, floor.chosen].abs().max()) < 4
    # Members of either backend move by 2e-3 where the last bits of what is known do: the least of a sum of squares is
    # known to the root of its rounding, and errors make the sum large.
    close = 1e-2
    for temperature in (0.0, 1.0):
        native, reference = (
            trajectory(made, fields, [0, 3], backend=backend, temperature=temperature)
            for backend in ("native", "reference")
        )
        torch.testing.assert_close(native, reference, atol=close * float(reference.std()), rtol=1e-3)


@pytest.mark.parametrize("case", [case for case in CASES if case["floor"] in ("vibration", "diffusion")][:3], ids=name)
def test_frames_with_errors_and_points_that_never_move_between_walls(case):
    made = field_model(**case)
    fields = waves(made.config, 3, 4, seed=5)
    fields += 0.3 * torch.randn(fields.shape, generator=torch.Generator().manual_seed(2))
    floor = made.dynamics.context.floor
    floor.noise.fill_(1e-9)
    floor.still[0] = True
    floor.still[-1, ..., -1] = True
    for temperature, close in ((0.0, tolerance(made)), (1.0, 3e-3)):
        native, reference = (
            trajectory(made, fields, [0, 3], backend=backend, temperature=temperature)
            for backend in ("native", "reference")
        )
        torch.testing.assert_close(native, reference, atol=close * float(reference.std()), rtol=1e-3)


@pytest.mark.parametrize("case", [EQUATIONS[0], EQUATIONS[4]], ids=name)
def test_where_an_equation_is_lost_the_last_frame_stays(case):
    made = field_model(**case)
    made.dynamics.step.model.size.zero_()
    made.dynamics.step.model.residuals.zero_()
    known = 1e20 * waves(made.config, 2, 4, seed=5)
    frames = trajectory(made, known, [0, 1], backend="native")
    assert torch.equal(frames, known[:, None, -1:].expand_as(frames))
    floor = made.dynamics.context.floor
    assert torch.equal(floor.step(known, floor.infer(known[:, None, :3])), known[:, -1])


@pytest.mark.parametrize("given", ["context", "history"])
@pytest.mark.parametrize("known", [1, 4])
def test_what_is_told_counts_in_every_frame(known, given):
    """Native members that are told otherwise are other members, by as much as those of PyTorch."""
    made = field_model(**TOLD[0])
    fields, rows = waves(made.config, 6, seed=5), torch.arange(3)

    def forecast(seed, backend):
        segments = []
        for part, use in ((fields[3:] if known < 3 else None, "context"), (fields[:3, :known], "history")):
            if part is not None:
                segments.append(Told(made.encode(part), told(made, 3, seed=seed if use == given else 0)))
        steps = Engine(made.dynamics, backend=backend).trajectory(
            segments, num_latents=FRAMES, seeds=rows, members=rows, groups=rows
        )
        return torch.stack(list(steps), 1)

    changes = [forecast(1, backend) - forecast(0, backend) for backend in ("native", "reference")]
    torch.testing.assert_close(*changes, atol=1e-3 * float(fields.std()), rtol=1e-2)
    heard = given == "history" or known < 3
    assert (float(changes[0].abs().amax((0, 2, 3)).min()) > 1e-3) is heard


def test_drivers_that_do_not_fit_are_refused():
    made = field_model(**TOLD[0])
    z, drivers = made.encode(waves(made.config, 2, 3)), told(made, 2)
    one = torch.zeros(1, dtype=torch.int64)

    def frames(drivers):
        segment = z if drivers is None else Told(z, drivers)
        return list(Engine(made.dynamics).trajectory([segment], num_latents=5, seeds=one, members=one, groups=one))

    assert len(frames(drivers)) == 2
    with pytest.raises(ValueError, match="driver 0"):
        frames(told(made, 3))
    with pytest.raises(ValueError, match="drivers"):
        frames(None)
    with pytest.raises(ValueError, match="drivers"):
        frames(told(field_model(**TOLD[2]), 2))


def test_a_trajectory_of_which_nothing_is_known_is_refused():
    made = field_model()
    u = waves(made.config, 1)
    with pytest.raises((EnmaError, ValueError), match="history"):
        trajectory(made, u[:, :0], [0], context=u)


def test_weights_that_change_are_packed_again():
    made = field_model()
    before = engine_for(made.dynamics)
    assert engine_for(made.dynamics) is before
    made.dynamics.step.model.size.fill_(0.5)
    assert engine_for(made.dynamics) is not before


def test_the_format_is_fp32():
    made = field_model()
    assert Engine(made.dynamics, dtype="auto").dtype == torch.float32
    with pytest.raises(EnmaError, match="float32"):
        Engine(made.dynamics, dtype=torch.bfloat16)
