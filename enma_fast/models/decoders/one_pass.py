"""What the decoders `linear` and `local` share: one pass of the masked transformer, from context and noise.

Legend: B batch x members (x frames in training), P past frames, N tokens per frame, C token channels, D width, K draws.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...config import ModelConfig, SamplingConfig
from ...ops.self_attention import widened
from ..fair_score import fair_score
from ..layers import exact
from ..masked_transformer import MASK_STD, MaskedTransformer
from .decoder import Decoder, Draws, Noise


class OnePassDecoder(Decoder):
    """Base of decoders that read all tokens off the conditions of one pass."""

    def __init__(self, config: ModelConfig, trunk: MaskedTransformer | None) -> None:
        super().__init__()
        assert trunk is not None
        # In a list it is no part of this module, and is trained and stored once.
        self._trunk = [trunk]
        self.channels = config.token_channels
        # Noise in place of unknown tokens, beside the mask token, which keeps what it has learned.
        self.noise = nn.Linear(self.channels, config.context.transformer.width, bias=False)
        nn.init.normal_(self.noise.weight, std=MASK_STD * self.channels**-0.5)

    def tokens_of(self, condition_BND: Tensor, past_BPNC: Tensor) -> Tensor:
        """All tokens ``[B, N, C]`` of a frame from conditions and the frames before it."""
        raise NotImplementedError

    def from_noise(self, h_BND: Tensor, past_BPNC: Tensor, noise_BNC: Tensor) -> Tensor:
        """All tokens ``[B, N, C]`` of a frame from context, past and noise, at least in fp32."""
        condition = self._trunk[0].unknown(h_BND, exact(self.noise, noise_BNC.to(h_BND.dtype)))
        return widened(self.tokens_of(condition, past_BPNC))

    def decide(self, h: Tensor, past_BPNC: Tensor, noise: Noise, settings: SamplingConfig) -> Tensor:
        noise_BNC = noise.normal(torch.arange(h.shape[1], device=h.device), self.channels)
        return self.from_noise(h, past_BPNC, settings.temperature * noise_BNC)

    def loss(self, h: Tensor, past_BPNC: Tensor, z_BNC: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Fair CRPS of frames that are decided once for each of K noises."""
        K = draws.noise.shape[2]
        h, past = (x.repeat_interleave(K, 0) for x in (h, past_BPNC))
        frames = self.from_noise(h, past, draws.noise.transpose(1, 2).flatten(0, 1))
        crps = (fair_score(frames.unflatten(0, (-1, K)), z_BNC, torch.abs) * draws.weight).mean()
        return crps, {"crps": crps.detach()}
