"""The loop of a run: averaged and best weights, the log, precision, and losses that are not finite."""

import itertools
import math

import pytest
import torch
from torch import nn

from enma_fast.errors import EnmaError, TrainingError
from enma_fast.models.checkpoint import read_tensors
from enma_fast.training.average import Average
from enma_fast.training.loop import autocast, fast_bf16, run, step_generator
from enma_fast.training.optim import learning_rate
from enma_fast.training.ranks import Rank

from .._clock import count_readings
from ._run import TASKS, Line, options, read_log


def test_scores_are_those_of_the_averaged_weights(tmp_path):
    task = Line()
    scores = run(task, options(tmp_path))
    entries = read_log(tmp_path)
    # The term logged at step s is the weight before that step.
    weights = [entry["w"] for entry in entries if "w" in entry]
    final = read_tensors(tmp_path / "state.safetensors")[0]
    weights.append(final["model.weight"].item())
    average, expected = 0.0, {}
    for step, weight in enumerate(weights[1:]):
        keep = min(0.8, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * weight
        expected[step + 1] = average
    found = {entry["step"]: entry["validation"]["w"] for entry in entries if "validation" in entry}
    assert found == pytest.approx({step: expected[step] for step in (4, 8, 12)}, rel=1e-5)
    assert scores == {"w": found[12]}
    # The run leaves the averaged weights in place.
    assert task.module.weight.item() == found[12]
    assert final["average.weight"].item() == found[12]
    assert found[12] != final["model.weight"].item()


def test_the_best_validation_is_kept_and_not_the_last(tmp_path):
    task = Line(best_at=0.0)
    scores = run(task, options(tmp_path))
    found = {e["step"]: e["validation"]["w"] for e in read_log(tmp_path) if "validation" in e}
    assert scores == {"w": found[4]}
    assert abs(found[4]) < min(abs(found[8]), abs(found[12]))
    assert task.module.weight.item() == found[4]


def test_a_stage_that_improves_no_more_goes_on_to_its_last_part(tmp_path, monkeypatch):
    """With the best of its trained weights; so it ends early."""
    task, merits = Line(steps=10**6), itertools.chain([3.0, 1.0, 2.0], itertools.repeat(2.5))
    task.last_part = 0.75
    task.validate = lambda rank: {"w": task.module.weight.item(), "merit": next(merits)}
    task.merit = lambda scores: scores["merit"]
    clock = count_readings(monkeypatch)
    run(task, options(tmp_path, seconds=10.0))
    assert clock() < 7
    entries = read_log(tmp_path)
    validations = [(entry["step"], entry["validation"]["w"]) for entry in entries if "validation" in entry]
    weights = {entry["step"]: entry["w"] for entry in entries if "w" in entry}
    # Four validations, then the last part.
    assert weights[validations[3][0] + 1] == pytest.approx(validations[1][1])
    assert task.share > 0.9


def test_seconds_are_left_for_what_a_task_does_at_its_end(tmp_path, monkeypatch):
    task = Line(steps=10**6)
    task.finishing = lambda: 4.0
    clock = count_readings(monkeypatch)
    run(task, options(tmp_path, seconds=10.0))
    assert 5.5 < clock() < 6.5
    assert task.share > 0.9


@pytest.mark.parametrize("bad", [{4}, {8, 12}, {4, 12}])
def test_a_validation_that_is_no_number_is_replaced_and_replaces_none(tmp_path, monkeypatch, bad):
    validate, steps = Line.validate, iter((4, 8, 12))
    monkeypatch.setattr(
        Line, "validate", lambda *given: {"w": float("nan")} if next(steps) in bad else validate(*given)
    )
    run(Line(), options(tmp_path, stop_after=6))
    # The one kept so far is read from its file.
    task = Line()
    scores = run(task, options(tmp_path))
    found = {e["step"]: e["validation"]["w"] for e in read_log(tmp_path) if "validation" in e}
    assert {step for step, w in found.items() if math.isnan(w)} == bad
    # The weight grows towards 3, so later is better.
    assert scores == {"w": found[max({4, 8, 12} - bad)]}
    assert task.module.weight.item() == scores["w"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_without_a_validation_that_is_a_number_is_refused_at_its_end(tmp_path, monkeypatch, value):
    monkeypatch.setattr(Line, "validate", lambda self, rank: {"w": value})
    assert run(Line(), options(tmp_path, stop_after=6)) == {}
    for _ in range(2):
        with pytest.raises(EnmaError, match=r"log.jsonl: .*learning_rate"):
            run(Line(), options(tmp_path))
    assert not (tmp_path / "best.safetensors").exists()


def test_a_resumed_run_remembers_its_best_validation(tmp_path):
    whole = run(Line(best_at=0.0), options(tmp_path / "whole"))
    run(Line(best_at=0.0), options(tmp_path / "parts", stop_after=6))
    task = Line(best_at=0.0)
    assert run(task, options(tmp_path / "parts")) == whole
    assert task.module.weight.item() == whole["w"]


def test_a_best_validation_of_steps_that_were_lost_does_not_count(tmp_path):
    run(Line(), options(tmp_path, stop_after=2))
    state = (tmp_path / "state.safetensors").read_bytes()
    run(Line(), options(tmp_path, stop_after=8))
    (tmp_path / "state.safetensors").write_bytes(state)
    # The learning rate and what is best are the same, so steps 4 and 8 are found again.
    assert run(Line(best_at=0.0), options(tmp_path)) == run(Line(best_at=0.0), options(tmp_path / "whole"))


def test_the_log_holds_rate_loss_norm_and_speed(tmp_path):
    seen = []
    task = Line(batch=10)
    run(task, options(tmp_path, log_every=5, validate_every=100, progress=lambda *args: seen.append(args)))
    entries = read_log(tmp_path, timings=True)
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [5, 10, 12]
    for entry in steps:
        assert entry["lr"] == pytest.approx(learning_rate(entry["step"] - 1, task.stage.optimizer, 12))
        assert entry["loss"] == pytest.approx((entry["w"] - 3) ** 2, rel=1e-5)
        # Before clipping.
        assert entry["grad_norm"] == pytest.approx(2 * (3 - entry["w"]), rel=1e-5)
        assert entry["per_second"] > 0
    assert [(done, total) for done, total, _ in seen] == [(5, 12), (10, 12), (12, 12)]
    assert [values["loss"] for _, _, values in seen] == [entry["loss"] for entry in steps]
    assert [entry["step"] for entry in entries if "validation" in entry] == [12]


def test_validations_do_not_count_as_time_of_training(tmp_path, monkeypatch):
    clock = [0.0]

    def takes(seconds, call):
        def slow(*arguments):
            clock[0] += seconds
            return call(*arguments)

        return slow

    monkeypatch.setattr("enma_fast.training.loop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Line, "loss", takes(2.0, Line.loss))
    monkeypatch.setattr(Line, "validate", takes(100.0, Line.validate))
    # Validations fall between the entries of the log, and with them; the run resumes between entries too.
    for stop_after in (7, None):
        run(Line(batch=10), options(tmp_path, log_every=5, validate_every=3, stop_after=stop_after))
    rates = [entry["per_second"] for entry in read_log(tmp_path, timings=True) if "loss" in entry]
    assert rates == pytest.approx([5.0] * len(rates))
    assert len(rates) >= 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path, value):
    with pytest.raises(EnmaError, match=r"^step 4"):
        run(Line(breaks_at=4, value=value), options(tmp_path))
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2, 3]


def test_the_best_weights_before_a_loss_that_is_not_finite_are_named(tmp_path):
    run(Line(), options(tmp_path / "stopped", stop_after=4))
    with pytest.raises(TrainingError, match=r"^step 7"):
        run(Line(breaks_at=7), options(tmp_path / "broken"))
    kept, expected = (read_tensors(tmp_path / name / "best.safetensors") for name in ("broken", "stopped"))
    assert kept == expected


def test_a_broken_state_is_never_saved(tmp_path):
    # Nothing is logged before step 12, but every step would be saved.
    with pytest.raises(EnmaError, match=r"^step 4"):
        run(Line(breaks_at=4), options(tmp_path, log_every=100, validate_every=100, save_seconds=0.0))
    tensors, meta = read_tensors(tmp_path / "state.safetensors")
    assert meta["step"] == "3"
    assert all(value.isfinite().all() for value in tensors.values())
    # Once broken, weights stay so: seen at the next log, and not saved at the end.
    with pytest.raises(EnmaError, match=r"^step 8"):
        run(Line(breaks_at=2), options(tmp_path / "late", log_every=8, validate_every=100))
    assert not (tmp_path / "late" / "state.safetensors").exists()


def test_the_average_warms_up():
    module = nn.Linear(2, 2)
    average = Average(module, 0.99)
    expected = module.weight.detach().double()
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update(module, step)
        keep = [0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14][step]
        expected = keep * expected + (1 - keep) * module.weight.detach().double()
    torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-6, atol=0)
    average.update(module, 10**6)
    torch.testing.assert_close(
        average.values["weight"].double(), 0.99 * expected + 0.01 * module.weight.detach().double(), rtol=1e-6, atol=0
    )
    current, averaged = module.weight.detach().clone(), average.values["weight"].clone()
    with average.applied(module):
        assert torch.equal(module.weight, averaged)
    assert torch.equal(module.weight, current)
    average.put(module)
    assert torch.equal(module.weight, averaged)


def test_precision_is_chosen_or_refused(tmp_path):
    def product(precision):
        with autocast(options(tmp_path, precision=precision)):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert product("fp32") == torch.float32
    assert product("bf16") == torch.bfloat16
    assert product("auto") == (torch.bfloat16 if fast_bf16("cpu") else torch.float32)
    with pytest.raises(EnmaError, match="precision 'fp16'"):
        product("fp16")


@pytest.mark.parametrize("stage", TASKS)
def test_half_precision_takes_nearly_the_same_steps(stage, tmp_path):
    for precision in ("fp32", "bf16"):
        run(
            TASKS[stage]("relative", optimizer="muon"), options(tmp_path / precision, precision=precision, stop_after=3)
        )
    found, expected = (read_log(tmp_path / precision) for precision in ("bf16", "fp32"))
    losses = [[entry["loss"] for entry in log] for log in (found, expected)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    # Weights stay in fp32.
    assert all(p.dtype != torch.bfloat16 for p in read_tensors(tmp_path / "bf16" / "state.safetensors")[0].values())


@pytest.mark.parametrize("name", ["relative", "points"])
@pytest.mark.parametrize("stage", TASKS)
def test_data_follow_the_weights_to_their_device(stage, name):
    # The meta device stands for any: it refuses to mix with the CPU as others do.
    task = TASKS[stage](name)
    task.module.to("meta")
    for step in range(4):
        loss, _ = task.loss(task.module, step_generator(0, step), Rank())
        assert loss.device.type == "meta"
