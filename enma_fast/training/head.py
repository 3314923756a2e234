"""Train the local decoder of a one-pass model alone: no condition, no noise, and nothing of the transformers.

One frame from the frames before it is a regression. A step needs no second member and no transformers, and nothing
random reaches the head while it learns how fields move (docs/notes/head-alone.md). Whole forecasts then teach it to
listen to the condition, which tells what the past frames do not, and to the noise.

Legend: B trajectories, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EnmaError
from ..models.decoders.decoder import first_past, next_past
from ..models.model import Dynamics, Model
from .forecasts import ForecastTask, RolloutStage, drawn_history
from .ranks import Rank
from .stage import Material


@dataclass(frozen=True, kw_only=True)
class HeadStage(RolloutStage):
    """Train the local head alone, of which up to ``frames`` latent frames are rolled out."""

    kind: str = "head"
    history: tuple[int, int] = (1, 9)

    def task(self, model: Model, material: Material) -> HeadTask:
        return HeadTask(model, self, train=material.train(), val=material.val, val_contexts=material.val_contexts)


class HeadAlone(nn.Module):
    """The dynamics, of which the local head is trained; ``forward`` is the relative error of what it rolls out.

    The condition counts for nothing, since the layer that reads it is set to zero and held.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        self.dynamics = dynamics
        dynamics.requires_grad_(False)
        for weight in dynamics.step.forget_condition_():
            weight.requires_grad_(True)

    def forward(self, z_BTNC: Tensor, history: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean log of the relative L2 of the frames behind the first ``history`` ones, and its exponential.

        Channels count as fields depend on them. By its logarithm a trajectory that is forecast well has as large a
        gradient as one that is not: else the frames after a single one, whose physics nothing tells, outweigh all
        others.
        """
        step, channels = self.dynamics.step, self.dynamics.score_weight
        past, errors = first_past(z_BTNC[:, :history], step.past), []
        for truth in z_BTNC[:, history:].unbind(1):
            forecast = step.from_past(past)
            off, size = ((x * channels).flatten(1).norm(dim=1) for x in (forecast - truth, truth))
            errors.append(off / size.clamp_min(1e-6))
            past = next_past(past, forecast)
        loss = torch.stack(errors).mean(0).clamp_min(1e-6).log().mean()
        return loss, {"relative": loss.detach().exp()}


class HeadTask(ForecastTask):
    """Training and validation fields as those of whole forecasts; only the loss, and what it trains, are others."""

    def _module(self) -> nn.Module:
        module = HeadAlone(self.model.dynamics)
        if not any(weight.requires_grad for weight in module.parameters()):
            raise EnmaError(
                f"stage head: {self.model.config.name} decides no frame without a condition; leave the stage out"
            )
        return module

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Relative error of a batch of forecasts of 1, 2, 4 or so on up to ``frames`` latent frames."""
        low, high = self.stage.history
        mine = rank.share(self.stage.batch)
        frames = some_frames(self.stage.frames or self.latents - high, generator)
        (z_BTNC,), _ = self.tokens(generator, mine, paired=False, latents=high + frames)
        history = drawn_history((low, high), z_BTNC.shape[1], generator)
        return module(z_BTNC[:, : history + frames], history)


def some_frames(most: int, generator: torch.Generator) -> int:
    """How many latent frames a batch rolls out: 1, 2, 4 or so on up to `most`, each of them as often."""
    choices = [2**i for i in range(most.bit_length())]
    return choices[int(torch.randint(len(choices), (), generator=generator))]
