"""Deterministic block-causal transformer on patches of the fields, as BCAT, from the blocks of this library.

    u_t = u_{t-1} + s patches(W h_t),    h_t = causal transformer of the frames before t

Frames are cut into patches of 8 points along each dimension, fewer where that leaves fewer than 8 of them. It is
trained on the true frames before t, with a little noise, and forecasts from its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from enma_fast.config import BlocksConfig, CausalTransformerConfig, ModelConfig
from enma_fast.data import FieldFile
from enma_fast.evaluation.baselines import Method, Observations
from enma_fast.forecasting.request import HISTORY
from enma_fast.models.contexts.causal_transformer import CausalTransformer, GrowingCache
from enma_fast.models.patches import patchify, unpatchify

from .training import HEADS, WIDTHS, batched, of_size, relative_error, schedule

LAYERS = 6
PATCH, FEWEST_PATCHES = 8, 8
# Standard deviation of noise on what is read, of the RMS of the data: forecasts are not exact either.
NOISE = 0.01


class _Patches(nn.Module):
    """The causal transformer, and what reads the change of a frame from its context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert isinstance(config.context, CausalTransformerConfig)
        self.temporal = CausalTransformer(config)
        self.read = nn.Linear(config.context.width, config.token_channels)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)


class Transformer:
    """See the module."""

    config = schedule(batch=16, kind="muon", learning_rate=2e-3, final_learning_rate=2e-5, warmup_steps=30)
    deterministic = True
    tasks = ("temporal", "initial-value")
    mixed = True

    def __init__(self, reference: ModelConfig, data: FieldFile) -> None:
        grid = tuple(data.u.shape[2:-1])
        self.config = batched(self.config, data, planes=4)
        patch = tuple(min(PATCH, n // FEWEST_PATCHES) for n in grid)
        # Fields are their own latents.
        codec = BlocksConfig(
            grid=grid,
            lengths=data.lengths,
            periodic=data.periodic,
            field_channels=data.u.shape[-1],
            block=1,
            frames=1,
        )

        def config(width: int) -> ModelConfig:
            context = CausalTransformerConfig(
                width=width,
                heads=HEADS,
                layers=LAYERS,
                patch=patch,
                positions="rotary" if all(data.periodic) else "sincos",
                scale_shift_rank=0,
            )
            return ModelConfig(name=reference.name, dataset=reference.dataset, codec=codec, context=context)

        self.grid, self.patch = grid, patch
        self.net = self.module = of_size(lambda width: _Patches(config(width)), WIDTHS, reference)
        self.scale = float(data.u.std())

    def loss(self, u_BTxc: Tensor, context_BTxc: Tensor | None, share: float, generator: torch.Generator) -> Tensor:
        """Relative error of every frame from those before it: from 3 on, or from 1 on after a context."""
        first = HISTORY if context_BTxc is None else 1
        noise = NOISE * self.scale * torch.randn(u_BTxc.shape, generator=generator)
        segments = [] if context_BTxc is None else [self._tokens(context_BTxc)]
        h_BTND = self.net.temporal([*segments, self._tokens(u_BTxc + noise)])[-1]
        before = (u_BTxc + noise)[:, first - 1 : -1]
        return relative_error(before + self._change(h_BTND[:, first:]), u_BTxc[:, first:])

    def forecast(self) -> Method:
        """One member, the same for every seed."""

        def method(given: Observations) -> Tensor:
            assert given.history is not None
            with torch.inference_mode():
                history = torch.from_numpy(given.history)
                segments = [] if given.context is None else [self._tokens(torch.from_numpy(given.context))]
                cache = GrowingCache(self.net.temporal, len(history))
                h_BND = self.net.temporal.read([*segments, self._tokens(history)], cache)[:, -1]
                frames = [history[:, -1]]
                for number in range(given.num_frames):
                    frames.append(frames[-1] + self._change(h_BND[:, None])[:, 0])
                    if number + 1 < given.num_frames:
                        h_BND = self.net.temporal.step(self._tokens(frames[-1][:, None])[:, 0], cache)
                return torch.stack(frames[1:], 1)[:, None]

        return method

    def _tokens(self, u_BTxc: Tensor) -> Tensor:
        return patchify((u_BTxc / self.scale).flatten(2, -2), self.grid, self.patch)

    def _change(self, h_BTND: Tensor) -> Tensor:
        """The difference of a frame from the one before it, from its context."""
        tokens = unpatchify(self.net.read(h_BTND), self.grid, self.patch)
        return self.scale * tokens.unflatten(2, self.grid)
