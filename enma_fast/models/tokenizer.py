"""Points -> tokens -> points: the variational auto-encoder over space and time (paper 2, D.1).

    u_BTPc --(interpolation)--> u_BTXc --(causal convolutions)--> z_BTNC --(mirror)--> u_BTQc

Legend: B batch, T frames (or latent frames), P observed points, Q query points, X grid points (one axis per space
dimension), N tokens per frame, C latent channels, c physical channels, d space dimensions.

The channels of u are standardised first, where the config has a mean and a scale for them.

Latent 0 holds frame 0 alone; with one ``time`` layer latent j holds frames 2j-1 and 2j. No output ever depends on a
later frame. When the last latent is only half filled, its missing frame is a copy of the last one given.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TokenizerConfig
from ..errors import EnmaError
from .interpolation import Interpolation


def pad_space(x: Tensor, amount: int, periodic: tuple[bool, ...]) -> Tensor:
    """Pad every space axis of ``[B, c, T, *x]`` on both sides: periodically, or with zeros at a wall."""
    if amount == 0:
        return x
    dims = len(periodic)
    for axis, is_periodic in enumerate(periodic):
        # F.pad counts axes from the last one.
        pad = [0, 0] * (dims - 1 - axis) + [amount, amount]
        if is_periodic:
            where = x.ndim - dims + axis
            n = x.shape[where]
            x = torch.cat([x.narrow(where, n - amount, amount), x, x.narrow(where, 0, amount)], dim=where)
        else:
            x = F.pad(x, pad)
    return x


class CausalConv(nn.Module):
    """Convolution over time and space: zeros before the first frame, nothing from later ones, "same" in space."""

    def __init__(
        self,
        inward: int,
        outward: int,
        config: TokenizerConfig,
        *,
        kernel: int,
        kernel_time: int = 1,
        stride: int = 1,
        stride_time: int = 1,
    ) -> None:
        super().__init__()
        conv = {1: nn.Conv2d, 2: nn.Conv3d}[config.dims]
        self.periodic = config.periodic
        self.pad_space, self.pad_time = kernel // 2, kernel_time - 1
        self.conv: nn.Module = conv(
            inward,
            outward,
            kernel_size=(kernel_time, *(kernel,) * config.dims),  # type: ignore[arg-type]
            stride=(stride_time, *(stride,) * config.dims),  # type: ignore[arg-type]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = pad_space(x, self.pad_space, self.periodic)
        if self.pad_time:
            x = F.pad(x, [0, 0] * len(self.periodic) + [self.pad_time, 0])
        return self.conv(x)


class Residual(nn.Module):
    """x + gate(y) * y with y = linear(elu(conv(x))); the gate is a global-context squeeze over each frame.

    Structure as in magvit2-pytorch and GCNet; the gate starts at 1/2 where magvit2's starts at 5e-5, which takes
    thousands of steps to open.
    """

    def __init__(self, inward: int, outward: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.conv = CausalConv(inward, outward, config, kernel=config.kernel, kernel_time=config.kernel_time)
        self.linear = nn.Linear(outward, outward)
        self.attend = nn.Linear(outward, 1)
        hidden = max(16, outward // 2)
        last = nn.Linear(hidden, outward)
        self.squeeze = nn.Sequential(nn.Linear(outward, hidden), nn.LeakyReLU(0.1), last)
        self.skip = nn.Linear(inward, outward) if inward != outward else nn.Identity()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.conv(x)).movedim(1, -1)
        y = F.elu(self.linear(y))
        flat = y.flatten(2, -2)
        pooled = (self.attend(flat).softmax(2) * flat).sum(2)
        gate = self.squeeze(pooled).sigmoid()
        y = y * gate.view(*gate.shape[:2], *(1,) * (y.ndim - 3), -1)
        return (y + self.skip(x.movedim(1, -1))).movedim(-1, 1)


class ExpandSpace(nn.Module):
    """Multiplies every space dimension by f: convolution to f^d times the channels, then depth to space."""

    def __init__(
        self, inward: int, outward: int, config: TokenizerConfig, *, kernel: int, kernel_time: int = 1, factor: int = 2
    ) -> None:
        super().__init__()
        self.dims, self.factor = config.dims, factor
        outward *= factor**config.dims
        self.conv = CausalConv(inward, outward, config, kernel=kernel, kernel_time=kernel_time)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        B, _, T, *grid = y.shape
        y = y.view(B, -1, *(self.factor,) * self.dims, T, *grid)
        order = [0, 1, 2 + self.dims]
        for i in range(self.dims):
            order += [3 + self.dims + i, 2 + i]
        return y.permute(order).reshape(B, -1, T, *(self.factor * n for n in grid))


class ExpandTime(nn.Module):
    """Doubles the frames and drops the first: 2T - 1 frames from T, frames 2j-1 and 2j from latent j."""

    def __init__(self, inward: int, outward: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.conv = CausalConv(inward, 2 * outward, config, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        B, _, T, *grid = y.shape
        y = y.view(B, 2, -1, T, *grid).movedim(1, 3)
        return y.reshape(B, -1, 2 * T, *grid)[:, :, 1:]


class LinearEnd(Protocol):
    """Replacement in `Tokenizer.decode` for the layers from `first` on and `conv_out`."""

    first: int

    def __call__(self, x: Tensor) -> Tensor: ...


# Beginnings of the names of the decoder's weights; the others are the encoder's.
_DECODER = ("from_latent.", "up.", "conv_out.", *(f"interpolation.{of}" for of in ("out_", "slopes_out", "project.")))


class Tokenizer(nn.Module):
    """Encoder and decoder; ``forward`` is the training loss."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.field_mean: Tensor | None
        self.field_scale: Tensor | None
        for name in ("field_mean", "field_scale"):
            values = getattr(config, name)
            # They belong to the config, not to the weights, so a checkpoint holds them once.
            self.register_buffer(name, None if values is None else torch.tensor(values), persistent=False)
        self.interpolation = Interpolation(config) if config.interpolation else None
        inward = config.interpolation.features if config.interpolation else config.field_channels
        width = config.width
        ends: dict[str, int] = {"kernel": config.kernel_ends, "kernel_time": config.kernel_time}
        self.conv_in = CausalConv(inward, width, config, **ends, stride=config.stride_ends)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for layer in config.layers:
            wider = min(2 * width, config.max_width) if layer == "space" else width
            if layer == "residual":
                down.append(Residual(width, width, config))
                up.append(Residual(width, width, config))
            elif layer == "space":
                down.append(CausalConv(width, wider, config, kernel=config.kernel, stride=2))
                up.append(ExpandSpace(wider, width, config, kernel=config.kernel))
            else:
                down.append(CausalConv(width, width, config, kernel=1, kernel_time=config.kernel_time, stride_time=2))
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

        if config.lossless:
            self._rearrange()

    @torch.no_grad()
    def _rearrange(self) -> None:
        """Set the weights to those that put the values of a block beside each other, and back."""
        for weight in self.parameters():
            weight.zero_()
        conv_in: Any = self.conv_in
        conv_out: Any = self.conv_out
        down: Any = self.down[0]
        up: Any = self.up[0]
        s, first = self.config.stride_ends, self.config.kernel_ends // 2
        frame = self.config.field_channels * s**self.config.dims
        for number, place in enumerate(itertools.product(range(s), repeat=self.config.dims)):
            for channel in range(self.config.field_channels):
                value = channel * s**self.config.dims + number
                conv_in.conv.weight[(value, channel, -1, *(first + i for i in place))] = 1
                (conv_out if s == 1 else conv_out.conv).conv.weight[
                    (value, value, -1, *(first,) * self.config.dims)
                ] = 1
        # Of a pair of frames the earlier one first.
        pair, apart = down.conv.weight, up.conv.conv.weight
        for value in range(frame):
            pair[value, value, -2] = pair[frame + value, value, -1] = 1
            apart[value, value] = apart[2 * frame + value, frame + value] = 1
        for layer in (self.to_latent, self.from_latent):
            layer.weight.fill_diagonal_(1)

    def encoder(self) -> dict[str, nn.Parameter]:
        """The weights that latents depend on, by name."""
        return {name: weight for name, weight in self.named_parameters() if not name.startswith(_DECODER)}

    def standardised(self, u: Tensor) -> Tensor:
        """Fields ``[..., c]`` less the mean of each channel, over its scale, as the convolutions see them."""
        return u if self.field_mean is None or self.field_scale is None else (u - self.field_mean) / self.field_scale

    def in_units(self, u: Tensor) -> Tensor:
        """Inverse of :meth:`standardised`."""
        return u if self.field_mean is None or self.field_scale is None else u * self.field_scale + self.field_mean

    def posterior(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent frames, each ``[B, T', N, C]`` (log-variance is -inf without a VAE).

        Parameters as in :meth:`encode`.
        """
        u = self.standardised(u)
        if self.interpolation is not None:
            grid = self.interpolation.to_grid(u, points, valid)
        else:
            if points is not None:
                raise EnmaError("points: this tokenizer has no interpolation; give fields on its grid, without points")
            grid = u
        expected = self.config.grid
        if tuple(grid.shape[2:-1]) != expected:
            raise EnmaError(f"field has the grid {tuple(grid.shape[2:-1])}; the tokenizer expects {expected}")
        x = grid.movedim(-1, 1)
        missing = (1 - x.shape[2]) % self.config.time_factor
        if missing:
            x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, *x.shape[3:])], dim=2)
        x = self.conv_in(x)
        for layer in self.down:
            x = layer(x)
        z = self.to_latent(x.movedim(1, -1).flatten(2, -2)).float()
        if not self.config.variational:
            return z, torch.full_like(z, float("-inf"))
        mean, log_variance = z.chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Latent frames (posterior means) ``[B, T', N, C]``.

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
        return self.posterior(u, points, valid)[0]

    def decode(
        self,
        z_BTNC: Tensor,
        num_frames: int | None = None,
        query: Tensor | None = None,
        *,
        end: LinearEnd | None = None,
    ) -> Tensor:
        """Fields of latent frames.

        Parameters
        ----------
        z_BTNC
            Latent frames before patchify.
        num_frames
            Crop to this many frames; all frames of the latents by default.
        query
            Query points ``[Q, d]`` or ``[B, Q, d]``; None for the tokenizer's grid.
        end
            In place of the last layers and the convolution to the field; see `folding.py`.

        Returns
        -------
        Tensor
            ``[B, T, *grid, c]``, or ``[B, T, Q, c]`` at query points, fp32.
        """
        B, T = z_BTNC.shape[:2]
        x = self.from_latent(z_BTNC).view(B, T, *self.config.token_grid, -1).movedim(-1, 1)
        for layer in self.up if end is None else self.up[: end.first]:
            x = layer(x)
        x = (self.conv_out if end is None else end)(x).movedim(1, -1)
        if num_frames is not None:
            x = x[:, :num_frames]
        if self.interpolation is not None:
            return self.in_units(self.interpolation.to_points(x, query).float())
        if query is not None:
            raise EnmaError("query: this tokenizer has no interpolation; it decodes on its own grid only")
        return self.in_units(x.float())

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
            Observations ``values [B, T, P, c]`` at ``points [B, P, d]`` for a tokenizer with interpolation; by
            default the grid itself.

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


def patchify(z_BTNC: Tensor, token_grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Merge patches of neighbouring tokens (paper D.2.1): ``[B, T, N, C] -> [B, T, N / p, C p]``."""
    if all(p == 1 for p in patch):
        return z_BTNC
    B, T, _, C = z_BTNC.shape
    split = [x for n, p in zip(token_grid, patch, strict=True) for x in (n // p, p)]
    d = len(patch)
    z = z_BTNC.view(B, T, *split, C)
    order = [0, 1, *(2 + 2 * i for i in range(d)), *(3 + 2 * i for i in range(d)), 2 + 2 * d]
    return z.permute(order).flatten(2 + d).flatten(2, 1 + d)


def unpatchify(z_BTNC: Tensor, token_grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`patchify`; ``token_grid`` is the grid before patchify."""
    if all(p == 1 for p in patch):
        return z_BTNC
    B, T = z_BTNC.shape[:2]
    d = len(patch)
    z = z_BTNC.reshape(B, T, *(n // p for n, p in zip(token_grid, patch, strict=True)), *patch, -1)
    order = [0, 1]
    for i in range(d):
        order += [2 + i, 2 + d + i]
    return z.permute(*order, 2 + 2 * d).flatten(2, 1 + 2 * d)
