"""Train the codec: reconstruct fields from all of the grid, or from a random share of its points.

Legend: B batch, T frames, P points, c physical channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config_checks import require
from ..data import FieldFile
from ..errors import EnmaError
from ..models.codecs.interpolation import grid_points
from ..models.model import Model
from ..utils.devices import to_device
from .augment import (
    Amplitude,
    Augmentation,
    Batch,
    Boost,
    Damping,
    Emphasis,
    Mirror,
    Scattered,
    Shift,
    check_augmentations,
    drawn,
    found,
)
from .ranks import ALONE, Rank
from .stage import Material, Stage, Task

# Share of the windows that end as trajectories do where the others do not.
_SHORTER_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class TokenizerStage(Stage):
    """Train the codec.

    Attributes
    ----------
    window : frames of a sample, in a row from a random one on; None: all of a trajectory
    """

    kind: str = "tokenizer"
    window: int | None = None

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = (
        Shift,
        Mirror,
        Amplitude,
        Boost,
        Damping,
        Emphasis,
        Scattered,
    )
    validated: ClassVar[int] = 200
    forecasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("window",), lambda n: n is None or n >= 1, "at least 1 is needed, or none", "tokenizer: ")

    @property
    def amount(self) -> str:
        return super().amount + (f" windows of {self.window} frames" if self.window else "")

    def task(self, model: Model, material: Material) -> TokenizerTask:
        return TokenizerTask(model, self, train=material.train(), val=material.val)


class TokenizerTask(Task):
    """Training data, and validation fields ``[n, T, *grid, c]`` (fp32), for the codec of a model."""

    def __init__(self, model: Model, stage: TokenizerStage, *, train: FieldFile, val: Tensor) -> None:
        if (stage.window or 1) > train.u.shape[1]:
            raise EnmaError(
                f"window={stage.window}: trajectories have {train.u.shape[1]} frames; at most these can be asked for"
            )
        if not model.codec.trained:
            raise EnmaError(f"{model.config.name}: its codec has nothing to train; leave the stage out")
        check_augmentations(stage.augment, train, model.config, stage=stage.kind, known=stage.augmentations)
        self.stage, self.config, self.data, self.val = stage, model.config, train, val
        self.train = torch.from_numpy(train.u)
        emphasis = found(stage.augment, Emphasis)
        self.odds = None if emphasis is None else emphasis.odds(train)
        self.scattered = found(stage.augment, Scattered)
        self.module: nn.Module = model.codec.requires_grad_(True)
        self.options = model.config.codec
        self.points = grid_points(self.options)

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Relative L2 and KL of a random batch."""
        B, T = self.stage.batch, self._num_frames(generator)
        options, mine = self.options, rank.share(B)
        rows = drawn(B, len(self.train), self.odds, generator)
        tokens = (B, options.latent_frames(T), *options.token_grid, options.latent_channels)
        noise = torch.randn(tokens, generator=generator).flatten(2, -2)
        observed = self._observed(B, generator) if self.scattered is not None else None
        first = torch.randint(self.train.shape[1] - T + 1, (B,), generator=generator)
        windows = self.train[rows[mine, None], first[mine, None] + torch.arange(T)]
        parameters = {name: values[rows[mine].numpy()] for name, values in self.data.parameters.items()}
        times = torch.from_numpy(self.data.times[:T])
        batch = Batch(self.config, [windows], [parameters], times, B, mine)
        for augmentation in self.stage.augment:
            augmentation(batch, generator)
        u = batch.fields[0]
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
        frames, window = self.train.shape[1], self.stage.window
        if window is None:
            return frames
        shorter = window - (window - frames) % self.options.time_factor
        if 1 <= shorter < window and torch.rand((), generator=generator) < _SHORTER_SHARE:
            return shorter
        return window

    def _observed(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random points per sample: indices ``[B, P]`` in random order and which of them are observed."""
        assert self.scattered is not None
        P = len(self.points)
        count = self.scattered.counts(batch, P, generator)
        count = torch.where(torch.rand(batch, 1, generator=generator) < self.scattered.share, count, P)
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
        codec: Any = self.module
        errors = []
        device = codec.device
        for u in self.val.to(device).split(64):
            out = codec.standardised(codec.decode(codec.encode(u), u.shape[1]))
            u = codec.standardised(u)
            errors.append((out - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1))
        return {"rel_l2": torch.cat(errors).mean().item()}
