"""The training benchmark: its FLOP count against a counter, its baseline against the library's loss."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import train_step
from benchmarks.harness import interleave, ratios
from benchmarks.train_step import BY_HAND, flops_per_step, main
from enma_fast.models.model import Model, draw
from enma_fast.training.loop import step_generator
from enma_fast.training.recipes import RECIPES

from .._tiny import in_one_pass

ROWS, FRAMES, DRAWS = 2, 11, 4


def _case(condition: str, step: str = "flow"):
    options = RECIPES["combined-small"].model
    options = dataclasses.replace(options, trunk=dataclasses.replace(options.trunk, condition=condition))
    options = options if step == "flow" else in_one_pass(options)
    model = Model(options)
    for p in model.dynamics.parameters():
        p.data += 0.02 * torch.randn_like(p)
    segments = [torch.randn(ROWS, FRAMES, options.num_tokens, options.token_channels) for _ in range(2)]
    draws = draw(
        options,
        [(ROWS, FRAMES)] * 2,
        draws=DRAWS,
        mask_ratio=(0.0, 1.0),
        generator=step_generator(0, 0),
    )
    # What is read is not what is scored.
    for history in draws.history:
        history += 0.015 * torch.randn_like(history)
    return model, segments, draws


@pytest.mark.parametrize("step", list(BY_HAND))
@pytest.mark.parametrize("condition", ["add", "concat"])
def test_flops_are_those_of_the_matrix_products(condition, step):
    model, segments, draws = _case(condition, step)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.dynamics(segments, draws)
    counted = flops_per_step(model, ROWS, FRAMES, DRAWS) / 3
    assert counted == counter.get_total_flops()


@pytest.mark.parametrize(("step", "by_hand"), BY_HAND.items())
def test_naive_baseline_takes_the_same_step(step, by_hand):
    model, segments, draws = _case("add", step)
    model.dynamics.score_weight.copy_(torch.linspace(0.5, 1.5, model.config.token_channels))
    ours, _ = model.dynamics(segments, draws)
    naive = by_hand(model.dynamics, segments, draws)
    assert naive.item() == pytest.approx(ours.item(), rel=1e-5)
    g = torch.autograd.grad(ours, list(model.dynamics.parameters()))
    h = torch.autograd.grad(naive, list(model.dynamics.parameters()))
    for a, b in zip(g, h, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_ours_has_the_optimisers_and_settings_of_a_run(bf16, monkeypatch):
    built, kept = [], []
    monkeypatch.setattr(train_step, "in_bf16", lambda options: bf16)
    monkeypatch.setattr(train_step, "build", lambda module, config, *, dtype: built.append(dtype) or [])
    monkeypatch.setattr(train_step, "keep_freed_memory", lambda: kept.append(True))

    def gradients(self):
        assert torch.tensor([1e-39]).mul(1.0) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(train_step.Stepper, "gradients", gradients)
    monkeypatch.setattr("sys.argv", ["train_step", "--threads", str(torch.get_num_threads())])
    with pytest.raises(KeyboardInterrupt):
        main()
    assert kept == [True]
    # Ours first; the naive step is in fp32.
    assert built == [torch.bfloat16 if bf16 else torch.float32, torch.float32]


def test_contenders_alternate_and_ratios_are_of_one_round(monkeypatch):
    calls, now = [], 0.0

    def contender(name, seconds):
        def run():
            nonlocal now
            # A first call takes three times as long.
            now += seconds if name in calls else 3 * seconds
            calls.append(name)

        return run

    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: now)
    # A long one is called once in its turn, a short one so often that the turn lasts 20 ms.
    seconds = interleave({"a": contender("a", 0.03), "b": contender("b", 0.0061), "c": contender("c", 1.0)}, rounds=3)
    assert calls == ["a", "a", "b", "b", "c"] + (["a"] + 4 * ["b"] + ["c"]) * 3
    assert seconds == {name: pytest.approx([each] * 3) for name, each in (("a", 0.03), ("b", 0.0061), ("c", 1.0))}
    out = ratios({"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 20.0]}, "a")
    assert out == {"b": {"seconds": 4.0, "ratio": 3.0, "ratio_min": 2.0, "ratio_max": 5.0}}


def test_a_preset_whose_step_has_no_naive_form_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_step", "--preset", "vorticity-fast"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "--preset: vorticity-fast has a step of kind local" in capsys.readouterr().err
