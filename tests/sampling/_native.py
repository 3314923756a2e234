"""The native sampler run with chosen threads and instruction sets, and compared with the reference sampler."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from enma_fast.models.model import Dynamics
from enma_fast.sampling.native import NativeSampler
from enma_fast.sampling.settings import size_of

from .._static import LATENTS, Problem, build, in_float64, reference
from .._tiny import distance
from ..ops._oracle import assert_close_as_reference

DTYPES = [torch.float32, torch.bfloat16]
# Differences in rounding grow from frame to frame; in the first one they are those of a step.
COMPARED = 1
# Of tokens that reach 2 (fp32; larger ones have as large a share) or 10.
FLOOR = {torch.float32: 4e-6, torch.bfloat16: 0.06}
# Rounding has grown to 3e-4 of the tokens by the last frame; a wrong key or place changes their first digit.
GROWN = 2e-3


def rounded(dynamics: Dynamics, dtype: torch.dtype) -> Dynamics:
    """Copy a model, with weights rounded to `dtype`."""
    made = copy.deepcopy(dynamics)
    for parameter in made.parameters():
        parameter.copy_(parameter.to(dtype))
    return made


def references(dynamics: Dynamics, given: Problem, dtype: torch.dtype, settings: Any = None) -> tuple[Tensor, Tensor]:
    """Frames of the reference sampler in `dtype`, and in float64 from the same weights and noise."""
    exact = reference(rounded(dynamics, dtype).double(), in_float64(given), settings)
    return reference(copy.deepcopy(dynamics).to(dtype), given, settings), exact


def assert_is_the_reference(ours: Tensor, same_dtype: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    part = slice(0, COMPARED if dtype == torch.float32 else LATENTS)
    # Of values beyond 2 the fp32 floor is a share. Processors differ in how PyTorch sums, and so in its own errors.
    size = max(1.0, exact[:, part].abs().max().item() / 2) if dtype == torch.float32 else 1.0
    assert_close_as_reference(ours[:, part], same_dtype[:, part], exact[:, part], floor=size * FLOOR[dtype])
    if dtype == torch.float32:
        assert distance(ours.double(), exact) < GROWN


@functools.cache
def packed(name: str, dtype: torch.dtype) -> NativeSampler:
    return NativeSampler(build(name), dtype=dtype)


def groups_of(given: Problem) -> Tensor:
    """Group of each member; the members of a group follow each other."""
    return torch.arange(given.groups).repeat_interleave(len(given.seeds) // given.groups)


def begun(
    sampler: NativeSampler,
    given: Problem,
    *,
    groups: Tensor | None = None,
    num_latents: int = LATENTS,
    settings: Any = None,
    threads: int = 1,
    isa: str = "",
) -> tuple[Any, Any]:
    """Key and session of the sampler that has read the segments, and makes the first frame next."""
    config = sampler.dynamics.config
    size = size_of(
        config, given.segments, rows=len(given.seeds), num_latents=num_latents, settings=settings or config.sampling
    )
    key, session = sampler.session(size, first=given.first, threads=threads, isa=isa)
    session.reset()
    for number, segment in enumerate(given.segments):
        session.start_segment(number)
        for z_GNC in segment.unbind(1):
            session.read(z_GNC.contiguous())
    session.begin(given.seeds, given.members, groups_of(given) if groups is None else groups)
    return key, session


def play(sampler: NativeSampler, given: Problem, *, num_latents: int = LATENTS, **how: Any) -> Tensor:
    """All generated frames `[B, T, N, C]`, with the threads and instruction set that are asked for."""
    _, session = begun(sampler, given, num_latents=num_latents, **how)
    config = sampler.dynamics.config
    frames = []
    for t in range(given.first, num_latents):
        frames.append(torch.empty(len(given.seeds), config.num_tokens, config.token_channels))
        session.frame(frames[-1], t + 1 == num_latents)
    return torch.stack(frames, dim=1)


def generate(sampler: NativeSampler, given: Problem, *, num_latents: int = LATENTS, **how: Any) -> Iterator[Tensor]:
    return sampler.trajectory(
        given.segments,
        num_latents=num_latents,
        seeds=given.seeds,
        members=given.members,
        groups=groups_of(given),
        settings=how.pop("settings", sampler.dynamics.config.sampling),
        **how,
    )
