"""The native sampler gives the values of the reference sampler, in the memory that it plans."""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import enma_fast
from enma_fast.errors import EnmaError
from enma_fast.models.layers import RMSNorm
from enma_fast.sampling import native
from enma_fast.sampling.native import NativeSampler
from enma_fast.sampling.settings import Chunk, Size
from enma_fast.utils.dataclass_json import replace

from .._extension import ISAS, needs_native
from .._static import LATENTS, TASKS, build, problem
from .._tiny import CONFIGS, ONE_PASS, distance
from ._native import DTYPES, GROWN, assert_is_the_reference, begun, generate, packed, play, references

# Frames in the first tables of rotary places, as csrc/runtime/dynamics.cpp has it.
TABLE_FRAMES = 64
# Two configurations with interpolation have the dynamics of others.
NAMES = ("paper", "relative", "plane", "plane-paper", "plane-local", "plane-fourier", "line-fourier", *ONE_PASS)

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


@pytest.mark.each_value("name")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_reference_sampler(name: str, task: str, dtype: torch.dtype) -> None:
    dynamics = build(name)
    given = problem(dynamics, task, members=8)
    ours = torch.stack(list(generate(packed(name, dtype), given)), dim=1)
    assert_is_the_reference(ours, *references(dynamics, given, dtype), dtype)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_every_instruction_set(name: str, dtype: torch.dtype) -> None:
    dynamics = build(name)
    given = problem(dynamics, "initial-value", members=8)
    same_dtype, exact = references(dynamics, given, dtype)
    for isa in ISAS:
        assert_is_the_reference(play(packed(name, dtype), given, isa=isa), same_dtype, exact, dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_steps": 1},
        {"mask_steps": 20},
        {"flow_steps": 3},
        {"temperature": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["paper", "relative"])
def test_settings_are_those_of_the_reference(name: str, settings: dict[str, Any]) -> None:
    dynamics = build(name)
    given = problem(dynamics, "temporal", members=8)
    changed = dataclasses.replace(dynamics.config.sampling, **settings)
    same_dtype, exact = references(dynamics, given, torch.float32, changed)
    ours = play(packed(name, torch.float32), given, settings=changed)
    assert_is_the_reference(ours, same_dtype, exact, torch.float32)
    assert distance(play(packed(name, torch.float32), given).double(), exact) > GROWN


@pytest.mark.parametrize("name", ONE_PASS)
def test_settings_of_one_pass(name: str) -> None:
    dynamics = build(name)
    own = dynamics.config.sampling
    given = problem(dynamics, "temporal", members=8)
    cooler = dataclasses.replace(own, temperature=0.3)
    same_dtype, exact = references(dynamics, given, torch.float32, cooler)
    assert_is_the_reference(play(packed(name, torch.float32), given, settings=cooler), same_dtype, exact, torch.float32)
    before = play(packed(name, torch.float32), given)
    assert distance(before.double(), exact) > GROWN
    # Mask steps are those of frame 0 alone.
    fewer = dataclasses.replace(own, mask_steps=1)
    assert torch.equal(play(packed(name, torch.float32), given, settings=fewer), before)
    initial = problem(dynamics, "generation", members=8)
    same_dtype, exact = references(dynamics, initial, torch.float32, fewer)
    ours = play(packed(name, torch.float32), initial, settings=fewer)
    assert_is_the_reference(ours, same_dtype, exact, torch.float32)
    assert distance(play(packed(name, torch.float32), initial).double(), exact) > GROWN


def test_weights_are_packed_once() -> None:
    """Whatever frames are decided, in however many steps."""
    dynamics = build("paper-fast")
    sampler = NativeSampler(dynamics, dtype=torch.float32)
    for task in ("temporal", "generation"):
        for changes in ({}, {"flow_steps": 50}, {"mask_steps": 1}):
            settings = dataclasses.replace(dynamics.config.sampling, **changes)
            list(generate(sampler, problem(dynamics, task), settings=settings))
            assert sampler.planned_bytes()["weights"] == sampler._packed.bytes


def test_norms_of_another_epsilon_are_refused() -> None:
    dynamics = build("relative-fast")
    norms = [module for module in dynamics.modules() if isinstance(module, RMSNorm)]
    NativeSampler(dynamics, dtype=torch.float32)
    norms[-1].eps = 0.3
    with pytest.raises(EnmaError, match="epsilon"):
        NativeSampler(dynamics, dtype=torch.float32)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_depths_beside_two(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # With one layer the first is the last, with three one lies between.
    changes = {"trunk.layers": layers, "context.layers": layers}
    monkeypatch.setitem(CONFIGS, name, replace(CONFIGS[name], changes))
    dynamics = build(name)
    given = problem(dynamics, "generation", members=8)
    ours = play(NativeSampler(dynamics, dtype=torch.float32), given)
    assert_is_the_reference(ours, *references(dynamics, given, torch.float32), torch.float32)


@pytest.mark.each_value("name")
@pytest.mark.parametrize(
    "changes",
    [
        # Head dims 4 (12 with rotary places), 20 and 64; columns beside whole panels, and as many as a product's piece.
        {"context.width": 36, "context.heads": 9, "context.scale_shift_rank": 5, "context.patch": (1,)},
        {"context.width": 40, "step.width": 17, "context.patch": (4,)},
        {"context.width": 128, "context.patch": (16,)},
    ],
    ids=["narrow", "odd", "wide"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_sizes(name: str, dtype: torch.dtype, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if CONFIGS[name].initial is not None:
        changes = {key.replace("step.", "initial."): value for key, value in changes.items()}
    if not name.startswith("paper"):
        # Rotary places need heads of 8 channels or more, and scaling and shift belong to the paper's model.
        changes = {key: 3 if key.endswith("heads") else value for key, value in changes.items() if "rank" not in key}
    monkeypatch.setitem(CONFIGS, name, replace(CONFIGS[name], changes))
    dynamics = build(name)
    given = problem(dynamics, "temporal", members=8)
    ours = play(NativeSampler(dynamics, dtype=dtype), given, threads=2)
    assert_is_the_reference(ours, *references(dynamics, given, dtype), dtype)


def test_as_many_frames_as_are_asked_for() -> None:
    dynamics = build("paper")
    given = problem(dynamics, "temporal", members=8)
    sampler = packed("paper", torch.float32)
    whole = play(sampler, given)
    for num_latents in range(given.first, LATENTS):
        frames = list(generate(sampler, given, num_latents=num_latents))
        assert len(frames) == num_latents - given.first
        for t, z_BNC in enumerate(frames):
            assert torch.equal(z_BNC, whole[:, t])


@pytest.mark.parametrize("name", ["paper", "relative-fast"])
def test_frames_that_are_made_ahead_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, two or all at a time; where their number is odd, the last call makes fewer."""
    dynamics = build(name)
    given = problem(dynamics, "temporal", members=1)
    sampler = packed(name, torch.float32)
    whole = play(sampler, given)
    assert whole.shape[:2] == (2, 3)
    for rows, ahead, calls in ((1, True, 3), (4, True, 2), (100, True, 1), (100, False, 3)):
        monkeypatch.setattr(native, "ROWS_AHEAD", rows)
        frames = list(generate(sampler, given, chunk=Chunk(ahead=ahead)))
        assert torch.equal(torch.stack(frames, 1), whole)
        # Frames of one call share their memory.
        assert len({z_BNC.untyped_storage().data_ptr() for z_BNC in frames}) == calls


def test_a_call_of_many_frames_ends_at_a_signal() -> None:
    """As Ctrl-C ends it: the frames after that one are not made, and the sampler goes on."""
    dynamics = build("paper")
    given = problem(dynamics, "temporal", groups=1, members=1)
    sampler = packed("paper", torch.float32)
    config, frames = dynamics.config, 2000
    key, session = begun(sampler, given, num_latents=given.first + frames + 1)
    made = torch.full((frames, 1, config.num_tokens, config.token_channels), math.nan)

    def stop(number: int, frame: Any) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    try:
        with pytest.raises(InterruptedError):
            session.frame(made, False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert made[-1].isnan().all()
    sampler._idle = native.Idle(key, session, [])
    assert torch.equal(torch.stack(list(generate(sampler, given)), 1), play(sampler, given))


@pytest.mark.parametrize("name", ["paper", "relative"])
def test_more_frames_than_the_tables_hold(name: str) -> None:
    dynamics = build(name)
    sampler = NativeSampler(dynamics, dtype=torch.float32)
    given = problem(dynamics, "temporal", groups=1, members=2)
    before = play(sampler, given, num_latents=10)
    old = generate(sampler, given, num_latents=10)
    first = next(old)
    long = play(sampler, given, num_latents=TABLE_FRAMES + 6)
    assert torch.equal(long[:, :8], before)
    assert torch.equal(play(sampler, given, num_latents=10), before)
    # A trajectory that had begun keeps its tables.
    assert torch.equal(torch.stack([first, *old], dim=1), before)
    # Frames that are turned by the new part of the tables.
    N, C = dynamics.config.num_tokens, dynamics.config.token_channels
    history = torch.randn(1, TABLE_FRAMES + 1, N, C)
    late = dataclasses.replace(given, segments=[history])
    ours = play(NativeSampler(dynamics, dtype=torch.float32), late, num_latents=TABLE_FRAMES + 3)
    wide = history.expand(2, -1, -1, -1)
    expected = torch.stack(
        list(
            enma_fast.sampling.reference.trajectory(
                dynamics, [wide], num_latents=TABLE_FRAMES + 3, seeds=given.seeds, members=given.members
            )
        ),
        dim=1,
    )
    assert distance(ours, expected) < 1e-4


@pytest.mark.parametrize("name", ["relative", "paper"])
def test_a_session_that_is_used_again_keeps_nothing_of_its_inputs(name: str) -> None:
    """What it keeps is how a first segment starts, which is of its number alone."""
    sampler, out = packed(name, torch.float32), []
    config = sampler.dynamics.config
    size = Size(rows=3, groups=2, prefix_frames=4, own_frames=1, settings=config.sampling)
    sessions = [sampler.session(size, first=1, threads=1)[1] for _ in range(5)]
    z = torch.randn(4, 2, config.num_tokens, config.token_channels, generator=torch.Generator().manual_seed(0))
    runs = [(0, z[0], 1, z[1]), (0, z[2], 1, z[3]), (1, z[2], 0, z[3]), (0, z[2], 1, z[3])]
    for run, fresh in zip(runs, sessions[1:], strict=True):
        for session in (sessions[0], fresh):
            session.reset()
            for number, z_GNC in zip(run[::2], run[1::2], strict=True):
                session.start_segment(number)
                session.read(z_GNC)
            session.begin(torch.arange(3), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 1]))
            frames = torch.empty(2, 3, config.num_tokens, config.token_channels)
            session.frame(frames[0], False)
            session.frame(frames[1], True)
            out.append(frames)
    assert all(torch.equal(used, fresh) for used, fresh in zip(out[::2], out[1::2], strict=True))
    assert torch.equal(out[2], out[6])
    assert not torch.equal(out[0], out[2])
    assert not torch.equal(out[2], out[4])


def test_plan_counts_keys_and_values() -> None:
    for name in ("relative", "paper"):
        dynamics = build(name)
        for dtype, isa in ((torch.float32, "scalar"), (torch.bfloat16, "scalar"), (torch.bfloat16, ISAS[-1])):
            settings = dynamics.config.sampling
            sampler = packed(name, dtype)
            shared = Size(rows=5, groups=2, prefix_frames=3, own_frames=4, settings=settings)
            plan = sampler.session(shared, first=1, threads=2, isa=isa)[1].plan()
            # Inputs of bf16 products are bf16 where they are multiplied as such. Rows of 32 fill whole cache lines.
            size = 2 if dtype == torch.bfloat16 and isa == "avx512_bf16" else 4
            tokens = dynamics.config.num_tokens * (2 * 3 + 5 * 4)
            assert plan["keys_values"] == 2 * 2 * tokens * dynamics.config.context.width * size
            stored = sum(p.numel() for p in dynamics.parameters()) * dtype.itemsize
            # Every linear has a bias of fp32, and panels of 16; the rest are tables.
            assert stored <= plan["weights"] < 3 * stored
            assert set(plan) == {"weights", "keys_values", "buffers", "work"}


# Whether a system has huge pages at all; MADV_HUGEPAGE is refused otherwise.
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


HUGE = """
from pathlib import Path
import torch
from enma_fast.models.model import Dynamics
from enma_fast.training.recipes import RECIPES
from enma_fast.sampling.native import NativeSampler

def bytes_that_may_be_huge():
    \"\"\"Of this process's memory, what was asked for in huge pages (flag `hg`).\"\"\"
    size = asked = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:") and " hg" in line:
            asked += size
    return asked

config = RECIPES["combined-small"].model
before = bytes_that_may_be_huge()
sampler = NativeSampler(Dynamics(config).requires_grad_(False), dtype=torch.float32)
history, keys = torch.randn(2, 1, config.num_tokens, config.token_channels), torch.arange(2)
list(
    sampler.trajectory(
        [history], num_latents=2, seeds=keys, members=keys, groups=keys, settings=config.sampling, threads=1
    )
)
print(bytes_that_may_be_huge() - before, sampler.planned_bytes()["weights"])
"""


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="the system has no huge pages")
def test_packed_weights_ask_for_huge_pages() -> None:
    """In a process of its own: memory that another sampler has given back asks for huge pages still."""
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked, large = map(int, done.stdout.split())
    assert large > 7 << 20
    # Small parts, such as a head's, stay in small pages.
    assert asked > large / 2


MEMORY = """
import dataclasses, os, torch
from pathlib import Path
from enma_fast.training.recipes import RECIPES
from enma_fast.models.model import Dynamics
from enma_fast.sampling.native import NativeSampler

config = RECIPES["combined-small"].model
settings = dataclasses.replace(config.sampling, mask_steps=1, flow_steps=1)
dynamics = Dynamics(config).requires_grad_(False)
history = torch.randn(2, 1, config.num_tokens, config.token_channels)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def run(rows, num_latents):
    sampler, most, before = NativeSampler(dynamics, dtype=torch.float32), 0, resident()
    keys = torch.arange(rows)
    for _ in sampler.trajectory(
        [history], num_latents=num_latents, seeds=keys, members=keys, groups=keys % 2, settings=settings, threads=2
    ):
        most = max(most, resident() - before)
    return most, sampler.planned_bytes()

run(2, 3)
most, plan = run(128, 14)
print(most, plan["keys_values"], sum(plan.values()) - plan["weights"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_is_what_the_plan_says() -> None:
    """In a process of its own, where nobody else gives memory back; beside the weights."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    most, keys_values, planned = map(int, done.stdout.split())
    assert keys_values > 20 << 20
    assert keys_values < most <= 1.5 * planned
