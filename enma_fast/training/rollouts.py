"""Trajectories of the training by environment, and the scores of forecasts that choose the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.drivers import rows_of
from ..errors import EnmaError
from ..evaluation.metrics import Scores
from ..forecasting.members import sample_fields
from ..forecasting.request import HISTORY
from ..forecasting.scattered import drawn_places
from ..models.codecs.interpolation import grid_points
from ..models.model import Model
from .latents import values_at
from .ranks import ALONE, Rank

# Share of the trajectories, those with the largest spread, that do not count for its ratio to the error.
_WIDEST = 0.02


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
    known: Mapping[str, np.ndarray] = MappingProxyType({}),
    context_known: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, float]:
    """Scores of standardised forecasts from 3 frames and, given contexts, from 1 frame and a context (``_ivp``).

    ``val`` and ``contexts`` are fields ``[n, T, *grid, c]``. Given a number of ``points``, also of those from 3 frames
    each seen at so many points of its own (``_points``). ``known`` are drivers of the fields, and those of the contexts
    (:mod:`enma_fast.data.drivers`). Scores of forecasts that are not finite are NaN. The 2 % with the largest
    spread do not count for `spread_skill`. Each rank forecasts a part; the first scores all, the others return nothing.
    """
    names = ("rel_l2", "rel_l2_member", "spread_skill", "crps")
    out: dict[str, float] = {}
    standardised = model.codec.standardised
    inputs: dict[str, dict[str, Any]] = {"": {"history": val[:, :HISTORY]}}
    if contexts is not None:
        inputs["_ivp"] = {"history": val[:, :1], "context": contexts}
    if points is not None:
        inputs["_points"] = _at_points(model, val[:, :HISTORY], points)
    for name, given in inputs.items():
        samples = shared_forecasts(
            model, **given, known=known, context_known=context_known, num_members=members, rank=rank
        )
        if samples is None:
            continue
        device, truth = model.codec.device, val[:, given["history"].shape[1] :]
        # Both are 0 where fields have no values.
        samples, truth = (standardised(u.to(device)).cpu() for u in (samples, truth))
        if not torch.isfinite(samples).all():
            out |= {f"{key}{name}": math.nan for key in names}
            continue
        scores, count = Scores(), len(samples)
        order = samples.var(1, correction=0).flatten(1).sum(1).argsort(stable=True)
        most, widest = order.tensor_split([count - round(_WIDEST * count)])
        scores.update(samples[most].numpy(), truth[most].numpy())
        ratio = scores.result()["spread_skill"]
        if len(widest):
            scores.update(samples[widest].numpy(), truth[widest].numpy())
        result = scores.result() | {"spread_skill": ratio}
        out |= {f"{key}{name}": float(result[key]) for key in names}
    return out


def shared_forecasts(
    model: Model,
    *,
    rank: Rank,
    known: Mapping[str, np.ndarray],
    context_known: Mapping[str, np.ndarray],
    num_members: int,
    **given: Tensor,
) -> Tensor | None:
    """Forecasts by `sample_fields` of what is given of each trajectory, of which each rank makes a part.

    All of them at the first rank, and None at the others.
    """
    mine, forecast = rank.part(len(given["history"])), torch.empty(0)
    if mine.start < mine.stop:
        part: dict[str, Any] = {key: value[mine] for key, value in given.items()} | {"known": rows_of(known, mine)}
        if "context" in given:
            part["context_known"] = rows_of(context_known, mine)
        part["trajectories"] = range(mine.start, mine.stop)
        forecast = sample_fields(model, **part, num_members=num_members, seed=0)
    return rank.gathered(forecast)


def _at_points(model: Model, u: Tensor, count: int) -> dict[str, Tensor]:
    """Observations ``[n, L, P, c]`` of fields, at ``count`` points of the grid that each frame has for itself."""
    tokenizer = model.config.codec
    drawn = drawn_places(tokenizer.grid, range(len(u)), count=count, num_frames=u.shape[1], seed=0)
    places = torch.from_numpy(drawn)
    return {"history": values_at(u, places), "points": grid_points(tokenizer)[places]}
