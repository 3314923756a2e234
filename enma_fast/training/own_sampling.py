"""The sampler of a model of own data, after its training: the places that members see the field from, and their noise.

Where the physics is the same at every place of a periodic domain, members see the field from several places
(:mod:`enma_fast.sampling.shifts`): that takes no training, and the error of their mean falls. Their spread grows, so
the temperature is chosen on validation data: of a few the one with which the spread of as many trajectories is above
the error of their mean as below it. (Averages over all of them are ruled by a few hard ones.)

Shape suffixes: B trajectories, K members, T frames, c channels; `*x` space.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..data import FieldFile
from ..data.selection import spread_rows
from ..evaluation.metrics import spread_skill
from ..evaluation.scoring import score_forecast
from ..forecasting.file_forecast import FileForecast
from ..forecasting.request import TEMPORAL, ForecastRequest
from ..models.model import Model
from ..sampling.shifts import points_around

# The most places first; those of a token are as many as its points.
VIEWS = (8, 4, 2)
TEMPERATURES = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
# Temperatures that are tried at most, validation trajectories that each is tried on, and their members: a multiple of
# the views.
TRIED, JUDGED, JUDGING_MEMBERS = 3, 24, 8


def several_views(config: ModelConfig) -> SamplingConfig | None:
    """The sampler of a model with as many views of the field as a token has points, up to eight; None if it has one."""
    counts = [count for count in VIEWS if count <= points_around(config)]
    return dataclasses.replace(config.sampling, shifts=counts[0]) if counts else None


def choose_sampling(model: Model, held: FieldFile, *, judged: int = JUDGED) -> None:
    """Give a model of a periodic domain the views of its field, and the temperature that held-out data ask for.

    At most `judged` trajectories are looked at. Spread grows with the temperature, so those above or below one that was
    tried are left out.
    """
    config = model.config
    settings = several_views(config)
    if settings is None:
        return
    low, high = 0, len(TEMPERATURES) - 1
    tried: dict[float, float] = {}
    while low <= high:
        middle = (low + high) // 2
        temperature = TEMPERATURES[middle]
        ratio = spread_over_error(model, held, dataclasses.replace(settings, temperature=temperature), judged=judged)
        tried[temperature] = abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf
        low, high = (low, middle - 1) if ratio > 1 else (middle + 1, high)
    chosen = dataclasses.replace(settings, temperature=min(tried, key=lambda temperature: tried[temperature]))
    model.config = model.dynamics.config = dataclasses.replace(config, sampling=chosen)


def spread_over_error(model: Model, held: FieldFile, settings: SamplingConfig, *, judged: int = JUDGED) -> float:
    """Spread of the members over the error of their mean, the median over trajectories; 1 for a calibrated ensemble."""
    numbers = spread_rows(len(held), judged).tolist()
    request = ForecastRequest(task=TEMPORAL, num_members=JUDGING_MEMBERS, trajectories=numbers, settings=settings)
    forecast = FileForecast(model, held, request)
    truth_BTxc = torch.from_numpy(held.u[numbers, forecast.num_observed :])
    ratios: list[float] = []

    class Ratios:
        def add(self, trajectory: int, members: range, values: Tensor) -> None:
            ratios.append(float(spread_skill(values[None].cpu(), truth_BTxc[trajectory : trajectory + 1])))

    score_forecast(forecast, warn=False, sinks=[Ratios()])
    return float(np.median(ratios))
