"""A context that is the mean of the frames, and a decoder that reads it without a trunk."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from enma_fast.config import ContextConfig, DecoderConfig
from enma_fast.models.contexts.context import Context
from enma_fast.models.decoders.decoder import Decoder


class Mean(Context):
    """The mean of the frames that were read, in a linear layer."""

    def __init__(self, config):
        super().__init__()
        self.tokens = config.num_tokens
        self.read = nn.Linear(config.token_channels, config.context.features)

    def forward(self, segments):
        out = []
        for z_BTNC in segments:
            before = torch.cat([torch.zeros_like(z_BTNC[:, :1]), z_BTNC[:, :-1]], 1)
            counts = torch.arange(z_BTNC.shape[1]).clamp(min=1).view(-1, 1, 1)
            out.append(self.read(before.cumsum(1) / counts))
        return out

    def begin(self, segments, *, room):
        last = segments[-1]
        wide = torch.promote_types(last.dtype, torch.float32)
        empty = torch.zeros(len(last), self.tokens, self.read.in_features, dtype=wide, device=last.device)
        return [last.sum(1) if last.shape[1] else empty, last.shape[1]]

    def condition(self, past):
        total, frames = past
        return self.read(total / max(frames, 1))

    def advance(self, past, z_BNC):
        past[0], past[1] = past[0] + z_BNC, past[1] + 1


@dataclass(frozen=True, kw_only=True)
class MeanConfig(ContextConfig):
    kind: str = "toy-mean"
    features: int = 6
    module: ClassVar[type] = Mean


class Pull(Decoder):
    """What is linear in the condition, and noise."""

    def __init__(self, config, own, trunk):
        super().__init__()
        self.channels = config.token_channels
        self.read = nn.Linear(config.context.features, config.token_channels)

    def decide(self, h, past_BPNC, noise, settings):
        made = settings.temperature * noise.normal(torch.arange(h.shape[1], device=h.device), self.channels)
        return self.read(h) + made

    def loss(self, h, past_BPNC, z_BNC, draws):
        error = (self.read(h) - z_BNC).square().mean()
        return error, {"error": error.detach()}


@dataclass(frozen=True, kw_only=True)
class PullConfig(DecoderConfig):
    kind: str = "toy-pull"
    module: ClassVar[type] = Pull
