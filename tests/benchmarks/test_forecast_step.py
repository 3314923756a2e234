"""The benchmark of training on whole forecasts: its baseline takes the same step."""

import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import forecast_step, report
from benchmarks.forecast_step import Stepper, fields, without_parameters
from enma_fast.models.model import Model
from enma_fast.training.recipes import RECIPES

from .._tiny import COMBINED, in_one_pass


@pytest.mark.parametrize("kind", [0, 1], ids=["without a context", "with a context"])
def test_naive_baseline_takes_the_same_step(kind, monkeypatch):
    monkeypatch.setattr("enma_fast.training.loop.fast_bf16", lambda device: False)
    preset = RECIPES["combined-fast"]
    torch.manual_seed(0)
    model = Model(preset.model)
    for p in model.dynamics.parameters():
        p.data += 0.01 * torch.randn_like(p)
    model.codec.requires_grad_(False)
    config = replace(without_parameters(preset), batch=2)
    data = fields(preset.model, environments=2)
    (loss, g), (expected, h) = (Stepper(model, config, data, naive=naive).gradients(kind) for naive in (False, True))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (g - h).norm() < 1e-3 * h.norm()
    assert h.norm() > 0


def test_its_result_has_a_table(monkeypatch, capsys, tmp_path):
    fast = replace(RECIPES["combined-fast"], model=replace(in_one_pass(COMBINED), name="tiny"))
    monkeypatch.setitem(RECIPES, "tiny", fast)
    monkeypatch.setattr(forecast_step, "gemm_rate", lambda *_: 1e9)
    monkeypatch.setattr(forecast_step.Stepper, "gradients", lambda self, kind: (torch.ones(()), torch.ones(3)))
    monkeypatch.setattr(forecast_step.Stepper, "step", lambda self, kind: None)
    monkeypatch.setattr(sys, "argv", ["forecast_step", "--preset", "tiny", "--rounds", "1", "--threads", "1", "--json"])
    forecast_step.main()
    (tmp_path / "abacus").mkdir()
    (tmp_path / "abacus" / "step.json").write_text(capsys.readouterr().out)
    text = report.page(tmp_path)
    assert "naive-fp32, with a context" in text
    assert "naive-fp32, without one" in text
