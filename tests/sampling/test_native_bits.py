"""The native sampler: the bits of a member depend only on the member, its history and its context."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from enma_fast.config import SamplingConfig
from enma_fast.sampling.native import NativeSampler

from .._extension import ISAS, needs_native
from .._static import Problem, build, problem
from .._tiny import ONE_PASS
from ._native import DTYPES, generate, groups_of, packed, play

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_bits_do_not_depend_on_the_threads(name: str, dtype: torch.dtype) -> None:
    # One member, as many as threads or not, and so many that a thread takes them in pieces. Threads divide a frame, or
    # each has members of its own.
    for members in (1, 3, 40):
        given = problem(build(name), "initial-value", groups=1, members=members)
        first = play(packed(name, dtype), given)
        for threads in (1, 2, 3):
            assert torch.equal(play(packed(name, dtype), given, threads=threads), first)


@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_every_instruction_set(isa: str) -> None:
    for name in ("relative", "relative-fast"):
        sampler, given = packed(name, torch.bfloat16), problem(build(name), "temporal", members=5)
        whole = play(sampler, given, isa=isa)
        assert torch.equal(play(sampler, given, isa=isa, threads=3), whole)
        for row in (0, 4, 7):
            assert torch.equal(play(sampler, part_of(given, row), isa=isa), whole[row : row + 1])


def part_of(given: Problem, row: int) -> Problem:
    """One member alone."""
    group = int(groups_of(given)[row])
    return Problem(
        segments=[segment[group : group + 1] for segment in given.segments],
        seeds=given.seeds[row : row + 1],
        members=given.members[row : row + 1],
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("paper", torch.bfloat16),
        pytest.param("relative", torch.float32, marks=pytest.mark.slow),
        pytest.param("paper-fast", torch.float32, marks=pytest.mark.slow),
        ("relative-fast", torch.bfloat16),
    ],
    ids=str,
)
def test_a_member_is_the_same_wherever_it_is(name: str, dtype: torch.dtype) -> None:
    """200 placements of one member among others of its own and of other trajectories."""
    sampler, draw = packed(name, dtype), random.Random(0)
    pool = problem(build(name), "initial-value", groups=4, members=1)
    needle = part_of(pool, 2)
    needle.members[0] = 5
    alone = play(sampler, needle)
    for _ in range(200):
        # Trajectories in any order, some of them twice; the needle's is among them.
        which = [draw.randrange(4) for _ in range(draw.randrange(5))]
        which.insert(draw.randrange(len(which) + 1), 2)
        rows = draw.choice((1, 2, 3, 8, 30))
        place = draw.randrange(rows)
        groups = torch.tensor([draw.randrange(len(which)) for _ in range(rows)])
        groups[place] = draw.choice([i for i, trajectory in enumerate(which) if trajectory == 2])
        members = torch.tensor([draw.randrange(1000) for _ in range(rows)])
        members[place] = 5
        given = Problem(
            segments=[segment[which] for segment in pool.segments],
            seeds=pool.seeds[which][groups],
            members=members,
        )
        whole = play(sampler, given, groups=groups, threads=draw.choice((1, 1, 1, 2)))
        assert torch.equal(whole[place], alone[0])


def test_a_session_used_again_gives_the_same_bits() -> None:
    dynamics = build("relative")
    sampler = NativeSampler(dynamics, dtype=torch.float32)
    one, other = (problem(dynamics, "initial-value", members=3, seed=seed) for seed in (1, 2))
    first = list(generate(sampler, one))
    kept = sampler._idle[1]
    second = list(generate(sampler, other))
    assert sampler._idle[1] is kept
    for found, expected in zip(generate(sampler, one), first, strict=True):
        assert torch.equal(found, expected)
    assert not torch.equal(first[0], second[0])
    # The frames that were handed out are the caller's.
    assert torch.equal(torch.stack(first, dim=1), play(sampler, one))


def test_a_session_is_taken_before_it_is_looked_at() -> None:
    """Comparing settings runs Python, where another thread may come between and take what lies idle."""
    found = []

    class Compared(SamplingConfig):
        def __eq__(self, other: object) -> bool:
            found.append(sampler._idle)
            return super().__eq__(other)

    dynamics = build("relative")
    sampler, given = NativeSampler(dynamics, dtype=torch.float32), problem(dynamics, "temporal")
    settings = dataclasses.asdict(dynamics.config.sampling)
    whole = [list(generate(sampler, given, settings=Compared(**settings))) for _ in range(2)]
    assert found == [None]
    assert all(torch.equal(a, b) for a, b in zip(*whole, strict=True))


def test_generators_do_not_disturb_each_other() -> None:
    dynamics = build("paper")
    sampler = NativeSampler(dynamics, dtype=torch.float32)
    one, other = (problem(dynamics, "generation", members=3, seed=seed) for seed in (1, 2))
    pairs = list(zip(generate(sampler, one), generate(sampler, other), strict=True))
    for frames, given in zip(zip(*pairs, strict=True), (one, other), strict=True):
        assert torch.equal(torch.stack(frames, dim=1), play(sampler, given))
    # One that is left half way, and one that never starts.
    left = generate(sampler, other)
    next(left)
    left.close()
    generate(sampler, other).close()
    assert torch.equal(torch.stack(list(generate(sampler, one)), dim=1), play(sampler, one))
