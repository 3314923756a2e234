"""How much each latent channel matters in the field: the weights of the scores that train a one-pass model.

Latents are standardised channel by channel, so a score of all alike spends most of its weight on channels that hardly
change the field. The error of a channel counts here by the error of the decoded field that it makes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.model import Model

# Latent frames are moved by this part of the standard deviation of a channel.
STEP = 0.1
# As many trajectories are decoded.
TRAJECTORIES = 24


@torch.no_grad()
def channel_weights(model: Model, z_BTNC: Tensor) -> Tensor:
    """Weights ``[C]`` of the channels of a token, with mean 1.

    ``z_BTNC`` are latent frames of the training data before they are standardised, of which the first are decoded: each
    channel once with normal noise of a tenth of its standard deviation. Its weight is proportional to the root mean
    square of what that changes in the standardised field.
    """
    tokenizer, std = model.codec, model.latent_std
    z_BTNC = z_BTNC[:TRAJECTORIES].to(std)
    generator = torch.Generator().manual_seed(0)
    field = tokenizer.standardised(tokenizer.decode(z_BTNC))
    changes = []
    for channel in range(z_BTNC.shape[-1]):
        moved = z_BTNC.clone()
        noise = torch.randn(z_BTNC.shape[:-1], generator=generator).to(std)
        moved[..., channel] += STEP * std[channel] * noise
        changes.append((tokenizer.standardised(tokenizer.decode(moved)) - field).square().mean().sqrt())
    weights = torch.stack(changes)
    weights = weights / weights.mean()
    return weights.repeat(math.prod(model.config.context.patch))
