"""Train the dynamics on latent frames that are computed once.

Legend: S sub-token shifts, B batch, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..config_checks import require
from ..data import FieldFile
from ..data.selection import share_of
from ..errors import EnmaError
from ..models.model import Model, draw
from ..models.patches import patchify
from ..utils.devices import to_device
from .augment import (
    Augmentation,
    Boost,
    CutContexts,
    Scattered,
    Shift,
    Strides,
    check_augmentations,
    found,
    random_shifts,
    roll,
)
from .latents import Latents, encode_all
from .ranks import ALONE, Rank
from .rollouts import environments, rollout_scores
from .sensitivity import channel_weights
from .stage import Material, Stage, Task

LATENTS = "latents-train-{}.safetensors"


@dataclass(frozen=True, kw_only=True)
class DynamicsStage(Stage):
    """Train the dynamics on single frames.

    Attributes
    ----------
    mask_ratio : least and largest share of masked tokens, drawn uniformly for each frame
    draws : noises of a token
    context_share : of the batches that hold two trajectories of one environment: a context, then the target
    encoded_shifts : shifts by less than a token at which latents are encoded; None: all
    by_flow : a one-pass model is trained with the flow in place of its own decoder. The flow trains the transformers,
        and one pass begins from its mean.
    """

    kind: str = "dynamics"
    mask_ratio: tuple[float, float] = (0.0, 1.0)
    draws: int = 2
    context_share: float = 0.5
    encoded_shifts: int | None = None
    by_flow: bool = False

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = (Shift, Boost, Strides, CutContexts, Scattered)
    validated: ClassVar[int] = 48
    validate_every: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        place = "dynamics: "
        require(self, ("context_share",), lambda x: 0 <= x <= 1, "a number from 0 to 1 is needed", place)
        needed = "two numbers from 0 to 1, the smaller first, are needed"
        require(self, ("mask_ratio",), lambda x: 0 <= x[0] <= x[1] <= 1, needed, place)
        require(self, ("encoded_shifts",), lambda n: n is None or n >= 1, "at least 1 is needed, or none", place)

    def config(self, model: ModelConfig) -> ModelConfig:
        model = with_contexts(self, model)
        if self.by_flow:
            model = replace(model, initial=None, step=model.decoders[model.slot(0)])
        return model

    def task(self, model: Model, material: Material) -> DynamicsTask:
        strides = found(self.augment, Strides)
        latents = {n: self._latents(model, material, n) for n in {1, *(strides.steps if strides else ())}}
        return DynamicsTask(model, self, latents=latents, val=material.val, val_contexts=material.val_contexts)

    def _latents(self, model: Model, material: Material, stride: int) -> Latents:
        """Latents of every `stride`-th frame of the training data, from the stage's folder if they are there."""
        path = material.folder / LATENTS.format(stride)

        def encode() -> None:
            if path.exists():
                return
            data = material.train()
            environment_of(data)
            check_augmentations(self.augment, data, model.config, stage=self.kind, known=self.augmentations)
            if (boost := found(self.augment, Boost)) is not None:
                data = boost.with_copies(data, model.config, seed=material.seed)
            fields = torch.from_numpy(data.u)[:, ::stride]
            if stride > 1:
                # At the same place of whole trajectories latent frames are full.
                fields = fields[:, : model.config.codec.whole_frames(fields.shape[1])]
            material.tell("encoding %d trajectories of %d frames", *fields.shape[:2])
            encode_all(
                model.codec,
                fields,
                environment_of(data),
                shift=found(self.augment, Shift) is not None,
                most_shifts=self.encoded_shifts,
                scattered=found(self.augment, Scattered),
                seed=material.seed,
            ).save(path)

        material.rank.by_first(encode)
        return Latents.load(path)


def with_contexts(stage: Stage, model: ModelConfig) -> ModelConfig:
    """The config with the shortest contexts that a stage shows, which are whole ones unless it cuts some."""
    cut = found(stage.augment, CutContexts) if stage.context_share else None
    return replace(model, shortest_context=None if cut is None else min(cut.shortest, model.num_frames))


def environment_of(data: FieldFile) -> Tensor:
    """The environment of each trajectory; `EnmaError` if the file does not say it."""
    if data.environment is None:
        raise EnmaError(f"{data.path}: lacks scalars/environment; add one integer per trajectory that names its group")
    return torch.from_numpy(data.environment)


class DynamicsTask(Task):
    """Training latents by stride, those of every frame among them, and validation fields ``[n, T, *grid, c]``."""

    def __init__(
        self,
        model: Model,
        stage: DynamicsStage,
        *,
        latents: Mapping[int, Latents],
        val: Tensor,
        val_contexts: Tensor | None,
        members: int = 8,
    ) -> None:
        self.model, self.stage = model, stage
        # All are standardised like those of every frame.
        self.train, self.by_stride = latents[1], latents
        self.module: nn.Module = model.dynamics.requires_grad_(True)
        self.val, self.val_contexts, self.members = val, val_contexts, members
        self.shift, self.cut = found(stage.augment, Shift), found(stage.augment, CutContexts)
        self.scattered, self.strides = found(stage.augment, Scattered), found(stage.augment, Strides)
        model.latent_mean.copy_(self.train.mean)
        model.latent_std.copy_(self.train.std)
        model.dynamics.score_weight.copy_(channel_weights(model, self.train.z[0]))
        self.groups = environments(self.train.environment, paired=stage.context_share > 0)

    def loss(
        self, module: Callable[..., object], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of single trajectories, or of context and target pairs of one environment."""
        stage, model = self.stage, self.model
        # Both sizes of batch at the first step, not when the first pairs are drawn.
        for rows in [stage.batch, stage.batch // 2][: 1 + (stage.context_share > 0)]:
            rank.share(rows)
        paired = torch.rand((), generator=generator).item() < stage.context_share
        rows = stage.batch // 2 if paired else stage.batch
        environment = torch.randint(len(self.groups), (rows,), generator=generator)
        members = torch.rand(rows, self.groups.shape[1], generator=generator).argsort(-1)[:, : 1 + paired]
        latents = self.by_stride[1 if self.strides is None else self.strides.drawn(generator)]
        lengths = [latents.z.shape[2]]
        if paired:
            context = lengths[0]
            if self.cut is not None:
                least = model.config.codec.whole_latents(self.cut.shortest)
                context = self.cut.drawn(context, generator, least=least)
            lengths = [context, *lengths]
        segments, shapes = [], [(rows, length) for length in lengths]
        for i, length in enumerate(lengths):
            segments.append(self._segment(latents, self.groups[environment, members[:, i]], length, generator))
        seen = None if self.scattered is None else self._scattered_frames(self.scattered, rows, lengths, generator)
        draws = draw(
            model.config,
            shapes,
            draws=stage.draws,
            mask_ratio=stage.mask_ratio,
            generator=generator,
        )
        if seen is not None:
            for history, segment, frames in zip(draws.history, segments, seen, strict=True):
                history += frames[..., None, None] * (segment[1] - segment[0])
        mine, device = rank.share(rows), next(self.module.parameters()).device
        given = [to_device(s[0, mine], device) for s in segments]
        return module(given, draws.share(mine, ranks=rank.count, device=device))  # type: ignore[return-value]

    def _segment(self, latents: Latents, rows: Tensor, length: int, generator: torch.Generator) -> Tensor:
        """Standardised tokens of the first frames, each trajectory at a random place of a ring, ``[1, B, T, N, C]``.

        Where the latents have been made from scattered points too, these are ``[1]`` of ``[2, B, T, N, C]``.
        """
        options = self.model.config.codec
        sub = torch.randint(latents.z.shape[0], rows.shape, generator=generator)
        # Widened first: under autocast a CPU concatenates no fp16.
        z = torch.cat([x[sub, rows, :length].float() for x in (latents.z, latents.scattered) if x is not None])
        z = (z - self.train.mean) / self.train.std
        if self.shift is not None:
            shifts = random_shifts(options.token_grid, options.periodic, len(rows), generator)
            shifts = [s.repeat(len(z) // len(rows)) for s in shifts]
            z = roll(z.unflatten(2, options.token_grid), shifts).flatten(2, -2)
        return patchify(z, options.token_grid, self.model.config.context.patch).unflatten(0, (-1, len(rows)))

    def _scattered_frames(
        self, scattered: Scattered, count: int, lengths: list[int], generator: torch.Generator
    ) -> list[Tensor]:
        """Which latent frames are those of scattered points, ``[B, T]`` of each segment, the last one the target.

        All of a context, and of a target the first few, whose number is drawn log-uniformly: what follows them in a
        forecast are frames of the model's own, which look like whole ones.
        """
        at_points = torch.rand(count, 1, generator=generator) < scattered.share
        observed = (lengths[-1] ** torch.rand(count, 1, generator=generator)).floor()
        *contexts, target = (torch.arange(length) for length in lengths)
        return [*(at_points.expand(-1, len(context)) for context in contexts), at_points & (target < observed)]

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts, those from few points among them."""
        return scores["rel_l2"] + sum(scores.get(f"rel_l2{name}", 0.0) for name in ("_ivp", "_points"))

    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts; `_points` where the training has scattered points, from as few as it shows."""
        points = None
        if self.scattered is not None:
            points = share_of(math.prod(self.model.config.codec.grid), self.scattered.fewest)
        return rollout_scores(self.model, self.val, self.val_contexts, members=self.members, points=points, rank=rank)
