"""A codec that keeps every point and every frame."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from enma_fast.config import CodecConfig
from enma_fast.models.codecs.codec import Codec


class Every(Codec):
    """One place for each point; no two frames share a latent one."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, u, points=None, valid=None):
        return (self.gain * self.on_grid(u, points)).flatten(2, -2).float()

    def decode(self, z_BTNC, num_frames=None, query=None, *, end=None):
        u = (z_BTNC / self.gain).unflatten(2, self.config.grid)
        return self.in_units(u[:, :num_frames])


@dataclass(frozen=True, kw_only=True)
class EveryConfig(CodecConfig):
    kind: str = "toy-every"
    module: ClassVar[type] = Every

    @property
    def latent_channels(self):
        return self.field_channels

    @property
    def space_factor(self):
        return 1

    @property
    def time_factor(self):
        return 1

    @property
    def reach(self):
        return 0
