"""What a head of frame 0 begins as: the Gaussian random field that varies as the frames 0 of the training data do.

Its first block is a Fourier block, whose filter turns white noise into a field with any covariance that is the same at
all places. The training then teaches it what the context tells of the field, and what is not Gaussian.

Legend: B trajectories, F channels of a latent place, W width of the head; `*g` latent grid, `*w` its waves.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import ModelConfig
from ..errors import EnmaError
from ..models.local_head import FourierBlock, LocalBlock, LocalHead, filter_places

# A channel that is the same everywhere, and so much larger than the noise that norms are nearly linear.
_CONSTANT = 16.0
# Of the field in the head, in units of what it is at the end: small beside the constant.
_SCALE = 0.5
# Added to the variance of each wave, in units of that of all.
_FLOOR = 1e-9


def check_first(config: ModelConfig) -> None:
    """`EnmaError` if a head of frame 0 is too narrow to hold its noise, its field and a constant beside each other."""
    first, channels = config.dynamics.first, config.tokenizer.latent_channels
    if first is not None and first.width <= 2 * channels:
        raise EnmaError(
            f"dynamics.first.width is {first.width}; more than twice {channels}, the latent channels, is needed"
        )


@torch.no_grad()
def begin_as_field(head: LocalHead, latents: Tensor) -> None:
    """Set the weights of a head from standardised latents ``[B, *g, F]`` of frames 0.

    Waves beyond those of its filter are left out. The head is as wide as `check_first` asks.
    """
    block = head.blocks[0]
    assert isinstance(block, FourierBlock)
    grid, channels, width = latents.shape[1:-1], latents.shape[-1], len(head.norm.weight)
    latents = latents.double()
    mean = latents.flatten(0, -2).mean(0)
    # The noise is in the first channels, the field in the next ones, and the constant in the last.
    noise, field, constant = slice(channels), slice(channels, 2 * channels), width - 1
    features = head.features
    parts = features.weight.unflatten(0, (-1, width)), features.bias.unflatten(0, (-1, width))
    for kept in (noise, field, constant):
        parts[0][:, kept] = 0
    parts[1].zero_()[:, constant] = _CONSTANT
    head.frames.conv.weight.zero_()
    middle = (1,) * len(grid)
    for channel in range(channels):
        # The older of the two past frames is the noise.
        head.frames.conv.weight[(channel, channel, *middle)] = 1
    # What norms divide by: the constant, the noise, and what the features are of a condition with mean square 1.
    root = ((_CONSTANT**2 + channels + width - 1 - 2 * channels) / width) ** 0.5
    # x + down(silu(a) (b + z)), where a is 1, b nothing and z the field.
    block.gate_up.weight.zero_()
    block.gate_up.weight[field, constant] = root / _CONSTANT
    block.filter.zero_()
    gain = _SCALE * root / F.silu(torch.ones(())).item()
    roots = _roots(latents - mean, block.modes)
    block.filter[0, ..., noise, field], block.filter[1, ..., noise, field] = gain * roots.real, gain * roots.imag
    block.down.weight.zero_()
    for channel in range(channels):
        block.down.weight[channels + channel, channels + channel] = 1
    for other in cast("list[LocalBlock | FourierBlock]", head.blocks[1:]):
        other.down.weight.zero_()
    head.read.weight.zero_()
    power = (latents - mean).square().mean(0).sum(-1).mean().item()
    root = (root**2 + _SCALE**2 * power / width) ** 0.5
    for channel in range(channels):
        head.read.weight[channel, channels + channel] = root / _SCALE
    head.read.bias.copy_(mean)


def _roots(latents: Tensor, modes: int) -> Tensor:
    """Complex filters ``[*w, F, F]`` that give white noise the spectrum of latents ``[B, *g, F]``."""
    grid = latents.shape[1:-1]
    axes = tuple(range(1, 1 + len(grid)))
    waves = torch.fft.rfftn(latents, dim=axes, norm="ortho")[filter_places(grid, modes, latents.device)]
    spectrum = torch.einsum("b...i,b...j->...ij", waves, waves.conj()) / len(waves)
    power = spectrum.diagonal(dim1=-2, dim2=-1).real.mean()
    eye = torch.eye(latents.shape[-1], dtype=spectrum.dtype, device=latents.device)
    # Rows of noise times this have the covariance of rows of waves.
    return torch.linalg.cholesky(spectrum + _FLOOR * power * eye).mT
