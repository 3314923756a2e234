"""One pass, and convolutions over the latent grid that see conditions and past frames.

Attention over patches has to learn motion inside a patch anew at every place. Convolutions share it among all places of
the latent grid: the head changes the last latent frame by what its neighbourhood and the condition say, and, with
Fourier blocks, by what all of the domain says.

Legend: B batch x members (x frames in training), P past frames, N tokens per frame, C token channels, D width of the
transformers, F channels of a latent frame, W width of the head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...config import LocalConfig, ModelConfig, SamplingConfig
from ...ops import fused_in_training
from ...ops.rms_norm import rms_norm
from ...ops.self_attention import widened
from ...ops.swiglu import swiglu
from ..layers import RMSNorm, exact, pad_space
from ..masked_transformer import MaskedTransformer
from ..patches import patchify, unpatchify
from .decoder import Decoder, StaticDecision, StaticFrame
from .one_pass import OnePassDecoder

KERNEL = 3
# Latent frames before the next one that it sees.
PAST = 3
# With Fourier blocks, one of so many blocks is one.
FOURIER_EVERY = 3


class GridConv(nn.Module):
    """Convolution over the latent grid, around periodic dimensions and with zeros beyond walls; channels last."""

    def __init__(self, inward: int, outward: int, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        self.periodic = periodic
        make = nn.Conv1d if len(periodic) == 1 else nn.Conv2d
        self.conv = make(inward, outward, KERNEL, bias=False)
        nn.init.normal_(self.conv.weight, std=(inward * KERNEL ** len(periodic)) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, *grid, inward]`` to ``[B, *grid, outward]``."""
        return self.conv(pad_space(x.movedim(-1, 1), KERNEL // 2, self.periodic)).movedim(1, -1)


class LocalBlock(nn.Module):
    """x + W_out (silu(a) * b), where a and b are a convolution of the normalised x."""

    def __init__(self, width: int, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.gate_up = GridConv(width, 2 * width, periodic)
        self.down = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate_up(self.norm(x))
        return x + self.down(swiglu(y, backend=None if fused_in_training(y) else "reference"))


class FourierBlock(nn.Module):
    """x + W_out (silu(a) * (b + z)): a and b are linear in the normalised x, z is its convolution with a long filter.

    The filter, that of the Fourier neural operator (Li et al., 2021, arXiv 2010.08895), has a matrix for each of few
    waves. It reaches all of a periodic domain, as the velocity of a flow depends on all of its vorticity.
    """

    def __init__(self, width: int, dims: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.norm = RMSNorm(width)
        self.gate_up = nn.Linear(width, 2 * width, bias=False)
        # Real and imaginary parts; waves 0, 1, ..., -2, -1 along all dimensions but the last one.
        self.filter = nn.Parameter(torch.empty(2, *(2 * modes - 1,) * (dims - 1), modes, width, width))
        self.down = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.gate_up.weight, std=width**-0.5)
        nn.init.normal_(self.filter, std=width**-0.5)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, *grid, W]`` to the same."""
        y = self.norm(x)
        a, b = self.gate_up(y).chunk(2, -1)
        y = torch.cat([a, b + self._filtered(y).to(b.dtype)], -1)
        return x + self.down(swiglu(y, backend=None if fused_in_training(y) else "reference"))

    def _filtered(self, y: Tensor) -> Tensor:
        """The convolution of ``[B, *grid, W]`` with the filter, in full precision."""
        grid = y.shape[1:-1]
        axes = tuple(range(1, 1 + len(grid)))
        waves = torch.fft.rfftn(widened(y), dim=axes)
        places = filter_places(grid, self.modes, y.device)
        products = torch.zeros_like(waves)
        filter_ = widened(self.filter)
        products[places] = torch.einsum("b...i,...io->b...o", waves[places], torch.complex(filter_[0], filter_[1]))
        return torch.fft.irfftn(products, s=grid, dim=axes)


def filter_places(grid: tuple[int, ...], modes: int, device: torch.device | None = None) -> tuple[Any, ...]:
    """Index of the waves of a filter among all waves ``[B, *w]`` that `rfftn` gives of fields on a grid."""
    leading = [torch.arange(1 - modes, modes, device=device).roll(1 - modes) % n for n in grid[:-1]]
    return slice(None), *torch.meshgrid(*leading, torch.arange(modes, device=device), indexing="ij")


class LocalDecoder(OnePassDecoder):
    """The next latent frame: the last one plus what the blocks read off."""

    past = PAST

    def __init__(self, config: ModelConfig, own: LocalConfig, trunk: MaskedTransformer | None) -> None:
        super().__init__(config, trunk)
        self.grid, self.patch = config.codec.token_grid, config.context.patch
        periodic, channels = config.codec.periodic, config.codec.latent_channels
        self.features = nn.Linear(config.context.transformer.width, own.width * math.prod(self.patch))
        self.frames = GridConv(PAST * channels, own.width, periodic)
        self.blocks = nn.ModuleList(
            [
                LocalBlock(own.width, periodic)
                if own.modes is None or i % FOURIER_EVERY
                else FourierBlock(own.width, len(periodic), own.modes)
                for i in range(own.layers)
            ]
        )
        self.norm = RMSNorm(own.width)
        self.read = nn.Linear(own.width, channels)
        for layer in (self.features, self.read):
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.features.weight, std=config.context.transformer.width**-0.5)
        nn.init.zeros_(self.read.weight)

    def forget_condition_(self) -> list[nn.Parameter]:
        held = [self.noise.weight, *self.features.parameters()]
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.bias.zero_()
        return [weight for weight in self.parameters() if all(weight is not other for other in held)]

    def from_past(self, past_BPNC: Tensor) -> Tensor:
        B, _, N, _ = past_BPNC.shape
        return self.tokens_of(past_BPNC.new_zeros(B, N, self.features.in_features), past_BPNC)

    def tokens_of(self, condition_BND: Tensor, past_BPNC: Tensor) -> Tensor:
        x = self.on_grid(exact(self.features, condition_BND)[:, None])[:, 0]
        past = self.on_grid(past_BPNC)
        x = x + self.frames(past.movedim(1, -2).flatten(-2).to(x.dtype))
        for block in self.blocks:
            x = block(x)
        frame = past[:, -1] + exact(self.read, self.norm(x)).to(past.dtype)
        return patchify(frame.flatten(1, -2)[:, None], self.grid, self.patch)[:, 0]

    def on_grid(self, tokens_BTNC: Tensor) -> Tensor:
        """Tokens ``[B, T, N, C]`` to the latent grid ``[B, T, *grid, F]``."""
        return unpatchify(tokens_BTNC, self.grid, self.patch).unflatten(2, self.grid)

    def static(self, frame: StaticFrame, settings: SamplingConfig, original: Decoder) -> StaticDecision:
        weight, eps = frame.norm

        def decide(frame: StaticFrame) -> None:
            frame.begin_frame(frame.noise(), self.noise.weight, scale=settings.temperature)
            condition = rms_norm(frame.conditions(None), weight, eps=eps)
            frame.tokens_BNC.copy_(self.tokens_of(condition, frame.past(self.past)))

        return StaticDecision(decide)
