"""The training benchmark: its FLOP count against a counter, its baseline against the library's loss."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import interleave, ratios
from benchmarks.train_step import flops_per_step, main, naive_loss
from enma_fast.models.model import Model, draw
from enma_fast.presets import PRESETS
from enma_fast.training.loop import step_generator

ROWS, FRAMES = 2, 11


def _case(condition: str):
    options = PRESETS["combined-small"].model
    options = dataclasses.replace(options, dynamics=dataclasses.replace(options.dynamics, condition=condition))
    model = Model(options)
    for p in model.dynamics.parameters():
        p.data += 0.02 * torch.randn_like(p)
    segments = [torch.randn(ROWS, FRAMES, options.num_tokens, options.token_channels) for _ in range(2)]
    draws = draw(
        options,
        [(ROWS, FRAMES)] * 2,
        flow=options.dynamics.flow,
        mask_ratio=(0.0, 1.0),
        history_noise=(0.01, 0.02),
        history_noise_share=0.5,
        generator=step_generator(0, 0),
    )
    return model, segments, draws


@pytest.mark.parametrize("condition", ["add", "concat"])
def test_flops_are_those_of_the_matrix_products(condition):
    model, segments, draws = _case(condition)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.dynamics(segments, draws)
    counted = flops_per_step(model, ROWS, FRAMES, model.config.dynamics.flow.draws) / 3
    assert counted == counter.get_total_flops()


def test_naive_baseline_takes_the_same_step():
    model, segments, draws = _case("add")
    ours, _ = model.dynamics(segments, draws)
    naive = naive_loss(model.dynamics, segments, draws)
    assert naive.item() == pytest.approx(ours.item(), rel=1e-5)
    g = torch.autograd.grad(ours, list(model.dynamics.parameters()))
    h = torch.autograd.grad(naive, list(model.dynamics.parameters()))
    for a, b in zip(g, h, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_contenders_alternate_and_ratios_are_of_one_round():
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert all(len(values) == 3 for values in seconds.values())
    out = ratios({"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 20.0]}, "a")
    assert out == {"b": {"seconds": 4.0, "ratio": 3.0, "ratio_min": 2.0, "ratio_max": 5.0}}


def test_a_preset_whose_step_has_no_naive_form_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_step", "--preset", "combined-fast"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "--preset: combined-fast decides frames in one pass" in capsys.readouterr().err
