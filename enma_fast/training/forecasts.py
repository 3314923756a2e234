"""Train the dynamics on whole forecasts: members rolled out to the end of a trajectory, scored by a proper score.

A loss of one frame does not see an error of a few tenths of a percent that is the same in every frame; that of a whole
forecast does. The fair CRPS is least, in expectation, for members that are draws from the truth's own distribution.

Legend: B trajectories, K members, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig, SamplingConfig
from ..config_checks import require
from ..data import FieldFile
from ..errors import EnmaError
from ..models.decoders.decoder import Draws, first_past
from ..models.fair_score import fair_score
from ..models.model import Dynamics, Model, SegmentDraws, draw
from ..sampling.rollout import rollout
from ..utils.devices import to_device
from .augment import (
    Amplitude,
    Augmentation,
    Batch,
    Boost,
    CutContexts,
    Damping,
    Emphasis,
    LateStart,
    Mirror,
    Shift,
    Strides,
    check_augmentations,
    drawn,
    found,
)
from .dynamics import environment_of, with_contexts
from .ranks import ALONE, Rank
from .rollouts import environments, rollout_scores
from .sensitivity import TRAJECTORIES, channel_weights
from .stage import Material, Stage, Task

# The scores that choose the best weights, each in units of what is a good one.
MERIT = {"rel_l2": 0.01, "crps": 0.002, "rel_l2_ivp": 0.02, "crps_ivp": 0.004}
# Members of a forecast of the training: as few as have a spread.
MEMBERS = 2
# A trajectory has the weight 1 / (rms + floor), relative to that of a usual rms, and at most so much, where rms is the
# amplitude of its standardised fields: relative errors count, except those of fields that have decayed.
_FLOOR, _USUAL, _MOST = 0.03, 0.3, 6.0
# Masks of frame 0 for each trajectory, the share of tokens that they hide, and noises of a token.
FIRST_DRAWS, _MASK_RATIO, _NOISES = 8, (0.75, 1.0), 2
FIELD_AUGMENTATIONS: tuple[type[Augmentation], ...] = (
    Amplitude,
    Boost,
    LateStart,
    Strides,
    Mirror,
    Damping,
    CutContexts,
    Shift,
    Emphasis,
)


@dataclass(frozen=True, kw_only=True)
class RolloutStage(Stage):
    """Base of the stages that roll out latent frames.

    Attributes
    ----------
    history : least and most latent frames that are observed, between which their number is drawn
    frames : latent frames that are forecast; None: all to the end of the trajectory
    """

    history: tuple[int, int] = (2, 4)
    frames: int | None = None

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = FIELD_AUGMENTATIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        place, needed = f"{self.kind}: ", "two numbers from 1 on, the smaller first, are needed"
        require(self, ("history",), lambda n: 1 <= n[0] <= n[1], needed, place)
        require(self, ("frames",), lambda n: n is None or n >= 1, "at least 1 is needed, or none", place)

    def check_frames(self, latents: int) -> None:
        """Raise `EnmaError` unless trajectories of so many latent frames have those observed and rolled out."""
        if self.history[1] >= latents:
            raise EnmaError(
                f"{self.kind}: history is {list(self.history)}; a trajectory has {latents} latent frames, and one at "
                "least has to be left to forecast"
            )
        if self.frames is not None and self.frames > latents - 1:
            raise EnmaError(
                f"{self.kind}: frames is {self.frames}; a trajectory has {latents} latent frames, of which at most "
                f"{latents - 1} can be rolled out"
            )


@dataclass(frozen=True, kw_only=True)
class ForecastStage(RolloutStage):
    """Train the dynamics on whole forecasts.

    Attributes
    ----------
    context_share : of the batches that are observed for one frame and a context
    first_frame : weight of the flow loss of frame 0 given a context; needed only for generation
    """

    kind: str = "forecasts"
    context_share: float = 1 / 3
    first_frame: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        place = "forecasts: "
        require(self, ("context_share",), lambda x: 0 <= x <= 1, "a number from 0 to 1 is needed", place)
        require(self, ("first_frame",), lambda x: x >= 0, "0 or more is needed", place)

    def config(self, model: ModelConfig) -> ModelConfig:
        return with_contexts(self, model)

    def task(self, model: Model, material: Material) -> ForecastTask:
        return ForecastTask(model, self, train=material.train(), val=material.val, val_contexts=material.val_contexts)


class Forecasts(nn.Module):
    """The dynamics, with the loss of a batch of forecasts as ``forward``."""

    def __init__(self, dynamics: Dynamics, first_frame: float) -> None:
        super().__init__()
        self.dynamics, self.first_frame = dynamics, first_frame
        self.settings: SamplingConfig = dynamics.config.sampling

    def forward(
        self,
        z_BTNC: Tensor,
        context_BTNC: Tensor | None,
        weight_B: Tensor,
        seeds_BK: Tensor,
        members_BK: Tensor,
        history: int,
        num_frames: int,
        draws_0: SegmentDraws | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted score of forecasts of the latent frames ``[history, history + num_frames)``.

        With the draws ``draws_0`` the loss of frame 0 is added.
        """
        forecasts, h_BND = rollout(
            self.dynamics,
            z_BTNC[:, :history],
            num_frames=num_frames,
            seeds=seeds_BK,
            members=members_BK,
            context=context_BTNC,
            settings=self.settings,
        )
        truth = z_BTNC[:, history : history + num_frames]
        channels = self.dynamics.score_weight
        crps_B = scores(forecasts * channels, truth * channels)
        loss = (weight_B * crps_B).mean()
        terms = {"crps": crps_B.mean()}
        if draws_0 is not None:
            known, noise, times = (x[0].flatten(0, 1) for x in (draws_0.known, draws_0.noise, draws_0.times))
            z, h = (x.repeat_interleave(draws_0.known[0].shape[1], 0) for x in (z_BTNC[:, 0], h_BND))
            decoder = self.dynamics.decoder(self.dynamics.config.slot(0))
            draws = Draws(noise, times, known, draws_0.masked, channels)
            score, _ = decoder.loss(h, first_past(z[:, None][:, :0], decoder.past), z, draws)
            loss, terms["first_frame"] = loss + self.first_frame * score, score
        return loss, {name: value.detach() for name, value in terms.items()}


def scores(made_BKTNC: Tensor, truth_BTNC: Tensor) -> Tensor:
    """Fair CRPS of all channels, averaged, ``[B]``."""
    return fair_score(made_BKTNC, truth_BTNC, torch.abs).flatten(1).mean(1)


class ForecastTask(Task):
    """Training fields, and validation fields ``[n, T, *grid, c]`` with their contexts."""

    def __init__(
        self,
        model: Model,
        stage: Any,
        *,
        train: FieldFile,
        val: Tensor,
        val_contexts: Tensor | None,
        members: int = 8,
    ) -> None:
        check_augmentations(stage.augment, train, model.config, stage=stage.kind, known=stage.augmentations)
        self.model, self.stage, self.data = model, stage, train
        self.train, self.times = torch.from_numpy(train.u), torch.from_numpy(train.times)
        self.module: nn.Module = self._module()
        self.val, self.val_contexts, self.members = val, val_contexts, members
        self.groups = environments(environment_of(train), paired=stage.context_share > 0)
        emphasis = found(stage.augment, Emphasis)
        self.odds = None if emphasis is None else emphasis.odds(train)[self.groups[:, 0]]
        self.latents = model.config.codec.latent_frames(self.train.shape[1])
        stage.check_frames(self.latents)
        sample = self.train[:TRAJECTORIES].to(model.latent_std)
        with torch.no_grad():
            model.dynamics.score_weight.copy_(channel_weights(model, model.codec.encode(sample)))

    def _module(self) -> nn.Module:
        """What is trained, with the loss as ``forward``."""
        return Forecasts(self.model.dynamics.requires_grad_(True), self.stage.first_frame)

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score of a batch of forecasts, all with a context or all without."""
        stage, model = self.stage, self.model
        B = stage.batch
        mine = rank.share(B)
        paired = torch.rand((), generator=generator).item() < stage.context_share
        low, high = (1, 1) if paired else stage.history
        most = None if stage.frames is None else high + stage.frames
        tokens, weight = self.tokens(generator, mine, paired=paired, latents=most)
        device = tokens[0].device
        latents = tokens[-1].shape[1]
        history = drawn_history((low, high), latents, generator)
        left = latents - history if stage.frames is None else min(latents - history, stage.frames)
        seeds = torch.randint(2**32, (B, 1), generator=generator).expand(-1, MEMBERS)[mine]
        draws_0: SegmentDraws | None = None
        if paired and stage.first_frame and not model.draws_fields:
            draws = draw(
                model.config,
                [(B, FIRST_DRAWS)],
                draws=_NOISES,
                mask_ratio=_MASK_RATIO,
                generator=generator,
            )
            draws_0 = draws.share(mine, ranks=rank.count, device=device)
        return module(
            tokens[-1],
            tokens[0] if paired else None,
            weight,
            to_device(seeds, device),
            torch.arange(MEMBERS, device=device).expand_as(seeds),
            history,
            left,
            draws_0,
        )

    def tokens(
        self, generator: torch.Generator, mine: slice, *, paired: bool, latents: int | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Latent frames of this rank's part of a batch, ``[context, target]`` or ``[target]``, and their weights.

        With `latents`, of the target its first so many latent frames, and weights of the whole.
        """
        model, B = self.model, self.stage.batch
        environment = drawn(B, len(self.groups), self.odds, generator)
        chosen = torch.rand(B, self.groups.shape[1], generator=generator).argsort(-1)[:, : 1 + paired]
        rows = self.groups[environment[:, None], chosen][mine]
        segments = [self.train[rows[:, i]] for i in range(1 + paired)]
        parameters = [
            {name: values[rows[:, i].numpy()] for name, values in self.data.parameters.items()}
            for i in range(1 + paired)
        ]
        batch = Batch(model.config, segments, parameters, self.times, B, mine)
        for augmentation in self.stage.augment:
            augmentation(batch, generator)
        tokens, device = [], next(self.module.parameters()).device
        target = to_device(batch.fields[-1], device)
        rms = model.codec.standardised(target).square().flatten(1).mean(1).sqrt()
        weight = ((_USUAL + _FLOOR) / (rms + _FLOOR)).clamp(max=_MOST)
        if latents is not None:
            # Later frames change no latent frame before them.
            target = target[:, : 1 + (latents - 1) * model.config.codec.time_factor]
        for u in [*(to_device(u, device) for u in batch.fields[:-1]), target]:
            # Forecasts encode in full precision, whatever the steps multiply in.
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                tokens.append(model.encode(u))
        return tokens, weight

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts, of ensemble means and as distributions."""
        return sum(scores[name] / of for name, of in MERIT.items() if name in scores)

    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts, as those of the dynamics' training."""
        return rollout_scores(self.model, self.val, self.val_contexts, members=self.members, rank=rank)


def drawn_history(between: tuple[int, int], latents: int, generator: torch.Generator) -> int:
    """How many of so many latent frames a batch observes, of which one at least is left."""
    low, high = (min(count, latents - 1) for count in between)
    return int(torch.randint(low, high + 1, (), generator=generator))
