"""Train the tokenizer: reconstruct fields from all of the grid, or from a random share of its points.

Legend: B batch, T frames, P points, c physical channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import EnmaError
from ..models.interpolation import grid_points
from ..models.tokenizer import Tokenizer
from ..utils.devices import to_device
from .config import TrainingConfig
from .emphasis import drawn
from .ranks import ALONE, Rank

# Share of the windows that end as trajectories do where the others do not.
_SHORTER_SHARE = 0.25


class TokenizerTask:
    """Training and validation data ``[n, T, *grid, c]`` (fp32) for a tokenizer, and how often each is drawn."""

    def __init__(
        self, model: ModelConfig, config: TrainingConfig, *, train: Tensor, val: Tensor, odds: Tensor | None = None
    ) -> None:
        if (config.window or 1) > train.shape[1]:
            raise EnmaError(
                f"window={config.window}: trajectories have {train.shape[1]} frames; at most these can be asked for"
            )
        if model.tokenizer.lossless:
            raise EnmaError(
                f"{model.name}: its tokenizer rearranges fields without loss, and has nothing to train; go on with "
                "`train dynamics`, without --tokenizer"
            )
        self.config, self.train, self.val, self.odds = config, train, val, odds
        tokenizer = Tokenizer(model.tokenizer)
        if config.decoder_only:
            for weight in tokenizer.encoder().values():
                weight.requires_grad_(False)
        self.module: nn.Module = tokenizer
        self.options = model.tokenizer
        self.points = grid_points(self.options)

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Relative L2 and KL of a random batch, shifted around periodic dimensions."""
        B, T = self.config.batch, self._num_frames(generator)
        rows = drawn(B, len(self.train), self.odds, generator)
        shifts = random_shifts(self.options.grid, self.options.periodic, B, generator, shift=self.config.shift)
        tokens = torch.Size((B, self.options.latent_frames(T), *self.options.token_grid)).numel()
        noise = torch.randn(tokens * self.options.latent_channels, generator=generator)
        noise = noise.view(B, self.options.latent_frames(T), -1, self.options.latent_channels)
        observed = self._observed(B, generator) if self.options.interpolation else None
        mine = rank.share(B)
        chosen: tuple[Tensor, ...] = (rows[mine],)
        if self.config.window:
            first = torch.randint(self.train.shape[1] - T + 1, (B,), generator=generator)
            chosen = (rows[mine, None], first[mine, None] + torch.arange(T))
        u = roll(self.train[chosen], [s[mine] for s in shifts])
        u = u * factors(self.config.amplitude, B, generator)[mine].view(-1, *(1,) * (u.ndim - 1))
        inputs = [u, noise[mine]]
        if observed is not None:
            index, valid = observed[0][mine], observed[1][mine]
            values = u.flatten(2, -2).gather(2, index[:, None, :, None].expand(-1, T, -1, u.shape[-1]))
            inputs += [self.points[index], values, valid]
        device = next(self.module.parameters()).device
        loss, relative = module(*(to_device(x, device) for x in inputs))
        return loss, {"rel_l2": relative}

    def _num_frames(self, generator: torch.Generator) -> int:
        """Frames of the next batch: the window's, or fewer, so that the last latent is as full as that of trajectories.

        Only some windows are shorter, since a latent frame at the same place of other trajectories is full.
        """
        frames, window = self.train.shape[1], self.config.window
        if window is None:
            return frames
        shorter = window - (window - frames) % self.options.time_factor
        if 1 <= shorter < window and torch.rand((), generator=generator) < _SHORTER_SHARE:
            return shorter
        return window

    def _observed(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random points per sample: indices ``[B, P]`` in random order and which of them are observed."""
        P = len(self.points)
        low, high = self.config.point_fraction
        count = ((low + (high - low) * torch.rand(batch, 1, generator=generator)) * P).round().clamp(1, P)
        index = torch.rand(batch, P, generator=generator).argsort(-1)
        return index, torch.arange(P) < count

    def merit(self, scores: dict[str, float]) -> float:
        """Error of the reconstruction."""
        return scores["rel_l2"]

    @torch.no_grad()
    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Relative L2 of the standardised reconstruction from posterior means, by the first rank."""
        if rank.index:
            return {}
        tokenizer = self.module
        assert isinstance(tokenizer, Tokenizer)
        errors = []
        device = tokenizer.from_latent.weight.device
        for u in self.val.to(device).split(64):
            out = tokenizer.standardised(tokenizer.decode(tokenizer.encode(u), u.shape[1]))
            u = tokenizer.standardised(u)
            errors.append((out - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1))
        return {"rel_l2": torch.cat(errors).mean().item()}


def factors(bounds: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """`count` factors, log-uniform between the bounds."""
    low, high = bounds
    return low * (high / low) ** torch.rand(count, generator=generator)


def random_shifts(
    grid: tuple[int, ...], periodic: tuple[bool, ...], count: int, generator: torch.Generator, *, shift: bool = True
) -> list[Tensor]:
    """`count` random places of each dimension of a grid, for `roll`; zeros along walls, or all without `shift`."""
    return [
        torch.randint(n if shift and ring else 1, (count,), generator=generator)
        for n, ring in zip(grid, periodic, strict=True)
    ]


def roll(u: Tensor, shifts: list[Tensor]) -> Tensor:
    """Shift each sample of ``[B, T, *grid, c]`` forward by its own number of grid points; ``u`` itself if by none."""
    for axis, shift in enumerate(shifts, start=2):
        if not shift.any():
            continue
        n = u.shape[axis]
        index = (torch.arange(n) - shift[:, None]) % n
        shape = [1] * u.ndim
        shape[0], shape[axis] = len(shift), n
        u = u.gather(axis, index.view(shape).expand_as(u))
    return u
