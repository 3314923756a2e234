"""Train what draws frame 0 of a generated trajectory, with all other weights of a one-pass model held.

Every other frame of a one-pass model is read off, so the velocity of the flow head has frame 0 alone to draw, and a
batch can take many masks and many noises of it where whole forecasts take few.

Legend: B trajectories, R masks, N tokens per frame, C token channels, S noises of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import EnmaError
from ..models.decoders.decoder import Draws
from ..models.model import Dynamics, Model, SegmentDraws, draw
from .augment import Augmentation
from .forecasts import FIELD_AUGMENTATIONS, FIRST_DRAWS, ForecastTask
from .ranks import ALONE, Rank
from .stage import Material, Stage

# Noises of a token: its condition costs more than many velocities.
NOISES = 16
# Validation: as many batches, with noise that never changes.
VALIDATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class FirstFrameStage(Stage):
    """Train the flow that draws frame 0 of a generated trajectory, which always has a context."""

    kind: str = "first-frame"

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = FIELD_AUGMENTATIONS
    forecasts: ClassVar[bool] = False

    @property
    def context_share(self) -> float:
        return 1.0

    def check_frames(self, latents: int) -> None:
        """Frame 0 is always there."""

    def task(self, model: Model, material: Material) -> FirstFrameTask:
        return FirstFrameTask(model, self, train=material.train(), val=material.val, val_contexts=material.val_contexts)


class FirstFrame(nn.Module):
    """The dynamics, of which the velocity of the flow head is trained; ``forward`` is the flow loss of frame 0."""

    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        self.dynamics = dynamics
        dynamics.requires_grad_(False)
        for weight in dynamics.first_weights():
            weight.requires_grad_(True)

    def forward(self, z_BNC: Tensor, context_BTNC: Tensor, draws: SegmentDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of the masked tokens, with the draws of :meth:`FirstFrameTask.draws`."""
        known, noise, times = (x[0].flatten(0, 1) for x in (draws.known, draws.noise, draws.times))
        with torch.no_grad():
            h_BND = self.start(z_BNC, context_BTNC)
        z, h = (x.repeat_interleave(draws.known[0].shape[1], 0) for x in (z_BNC, h_BND))
        decoder = self.dynamics.decoder(self.dynamics.config.slot(0))
        loss = decoder.last_loss(h, z, Draws(noise, times, known, draws.masked, self.dynamics.score_weight))
        return loss, {"flow": loss.detach()}

    def start(self, z_BNC: Tensor, context_BTNC: Tensor) -> Tensor:
        """What the context says of frame 0, ``[B, N, D]``."""
        # With frame 0 behind it the start is computed as in forecasts.
        return self.dynamics.context.read([context_BTNC, z_BNC[:, None]])[:, -2]


class FirstFrameTask(ForecastTask):
    """The data of :class:`ForecastTask`, of which frame 0 is the target."""

    def __init__(self, model: Model, stage: FirstFrameStage, **data: Any) -> None:
        super().__init__(model, stage, **data)
        if self.val_contexts is None or self.groups.shape[1] < 2:
            raise EnmaError("training data: frame 0 needs a context, and every environment two or more trajectories")
        self.contexts = self.val_contexts

    def _module(self) -> nn.Module:
        if not self.model.dynamics.first_weights():
            name = self.model.config.name
            raise EnmaError(f"stage first-frame: {name} has no flow for frame 0 alone; leave the stage out")
        return FirstFrame(self.model.dynamics)

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of frame 0 of a batch, given another trajectory of the same environment."""
        mine = rank.share(self.stage.batch)
        (context, target), _ = self.tokens(generator, mine, paired=True, latents=1)
        draws = self.draws(self.stage.batch, generator).share(mine, ranks=rank.count, device=target.device)
        return module(target[:, 0], context, draws)

    def draws(self, count: int, generator: torch.Generator) -> SegmentDraws:
        """Known tokens ``[B, R, N]``, noise ``[B, R, N, S, C]`` and flow times ``[B, R, N, S, 1]`` of one segment."""
        return draw(
            self.model.config,
            [(count, FIRST_DRAWS)],
            draws=NOISES,
            # The mask steps of a forecast meet every number of known tokens.
            mask_ratio=(0.0, 1.0),
            generator=generator,
        )

    def merit(self, scores: dict[str, float]) -> float:
        """Loss of frame 0."""
        return scores["flow"]

    @torch.no_grad()
    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Flow loss of frame 0 of the validation trajectories, by the first rank."""
        if rank.index:
            return {}
        generator, device = torch.Generator().manual_seed(0), next(self.module.parameters()).device
        target = self.model.encode(self.val[:, :1].to(device)).float()[:, 0]
        context, whole = self.model.encode(self.contexts.to(device)).float(), slice(len(target))
        losses = [
            self.module(target, context, self.draws(len(target), generator).share(whole, ranks=1, device=device))[0]
            for _ in range(VALIDATION_BATCHES)
        ]
        return {"flow": torch.stack(losses).mean().item()}
