"""The paper's codec: a variational auto-encoder of convolutions over space, causal in time (paper 2, D.1).

    u_BTXc --(causal convolutions)--> z_BTNC --(mirror)--> u_BTXc

With one ``time`` layer latent j holds frames 2j-1 and 2j.

Legend: as in `codec`, and X grid points (one axis per space dimension).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...config import ConvConfig
from ...config_codecs import KERNEL
from ...errors import EnmaError
from .codec import Codec
from .convolutions import CausalConv, ExpandSpace, ExpandTime, Residual
from .folding import folded_end


class ConvCodec(Codec):
    """Encoder and decoder by convolutions; ``forward`` is the training loss.

    ``channels`` are those of the grid that the convolutions see, by default those of the fields.
    """

    config: ConvConfig

    def __init__(self, config: ConvConfig, *, channels: int | None = None) -> None:
        super().__init__(config)
        inward = config.field_channels if channels is None else channels
        width = config.width
        ends: dict[str, int] = {"kernel": config.kernel_ends, "kernel_time": KERNEL}
        self.conv_in = CausalConv(inward, width, config, **ends, stride=config.stride_ends)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for layer in config.layers:
            wider = min(2 * width, config.max_width) if layer == "space" else width
            if layer == "residual":
                down.append(Residual(width, width, config))
                up.append(Residual(width, width, config))
            elif layer == "space":
                down.append(CausalConv(width, wider, config, kernel=KERNEL, stride=2))
                up.append(ExpandSpace(wider, width, config, kernel=KERNEL))
            else:
                down.append(CausalConv(width, width, config, kernel=1, kernel_time=KERNEL, stride_time=2))
                up.append(ExpandTime(width, width, config))
            width = wider
        self.down = nn.ModuleList(down)
        self.up = nn.ModuleList(reversed(up))
        moments = 2 if config.variational else 1
        self.to_latent = nn.Linear(width, moments * config.latent_channels)
        self.from_latent = nn.Linear(config.latent_channels, width)
        self.conv_out: nn.Module = (
            CausalConv(config.width, inward, config, **ends)
            if config.stride_ends == 1
            else ExpandSpace(config.width, inward, config, **ends, factor=config.stride_ends)
        )

    def to_grid(self, u: Tensor, points: Tensor | None, valid: Tensor | None) -> Tensor:
        """What the convolutions see, ``[B, T, *grid, channels]``, of fields or of values at points."""
        return self.on_grid(u, points)

    def from_grid(self, x: Tensor, query: Tensor | None) -> Tensor:
        """Standardised fields ``[B, T, *grid, c]`` or ``[B, T, Q, c]`` of what the convolutions give."""
        if query is not None:
            raise EnmaError("query: this codec decodes on its own grid only")
        return x

    def posterior(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent frames, each ``[B, T', N, C]`` (log-variance is -inf without a VAE).

        Parameters as in :meth:`encode`.
        """
        x = self.conv_in(self.filled(self.to_grid(u, points, valid)).movedim(-1, 1))
        for layer in self.down:
            x = layer(x)
        z = self.to_latent(x.movedim(1, -1).flatten(2, -2)).float()
        if not self.config.variational:
            return z, torch.full_like(z, float("-inf"))
        mean, log_variance = z.chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Latent frames, posterior means."""
        return self.posterior(u, points, valid)[0]

    def decode(
        self, z_BTNC: Tensor, num_frames: int | None = None, query: Tensor | None = None, *, end: Any = None
    ) -> Tensor:
        B, T = z_BTNC.shape[:2]
        x = self.from_latent(z_BTNC).view(B, T, *self.config.token_grid, -1).movedim(-1, 1)
        for layer in self.up if end is None else self.up[: end.first]:
            x = layer(x)
        x = (self.conv_out if end is None else end)(x).movedim(1, -1)
        return self.in_units(self.from_grid(x[:, :num_frames], query).float())

    def prepared_end(self) -> Any:
        return folded_end(self)

    def forward(
        self,
        u: Tensor,
        noise: Tensor,
        points: Tensor | None = None,
        values: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Training loss: relative L2 of the standardised reconstruction plus ``kl_weight`` times the KL divergence.

        Parameters
        ----------
        u
            Target fields on the grid ``[B, T, *grid, c]``.
        noise
            Standard normal, shaped like the latent frames.
        points, values, valid
            Observations ``values [B, T, P, c]`` at ``points [B, P, d]``; by default the grid itself.

        Returns
        -------
        loss and relative L2, both means over the batch.
        """
        mean, log_variance = self.posterior(u if values is None else values, points, valid)
        z = mean + (0.5 * log_variance).exp() * noise
        out, u = self.standardised(self.decode(z, u.shape[1])), self.standardised(u)
        error = (out - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1).clamp_min(1e-12)
        relative = error.mean()
        if not self.config.variational:
            return relative, relative.detach()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return relative + self.config.kl_weight * kl, relative.detach()
