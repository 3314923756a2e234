"""The paper's codec for scattered points: interpolation to the grid in front of the convolutions, and back (D.1.1).

Legend: as in `codec`.
"""

from __future__ import annotations

from torch import Tensor

from ...config import PointsConfig
from .conv import ConvCodec
from .interpolation import Interpolation


class PointsCodec(ConvCodec):
    """Encoder and decoder at any points of the domain."""

    config: PointsConfig

    def __init__(self, config: PointsConfig) -> None:
        super().__init__(config, channels=config.interpolation.features)
        self.interpolation = Interpolation(config)

    def to_grid(self, u: Tensor, points: Tensor | None, valid: Tensor | None) -> Tensor:
        return self.interpolation.to_grid(self.standardised(u), points, valid)

    def from_grid(self, x: Tensor, query: Tensor | None) -> Tensor:
        return self.interpolation.to_points(x, query)
