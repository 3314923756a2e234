"""The sampler for GPUs: a static step, captured as CUDA graphs or not, for each size of chunk.

Legend: B rows (members), G groups that share history and context, N tokens per frame, C token channels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..errors import out_of_memory
from ..models.drivers import Segment, frames_of
from ..models.model import Dynamics
from .cuda_graphs import CapturedStep
from .settings import Chunk, Size, size_of
from .static_step import StaticStep

# Steps of other sizes than the last one are kept beside it, so many in all and while all take so many bytes at most.
MOST_STEPS, MOST_BYTES = 4, 2 << 30


class StaticSampler:
    """Samples with `StaticStep` of weights in `dtype`, or with `CapturedStep`; the last ones are kept."""

    def __init__(self, dynamics: Dynamics, dtype: torch.dtype, *, captured: bool) -> None:
        self.dynamics, self.dtype, self.captured = dynamics, dtype, captured
        # Steps that no trajectory uses, the last one at the end.
        self._idle: list[tuple[Size, StaticStep | CapturedStep]] = []
        self._lock = threading.Lock()

    def take(self, earlier: StaticSampler) -> None:
        """Take the steps of a sampler of the same model, and give them the weights that the model has now."""
        alike = earlier.dtype == self.dtype and earlier.captured == self.captured
        device = next(self.dynamics.parameters()).device
        with earlier._lock:
            idle, earlier._idle = earlier._idle, []
        for size, step in idle:
            if alike and step.device == device:
                step.load(self.dynamics)
                self._idle.append((size, step))
            else:
                _close(step)

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
            *others, observed = (history[groups] for history in histories)
            histories = [*others, torch.cat([observed, chunk.earlier], 1)]
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
            self._keep(size, step)

    def planned_bytes(self) -> dict[str, int]:
        """Planned memory of the last chunk in bytes, by purpose; empty before the first chunk."""
        with self._lock:
            if not self._idle:
                return {}
            plan = self._idle[-1][1].plan
        return {"weights": plan.weights, "keys_values": plan.kv_bytes, "buffers": plan.buffer_bytes}

    def _larger(self, size: Size, chunk: int | None) -> Size | None:
        """The size of an earlier chunk of `chunk` rows, if there is one in which this one of no more can be computed.

        Rows are added at the end: to the only group, or as whole groups, or each row is a group of its own.
        """
        if chunk is None or size.rows > chunk:
            return None
        with self._lock:
            sizes = [other for other, _ in reversed(self._idle) if other.rows == chunk]
        for other in sizes:
            alike = replace(size, rows=other.rows, groups=other.groups) == other
            whole = size.groups <= other.groups and size.rows * other.groups == other.rows * size.groups
            if alike and (other.groups == size.groups == 1 or other.groups == other.rows or whole):
                return other
        return None

    def _take(self, size: Size) -> StaticStep | CapturedStep:
        """Take a step of this size that is not in use, or else make a new one."""
        with self._lock:
            sizes = [other for other, _ in self._idle]
            if size in sizes:
                return self._idle.pop(sizes.index(size))[1]
        # What is not kept is freed before new memory is allocated, and all of it where this runs out.
        self._drop(most=MOST_STEPS - 1)
        try:
            return self._new(size)
        except Exception as error:
            if not (out_of_memory(error) and self._idle):
                raise
        self._drop(most=0)
        return self._new(size)

    def _new(self, size: Size) -> StaticStep | CapturedStep:
        step = StaticStep(self.dynamics, size, dtype=self.dtype)
        if self.captured:
            return CapturedStep(step)
        # A kernel that later frames alone need fails here, where the way of sampling can still be another.
        step.warm_up()
        return step

    def _keep(self, size: Size, step: StaticStep | CapturedStep) -> None:
        """Keep a step that a trajectory is done with."""
        with self._lock:
            self._idle.append((size, step))
        self._drop(most=MOST_STEPS, least=1)

    def _drop(self, *, most: int, least: int = 0) -> None:
        """Free the oldest steps until there are so many at most, in memory that may be kept."""
        dropped = []
        with self._lock:
            held = sum(step.plan.bytes for _, step in self._idle)
            while len(self._idle) > least and (len(self._idle) > most or held > MOST_BYTES):
                dropped.append(self._idle.pop(0)[1])
                held -= dropped[-1].plan.bytes
        for step in dropped:
            _close(step)


def _close(step: StaticStep | CapturedStep) -> None:
    """Free what a step holds outside of its own memory."""
    if isinstance(step, CapturedStep):
        step.close()


def _filled(x: Tensor, count: int) -> Tensor:
    """`count` rows: those of `x`, and copies of the last one after them."""
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])
