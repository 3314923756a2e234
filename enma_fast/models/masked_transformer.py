"""Context + half-known frame -> one condition per token: the masked transformer (paper 3.1.2, D.3).

Legend: B batch x members (x frames in training), N tokens per frame, C token channels, D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .layers import Block, RMSNorm, Rotary, exact, init_linear, sincos

# Scale of the noise that enters an untrained one-pass model: that of the mask token beside it.
NOISE_STD = 0.02


class MaskedTransformer(nn.Module):
    """Bidirectional transformer over the context and the tokens of one frame, unknown tokens masked."""

    rotary: Tensor | None
    places: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dyn = config.dynamics
        self.concat = dyn.condition == "concat"
        self.embed = nn.Linear(config.token_channels, dyn.width)
        self.mask = nn.Parameter(nn.init.normal_(torch.empty(dyn.width), std=0.02))
        # Noise in place of unknown tokens, beside the mask token, which keeps what it has learned.
        self.noise = nn.Linear(config.token_channels, dyn.width, bias=False) if dyn.decoder == "one-pass" else None
        self.blocks = nn.ModuleList([Block(dyn.width, dyn.heads, dyn.mlp_ratio) for _ in range(dyn.spatial_layers)])
        self.norm = RMSNorm(dyn.width)
        init_linear(self.blocks, depth=dyn.spatial_layers)
        if self.noise is not None:
            nn.init.normal_(self.noise.weight, std=NOISE_STD * config.token_channels**-0.5)
        rotary = places = None
        if dyn.positions == "rotary":
            turns = Rotary(config.token_grid, config.tokenizer.periodic, dyn.width // dyn.heads)
            # Context and frame tokens of one place sit half a "frame" apart, so that attention can tell them apart.
            frames = torch.tensor([0.0, 0.5], device="cpu") if self.concat else torch.tensor([0.0], device="cpu")
            rotary = torch.stack(turns.tables(frames))
        else:
            places = sincos(config.token_grid, dyn.width)
        self.register_buffer("rotary", rotary, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, h_BND: Tensor, x_BNC: Tensor, known_BN: Tensor) -> Tensor:
        """Conditions ``[B, N, D]`` of all tokens.

        ``h_BND`` is the context from the causal transformer, ``x_BNC`` the frame, whose entries at unknown tokens are
        ignored, and ``known_BN`` True where a token is known.
        """
        return self._run(h_BND, torch.where(known_BN[..., None], exact(self.embed, x_BNC), self.mask.to(h_BND.dtype)))

    def from_noise(self, h_BND: Tensor, noise_BNC: Tensor) -> Tensor:
        """Conditions ``[B, N, D]`` of all tokens of an unknown frame, with noise in it (one-pass models)."""
        assert self.noise is not None
        return self._run(h_BND, self.mask.to(h_BND.dtype) + exact(self.noise, noise_BNC))

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
