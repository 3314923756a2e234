"""The sampler for GPUs: a static step, captured as CUDA graphs or not, for each size of chunk.

Legend: B rows (members), G groups that share history and context, N tokens per frame, C token channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..models.drivers import Segment, frames_of
from ..models.model import Dynamics
from .cuda_graphs import CapturedStep
from .settings import Chunk, Size, size_of
from .static_step import StaticStep


class StaticSampler:
    """Samples with a `StaticStep` of weights in `dtype`, or with a `CapturedStep`; the last one is kept."""

    def __init__(self, dynamics: Dynamics, dtype: torch.dtype, *, captured: bool) -> None:
        self.dynamics, self.dtype, self.captured = dynamics, dtype, captured
        # The step of the last chunk; None while a trajectory uses it.
        self._idle: tuple[Size, StaticStep | CapturedStep] | None = None

    def trajectory(
        self,
        segments: Sequence[Segment],
        *,
        num_latents: int,
        seeds: Tensor,
        members: Tensor,
        groups: Tensor,
        settings: SamplingConfig,
        chunk: Chunk,
    ) -> Iterator[Tensor]:
        """As `engine.Engine.trajectory`; the step needs groups of equal size, one after the other."""
        histories = [frames_of(segment) for segment in segments]
        if chunk.earlier is not None:
            *others, known = (history[groups] for history in histories)
            histories = [*others, torch.cat([known, chunk.earlier], 1)]
            groups = torch.arange(len(seeds), device=seeds.device)
        G, B = histories[0].shape[0], len(seeds)
        even = B % G == 0 and torch.equal(groups, torch.arange(G, device=groups.device).repeat_interleave(B // G))
        if not even:
            histories, G = [s[groups] for s in histories], B
        first = histories[-1].shape[1]
        size = size_of(self.dynamics.config, histories, rows=B, num_latents=num_latents, settings=settings)
        kept = slice(B)
        if (larger := self._larger(size, chunk.rows)) is not None:
            size = larger
            if size.groups == size.rows and len(histories[0]) < B:
                histories = [s[groups] for s in histories]
            histories = [_filled(s, size.groups) for s in histories]
            seeds, members = _filled(seeds, size.rows), _filled(members, size.rows)
        with torch.cuda.device_of(seeds):
            step = self._take(size)
        try:
            with torch.cuda.device_of(seeds):
                step.begin(histories, seeds=seeds, members=members, first=first)
            for t in range(first, num_latents):
                # Whoever takes the frames has another device current, or none.
                with torch.cuda.device_of(seeds):
                    z_BNC = step.frame(last=t + 1 == num_latents)[kept].float().clone()
                yield z_BNC
        finally:
            idle, self._idle = self._idle, (size, step)
            _close(idle)

    def planned_bytes(self) -> dict[str, int]:
        """Planned memory of the last chunk in bytes, by purpose; empty before the first chunk."""
        if self._idle is None:
            return {}
        plan = self._idle[1].plan
        return {"weights": plan.weights, "keys_values": plan.kv_bytes, "buffers": plan.buffer_bytes}

    def _larger(self, size: Size, chunk: int | None) -> Size | None:
        """The size of the last chunk, if it had `chunk` rows and this one of no more can be computed in it.

        Rows are added at the end: to the only group, or as whole groups, or each row is a group of its own.
        """
        idle = self._idle
        if idle is None or chunk is None or size.rows > chunk:
            return None
        there = idle[0]
        alike = replace(size, rows=there.rows, groups=there.groups) == there
        whole = size.groups <= there.groups and size.rows * there.groups == there.rows * size.groups
        fits = there.groups == size.groups == 1 or there.groups == there.rows or whole
        return there if alike and fits and there.rows == chunk else None

    def _take(self, size: Size) -> StaticStep | CapturedStep:
        """Take the step of the last chunk if it has this size and is not in use, or else make a new one."""
        # Taken before it is looked at: another thread may want it too.
        idle, self._idle = self._idle, None
        if idle is not None and idle[0] == size:
            return idle[1]
        # The old memory is freed before new memory is allocated.
        _close(idle)
        del idle
        new = StaticStep(self.dynamics, size, dtype=self.dtype)
        return CapturedStep(new) if self.captured else new


def _close(idle: tuple[Size, StaticStep | CapturedStep] | None) -> None:
    """Free what a step holds outside of its own memory."""
    if idle is not None and isinstance(idle[1], CapturedStep):
        idle[1].close()


def _filled(x: Tensor, count: int) -> Tensor:
    """`count` rows: those of `x`, and copies of the last one after them."""
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])
