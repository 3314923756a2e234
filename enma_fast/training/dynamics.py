"""Train the dynamics on latent frames that are computed once.

Legend: S sub-token shifts, B batch, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TokenizerConfig
from ..data.selection import share_of
from ..errors import EnmaError
from ..evaluation.metrics import Scores
from ..forecasting.members import sample_fields
from ..forecasting.request import HISTORY
from ..forecasting.scattered import drawn_places
from ..models.checkpoint import read_tensors, write_tensors
from ..models.interpolation import grid_points
from ..models.model import Model, draw
from ..models.tokenizer import Tokenizer, patchify
from ..utils.devices import to_device
from .config import TrainingConfig
from .ranks import ALONE, Rank
from .sensitivity import channel_weights
from .tokenizer import random_shifts, roll


@dataclass(frozen=True)
class Latents:
    """Latent frames ``z [S, n, T, N, C]`` (fp16) of trajectories, for every shift by less than a token.

    ``scattered`` are those of the same fields observed at random points; mean and std are those of ``z`` alone.
    """

    z: Tensor
    environment: Tensor
    mean: Tensor
    std: Tensor
    scattered: Tensor | None = None

    def save(self, path: Path, mark: str) -> None:
        """Write to safetensors with a mark of all that they depend on: tokenizer, data, settings."""
        tensors = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        write_tensors(path, tensors, {"tokenizer": mark})

    @classmethod
    def load(cls, path: Path, mark: str) -> Latents:
        """Read back; refuses latents of another mark."""
        tensors, meta = read_tensors(path)
        if meta.get("tokenizer") != mark:
            raise EnmaError(f"{path}: made with another tokenizer, data or settings; delete it to have it made again")
        return cls(**tensors)


def sub_token_shifts(options: TokenizerConfig, *, shift: bool, most: int | None = None) -> list[tuple[int, ...]]:
    """Shifts by less than a token, in grid points of each dimension; none across walls. At most `most`, evenly spaced.

    On a plane those along the diagonal, which have every place of a token in either axis: all would be their square.
    """
    factor = options.space_factor if shift and any(options.periodic) else 1
    count = factor if most is None else min(most, factor)
    return [tuple(i * factor // count if ring else 0 for ring in options.periodic) for i in range(count)]


@torch.no_grad()
def encode_all(
    tokenizer: Tokenizer,
    u: Tensor,
    environment: Tensor,
    *,
    shift: bool,
    most_shifts: int | None = None,
    point_fraction: tuple[float, float] | None = None,
    seed: int = 0,
) -> Latents:
    """Encode trajectories ``[n, T, *grid, c]`` once, or for the shifts of :func:`sub_token_shifts`.

    With `point_fraction` each is encoded once more from such a share of its points, drawn by `seed`.
    """
    generator, options = torch.Generator().manual_seed(seed), tokenizer.config
    shifts = sub_token_shifts(options, shift=shift, most=most_shifts)
    shape = (len(shifts), len(u), options.latent_frames(u.shape[1]), math.prod(options.token_grid))
    z = torch.empty(*shape, options.latent_channels, dtype=torch.float16, device=u.device)
    scattered = None if point_fraction is None else torch.empty_like(z)
    sums = torch.zeros(2, options.latent_channels, dtype=torch.float64, device=u.device)
    # More at a time leave the cache of a core, and take 1.7 to 2.4 times as long (docs/experiments.md).
    batches = torch.arange(len(u)).split(16 if u.device.type == "cpu" else 256)
    for s, amounts in enumerate(shifts):
        for rows in batches:
            place = slice(int(rows[0]), int(rows[-1]) + 1)
            rolled = roll(u[place], [torch.full((len(rows),), a) for a in amounts])
            encoded = tokenizer.encode(rolled)
            z[s, place] = encoded
            flat = encoded.flatten(0, -2).double()
            sums += torch.stack([flat.sum(0), flat.square().sum(0)])
            if scattered is not None:
                assert point_fraction is not None
                scattered[s, place] = _encode_scattered(tokenizer, rolled, point_fraction, generator)
    count = z[..., 0].numel()
    mean, square = sums / count
    std = ((square - mean.square()).clamp_min(0) * count / (count - 1)).sqrt()
    return Latents(z, environment, mean.float(), std.float(), scattered)


def _encode_scattered(
    tokenizer: Tokenizer, u: Tensor, fraction: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Latent frames of fields ``[B, T, *grid, c]`` at random points, for half of them the same in all frames."""
    points, (B, T) = grid_points(tokenizer.config), u.shape[:2]
    low, high = fraction
    share = low + (high - low) * torch.rand(B, 1, 1, generator=generator)
    count = (share * len(points)).round().clamp(1, len(points))
    order = torch.rand(B, T, len(points), generator=generator)
    order = torch.where(torch.rand(B, 1, 1, generator=generator) < 0.5, order, order[:, :1])
    index = order.argsort(-1)[..., : int(count.max())]
    valid = (torch.arange(index.shape[-1]) < count).expand_as(index)
    return tokenizer.encode(_values_at(u, index), points[index].to(u.device), valid.to(u.device))


def _values_at(u: Tensor, places: Tensor) -> Tensor:
    """Values ``[B, T, P, c]`` of fields ``[B, T, *grid, c]`` at grid points by number, ``[B, T, P]``."""
    return u.flatten(2, -2).gather(2, places[..., None].expand(*places.shape, u.shape[-1]).to(u.device))


class DynamicsTask:
    """Training latents, by stride those of every n-th frame too, and validation fields ``[n, T, *grid, c]``."""

    def __init__(
        self,
        model: Model,
        config: TrainingConfig,
        *,
        train: Latents,
        val: Tensor,
        val_contexts: Tensor | None,
        members: int = 8,
        by_stride: Mapping[int, Latents] | None = None,
    ) -> None:
        self.model, self.config, self.train = model, config, train
        # All are standardised like those of every frame.
        self.by_stride = {1: train, **(by_stride or {})}
        self.module: nn.Module = model.dynamics
        self.val, self.val_contexts, self.members = val, val_contexts, members
        model.latent_mean.copy_(train.mean)
        model.latent_std.copy_(train.std)
        if model.config.dynamics.decoder == "one-pass":
            model.dynamics.score_weight.copy_(channel_weights(model, train.z[0]))
        self.groups = environments(train.environment, paired=config.context_share > 0)
        if missing := set(config.strides) - set(self.by_stride):
            raise ValueError(f"by_stride: lacks the latents of stride {min(missing)}")
        if any((x.scattered is None) != (config.scattered_share == 0) for x in self.by_stride.values()):
            raise ValueError("train, by_stride: need latents of scattered points exactly if scattered_share is above 0")

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
        latents = self._latents(generator)
        lengths = [latents.z.shape[2]]
        if paired:
            least = model.config.tokenizer.whole_latents(config.shortest_context)
            lengths = [drawn_context(config, lengths[0], generator, least=least), *lengths]
        segments, shapes = [], [(rows, length) for length in lengths]
        for i, length in enumerate(lengths):
            segments.append(self._segment(latents, self.groups[environment, members[:, i]], length, generator))
        seen = self._scattered_frames(rows, lengths, generator) if config.scattered_share else None
        draws = draw(
            model.config,
            shapes,
            flow=model.config.dynamics.flow,
            mask_ratio=config.mask_ratio,
            generator=generator,
        )
        if seen is not None:
            for history, segment, frames in zip(draws.history, segments, seen, strict=True):
                history += frames[..., None, None] * (segment[1] - segment[0])
        mine, device = rank.share(rows), next(self.module.parameters()).device
        given = [to_device(s[0, mine], device) for s in segments]
        return module(given, draws.share(mine, ranks=rank.count, device=device))

    def _latents(self, generator: torch.Generator) -> Latents:
        """Those of one of the strides."""
        strides = self.config.strides
        drawn = int(torch.randint(len(strides), (), generator=generator)) if len(strides) > 1 else 0
        return self.by_stride[strides[drawn]]

    def _segment(self, latents: Latents, rows: Tensor, length: int, generator: torch.Generator) -> Tensor:
        """Standardised tokens of the first frames, each trajectory at a random place of a ring, ``[1, B, T, N, C]``.

        Where the latents have been made from scattered points too, these are ``[1]`` of ``[2, B, T, N, C]``.
        """
        options = self.model.config.tokenizer
        sub = torch.randint(latents.z.shape[0], rows.shape, generator=generator)
        # Widened first: under autocast a CPU concatenates no fp16.
        z = torch.cat([x[sub, rows, :length].float() for x in (latents.z, latents.scattered) if x is not None])
        z = (z - self.train.mean) / self.train.std
        if self.config.shift:
            shifts = random_shifts(options.token_grid, options.periodic, len(rows), generator)
            shifts = [s.repeat(len(z) // len(rows)) for s in shifts]
            z = roll(z.unflatten(2, options.token_grid), shifts).flatten(2, -2)
        return patchify(z, options.token_grid, self.model.config.dynamics.patch).unflatten(0, (-1, len(rows)))

    def _scattered_frames(self, count: int, lengths: list[int], generator: torch.Generator) -> list[Tensor]:
        """Which latent frames are those of scattered points, ``[B, T]`` of each segment, the last one the target.

        All of a context, and of a target the first few, whose number is drawn log-uniformly: what follows them in a
        forecast are frames of the model's own, which look like whole ones.
        """
        scattered = torch.rand(count, 1, generator=generator) < self.config.scattered_share
        observed = (lengths[-1] ** torch.rand(count, 1, generator=generator)).floor()
        *contexts, target = (torch.arange(length) for length in lengths)
        return [*(scattered.expand(-1, len(context)) for context in contexts), scattered & (target < observed)]

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts, those from few points among them."""
        return scores["rel_l2"] + sum(scores.get(f"rel_l2{name}", 0.0) for name in ("_ivp", "_points"))

    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts; `_points` where the training has scattered points, from as few as it shows."""
        points = None
        if self.config.scattered_share:
            points = share_of(math.prod(self.model.config.tokenizer.grid), self.config.point_fraction[0])
        return rollout_scores(self.model, self.val, self.val_contexts, members=self.members, points=points, rank=rank)


def drawn_context(config: TrainingConfig, frames: int, generator: torch.Generator, *, least: int) -> int:
    """How many frames of a context, of so many and at least some of them, a batch sees."""
    if not config.short_context_share or torch.rand((), generator=generator).item() >= config.short_context_share:
        return frames
    return int(torch.randint(min(least, frames), frames + 1, (), generator=generator))


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


def rollout_scores(
    model: Model,
    val: Tensor,
    contexts: Tensor | None,
    *,
    members: int,
    points: int | None = None,
    rank: Rank = ALONE,
) -> dict[str, float]:
    """Scores of standardised forecasts from 3 frames and, given contexts, from 1 frame and a context (``_ivp``).

    ``val`` and ``contexts`` are fields ``[n, T, *grid, c]``. Given a number of ``points``, also of those from 3 frames
    each seen at so many points of its own (``_points``). Scores of forecasts that are not finite are NaN. Each rank
    makes forecasts of a part of the trajectories; the first one scores all of them, and the others return nothing.
    """
    names = ("rel_l2", "rel_l2_member", "spread_skill", "crps")
    out: dict[str, float] = {}
    standardised = model.tokenizer.standardised
    inputs: dict[str, dict[str, Any]] = {"": {"history": val[:, :HISTORY]}}
    if contexts is not None:
        inputs["_ivp"] = {"history": val[:, :1], "context": contexts}
    if points is not None:
        inputs["_points"] = _at_points(model, val[:, :HISTORY], points)
    mine = rank.part(len(val))
    for name, given in inputs.items():
        forecast = torch.empty(0)
        if mine.start < mine.stop:
            part = {key: value[mine] for key, value in given.items()}
            forecast = sample_fields(
                model, **part, trajectories=range(mine.start, mine.stop), num_members=members, seed=0
            )
        samples = rank.gathered(forecast)
        if samples is None:
            continue
        if not torch.isfinite(samples).all():
            out |= {f"{key}{name}": math.nan for key in names}
            continue
        scores = Scores()
        device = model.tokenizer.from_latent.weight.device
        truth = val[:, given["history"].shape[1] :]
        scores.update(*(standardised(u.to(device)).cpu().numpy() for u in (samples, truth)))
        result = scores.result()
        out |= {f"{key}{name}": float(result[key]) for key in names}
    return out


def _at_points(model: Model, u: Tensor, count: int) -> dict[str, Tensor]:
    """Observations ``[n, L, P, c]`` of fields, at ``count`` points of the grid that each frame has for itself."""
    tokenizer = model.config.tokenizer
    drawn = drawn_places(tokenizer.grid, range(len(u)), count=count, num_frames=u.shape[1], seed=0)
    places = torch.from_numpy(drawn)
    return {"history": _values_at(u, places), "points": grid_points(tokenizer)[places]}
