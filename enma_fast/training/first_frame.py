"""Train what draws frame 0 of a generated trajectory, with all other weights of a one-pass model held.

Every other frame of a one-pass model is read off, so the velocity of the flow head has frame 0 alone to draw, and a
batch can take many masks and many noises of it where whole forecasts take few. A head of its own makes members of the
whole frame, which are scored.

Legend: B trajectories, K members, R masks, N tokens per frame, C token channels, S noises of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EnmaError
from ..models.flow_head import FlowHead
from ..models.model import Draws, Dynamics, Model, draw
from ..utils.devices import to_device
from .config import TrainingConfig
from .forecasts import ForecastTask, first_noise, scored
from .ranks import ALONE, Rank
from .wave_score import WaveScore

# Noises of a token: its condition costs more than many velocities.
NOISES = 16
# Validation: as many batches, with noise that never changes.
VALIDATION_BATCHES = 8


class FirstFrame(nn.Module):
    """The dynamics, of which the velocity of the flow head is trained; ``forward`` is the flow loss of frame 0."""

    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        self.dynamics = dynamics
        dynamics.requires_grad_(False)
        self._flow().velocity.requires_grad_(True)

    def _flow(self) -> FlowHead:
        assert self.dynamics.flow is not None
        return self.dynamics.flow

    def forward(self, z_BNC: Tensor, context_BTNC: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of the masked tokens, with the draws of :meth:`FirstFrameTask.draws`."""
        known_BRN = draws.known[0]
        with torch.no_grad():
            condition, z = self.conditions(z_BNC, context_BTNC, known_BRN)
        masked = ~known_BRN.flatten(0, 1)
        noise, times = (x[0].flatten(0, 1)[masked] for x in (draws.noise, draws.times))
        # The likelihood of the mean and scale is part of it, and has no gradient here.
        per_token, _ = self._flow().loss(z[masked], condition[masked], noise, times)
        loss = per_token.sum() / draws.masked
        return loss, {"flow": loss.detach()}

    def conditions(self, z_BNC: Tensor, context_BTNC: Tensor, known_BRN: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions ``[B R, N, D]`` of the tokens of frame 0, and these tokens ``[B R, N, C]``."""
        R, h_BND = known_BRN.shape[1], start_of(self.dynamics, context_BTNC, z_BNC)
        z, h = (x.repeat_interleave(R, 0) for x in (z_BNC, h_BND))
        return self.dynamics.spatial(h, z, known_BRN.flatten(0, 1)), z


class FirstHead(nn.Module):
    """The dynamics, of which the head of frame 0 is trained; ``forward`` is the score of what it makes."""

    def __init__(self, dynamics: Dynamics, score: WaveScore) -> None:
        super().__init__()
        assert dynamics.first is not None
        self.dynamics, self.score = dynamics, score
        dynamics.requires_grad_(False)
        dynamics.first.requires_grad_(True)

    def forward(self, z_BNC: Tensor, context_BTNC: Tensor, noise_BKNC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Score of K members of each frame 0, one for each noise."""
        with torch.no_grad():
            h_BND = start_of(self.dynamics, context_BTNC, z_BNC)
        loss = scored(self.dynamics, self.score, h_BND, z_BNC, noise_BKNC)
        return loss, {"score": loss.detach()}


def start_of(dynamics: Dynamics, context_BTNC: Tensor, z_BNC: Tensor) -> Tensor:
    """What the causal transformer has read before frame 0, ``[B, N, D]``."""
    # With frame 0 behind it the start is computed as in forecasts.
    return dynamics.temporal.read([context_BTNC, z_BNC[:, None]])[:, -2]


class FirstFrameTask(ForecastTask):
    """The data of :class:`ForecastTask`, of which frame 0 is the target."""

    def __init__(self, model: Model, config: TrainingConfig, **data: Any) -> None:
        if model.config.dynamics.decoder != "one-pass":
            raise EnmaError(
                f"{model.config.name}: its decoder is {model.config.dynamics.decoder}, whose flow draws every frame; "
                "train it on whole forecasts"
            )
        super().__init__(model, config, **data)
        if self.val_contexts is None or self.groups.shape[1] < 2:
            raise EnmaError("training data: frame 0 needs a context, and every environment two or more trajectories")
        self.contexts = self.val_contexts
        self.module = (
            FirstFrame(model.dynamics) if self.first_score is None else FirstHead(model.dynamics, self.first_score)
        )

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss or score of frame 0 of a batch, given another trajectory of the same environment."""
        mine = rank.share(self.config.batch)
        (context, target), _ = self._tokens(generator, mine, paired=True, frames=1)
        return module(target[:, 0], context, self._drawn(self.config.batch, generator, mine, rank.count, target.device))

    def _drawn(
        self, count: int, generator: torch.Generator, rows: slice, ranks: int, device: torch.device
    ) -> Draws | Tensor:
        """The random numbers of these rows of so many."""
        if self.first_score is not None:
            return to_device(first_noise(self.model.config, count, self.options.first_draws, generator)[rows], device)
        return self.draws(count, generator).share(rows, ranks=ranks, device=device)

    def draws(self, count: int, generator: torch.Generator) -> Draws:
        """Known tokens ``[B, R, N]``, noise ``[B, R, N, S, C]`` and flow times ``[B, R, N, S, 1]`` of one segment."""
        return draw(
            self.model.config,
            [(count, self.options.first_draws)],
            flow=replace(self.model.config.dynamics.flow, draws=NOISES),
            # The mask steps of a forecast meet every number of known tokens.
            mask_ratio=(0.0, 1.0),
            generator=generator,
        )

    def merit(self, scores: dict[str, float]) -> float:
        """Loss of frame 0."""
        return scores["flow" if self.first_score is None else "score"]

    @torch.no_grad()
    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Flow loss or score of frame 0 of the validation trajectories, by the first rank."""
        if rank.index:
            return {}
        generator, device = torch.Generator().manual_seed(0), next(self.module.parameters()).device
        target = self.model.encode(self.val[:, :1].to(device)).float()[:, 0]
        context, whole = self.model.encode(self.contexts.to(device)).float(), slice(len(target))
        losses = [
            self.module(target, context, self._drawn(len(target), generator, whole, 1, device))[0]
            for _ in range(VALIDATION_BATCHES)
        ]
        return {"flow" if self.first_score is None else "score": torch.stack(losses).mean().item()}
