"""A frame in one pass of the masked transformer, whose tokens a linear layer reads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...config import LinearConfig, ModelConfig, SamplingConfig
from ...ops.frame_rows import read
from ..layers import exact
from ..masked_transformer import MaskedTransformer
from .decoder import Decoder, StaticDecision, StaticFrame
from .one_pass import OnePassDecoder


class LinearDecoder(OnePassDecoder):
    """Tokens are linear in their conditions."""

    def __init__(self, config: ModelConfig, own: LinearConfig, trunk: MaskedTransformer | None) -> None:
        super().__init__(config, trunk)
        self.read = nn.Linear(config.context.transformer.width, config.token_channels)

    def tokens_of(self, condition_BND: Tensor, past_BPNC: Tensor) -> Tensor:
        return exact(self.read, condition_BND)

    def inherited(self, before: Sequence[Decoder]) -> dict[str, Tensor]:
        weights, means = super().inherited(before), [other.linear_mean() for other in before]
        if not any(isinstance(other, LinearDecoder) for other in before):
            for weight, bias in filter(None, means):
                weights |= {"read.weight": weight, "read.bias": bias}
        return weights

    def static(self, frame: StaticFrame, settings: SamplingConfig, original: Decoder) -> StaticDecision:
        def decide(frame: StaticFrame) -> None:
            frame.begin_frame(frame.noise(), self.noise.weight, scale=settings.temperature)
            read(frame.conditions(None), self.read.weight, self.read.bias, norm=frame.norm, out=frame.tokens_BNC)

        return StaticDecision(decide)
