"""Train the dynamics on latent frames that are computed once.

Legend: S sub-token shifts, B batch, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TokenizerConfig, TrainingConfig
from ..errors import EnmaError
from ..evaluation.metrics import Scores
from ..forecasting.members import sample_fields
from ..models.checkpoint import read_tensors, write_tensors
from ..models.model import Model, draw
from ..models.tokenizer import Tokenizer, patchify
from .loop import Rank
from .sensitivity import channel_weights
from .tokenizer import random_shifts, roll

# Observed frames of the forecasts of a validation.
HISTORY = 3


@dataclass(frozen=True)
class Latents:
    """Latent frames ``z [S, n, T, N, C]`` (fp16) of trajectories, for every shift by less than a token."""

    z: Tensor
    environment: Tensor
    mean: Tensor
    std: Tensor

    def save(self, path: Path, tokenizer_hash: str) -> None:
        """Write to safetensors, marked with the hash of the tokenizer."""
        write_tensors(path, vars(self), {"tokenizer": tokenizer_hash})

    @classmethod
    def load(cls, path: Path, tokenizer_hash: str) -> Latents:
        """Read back; refuses latents of another tokenizer."""
        tensors, meta = read_tensors(path)
        if meta.get("tokenizer") != tokenizer_hash:
            raise EnmaError(f"{path}: made by another tokenizer; delete it to have it made again")
        return cls(**tensors)


def sub_token_shifts(options: TokenizerConfig, *, shift: bool) -> list[tuple[int, ...]]:
    """Shifts by less than a token, in grid points of each dimension; none across walls.

    On a plane those along the diagonal, which have every place of a token in either axis: all would be their square.
    """
    factor = options.space_factor if shift and any(options.periodic) else 1
    return [tuple(amount if ring else 0 for ring in options.periodic) for amount in range(factor)]


@torch.no_grad()
def encode_all(tokenizer: Tokenizer, u: Tensor, environment: Tensor, *, shift: bool) -> Latents:
    """Encode trajectories ``[n, T, *grid, c]`` once, or for every shift of :func:`sub_token_shifts`."""
    shifted = []
    # More at a time leave the cache of a core, and take 1.7 to 2.4 times as long (docs/experiments.md).
    batches = u.split(16 if u.device.type == "cpu" else 256)
    for amounts in sub_token_shifts(tokenizer.config, shift=shift):
        parts = [tokenizer.encode(roll(part, [torch.full((len(part),), a) for a in amounts])) for part in batches]
        shifted.append(torch.cat(parts))
    z = torch.stack(shifted)
    flat = z.flatten(0, -2)
    return Latents(z.half(), environment, flat.mean(0), flat.std(0))


class DynamicsTask:
    """Training latents, and validation fields ``[n, T, *grid, c]`` with their environments."""

    def __init__(
        self,
        model: Model,
        config: TrainingConfig,
        *,
        train: Latents,
        val: Tensor,
        val_contexts: Tensor | None,
        members: int = 8,
    ) -> None:
        self.model, self.config, self.train = model, config, train
        self.module: nn.Module = model.dynamics
        self.val, self.val_contexts, self.members = val, val_contexts, members
        model.latent_mean.copy_(train.mean)
        model.latent_std.copy_(train.std)
        if model.config.dynamics.decoder == "one-pass":
            model.dynamics.score_weight.copy_(channel_weights(model, train.z[0]))
        self.groups = environments(train.environment, paired=config.context_share > 0)

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss of a batch of single trajectories, or of context and target pairs of one environment."""
        config, model = self.config, self.model
        # Both sizes of batch at the first step, not when the first pairs are drawn.
        for rows in [config.batch, config.batch // 2][: 1 + (config.context_share > 0)]:
            rank.share(rows)
        paired = torch.rand((), generator=generator).item() < config.context_share
        rows = config.batch // 2 if paired else config.batch
        environment = torch.randint(len(self.groups), (rows,), generator=generator)
        members = torch.rand(rows, self.groups.shape[1], generator=generator).argsort(-1)[:, : 1 + paired]
        T = self.train.z.shape[2]
        segments, shapes = [], [(rows, T)] * (1 + paired)
        for i in range(1 + paired):
            segments.append(self._segment(self.groups[environment, members[:, i]], generator))
        draws = draw(
            model.config,
            shapes,
            flow=model.config.dynamics.flow,
            mask_ratio=config.mask_ratio,
            history_noise=config.history_noise,
            history_noise_share=config.history_noise_share,
            generator=generator,
        )
        mine, device = rank.share(rows), next(self.module.parameters()).device
        return module([s[mine].to(device) for s in segments], draws.share(mine, ranks=rank.count, device=device))

    def _segment(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Standardised tokens of trajectories, each at a random place of the periodic domain."""
        options = self.model.config.tokenizer
        sub = torch.randint(self.train.z.shape[0], rows.shape, generator=generator)
        z = (self.train.z[sub, rows].float() - self.train.mean) / self.train.std
        if self.config.shift:
            shifts = random_shifts(options.token_grid, options.periodic, len(rows), generator)
            z = roll(z.unflatten(2, options.token_grid), shifts).flatten(2, -2)
        return patchify(z, options.token_grid, self.model.config.dynamics.patch)

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts."""
        return scores["rel_l2"] + scores.get("rel_l2_ivp", 0.0)

    def validate(self, averaged: nn.Module) -> dict[str, float]:
        """Scores of forecasts."""
        return rollout_scores(self.model, self.val, self.val_contexts, members=self.members)


def environments(numbers: Tensor, *, paired: bool = True) -> Tensor:
    """Rows of trajectories that share an environment, ``[groups, trajectories]``, from the environment of each row.

    Where all environments have the same number of trajectories they are the groups. Otherwise each trajectory begins a
    group, of the trajectories that follow it cyclically in its environment, as many as the smallest environment has.

    Raises
    ------
    EnmaError
        If contexts are asked for by ``paired`` and an environment has one trajectory only.
    """
    _, inverse, counts = numbers.unique(return_inverse=True, return_counts=True)
    fewest = int(counts.min())
    if paired and fewest < 2:
        raise EnmaError("training data: every environment needs two or more trajectories, or set context_share=0")
    order = inverse.argsort(stable=True)
    if fewest == counts.max():
        return order.view(len(counts), -1)
    parts = [torch.stack([rows.roll(-i) for i in range(fewest)], 1) for rows in order.split(counts.tolist())]
    return torch.cat(parts)


def rollout_scores(model: Model, val: Tensor, contexts: Tensor | None, *, members: int) -> dict[str, float]:
    """Scores of standardised forecasts from 3 frames and, given contexts, from 1 frame and a context (``_ivp``).

    ``val`` and ``contexts`` are fields ``[n, T, *grid, c]``. Scores of forecasts that are not finite are NaN.
    """
    names = ("rel_l2", "rel_l2_member", "spread_skill", "crps")
    out: dict[str, float] = {}
    standardised = model.tokenizer.standardised
    for name, history, context in (("", HISTORY, None), ("_ivp", 1, contexts)):
        if name and contexts is None:
            continue
        samples = sample_fields(model, val[:, :history], context=context, num_members=members, seed=0)
        if not torch.isfinite(samples).all():
            out |= {f"{key}{name}": math.nan for key in names}
            continue
        scores = Scores()
        truth = standardised(val[:, history:].to(samples.device))
        scores.update(standardised(samples).cpu().numpy(), truth.cpu().numpy())
        result = scores.result()
        out |= {f"{key}{name}": float(result[key]) for key in names}
    return out
