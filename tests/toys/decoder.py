"""A decoder that keeps the last frame and adds noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from enma_fast.config import DecoderConfig
from enma_fast.errors import EnmaError
from enma_fast.models.decoders.decoder import Decoder


class Persistence(Decoder):
    """The last frame, and noise of a scale that is trained; it reads two past frames, and no trunk."""

    past = 2

    def __init__(self, config, own, trunk):
        super().__init__()
        self.channels = config.token_channels
        self.scale = nn.Parameter(torch.full((config.token_channels,), own.scale))

    def decide(self, h, past_BPNC, noise, settings):
        tokens = torch.arange(past_BPNC.shape[2], device=past_BPNC.device)
        return past_BPNC[:, -1] + settings.temperature * self.scale * noise.normal(tokens, self.channels)

    def loss(self, h, past_BPNC, z_BNC, draws):
        made = past_BPNC[:, -1, :, None] + self.scale * draws.noise
        error = (made - z_BNC[:, :, None]).square().mean()
        return error, {"error": error.detach()}


@dataclass(frozen=True, kw_only=True)
class PersistenceConfig(DecoderConfig):
    kind: str = "toy-persistence"
    scale: float = 0.5
    module: ClassVar[type] = Persistence

    def check(self, name, slot, codec):
        if self.scale < 0:
            raise EnmaError(f"{name}: {slot}.scale is {self.scale}; 0 or more is needed")
