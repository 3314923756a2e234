"""The sampler with gradients, through all of its frames: rollouts for training.

Legend: B trajectories, K members, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..models.causal_transformer import GrowingCache
from ..models.local_head import next_past
from ..models.model import Dynamics
from .reference import frame


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
    The frames ``[B, K, T, N, C]``, and the context of frame 0 of the target ``[B, N, D]``.
    """
    settings = settings or dynamics.config.sampling
    temporal, (B, K) = dynamics.temporal, seeds.shape
    segments = [history] if context is None else [context, history]
    cache = GrowingCache(temporal, B)
    h_BTND = temporal.read(segments, cache)
    start = h_BTND.shape[1] - history.shape[1] - 1
    cache.repeat(K)
    h, anchor = (x.repeat_interleave(K, 0) for x in (h_BTND[:, -1], h_BTND[:, start]))
    past = None if dynamics.local is None else dynamics.local.first_past(history).repeat_interleave(K, 0)
    frames = []
    for t in range(history.shape[1], history.shape[1] + num_frames):
        context_BND = temporal.context(h, anchor, first=False)
        z = frame(
            dynamics,
            context_BND,
            settings=settings,
            seeds=seeds.flatten(),
            members=members.flatten(),
            index=t,
            past=past,
        )
        frames.append(z)
        if past is not None:
            past = next_past(past, z)
        if len(frames) < num_frames:
            h = temporal.step(z, cache)
    return torch.stack(frames, 1).unflatten(0, (B, K)), h_BTND[:, start]
