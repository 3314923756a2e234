"""The reference sampler: frames and trajectories in plain PyTorch, which every faster implementation is tested against.

Legend: B batch x members, T latent frames, N tokens per frame, M tokens decided in one mask step, C token channels,
D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..models.causal_transformer import FrameCache
from ..models.local_head import next_past
from ..models.model import Dynamics
from ..models.schedule import flow_schedule, mask_schedule
from ..ops.philox_normal import philox_normal
from .noise import token_order


def frame(
    dynamics: Dynamics,
    h_BND: Tensor,
    *,
    settings: SamplingConfig,
    seeds: Tensor,
    members: Tensor,
    index: int,
    past: Tensor | None = None,
) -> Tensor:
    """Decide all tokens of one latent frame ``[B, N, C]``, a few per mask step in random order.

    ``h_BND`` is the context of the frame from the causal transformer, ``seeds`` and ``members`` ``[B]`` int64 the key
    of the noise of each row, and ``index`` the number of the latent frame in its trajectory, part of the counter of the
    noise. ``past`` ``[B, P, N, C]`` are the frames before it, for models with a local head.
    """
    N, C = dynamics.config.num_tokens, dynamics.config.token_channels
    if in_one_pass(dynamics.config, index):
        tokens_N = torch.arange(N, device=members.device)
        noise_BNC = philox_normal(seed=seeds, members=members, frame=index, mask_step=0, tokens=tokens_N, channels=C)
        if index == 0:
            return dynamics.first_frame(h_BND, noise_BNC)
        return dynamics.one_pass(h_BND, settings.temperature * noise_BNC, past)
    assert dynamics.flow is not None
    order_BN = token_order(seed=seeds, members=members, frame=index, num_tokens=N)
    # Tokens are fp32 with bf16 weights, and float64 with float64 weights.
    wide = torch.promote_types(h_BND.dtype, torch.float32)
    x_BNC = torch.zeros(h_BND.shape[0], N, C, dtype=wide, device=h_BND.device)
    known_BN = torch.zeros(h_BND.shape[0], N, dtype=torch.bool, device=h_BND.device)
    temperature = flow_temperature(dynamics.config, settings)
    done, mask_steps = 0, min(settings.mask_steps, N)
    flow_steps = flow_schedule(settings.flow_steps, settings.last_flow_steps, mask_steps=mask_steps)
    for step, (count, steps) in enumerate(zip(mask_schedule(N, mask_steps), flow_steps, strict=True)):
        tokens_BM = order_BN[:, done : done + count]
        c_BND = dynamics.spatial(h_BND, x_BNC.to(h_BND.dtype), known_BN)
        c_BMD = c_BND.gather(1, tokens_BM[..., None].expand(-1, -1, c_BND.shape[-1]))
        noise_BMC = philox_normal(
            seed=seeds, members=members, frame=index, mask_step=step, tokens=tokens_BM, channels=C
        )
        z_BMC = dynamics.flow.sample(c_BMD, temperature * noise_BMC, steps=steps, method=settings.method)
        x_BNC = x_BNC.scatter(1, tokens_BM[..., None].expand(-1, -1, C), z_BMC)
        known_BN = known_BN.scatter(1, tokens_BM, True)
        done += count
    return x_BNC


def in_one_pass(config: ModelConfig, index: int) -> bool:
    """True if a latent frame is decided in one pass; frame 0, an initial state, only by a head of its own."""
    return config.dynamics.decoder == "one-pass" and (index > 0 or config.dynamics.first is not None)


def flow_temperature(config: ModelConfig, settings: SamplingConfig) -> float:
    """Factor on the noise of the flow; 1 for frame 0 of a one-pass model, which is drawn from its own distribution."""
    return 1.0 if config.dynamics.decoder == "one-pass" else settings.temperature


@torch.inference_mode()
def trajectory(
    dynamics: Dynamics,
    history: Tensor,
    *,
    num_latents: int,
    seeds: Tensor,
    members: Tensor,
    context: Tensor | None = None,
    settings: SamplingConfig | None = None,
) -> Iterator[Tensor]:
    """Yield the latent frames ``[B, N, C]`` that follow a history, fp32, or float64 with float64 weights.

    Arguments are those of `engine.Engine.trajectory`; each row has a history ``[B, T0, N, C]`` and context ``[B, Tc, N,
    C]`` of its own.
    """
    settings = settings or dynamics.config.sampling
    temporal = dynamics.temporal
    segments = [history] if context is None else [context, history]
    length = sum(s.shape[1] for s in segments) + len(segments) + num_latents - history.shape[1]
    cache = FrameCache(temporal, history.shape[0], length)
    anchor = h = torch.empty(0)
    for number, segment in enumerate(segments):
        anchor = h = temporal.start_frame(cache, segment=number)
        for t in range(segment.shape[1]):
            h = temporal.step(segment[:, t].to(cache.kv.dtype), cache)
    past = None if dynamics.local is None else dynamics.local.first_past(history)
    for t in range(history.shape[1], num_latents):
        context_BND = temporal.context(h, anchor, first=t == 0)
        z = frame(dynamics, context_BND, settings=settings, seeds=seeds, members=members, index=t, past=past)
        yield z
        if past is not None:
            past = next_past(past, z)
        if t + 1 < num_latents:
            h = temporal.step(z.to(cache.kv.dtype), cache)
