"""The sampler of a model of own data: views of the field, and a temperature by held-out data."""

import dataclasses

import numpy as np
import pytest
import torch

from enma_fast.config import ModelConfig
from enma_fast.data import read, shipped_file
from enma_fast.evaluation.metrics import spread_skill
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.checkpoint import load_model
from enma_fast.training import own_sampling
from enma_fast.training.own_sampling import (
    JUDGING_MEMBERS,
    TEMPERATURES,
    TRIED,
    choose_sampling,
    several_views,
    spread_over_error,
)
from enma_fast.utils.dataclass_json import replace

from .._tiny import COMBINED


def line(points: int, patch: int) -> ModelConfig:
    """Tokens of `patch` points, on a line of so many."""
    return replace(COMBINED, {"codec.grid": [points], "codec.layers": [], "context.patch": [patch]})


@pytest.mark.parametrize(("patch", "count"), [(16, 8), (8, 8), (6, 4), (4, 4), (3, 2), (2, 2), (1, None)])
def test_a_model_has_as_many_views_as_a_token_has_points_up_to_eight(patch: int, count: int | None) -> None:
    config = line(4 * patch if patch > 1 else 8, patch)
    expected = None if count is None else dataclasses.replace(config.sampling, shifts=count)
    assert several_views(config) == expected


@pytest.mark.parametrize(
    ("calibrated", "chosen"), [(0.1, 0.2), (0.21, 0.2), (0.34, 0.35), (0.49, 0.5), (0.7, 0.65), (0.78, 0.8), (3.0, 1.0)]
)
def test_the_temperature_is_the_nearest_to_a_calibrated_one(
    monkeypatch: pytest.MonkeyPatch, calibrated: float, chosen: float
) -> None:
    model, tried = load_model("combined-fast"), []

    def ratio(model, held, settings, *, judged):
        assert settings.shifts == 8
        assert judged == 7
        tried.append(settings.temperature)
        return settings.temperature / calibrated

    monkeypatch.setattr(own_sampling, "spread_over_error", ratio)
    before = model.config
    choose_sampling(model, None, judged=7)
    assert len(tried) <= TRIED < len(TEMPERATURES)
    assert model.config is model.dynamics.config
    expected = dataclasses.replace(before.sampling, shifts=8, temperature=chosen)
    assert model.config == dataclasses.replace(before, sampling=expected)


def test_spread_over_error_is_the_median_of_that_of_trajectories() -> None:
    model = load_model("combined-fast")
    held = read(shipped_file("combined", "test-in"), select=slice(0, 3))
    found = spread_over_error(model, held, model.config.sampling)
    members = sample_fields(model, held.u[:, :3], num_members=JUDGING_MEMBERS)
    truth = torch.from_numpy(held.u[:, 3:])
    each = [float(spread_skill(members[i : i + 1], truth[i : i + 1])) for i in range(3)]
    assert found == pytest.approx(np.median(each), rel=1e-5)
    first = spread_over_error(model, held, model.config.sampling, judged=1)
    assert first == pytest.approx(each[0], rel=1e-5)
    # It grows with the noise.
    assert spread_over_error(model, held, dataclasses.replace(model.config.sampling, temperature=1.0)) > found
