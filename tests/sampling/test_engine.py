"""The engine: choice of the backend, equal results of all backends, and packed weights that follow the model."""

from __future__ import annotations

import copy
import dataclasses
import gc
import types
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.models.model import Dynamics
from enma_fast.sampling import reference as reference_sampler
from enma_fast.sampling import static_sampler
from enma_fast.sampling.engine import Engine, candidates, engine_for, rows_at_once, weights_dtype
from enma_fast.sampling.settings import Chunk
from enma_fast.sampling.static_step import StaticStep
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import replace

from .._extension import NATIVE, needs_native
from .._static import LATENTS, TASKS, Problem, build, problem, reference
from .._tiny import ONE_PASS, distance, shaken
from ..ops._oracle import assert_close_as_reference

BACKENDS = ("native", "static", "reference") if NATIVE else ("static", "reference")
# Rounding of fp32 has grown to less than this by the last frame; a wrong key or place changes the first digit.
GROWN = 2e-3

pytestmark = pytest.mark.usefixtures("one_thread")


def frames_of(engine: Engine, given: Problem, *, groups: Tensor | None = None) -> Iterator[Tensor]:
    if groups is None:
        groups = torch.arange(given.groups).repeat_interleave(len(given.seeds) // given.groups)
    return engine.trajectory(
        given.segments,
        num_latents=LATENTS,
        seeds=given.seeds,
        members=given.members,
        groups=groups,
    )


def generated(engine: Engine, given: Problem, *, groups: Tensor | None = None) -> Tensor:
    return torch.stack(list(frames_of(engine, given, groups=groups)), dim=1)


def test_the_best_backend_and_the_reasons() -> None:
    dynamics = build("paper")
    found = candidates(dynamics.config, torch.device("cpu"), torch.float32)
    assert list(found) == ["native", "graph", "static", "reference"]
    assert [name for name, problem in found.items() if problem is None] == ["native", "reference"][not NATIVE :]
    wide = replace(dynamics.config, {"context.width": 132, "context.heads": 1})
    assert "up to 128" in candidates(wide, torch.device("cpu"), torch.float32)["native"]
    assert Engine(dynamics).backend == ("native" if NATIVE else "reference")
    assert Engine(dynamics, dtype=torch.bfloat16, backend=BACKENDS[0]).dtype == torch.bfloat16
    assert Engine(copy.deepcopy(dynamics).double()).backend == "reference"
    for backend in BACKENDS:
        assert Engine(dynamics, backend=backend).backend == backend


def test_a_backend_that_cannot_run_says_why() -> None:
    dynamics = build("paper")
    wide = copy.deepcopy(dynamics).double()
    for model, dtype, backend, message in (
        (dynamics, None, "graph", "backend 'graph' cannot run: needs a CUDA device"),
        (dynamics, torch.bfloat16, "reference", "backend 'reference' cannot run: samples with the model's weights"),
        (wide, None, "native", "backend 'native' cannot run: takes float32 and bfloat16 weights, these are float64"),
        (dynamics, None, "fastest", "backend 'fastest' is unknown; expected one of native, graph, static, reference"),
    ):
        for make in (Engine, engine_for):
            with pytest.raises(EnmaError, match=message):
                make(model, dtype=dtype, backend=backend)
    with pytest.raises(EnmaError, match=r"no implementation can run here.*float16"):
        Engine(dynamics, dtype=torch.float16)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_every_backend_is_the_reference(name: str, task: str) -> None:
    dynamics = build(name)
    given = problem(dynamics, task, members=3)
    expected = reference(dynamics, given)
    for backend in BACKENDS:
        ours = generated(Engine(dynamics, backend=backend), given)
        assert ours.dtype == torch.float32
        assert distance(ours, expected) < GROWN
    # Without groups row b has history b.
    rows = dataclasses.replace(given, segments=[segment.repeat_interleave(3, 0) for segment in given.segments])
    alone = Engine(dynamics).trajectory(
        rows.segments,
        num_latents=LATENTS,
        seeds=given.seeds,
        members=given.members,
    )
    assert distance(torch.stack(list(alone), dim=1), expected) < GROWN


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [[1, 0, 1, 1], [2, 0, 0, 1, 1, 2], [0], [1, 1, 1]], ids=str)
def test_groups_of_any_size_and_order(backend: str, groups: list[int]) -> None:
    dynamics = build("relative")
    pool = problem(dynamics, "initial-value", groups=3, members=1)
    which = torch.tensor(groups)
    seeds, members = pool.seeds[which], torch.arange(len(groups))
    given = Problem(segments=pool.segments, seeds=seeds, members=members)
    ours = generated(Engine(dynamics, backend=backend), given, groups=which)
    repeated = Problem(segments=[segment[which] for segment in pool.segments], seeds=seeds, members=members)
    assert distance(ours, reference(dynamics, repeated)) < GROWN


@pytest.mark.parametrize("backend", BACKENDS)
def test_trajectories_do_not_disturb_each_other(backend: str) -> None:
    dynamics = build("paper")
    engine = Engine(dynamics, backend=backend)
    one, other = (problem(dynamics, "initial-value", seed=seed) for seed in (1, 2))
    alone = [generated(engine, given) for given in (one, other)]
    pairs = list(zip(frames_of(engine, one), frames_of(engine, other), strict=True))
    for frames, expected in zip(zip(*pairs, strict=True), alone, strict=True):
        assert torch.equal(torch.stack(frames, dim=1), expected)
    # Another size in between, and one that is left half way.
    left = frames_of(engine, other)
    next(left)
    left.close()
    generated(engine, problem(dynamics, "temporal"))
    assert torch.equal(generated(engine, one), alone[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_caller_is_not_in_inference_mode(backend: str) -> None:
    dynamics = build("paper")
    frames = frames_of(Engine(dynamics, backend=backend), problem(dynamics, "temporal"))
    for _ in frames:
        assert not torch.is_inference_mode_enabled()
        break
    frames.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("backend", BACKENDS)
def test_planned_bytes(backend: str) -> None:
    dynamics = build("paper")
    engine = Engine(dynamics, backend=backend)
    assert engine.planned_bytes() == {}
    generated(engine, problem(dynamics, "temporal"))
    plan = engine.planned_bytes()
    if backend == "reference":
        assert plan == {}
        return
    # Three shared frames of two trajectories, two of each of four members, in two layers of width 32.
    assert plan["keys_values"] == 2 * 2 * (2 * 3 + 4 * 2) * dynamics.config.num_tokens * 32 * 4
    assert plan["weights"] >= 4 * sum(p.numel() for p in dynamics.parameters())


def test_an_engine_is_made_once() -> None:
    dynamics = build("paper")
    first = engine_for(dynamics)
    assert engine_for(dynamics) is first
    assert engine_for(dynamics, dtype=torch.bfloat16, backend=BACKENDS[0]) is not first
    assert engine_for(dynamics, backend="reference") is not first
    assert engine_for(dynamics) is first
    assert engine_for(build("paper")) is not first
    assert engine_for(copy.deepcopy(dynamics)) is not first
    assert engine_for(dynamics) is first


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_have_changed_are_packed_again(backend: str) -> None:
    dynamics = build("relative")
    given = problem(dynamics, "temporal")
    before = engine_for(dynamics, backend=backend)
    assert distance(generated(before, given), reference(dynamics, given)) < GROWN
    changes = [
        lambda: shaken(dynamics, seed=3),
        lambda: dynamics.load_state_dict(build("relative").state_dict()),
        lambda: dynamics.trunk.mask.add_(1.0),
        lambda: setattr(dynamics.context, "start", torch.nn.Parameter(torch.randn_like(dynamics.context.start))),
    ]
    for change in changes:
        old = generated(engine_for(dynamics, backend=backend), given)
        change()
        engine = engine_for(dynamics, backend=backend)
        assert engine is not before
        expected = reference(dynamics, given)
        assert distance(generated(engine, given), expected) < GROWN < distance(old, expected)
        before = engine


def test_weights_of_inference_mode_that_have_changed_are_packed_again() -> None:
    """PyTorch does not count their changes."""
    other = build("relative")
    shaken(other, seed=3)
    with torch.inference_mode():
        dynamics = build("relative")
        given = problem(dynamics, "temporal")
        before = engine_for(dynamics)
        assert engine_for(dynamics) is before
        dynamics.load_state_dict(other.state_dict())
        after = engine_for(dynamics)
        assert after is not before
        assert distance(generated(after, given), reference(other, given)) < GROWN


def test_an_engine_goes_with_its_model() -> None:
    dynamics = build("paper")
    engine = engine_for(dynamics)
    generated(engine, problem(dynamics, "temporal"))
    gone = weakref.ref(dynamics), weakref.ref(engine)
    del dynamics, engine
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "combined-small",
        "combined-fast",
        pytest.param("combined-paper", marks=pytest.mark.slow),
        "combined-fast-paper",
        pytest.param("vorticity-paper", marks=pytest.mark.slow),
        pytest.param("gray-scott-paper", marks=pytest.mark.slow),
        pytest.param("wave-paper", marks=pytest.mark.slow),
    ],
)
def test_presets_are_the_reference(name: str) -> None:
    """Two frames of two members with random weights: the sizes, and so the division into panels, of real models."""
    torch.manual_seed(0)
    # Three steps: a first, a middle and a last one.
    config = replace(RECIPES[name].model, {"sampling.mask_steps": 3, "sampling.flow_steps": 1})
    dynamics = shaken(Dynamics(config), scale=0.03).eval().requires_grad_(False)
    history = torch.randn(1, 2, config.num_tokens, config.token_channels)
    keys = {"num_latents": 4, "seeds": torch.tensor([5, 5]), "members": torch.arange(2)}

    def frames(model: Dynamics, history: Tensor) -> Tensor:
        return torch.stack(list(reference_sampler.trajectory(model, [history.expand(2, -1, -1, -1)], **keys)), dim=1)

    same_dtype = frames(dynamics, history)
    exact = frames(copy.deepcopy(dynamics).double(), history.double())
    engine = Engine(dynamics, backend="native")
    ours = torch.stack(list(engine.trajectory([history], groups=torch.zeros(2, dtype=torch.int64), **keys)), dim=1)
    # Four ulps of tokens that reach 4: how far the reference rounds depends on the processor's BLAS.
    assert_close_as_reference(ours, same_dtype, exact, floor=2e-6)
    assert distance(ours[:1], ours[1:]) > 0.01


def chunks_of(engine: Engine, given: Problem, groups: Tensor, *, chunk: int) -> Tensor:
    """Frames of all rows, a chunk at a time."""
    found = []
    for begin in range(0, len(given.seeds), chunk):
        rows = slice(begin, begin + chunk)
        there, numbers = groups[rows].unique(return_inverse=True)
        frames = engine.trajectory(
            [segment[there] for segment in given.segments],
            num_latents=LATENTS,
            seeds=given.seeds[rows],
            members=given.members[rows],
            groups=numbers,
            chunk=Chunk(chunk),
        )
        found.append(torch.stack(list(frames), dim=1))
    return torch.cat(found)


@pytest.mark.each_value
@pytest.mark.parametrize("name", ["paper", "relative-fast"])
@pytest.mark.parametrize(
    ("trajectories", "members", "chunk"),
    # One trajectory; a row of each; whole trajectories; chunks that end within a trajectory, or not.
    [(1, 7, 4), (5, 1, 3), (3, 2, 4), (3, 3, 4), (5, 3, 8)],
)
def test_a_last_chunk_takes_the_step_of_the_others(
    name: str, trajectories: int, members: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamics = build(name)
    given = problem(dynamics, "initial-value", groups=trajectories, members=members)
    groups = torch.arange(trajectories).repeat_interleave(members)
    made = []

    class Counted(StaticStep):
        def __init__(self, dynamics, size, **options) -> None:
            made.append((size.rows, size.groups))
            super().__init__(dynamics, size, **options)

    monkeypatch.setattr(static_sampler, "StaticStep", Counted)
    engine = Engine(dynamics, backend="static")
    found = chunks_of(engine, given, groups, chunk=chunk)
    each = chunk if chunk % members else chunk // members
    assert made == [(chunk, 1 if trajectories == 1 else each)]
    assert found.shape[0] == trajectories * members
    assert distance(found, reference(dynamics, given)) < GROWN
    # The next ensemble begins with that step; one that is no chunk of another has its own size.
    again = chunks_of(engine, given, groups, chunk=chunk)
    assert torch.equal(again, found)
    assert len(made) == 1
    generated(engine, problem(dynamics, "initial-value", groups=1, members=1))
    assert made[1:] == [(1, 1)]


def test_a_gpu_has_its_own_number_format_and_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_gpu(dtype: torch.dtype) -> types.SimpleNamespace:
        weight = types.SimpleNamespace(dtype=dtype, device=torch.device("cuda", 1))
        return types.SimpleNamespace(config=RECIPES["combined-paper"].model, parameters=lambda: iter([weight]))

    model = on_gpu(torch.float32)
    assert weights_dtype(model) == weights_dtype(model, "auto") == torch.bfloat16
    # A type that is asked for, the reference, and types that no matrix unit multiplies stay as they are.
    assert weights_dtype(model, torch.float32) == weights_dtype(model, backend="reference") == torch.float32
    assert weights_dtype(on_gpu(torch.float64)) == torch.float64
    assert weights_dtype(build("paper")) == torch.float32
    asked, free = [], [70 << 30]

    def properties(device: torch.device) -> types.SimpleNamespace:
        asked.append(device)
        return types.SimpleNamespace(L2_cache_size=50 << 20)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 80 << 30))
    # What PyTorch holds unused is free too.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 << 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 20)
    assert rows_at_once(model, num_frames=20) == 256
    assert asked == [torch.device("cuda", 1)]
    assert rows_at_once(build("paper"), num_frames=20) is None
    # 20 frames of 128 points, their activations, keys and values are 2 to 3 MB.
    free[0] = 100 << 20
    assert rows_at_once(model, num_frames=20) == 16
    assert rows_at_once(model, num_frames=200) == 1
    free[0] = 0
    assert rows_at_once(model, num_frames=2000) == 1
