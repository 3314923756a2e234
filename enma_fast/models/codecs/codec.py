"""What every codec does: it standardises fields, encodes them and decodes latent frames.

Latent 0 holds frame 0 alone; with a time factor k latent j holds frames k(j-1)+1 to kj. No output depends on a later
frame. When the last latent is only partly filled, its missing frames are copies of the last one given.

Legend: B batch, T frames (or latent frames), T' latent frames, P observed points, Q query points, N latent places per
frame, C latent channels, c physical channels, d space dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...config import CodecConfig
from ...errors import EnmaError


class Codec(nn.Module):
    """Base of the kinds of codecs: the standardisation of fields, and checks."""

    field_mean: Tensor | None
    field_scale: Tensor | None
    mask: Tensor | None
    place: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        # True where fields have values, `[*x, c]`; None of fields that have them everywhere.
        has_values = torch.ones(*config.grid, config.field_channels, dtype=torch.bool) if config.masked else None
        self.register_buffer("mask", has_values)
        for name in ("field_mean", "field_scale"):
            values = getattr(config, name)
            # They belong to the config, not to the weights, so a checkpoint holds them once.
            self.register_buffer(name, None if values is None else torch.tensor(values), persistent=False)
        # It goes where the codec goes, also where there are no weights.
        self.register_buffer("place", torch.empty(0), persistent=False)

    def take_mask(self, mask: Any) -> None:
        """Take the places `[*x, c]` at which fields have values, of a masked codec; None of one that is not."""
        if self.mask is not None:
            self.mask.copy_(torch.as_tensor(mask))

    @property
    def of_grid(self) -> str | None:
        """What it has that is of its grid alone; None if it serves any."""
        return f"a codec of kind {self.config.kind!r}"

    def without_gaps(self, u: Tensor) -> Tensor:
        """Fields ``[..., *x, c]`` with the mean of each channel where they have no values."""
        if self.mask is None:
            return u
        mean = torch.zeros(()) if self.field_mean is None else self.field_mean
        return torch.where(self.mask.to(u.device), u, mean.to(u))

    @property
    def device(self) -> torch.device:
        """Where it encodes and decodes."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return self.place.dtype

    @property
    def trained(self) -> bool:
        """Whether it has weights to train; ``forward`` is their loss."""
        return next(self.parameters(), None) is not None

    def standardised(self, u: Tensor) -> Tensor:
        """Fields ``[..., c]`` less the mean of each channel, over its scale, as latent frames hold them: 0 on land."""
        x = u if self.field_mean is None or self.field_scale is None else (u - self.field_mean) / self.field_scale
        return x if self.mask is None else torch.where(self.mask, x, 0.0)

    def in_units(self, u: Tensor) -> Tensor:
        """Inverse of :meth:`standardised`; NaN on land."""
        x = u if self.field_mean is None or self.field_scale is None else u * self.field_scale + self.field_mean
        return x if self.mask is None else torch.where(self.mask, x, math.nan)

    def encode(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Latent frames ``[B, T', N, C]``.

        Parameters
        ----------
        u
            ``[B, T, *grid, c]`` on the grid, or ``[B, T, P, c]`` at scattered points.
        points
            ``[P, d]`` or ``[B, P, d]`` in units of the domain, ``[B, T, P, d]`` where each frame has its own; None on
            the grid.
        valid
            ``[B, P]`` or ``[B, T, P]``, False at padding.
        """
        raise NotImplementedError

    def decode(
        self, z_BTNC: Tensor, num_frames: int | None = None, query: Tensor | None = None, *, end: Any = None
    ) -> Tensor:
        """Fields of latent frames.

        Parameters
        ----------
        z_BTNC
            Latent frames.
        num_frames
            Crop to this many frames; all frames of the latents by default.
        query
            Query points ``[Q, d]`` or ``[B, Q, d]``; None for the codec's grid.
        end
            What :meth:`prepared_end` returned.

        Returns
        -------
        Tensor
            ``[B, T, *grid, c]``, or ``[B, T, Q, c]`` at query points, fp32.
        """
        raise NotImplementedError

    def prepared_end(self) -> Any:
        """The last layers of the decoder in a faster form, for :meth:`decode`; None where there is none."""
        return None

    def on_grid(self, u: Tensor, points: Tensor | None) -> Tensor:
        """Standardised fields ``[B, T, *grid, c]``; `EnmaError` for another grid, or for points."""
        if points is not None:
            raise EnmaError("points: this codec works on its grid alone; give fields there, without points")
        if tuple(u.shape[2:-1]) != self.config.grid:
            raise EnmaError(f"field has the grid {tuple(u.shape[2:-1])}; the codec expects {self.config.grid}")
        return self.standardised(u)

    def filled(self, x: Tensor) -> Tensor:
        """Frames ``[B, T, ...]`` with copies of the last one after it, until the last latent frame is full."""
        missing = (1 - x.shape[1]) % self.config.time_factor
        return x if not missing else torch.cat([x, x[:, -1:].expand(-1, missing, *x.shape[2:])], dim=1)
