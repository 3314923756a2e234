"""Whole latent frames by flow matching given the past, the idea of AR-DiT, from the blocks of this library.

    dz/dr = v(z, h_t, r),  z(0) noise, z(1) = latent frame t,    h_t = causal transformer of the latent frames before t

All tokens of a frame are decided together by 20 Euler steps, each a pass of the second transformer. The tokenizer is
that of the shipped model for the equation, as it is; its training is not in the seconds.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from enma_fast.config import CausalTransformerConfig, ModelConfig
from enma_fast.data import FieldFile
from enma_fast.evaluation.baselines import Method, Observations
from enma_fast.forecasting.request import HISTORY
from enma_fast.models.checkpoint import load_model
from enma_fast.models.contexts.causal_transformer import CausalTransformer, GrowingCache
from enma_fast.models.layers import exact
from enma_fast.models.masked_transformer import MASK_STD, MaskedTransformer

from .training import HEADS, WIDTHS, of_size, schedule

STEPS = 20
TIME_FEATURES = 64
# Flow times and noises for each frame of a batch; the causal transformer runs once for all of them.
DRAWS = 2


class _Flow(nn.Module):
    """Causal transformer, and velocity of a whole frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert isinstance(config.context, CausalTransformerConfig)
        width, channels = config.context.width, config.token_channels
        self.temporal = CausalTransformer(config)
        self.spatial = MaskedTransformer(config)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.state = nn.Linear(channels, width, bias=False)
        self.read = nn.Linear(width, channels)
        nn.init.normal_(self.state.weight, std=MASK_STD * channels**-0.5)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(TIME_FEATURES // 2) / (TIME_FEATURES // 2))
        self.register_buffer("frequency", frequency, persistent=False)

    def velocity(self, z_BNC: Tensor, h_BND: Tensor, r_B: Tensor) -> Tensor:
        """Velocity `[B, N, C]` at flow times `r_B`."""
        angle = 1000.0 * r_B[:, None] * self.get_buffer("frequency")
        time = self.time(torch.cat([angle.cos(), angle.sin()], -1))
        h_BND = h_BND + time[:, None]
        return self.read(self.spatial.unknown(h_BND, exact(self.state, z_BNC.to(h_BND.dtype))))


class LatentFlow:
    """See the module."""

    config = schedule(batch=32, kind="muon", learning_rate=2e-3, final_learning_rate=2e-5, warmup_steps=30)
    deterministic = False
    tasks = ("temporal", "initial-value")
    mixed = True

    def __init__(self, reference: ModelConfig, data: FieldFile) -> None:
        self.model = load_model(reference.name)
        shipped = self.model.config

        def config(width: int) -> ModelConfig:
            assert isinstance(shipped.context, CausalTransformerConfig)
            context = dataclasses.replace(shipped.context, width=width, heads=HEADS, scale_shift_rank=0)
            return dataclasses.replace(shipped, context=context)

        self.net = self.module = of_size(lambda width: _Flow(config(width)), WIDTHS, reference)
        self.shape = (shipped.num_tokens, shipped.token_channels)

    def loss(self, u_BTxc: Tensor, context_BTxc: Tensor | None, share: float, generator: torch.Generator) -> Tensor:
        """Squared error of the velocity of every latent frame that has to be forecast."""
        first = self._observed(1 if context_BTxc is not None else HISTORY)
        # As the dynamics of the library do, whose latents are encoded in fp32.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            segments = [self.model.encode(u) for u in (context_BTxc, u_BTxc) if u is not None]
        h = self.net.temporal(segments)[-1][:, first:].flatten(0, 1).repeat(DRAWS, 1, 1)
        z = segments[-1][:, first:].flatten(0, 1).repeat(DRAWS, 1, 1)
        noise, r = torch.randn(z.shape, generator=generator), torch.rand(len(z), generator=generator)
        z_r = noise + r[:, None, None] * (z - noise)
        return (self.net.velocity(z_r, h, r) - (z - noise)).square().mean()

    def forecast(self) -> Method:
        """Members that differ by their noise."""

        def method(given: Observations) -> Tensor:
            assert given.history is not None
            with torch.inference_mode():
                return self._members(given, torch.from_numpy(given.history))

        return method

    def _members(self, given: Observations, history_BLxc: Tensor) -> Tensor:
        batch, observed = history_BLxc.shape[:2]
        segments = [] if given.context is None else [self.model.encode(torch.from_numpy(given.context))]
        z_BTNC = self.model.encode(history_BLxc)[:, : self._observed(observed)]
        cache = GrowingCache(self.net.temporal, batch)
        h = self.net.temporal.read([*segments, z_BTNC], cache)[:, -1].repeat_interleave(given.num_members, 0)
        cache.repeat(given.num_members)
        total = observed + given.num_frames
        frames = list(z_BTNC.repeat_interleave(given.num_members, 0).unbind(1))
        generator = torch.Generator().manual_seed(given.seed * 1_000_003 + given.trajectories[0])
        while len(frames) < self.model.config.codec.latent_frames(total):
            z = torch.randn(len(h), *self.shape, generator=generator)
            for step in range(STEPS):
                z = z + self.net.velocity(z, h, torch.full((len(h),), step / STEPS)) / STEPS
            frames.append(z)
            h = self.net.temporal.step(z, cache)
        u = self.model.decode(torch.stack(frames, 1), total)[:, observed:]
        return u.unflatten(0, (batch, given.num_members))

    def _observed(self, num_frames: int) -> int:
        """Latent frames that the observed frames fill."""
        return self.model.config.codec.whole_latents(num_frames)
