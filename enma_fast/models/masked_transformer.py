"""Context + half-known frame -> one condition per token: the masked transformer (paper 3.1.2, D.3).

Legend: B batch x members (x frames in training), N tokens per frame, C token channels, D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .layers import Block, RMSNorm, Rotary, exact, init_linear, sincos

# Scale of an untrained mask token.
MASK_STD = 0.02


class MaskedTransformer(nn.Module):
    """Bidirectional transformer over the context and the tokens of one frame, unknown tokens masked."""

    rotary: Tensor | None
    places: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        own, trunk = config.transformers
        self.concat = trunk.condition == "concat"
        self.embed = nn.Linear(config.token_channels, own.width)
        self.mask = nn.Parameter(nn.init.normal_(torch.empty(own.width), std=MASK_STD))
        self.blocks = nn.ModuleList([Block(own.width, own.heads) for _ in range(trunk.layers)])
        self.norm = RMSNorm(own.width)
        init_linear(self.blocks, depth=trunk.layers)
        rotary = places = None
        if own.positions == "rotary":
            turns = Rotary(config.token_grid, config.codec.periodic, own.width // own.heads)
            # Context and frame tokens of one place sit half a "frame" apart, so that attention can tell them apart.
            frames = torch.tensor([0.0, 0.5], device="cpu") if self.concat else torch.tensor([0.0], device="cpu")
            rotary = torch.stack(turns.tables(frames))
        else:
            places = sincos(config.token_grid, own.width)
        self.register_buffer("rotary", rotary, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, h_BND: Tensor, x_BNC: Tensor, known_BN: Tensor) -> Tensor:
        """Conditions ``[B, N, D]`` of all tokens.

        ``h_BND`` is the context from the causal transformer, ``x_BNC`` the frame, whose entries at unknown tokens are
        ignored, and ``known_BN`` True where a token is known.
        """
        return self._run(h_BND, torch.where(known_BN[..., None], exact(self.embed, x_BNC), self.mask.to(h_BND.dtype)))

    def unknown(self, h_BND: Tensor, added_BND: Tensor) -> Tensor:
        """Conditions ``[B, N, D]`` of all tokens of an unknown frame, with something added to the mask token."""
        return self._run(h_BND, self.mask.to(h_BND.dtype) + added_BND)

    def _run(self, h_BND: Tensor, x_BND: Tensor) -> Tensor:
        if self.places is not None:
            x_BND = x_BND + self.places
        if self.concat:
            h_BND = h_BND if self.places is None else h_BND + self.places
            y = torch.cat([h_BND, x_BND], dim=1)
        else:
            y = h_BND + x_BND
        rotary = None if self.rotary is None else (self.rotary[0], self.rotary[1])
        added = None
        for block in cast("list[Block]", self.blocks):
            y, added = block(y, added, rotary)
        own = slice(-x_BND.shape[1], None)
        return self.norm(y[:, own]) if added is None else self.norm.of_sum(y[:, own], added[:, own])[1]
