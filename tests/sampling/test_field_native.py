"""Field models by the engine in C++: the numbers of PyTorch, and bits that nothing else changes."""

import pytest
import torch

from enma_fast.config import SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.sampling.engine import Engine, engine_for

from .._extension import needs_native
from .._tiny_field import field_model, waves

pytestmark = needs_native

FRAMES = 7
CASES = [
    {"floor": "persistence", "grid": (13,), "periodic": (False,)},
    {"floor": "persistence", "grid": (12, 10), "periodic": (True, False), "channels": 2, "block": 2},
    {"floor": "damped persistence", "grid": (9, 7), "periodic": (False, False), "middle_layers": 1},
    {"floor": "linear inverse model", "grid": (8, 6), "periodic": (True, False), "channels": 2},
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
NAMES = [f"{case['floor']}-{'x'.join(map(str, case['grid']))}" for case in CASES]


def trajectory(made, history, members, *, context=None, backend=None, first_seed=7, **settings):
    segments = [made.encode(part) for part in (context, history) if part is not None]
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
    return made.decode(torch.stack(list(steps), 1)).unflatten(0, (len(history), len(members)))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("known", [1, 2, 4])
def test_members_are_those_of_pytorch(case, known):
    made = field_model(**case)
    assert Engine(made.dynamics).backend == "native"
    assert made.dynamics.step.native_part is None
    fields = waves(made.config, 12, seed=5)
    context = fields[6:] if known < 3 else None
    native, reference = (
        trajectory(made, fields[:6, :known], [0, 3, 5], context=context, backend=backend)
        for backend in ("native", "reference")
    )
    scale = float(reference.std())
    torch.testing.assert_close(native, reference, atol=2e-4 * scale, rtol=1e-3)
    assert float((reference[:, 0] - reference[:, 1]).abs().max()) > 1e-2 * scale
    # The correction counts, and by how much is inferred.
    made.dynamics.step.model.size.zero_()
    floor = trajectory(made, fields[:6, :known], [0, 3, 5], context=context, backend="native")
    assert float((native - floor).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("case", CASES[1::3], ids=NAMES[1::3])
def test_settings_of_members(case):
    made = field_model(**case)
    history = waves(made.config, 1, 3, seed=5)
    for temperature in (0.0, 0.5):
        native, reference = (
            trajectory(made, history, [0, 1], backend=backend, temperature=temperature)
            for backend in ("native", "reference")
        )
        torch.testing.assert_close(native, reference, atol=2e-4 * float(reference.std()), rtol=1e-3)
        assert torch.equal(native[:, 0], native[:, 1]) is (temperature == 0)


@pytest.mark.parametrize("case", CASES[1::3], ids=NAMES[1::3])
def test_bits_of_a_member_depend_on_no_other_and_on_no_thread(case):
    made = field_model(**case)
    history, threads = waves(made.config, 3, 3, seed=5), torch.get_num_threads()
    whole = trajectory(made, history, list(range(5)))
    try:
        torch.set_num_threads(3)
        assert torch.equal(trajectory(made, history, list(range(5))), whole)
        for member in range(5):
            alone = trajectory(made, history[1:2], [member], first_seed=8)
            assert torch.equal(alone[0, 0], whole[1, member])
    finally:
        torch.set_num_threads(threads)


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
