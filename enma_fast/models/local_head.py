"""Condition and past frames -> tokens, by convolutions on the latent grid: the local head of a one-pass model.

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

from ..config import LocalConfig, ModelConfig
from ..ops import fused_in_training
from ..ops.self_attention import widened
from ..ops.swiglu import swiglu
from .layers import RMSNorm, exact
from .tokenizer import pad_space, patchify, unpatchify

KERNEL = 3
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
        made = torch.zeros_like(waves)
        filter_ = widened(self.filter)
        made[places] = torch.einsum("b...i,...io->b...o", waves[places], torch.complex(filter_[0], filter_[1]))
        return torch.fft.irfftn(made, s=grid, dim=axes)


def filter_places(grid: tuple[int, ...], modes: int, device: torch.device | None = None) -> tuple[Any, ...]:
    """Index of the waves of a filter among all waves ``[B, *w]`` that `rfftn` gives of fields on a grid."""
    first = [torch.arange(1 - modes, modes, device=device).roll(1 - modes) % n for n in grid[:-1]]
    return slice(None), *torch.meshgrid(*first, torch.arange(modes, device=device), indexing="ij")


class LocalHead(nn.Module):
    """The next latent frame: the last one plus what the blocks read off.

    Parameters are those of `local`: W, the blocks, and P, of how many past frames.
    """

    def __init__(self, config: ModelConfig, local: LocalConfig) -> None:
        super().__init__()
        self.grid, self.patch = config.tokenizer.token_grid, config.dynamics.patch
        periodic, channels = config.tokenizer.periodic, config.tokenizer.latent_channels
        self.past = local.past
        self.features = nn.Linear(config.dynamics.width, local.width * math.prod(self.patch))
        self.frames = GridConv(local.past * channels, local.width, periodic)
        self.blocks = nn.ModuleList(
            [
                LocalBlock(local.width, periodic)
                if local.modes is None or i % FOURIER_EVERY
                else FourierBlock(local.width, len(periodic), local.modes)
                for i in range(local.layers)
            ]
        )
        self.norm = RMSNorm(local.width)
        self.read = nn.Linear(local.width, channels)
        for layer in (self.features, self.read):
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.features.weight, std=config.dynamics.width**-0.5)
        nn.init.zeros_(self.read.weight)

    def forward(self, condition_BND: Tensor, past_BPNC: Tensor) -> Tensor:
        """Tokens ``[B, N, C]``, at least fp32, from conditions and the frames before, the last one at the end.

        Frames before the start of a trajectory are zeros.
        """
        x = self.on_grid(exact(self.features, condition_BND)[:, None])[:, 0]
        past = self.on_grid(past_BPNC)
        x = x + self.frames(past.movedim(1, -2).flatten(-2).to(x.dtype))
        for block in self.blocks:
            x = block(x)
        made = past[:, -1] + exact(self.read, self.norm(x)).to(past.dtype)
        return patchify(made.flatten(1, -2)[:, None], self.grid, self.patch)[:, 0]

    def first_past(self, history_BTNC: Tensor) -> Tensor:
        """Frames ``[B, P, N, C]`` before the frame that follows a history."""
        return widened(_after_zeros(history_BTNC, self.past)[:, -self.past :])

    def on_grid(self, tokens_BTNC: Tensor) -> Tensor:
        """Tokens ``[B, T, N, C]`` to the latent grid ``[B, T, *grid, F]``."""
        return unpatchify(tokens_BTNC, self.grid, self.patch).unflatten(2, self.grid)


def first_head(config: ModelConfig) -> LocalHead:
    """The head of `config.dynamics.first`, whose past frames are those of :func:`noise_as_past`."""
    first = config.dynamics.first
    assert first is not None
    return LocalHead(config, LocalConfig(width=first.width, layers=first.layers, modes=first.modes, past=2))


def noise_as_past(noise_BNC: Tensor) -> Tensor:
    """What a frame 0 is made from, ``[B, 2, N, C]``: noise, and a last frame of zeros."""
    return torch.stack([noise_BNC, torch.zeros_like(noise_BNC)], 1)


def with_past(frames_BTNC: Tensor, past: int) -> Tensor:
    """The frames before each frame, ``[B, T, P, N, C]``, zeros before the first."""
    return _after_zeros(frames_BTNC[:, :-1], past).unfold(1, past, 1).movedim(-1, 2)


def next_past(past_BPNC: Tensor, frame_BNC: Tensor) -> Tensor:
    """The past of the frame after this one: the oldest frame makes room for it."""
    return torch.cat([past_BPNC[:, 1:], frame_BNC[:, None]], 1)


def _after_zeros(frames_BTNC: Tensor, count: int) -> Tensor:
    return torch.cat([frames_BTNC.new_zeros(len(frames_BTNC), count, *frames_BTNC.shape[2:]), frames_BTNC], 1)
