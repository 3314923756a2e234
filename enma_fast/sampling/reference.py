"""The reference sampler: trajectories in plain PyTorch, which every faster implementation is tested against.

Legend: B batch x members, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..models.decoders.decoder import Noise, first_past, next_past
from ..models.drivers import Segment, frames_of
from ..models.model import Dynamics
from ..ops._backend import plain
from .settings import Chunk


class ReferenceSampler:
    """Samples by :func:`trajectory`, each row from the segments of its group."""

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics

    def trajectory(
        self, segments: Sequence[Segment], *, groups: Tensor, chunk: Chunk, **given: Any
    ) -> Iterator[Tensor]:
        """As `engine.Engine.trajectory`; a frame is never made before it is asked for."""
        each = [segment[groups] for segment in segments]
        frames = trajectory(self.dynamics, each, earlier=chunk.earlier, **given)
        while True:
            # Whoever takes the frames computes as before.
            with plain():
                z_BNC = next(frames, None)
            if z_BNC is None:
                return
            yield z_BNC

    def planned_bytes(self) -> dict[str, int]:
        """Bytes of what is packed, by purpose: nothing is."""
        return {}


@torch.inference_mode()
def trajectory(
    dynamics: Dynamics,
    segments: list[Segment],
    *,
    num_latents: int,
    seeds: Tensor,
    members: Tensor,
    settings: SamplingConfig | None = None,
    earlier: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield the latent frames ``[B, N, C]`` that follow a history, fp32, or float64 with float64 weights.

    Arguments are those of `engine.Engine.trajectory`; each row has segments ``[B, T, N, C]`` of its own.
    """
    settings = settings or dynamics.config.sampling
    history = frames_of(segments[-1])
    first, num_earlier = history.shape[1], 0 if earlier is None else earlier.shape[1]
    read = dynamics.context.begin(segments, room=num_latents - first)
    past = first_past(history, dynamics.past)
    for t in range(first, num_latents):
        if earlier is not None and t - first < num_earlier:
            z = earlier[:, t - first]
        else:
            z = dynamics.decide(dynamics.context.condition(read), past, Noise(seeds, members, t), settings)
            yield z
        past = next_past(past, z)
        if t + 1 < num_latents:
            dynamics.context.advance(read, z)
