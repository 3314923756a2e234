"""The native sampler for the CPU: each latent frame of `reference.trajectory` is one call of the C++ extension.

Weights are packed once. Members of a trajectory share the keys and values of its history and context. In the masked
transformer, the first layer is computed only for tokens that have changed, and the last only for tokens that are being
decided.

Legend: B rows (members), G groups that share history and context, N tokens per frame, C token channels, K head dim.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from ..models.drivers import Segment, drivers_of, frames_of
from ..models.layers import RMSNorm
from ..models.model import Dynamics
from ..ops._backend import native, native_problem
from ..ops._checks import dtype_name
from ..utils.bounds import most_threads
from ..utils.dataclass_json import to_json
from .settings import Chunk, Size, size_of

# Of all norms; `NORM_EPSILON` of csrc/runtime/dynamics.cpp.
EPSILON = 1e-5
FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Members times frames that one call makes, where nobody asks for a frame as soon as it is made. A frame of one member
# of a small model takes 0.1 ms, and half as long again where Python comes between two of them.
ROWS_AHEAD = 16


def problem(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension cannot sample from a model with weights of this device and dtype."""
    for part in config.parts.values():
        if not part.native:
            return f"does not know the kind {part.kind!r}"
    return config.context.native_problem(config.codec, dtype_name(dtype)) or native_problem(device)


class Idle(NamedTuple):
    """The session of the last chunk, what it was made for, and the segments ``[G, T_i, N, C]`` that it has read."""

    key: tuple[Any, ...]
    session: Any
    read: list[Tensor]

    def serves(self, size: Size, segments: Sequence[Tensor], *, most_rows: int, threads: int) -> bool:
        """Whether these segments go on from what it has read, and its memory is large enough for a chunk."""
        room: Size = self.key[0]
        fits = size.rows <= room.rows <= max(most_rows, size.rows) and size.own_frames <= room.own_frames
        fits &= size.prefix_frames <= room.prefix_frames and set(size.slots) <= set(room.slots)
        alike = replace(room, groups=size.groups, settings=size.settings) == room and self.key[2:] == (threads, "")
        if not (fits and alike and len(self.read) == len(segments)):
            return False
        *others, last = zip(self.read, segments, strict=True)
        grown = last[0].shape[1] <= last[1].shape[1]
        return grown and all(torch.equal(*pair) for pair in [*others, (last[0], last[1][:, : last[0].shape[1]])])


class NativeSampler:
    """A model packed for the CPU; pack again after its weights have changed.

    ``dtype`` is that of the packed weights. bf16 halves their size, and is the fastest on processors that multiply it
    (AVX-512 BF16). Tokens, residuals and sums are fp32 in either case.
    """

    def __init__(self, dynamics: Dynamics, *, dtype: torch.dtype) -> None:
        self.dynamics, self.dtype = dynamics, dtype
        # The session of the last chunk; None while a trajectory uses it.
        self._idle: Idle | None = None
        if any(module.eps != EPSILON for module in dynamics.modules() if isinstance(module, RMSNorm)):
            raise EnmaError(f"norms have another epsilon than {EPSILON}; use backend 'reference'")
        self._packed = native().Dynamics(
            to_json(dynamics.config),
            {f"dynamics.{name}": _as_read(p) for name, p in dynamics.state_dict().items()},
            FORMATS[dtype],
        )

    def trajectory(
        self,
        segments: Sequence[Segment],
        *,
        num_latents: int,
        seeds: Tensor,
        members: Tensor,
        groups: Tensor,
        settings: SamplingConfig,
        chunk: Chunk | None = None,
        threads: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield latent frames ``[B, N, C]`` that follow the segments ``[G, T_i, N, C]``, the last being the history.

        Where frames may be made ahead, several of a few rows are made before the first of them is yielded. What the
        last chunk has read of these segments is not read again.
        """
        frames, chunk = [frames_of(segment).float() for segment in segments], chunk or Chunk()
        first, config = frames[-1].shape[1], self.dynamics.config
        size = size_of(config, frames, rows=len(seeds), num_latents=num_latents, settings=settings)
        key, session, seen_segments = self._taken(size, frames, first=first, threads=threads, chunk=chunk)
        # What is read in part does not count as read.
        read: list[Tensor] = []
        try:
            if not seen_segments:
                session.reset()
            session.reopen(len(seeds), first)
            for number, segment in enumerate(segments):
                begin = 0
                if number < len(seen_segments):
                    begin = seen_segments[number].shape[1]
                else:
                    session.start_segment(number)
                    if (told := drivers_of(segment)) is not None:
                        session.tell(*told.packed())
                for z_GNC in frames[number][:, begin:].unbind(1):
                    session.read(z_GNC.contiguous())
            # What is told of a segment may change with it.
            read = frames if drivers_of(segments[-1]) is None else []
            session.begin(seeds.contiguous(), members.contiguous(), groups.contiguous())
            most = max(1, ROWS_AHEAD // len(seeds)) if chunk.ahead else 1
            earlier = [] if chunk.earlier is None else chunk.earlier.float().unbind(1)
            for z_BNC in earlier:
                session.follow(z_BNC.contiguous())
            for t in range(first + len(earlier), num_latents, most):
                count = min(most, num_latents - t)
                z_TBNC = torch.empty(count, len(seeds), config.num_tokens, config.token_channels, dtype=torch.float32)
                session.frame(z_TBNC, t + count == num_latents)
                yield from z_TBNC
        finally:
            # A trajectory that is abandoned early returns it too.
            self._idle = Idle(key, session, read)

    def _taken(self, size: Size, segments: list[Tensor], *, first: int, threads: int | None, chunk: Chunk) -> Idle:
        """The session of the last chunk with what it has read of the segments, or one that has read nothing."""
        # Taken before it is looked at: another thread may want it too.
        idle, self._idle = self._idle, None
        most_rows = chunk.rows or size.rows
        if idle is not None and idle.serves(size, segments, most_rows=most_rows, threads=_threads(threads)):
            return idle
        self._idle = idle
        if chunk.room > 1:
            # Frames that are forecast may end within a latent frame, or with it.
            whole = -(-size.prefix_frames // chunk.room) * chunk.room
            size = replace(size, prefix_frames=whole, own_frames=size.own_frames + 1)
        key, session = self.session(size, first=first, threads=threads)
        return Idle(key, session, [])

    def session(
        self, size: Size, *, first: int, threads: int | None = None, isa: str = ""
    ) -> tuple[tuple[Any, ...], Any]:
        """Return the memory of one chunk from frame `first` on, that of the last chunk if it fits, and its key."""
        threads = _threads(threads)
        key = (size, first, threads, isa)
        # Taken before it is looked at: another thread may want it too.
        idle, self._idle = self._idle, None
        if idle is not None and idle.key == key:
            return key, idle.session
        # The old memory is freed before new memory is allocated.
        del idle
        session = self._packed.session(
            rows=size.rows,
            groups=size.groups,
            prefix_frames=size.prefix_frames,
            own_frames=size.own_frames,
            first_frame=first,
            settings=to_json(size.settings),
            threads=threads,
            isa=isa,
        )
        return key, session

    def apart(self) -> NativeSampler:
        """The same packed weights with sessions of their own."""
        sampler = copy.copy(self)
        sampler._idle = None
        return sampler

    def planned_bytes(self) -> dict[str, int]:
        """Memory of the last session in bytes: weights, keys_values, buffers, and the work space of the threads."""
        return {} if self._idle is None else dict(self._idle.session.plan())


def _as_read(p: Tensor) -> Tensor:
    """Of a checkpoint, as the extension reads it: fp64 as it is, all else in fp32."""
    return (p if p.dtype == torch.float64 else p.float()).contiguous()


def _threads(asked: int | None) -> int:
    return min(asked or torch.get_num_threads(), most_threads())
