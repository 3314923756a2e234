"""The static step is the reference sampler: in float64 to its last digits, else by the two-reference rule."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import enma_fast
from enma_fast.errors import EnmaError
from enma_fast.sampling.settings import Size
from enma_fast.sampling.static_step import StaticStep
from enma_fast.utils.dataclass_json import replace

from .._static import LATENTS, TASKS, Problem, build, generate, in_float64, make_step, problem
from .._static import reference as reference_frames
from .._tiny import CONFIGS, ONE_PASS, distance
from ..ops._oracle import assert_norm_close_as_reference

# Two configurations with interpolation have the dynamics of others.
NAMES = ("paper", "relative", "plane", "plane-paper", "plane-local", "plane-fourier", *ONE_PASS)
# Differences in rounding grow from frame to frame; over the first two they are those of a step.
COMPARED = 2


@pytest.mark.each_value
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_reference_sampler(name: str, task: str) -> None:
    dynamics = build(name)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = copy.deepcopy(dynamics)
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(dtype))
        given = problem(rounded, task, members=4)
        exact_model, wide = copy.deepcopy(rounded).double(), in_float64(given)
        exact = reference_frames(exact_model, wide)
        assert distance(generate(make_step(exact_model, wide), wide), exact) < 1e-11
        same_dtype = reference_frames(copy.deepcopy(rounded).to(dtype), given)
        ours = generate(make_step(rounded, given, dtype=dtype), given)
        assert torch.isfinite(ours).all()
        assert_norm_close_as_reference(ours[:, :COMPARED], same_dtype[:, :COMPARED], exact[:, :COMPARED])


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_steps": 1},
        {"mask_steps": 20},
        {"temperature": 0.5, "flow_steps": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["paper", "relative"])
def test_settings_are_those_of_the_reference(name: str, settings: dict) -> None:
    dynamics = build(name).double()
    given = in_float64(problem(dynamics, "initial-value"))
    step = make_step(dynamics, given, **settings)
    assert distance(generate(step, given), reference_frames(dynamics, given, step.size.settings)) < 1e-11


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_depths_beside_two(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # With one layer the first is the last, with three one lies between.
    changed = replace(CONFIGS[name], {"trunk.layers": layers, "context.layers": layers})
    monkeypatch.setitem(CONFIGS, name, changed)
    dynamics = build(name).double()
    given = in_float64(problem(dynamics, "generation"))
    assert distance(generate(make_step(dynamics, given), given), reference_frames(dynamics, given)) < 1e-11


def addresses(step: StaticStep) -> dict[str, int]:
    """Addresses of all tensors of a step, weights included."""
    tensors = {name: x for name, x in vars(step).items() if isinstance(x, torch.Tensor)}
    for part in (step._context, step._trunk):
        tensors |= {f"{type(part).__name__}.{name}": x for name, x in part.named_parameters()}
    return {name: x.data_ptr() for name, x in tensors.items()}


def test_every_call_has_the_same_addresses() -> None:
    dynamics = build("relative")
    step = make_step(dynamics, problem(dynamics, "initial-value"), spare=1)
    before = addresses(step)
    assert len(before) > 30
    for task in TASKS:
        given = problem(dynamics, task)
        step.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
        for _ in range(3):
            assert step.frame().data_ptr() == before["tokens_BNC"]
        assert addresses(step) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["paper", "relative-fast", "plane-local"])
def test_loaded_weights_are_those_of_a_new_step(name: str, dtype: torch.dtype) -> None:
    dynamics = build(name)
    given = problem(dynamics, "generation")
    step = make_step(dynamics, given, dtype=dtype)
    earlier, before = generate(step, given), addresses(step)
    generator = torch.Generator().manual_seed(5)
    for weight in dynamics.parameters():
        weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))
    step.load(dynamics)
    with pytest.raises(EnmaError, match="begin"):
        step.frame()
    made = generate(step, given)
    assert torch.equal(made, generate(make_step(dynamics, given, dtype=dtype), given))
    assert distance(made, earlier) > 1e-2
    assert addresses(step) == before


def test_a_step_forgets_the_trajectory_before() -> None:
    dynamics = build("paper")
    others = [problem(dynamics, task, seed=seed) for task, seed in (("generation", 1), ("temporal", 2))]
    step = make_step(dynamics, others[0], spare=2)
    first = generate(step, others[1])
    generate(step, others[0])
    # Room for more frames changes nothing either.
    assert torch.equal(generate(step, others[1]), first)
    assert torch.equal(generate(make_step(dynamics, others[1]), others[1]), first)


@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_a_member_alone_is_that_member_of_a_batch(name: str) -> None:
    dynamics = build(name)
    given = problem(dynamics, "initial-value", groups=2, members=8)
    whole = generate(make_step(dynamics, given), given)
    for row in (0, 5, 11):
        alone = Problem(
            segments=[x[row // 8 : row // 8 + 1] for x in given.segments],
            seeds=given.seeds[row : row + 1],
            members=given.members[row : row + 1],
        )
        found = generate(make_step(dynamics, alone), alone)
        assert distance(found[:, :COMPARED], whole[row : row + 1, :COMPARED]) < 2e-5
    # The same member elsewhere in a batch of the same size has the same bits.
    turned = Problem(segments=given.segments, seeds=given.seeds, members=given.members.view(2, 8).flip(1).reshape(-1))
    found = generate(make_step(dynamics, turned), turned)
    assert torch.equal(found.view(2, 8, *found.shape[1:]).flip(1).reshape(found.shape), whole)


class HostReads(TorchDispatchMode):
    """Places of this package that wait for a value on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            package = Path(enma_fast.__file__).parent
            ours = [entry for entry in traceback.extract_stack() if package in Path(entry.filename).parents]
            self.found.append(f"{Path(ours[-1].filename).relative_to(package)}: {ours[-1].name}")
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    dynamics = build("relative")
    given = problem(dynamics, "temporal")
    step = make_step(dynamics, given)
    step.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
    with HostReads() as reads:
        step.frame()
    # The operator checks lengths on a CPU, and hands them to native code as numbers.
    on_cpu_only = {
        "ops/frame_attention.py: _check",
        "ops/frame_attention.py: _run_native",
        "ops/frame_attention.py: frame_attention_ref",
    }
    assert set(reads.found) <= on_cpu_only


def test_the_plan_is_what_is_allocated() -> None:
    dynamics = build("paper")
    given = problem(dynamics, "initial-value", groups=2, members=3)
    step = make_step(dynamics, given)
    held = [x for name, x in vars(step).items() if isinstance(x, torch.Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    assert sum(storages.values()) == step.plan.kv_bytes + step.plan.buffer_bytes
    # Two layers, keys and values, width 32, 8 tokens, fp32: 7 shared frames of 2 groups, 3 frames of 6 rows.
    assert step.plan.kv_bytes == 2 * 2 * 32 * 8 * 4 * (7 * 2 + 3 * 6)
    used = [x for part in (dynamics.context, dynamics.trunk, dynamics.step) for x in part.parameters()]
    assert step.plan.weights == 4 * sum(x.numel() for x in used)
    half = make_step(dynamics, given, dtype=torch.bfloat16).plan
    assert 2 * half.kv_bytes == step.plan.kv_bytes


def test_without_frame_0_a_step_has_no_decoder_of_it() -> None:
    dynamics = build("paper-fast")
    steps = {}
    for task in ("temporal", "generation"):
        given = problem(dynamics, task)
        steps[task] = make_step(dynamics, given)
        slots = ["step"] * 2 + ["initial"] * 2 * (task == "generation")
        assert [kind.slot for kind in steps[task].kinds()] == slots
    head = 4 * sum(x.numel() for x in dynamics.initial.parameters())
    assert steps["generation"].plan.weights - steps["temporal"].plan.weights == head
    begin = {"segments": given.segments[1:], "seeds": given.seeds, "members": given.members}
    with pytest.raises(EnmaError, match=r"^first is 0"):
        steps["temporal"].begin(**begin, first=0)


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_one_pass_step_takes_the_temperature(name: str) -> None:
    dynamics = build(name).double()
    given = in_float64(problem(dynamics, "generation"))
    step = make_step(dynamics, given, temperature=0.5, mask_steps=2)
    assert distance(generate(step, given), reference_frames(dynamics, given, step.size.settings)) < 1e-11


def test_weights_are_not_the_models() -> None:
    dynamics = build("paper")
    given = problem(dynamics, "temporal")
    step = make_step(dynamics, given)
    before = generate(step, given)
    for parameter in dynamics.parameters():
        parameter.zero_()
    assert torch.equal(generate(step, given), before)


def test_errors_name_the_argument() -> None:
    dynamics = build("paper")
    given = problem(dynamics, "temporal")
    step = make_step(dynamics, given)
    good = {"segments": given.segments, "seeds": given.seeds, "members": given.members, "first": given.first}
    for changes, message in (
        ({"segments": []}, "segments is empty"),
        ({"segments": [given.segments[0][:1]]}, r"segments\[0\] has shape \[1, 2, 8, 4\]; expected \[2, T, 8, 4\]"),
        ({"segments": [given.segments[0].long()]}, r"segments\[0\] is torch.int64 on cpu"),
        ({"segments": [given.segments[0]] * 2}, "segments hold 6 frames.*prefix_frames 3"),
        ({"seeds": given.seeds[:3]}, r"seeds is \[3\] torch.int64 on cpu; expected \[4\]"),
        ({"members": given.members.int()}, "members is .* torch.int32"),
        ({"first": -1}, "first is -1"),
    ):
        with pytest.raises(EnmaError, match=message):
            step.begin(**good | changes)
    with pytest.raises(EnmaError, match="call begin first"):
        step.frame()
    step.begin(**good)
    for _ in range(LATENTS - 1 - given.first):
        step.frame()
    with pytest.raises(EnmaError, match="own_frames is 2 and as many frames were fed back"):
        step.frame()
    step.frame(last=True)
    with pytest.raises(EnmaError, match="call begin first"):
        step.frame(last=True)
    sizes = {"rows": 4, "groups": 2, "prefix_frames": 3, "own_frames": 2, "settings": step.size.settings}
    for changes, message in (({"rows": 3}, "rows is 3 and groups is 2"), ({"prefix_frames": 0}, "prefix_frames is 0")):
        with pytest.raises(EnmaError, match=message):
            StaticStep(dynamics, Size(**sizes | changes))
