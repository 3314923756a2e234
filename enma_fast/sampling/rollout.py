"""The sampler with gradients, through all of its frames: rollouts for training.

Legend: B trajectories, K members, T latent frames, N tokens per frame, C token channels, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..models.decoders.decoder import Noise, first_past, next_past
from ..models.model import Dynamics


def rollout(
    dynamics: Dynamics,
    history: Tensor,
    *,
    num_frames: int,
    seeds: Tensor,
    members: Tensor,
    context: Tensor | None = None,
    settings: SamplingConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Roll out the latent frames that follow a history, for several members of each trajectory.

    History and context are read in one pass, once for each trajectory. The values are those of
    :func:`enma_fast.sampling.reference.trajectory` for the same seeds and members, up to rounding.

    Parameters
    ----------
    history
        Observed latent frames ``[B, T0, N, C]``, T0 at least 1.
    num_frames
        Latent frames T to roll out.
    seeds, members
        ``[B, K]`` int64, the key of the noise of each member.
    context, settings
        As for the reference.

    Returns
    -------
    The frames ``[B, K, T, N, C]``, and the condition of frame 0 of the target ``[B, N, D]``.
    """
    settings = settings or dynamics.config.sampling
    B, K = seeds.shape
    segments = [history] if context is None else [context, history]
    read, start_BND = dynamics.context.begin_members(segments, K)
    past = first_past(history, dynamics.past).repeat_interleave(K, 0)
    frames: list[Tensor] = []
    for t in range(history.shape[1], history.shape[1] + num_frames):
        noise = Noise(seeds.flatten(), members.flatten(), t)
        z = dynamics.decide(dynamics.context.condition(read), past, noise, settings)
        frames.append(z)
        past = next_past(past, z)
        if len(frames) < num_frames:
            dynamics.context.advance(read, z)
    return torch.stack(frames, 1).unflatten(0, (B, K)), start_BND
