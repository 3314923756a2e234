"""The benchmark of training on whole forecasts: its baseline takes the same step."""

from dataclasses import replace

import pytest
import torch

from benchmarks.forecast_step import Stepper, fields
from enma_fast.models.model import Model
from enma_fast.presets import PRESETS


@pytest.mark.parametrize("kind", [0, 1], ids=["without a context", "with a context"])
def test_naive_baseline_takes_the_same_step(kind, monkeypatch):
    monkeypatch.setattr("enma_fast.training.loop.fast_bf16", lambda device: False)
    preset = PRESETS["combined-fast"]
    torch.manual_seed(0)
    model = Model(preset.model)
    for p in model.dynamics.parameters():
        p.data += 0.01 * torch.randn_like(p)
    model.tokenizer.requires_grad_(False)
    config = replace(preset.forecast_training, batch=2)
    data = fields(preset.model, environments=2)
    (loss, g), (expected, h) = (Stepper(model, config, data, naive=naive).gradients(kind) for naive in (False, True))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (g - h).norm() < 1e-3 * h.norm()
    assert h.norm() > 0
