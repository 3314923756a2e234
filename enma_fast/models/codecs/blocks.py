"""Lossless codec: the values of a block of points, in a few frames, beside each other in one latent place.

Latent channels are frames first, then physical channels, then points of the block. Frame 0 is the last of its frames,
and zeros are in place of those before it.

Legend: as in `codec`.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F

from ...config import BlocksConfig
from ...errors import EnmaError
from ..patches import patchify, unpatchify
from .codec import Codec


class BlocksCodec(Codec):
    """A permutation; nothing is trained."""

    config: BlocksConfig

    @property
    def of_grid(self) -> str | None:
        return "a mask" if self.config.masked else None

    def encode(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        config = self.config
        x = self.filled(self.on_grid(u, points))
        # [B, T, N, points c], points of a block before channels.
        x = patchify(x.flatten(2, -2), config.grid, (config.block,) * config.dims)
        x = x.unflatten(-1, (-1, config.field_channels)).transpose(-1, -2).flatten(-2)
        x = F.pad(x, [0, 0, 0, 0, config.frames - 1, 0])
        return x.unflatten(1, (-1, config.frames)).movedim(2, 3).flatten(3).float()

    def decode(
        self, z_BTNC: Tensor, num_frames: int | None = None, query: Tensor | None = None, *, end: Any = None
    ) -> Tensor:
        if query is not None:
            raise EnmaError("query: this codec decodes on its own grid only")
        config = self.config
        x = z_BTNC.unflatten(-1, (config.frames, -1)).movedim(3, 2).flatten(1, 2)[:, config.frames - 1 :]
        x = x[:, :num_frames].unflatten(-1, (config.field_channels, -1)).transpose(-1, -2).flatten(-2)
        x = unpatchify(x, config.grid, (config.block,) * config.dims)
        return self.in_units(cast(Tensor, x.unflatten(2, config.grid)).float())
