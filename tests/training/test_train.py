"""Training: resumed, killed or spread over ranks, a run takes the same steps; what is wrong stops it with one line."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from enma_fast.config import TrainingConfig
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import read_tensors
from enma_fast.training.loop import Average, Rank, RunOptions, autocast, fast_bf16, join_ranks, run, step_generator
from enma_fast.training.optim import learning_rate

from .._tiny import TRAINING, dynamics_task, tokenizer_task

WORKER = Path(__file__).parent / "_train_worker.py"
TASKS = {"tokenizer": tokenizer_task, "dynamics": dynamics_task}
MUON = replace(TRAINING, optimizer="muon")


def options(out, **changes):
    settings = {"precision": "fp32", "log_every": 1, "validate_every": 4, "save_seconds": 1e9} | changes
    return RunOptions(out=out, **settings)


def read_log(out, timings=False):
    """Entries of the log, without what the clock decides."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return entries if timings else [{k: v for k, v in e.items() if k != "per_second"} for e in entries]


def assert_same_run(out, expected):
    """Logs and states of two run folders agree to the bit."""
    assert read_log(out) == read_log(expected)
    found, meta = read_tensors(out / "state.safetensors")
    wanted, wanted_meta = read_tensors(expected / "state.safetensors")
    assert meta == wanted_meta
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stage", TASKS)
def test_a_resumed_run_is_the_uninterrupted_one(stage, optimizer, tmp_path):
    training = replace(TRAINING, optimizer=optimizer)
    whole, parts = TASKS[stage]("relative", training), TASKS[stage]("relative", training)
    scores = run(whole, options(tmp_path / "whole"))
    assert [entry["step"] for entry in read_log(tmp_path / "whole")] == [1, 2, 3, 4, 4, 5, 6, 6]
    run(parts, options(tmp_path / "parts", stop_after=2))
    state = (tmp_path / "parts" / "state.safetensors").read_bytes()
    # Steps 3 to 5 are logged and then lost, as their state is.
    run(TASKS[stage]("relative", training), options(tmp_path / "parts", stop_after=5))
    (tmp_path / "parts" / "state.safetensors").write_bytes(state)
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "validation": {"rel_l2": 1.0}')
    last = TASKS[stage]("relative", training)
    assert run(last, options(tmp_path / "parts")) == scores
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    for (key, a), b in zip(last.module.state_dict().items(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def start(*arguments, **environment):
    """The worker in a process of its own."""
    return subprocess.Popen(
        [sys.executable, WORKER, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    process = start("dynamics", tmp_path, 4)
    deadline = time.monotonic() + 120
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    out = tmp_path / "dynamics"
    # Step 4 was logged and not saved.
    assert [entry["step"] for entry in read_log(out)] == [1, 2, 3, 4]
    assert read_tensors(out / "state.safetensors")[1]["step"] == "3"
    run(dynamics_task("relative"), options(out))
    run(dynamics_task("relative"), options(tmp_path / "whole"))
    assert_same_run(out, tmp_path / "whole")


def test_two_ranks_take_the_steps_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # What torchrun announces.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start("tokenizer,dynamics", tmp_path / "two", RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    for stage, make in TASKS.items():
        run(make("relative"), options(tmp_path / "one" / stage))
    for process in ranks:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    for stage in TASKS:
        found, expected = (read_log(tmp_path / name / stage) for name in ("two", "one"))
        assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
        for a, b in zip(found, expected, strict=True):
            if "validation" in b:
                a, b = a["validation"], b["validation"]
            assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("name", ["relative", "points", "plane"])
@pytest.mark.parametrize("stage", TASKS)
def test_the_mean_of_the_ranks_losses_is_the_loss(stage, name):
    task = TASKS[stage](name)
    for step in range(4):
        loss, terms = task.loss(task.module, step_generator(0, step), Rank())
        parts = [task.loss(task.module, step_generator(0, step), Rank(i, 2)) for i in range(2)]
        torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss, rtol=1e-5, atol=1e-6)
        for key, value in terms.items():
            torch.testing.assert_close((parts[0][1][key] + parts[1][1][key]) / 2, value, rtol=1e-5, atol=1e-6)


def test_ranks_share_rows_evenly_or_not_at_all():
    rows = [list(range(12))[Rank(i, 3).share(12)] for i in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(EnmaError, match="batch 12 does not divide among 5 ranks; choose a multiple"):
        Rank(0, 5).share(12)
    with pytest.raises(EnmaError, match="batch 0 does not divide"):
        Rank().share(0)


@pytest.mark.parametrize("stage", TASKS)
def test_a_batch_that_does_not_divide_is_refused_at_the_first_step(stage):
    task = TASKS[stage]("relative", replace(TRAINING, batch=5))
    with pytest.raises(EnmaError, match="batch 5 does not divide among 2 ranks"):
        task.loss(task.module, step_generator(0, 0), Rank(0, 2))


def test_pairs_are_half_a_batch_and_must_divide_too():
    task = dynamics_task("relative", replace(TRAINING, batch=6, context_share=1e-9))
    with pytest.raises(EnmaError, match="batch 3 does not divide among 2 ranks"):
        task.loss(task.module, step_generator(0, 0), Rank(0, 2))
    alone = dynamics_task("relative", replace(TRAINING, batch=6, context_share=0.0))
    alone.loss(alone.module, step_generator(0, 0), Rank(0, 2))


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks() == Rank(0, 1)


def test_each_step_has_its_own_numbers():
    first, again, other, seed = (torch.rand(3, generator=step_generator(*a)) for a in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seed)


class Line:
    """A task whose loss and scores are known: fit w to 3, and report w."""

    def __init__(self, *, breaks_at=None, value=float("nan"), best_at=3.0, **changes):
        self.best_at = best_at
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.config = replace(TRAINING, **{"weight_decay": 0.0, "ema_decay": 0.8, "steps": 12} | changes)
        self.breaks_at, self.value, self.calls = breaks_at, value, 0

    def loss(self, module, generator, rank):
        self.calls += 1
        w = module(torch.ones(1, 1)).squeeze()
        loss = (w - 3).square()
        if self.calls == self.breaks_at:
            loss = loss * self.value
        return loss, {"w": w.detach()}

    def validate(self, averaged):
        return {"w": averaged.weight.item()}

    def merit(self, scores):
        return abs(scores["w"] - self.best_at)


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


@pytest.mark.parametrize("bad", [{4}, {8, 12}, {4, 12}])
def test_a_validation_that_is_no_number_is_replaced_and_replaces_none(tmp_path, monkeypatch, bad):
    validate, steps = Line.validate, iter((4, 8, 12))
    monkeypatch.setattr(
        Line, "validate", lambda self, module: {"w": float("nan")} if next(steps) in bad else validate(self, module)
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
    monkeypatch.setattr(Line, "validate", lambda self, module: {"w": value})
    assert run(Line(), options(tmp_path, stop_after=6)) == {}
    for _ in range(2):
        with pytest.raises(EnmaError, match=r"log.jsonl: no validation of this run gave a number; .* learning_rate"):
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
    task = Line(batch=10, clip_norm=0.5)
    run(task, options(tmp_path, log_every=5, validate_every=100, progress=lambda *args: seen.append(args)))
    entries = read_log(tmp_path, timings=True)
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [5, 10, 12]
    for entry in steps:
        assert entry["lr"] == pytest.approx(learning_rate(entry["step"] - 1, task.config))
        assert entry["loss"] == pytest.approx((entry["w"] - 3) ** 2, rel=1e-5)
        # Before clipping.
        assert entry["grad_norm"] == pytest.approx(2 * (3 - entry["w"]), rel=1e-5)
        assert entry["per_second"] > 0
    assert [(done, total) for done, total, _ in seen] == [(5, 12), (10, 12), (12, 12)]
    assert [values["loss"] for _, _, values in seen] == [entry["loss"] for entry in steps]
    assert [entry["step"] for entry in entries if "validation" in entry] == [12]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path, value):
    with pytest.raises(EnmaError, match=r"^step 4: loss (nan|inf) .*empty folder with a lower learning_rate"):
        run(Line(breaks_at=4, value=value), options(tmp_path))
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2, 3]


def test_a_broken_state_is_never_saved(tmp_path):
    # Nothing is logged before step 12, but every step would be saved.
    with pytest.raises(EnmaError, match=r"^step 4: loss nan"):
        run(Line(breaks_at=4), options(tmp_path, log_every=100, validate_every=100, save_seconds=0.0))
    tensors, meta = read_tensors(tmp_path / "state.safetensors")
    assert meta["step"] == "3"
    assert all(value.isfinite().all() for value in tensors.values())
    # Once broken, weights stay so: seen at the next log, and not saved at the end.
    with pytest.raises(EnmaError, match=r"^step 8: loss nan"):
        run(Line(breaks_at=2), options(tmp_path / "late", log_every=8, validate_every=100))
    assert not (tmp_path / "late" / "state.safetensors").exists()


def test_a_state_of_other_settings_is_refused(tmp_path):
    run(dynamics_task("relative"), options(tmp_path, stop_after=1))
    state = tmp_path / "state.safetensors"
    before, log = state.read_bytes(), (tmp_path / "log.jsonl").read_text()
    with pytest.raises(EnmaError, match=f"^{state}: was written by another training config; choose an empty --out"):
        run(dynamics_task("relative", replace(TRAINING, learning_rate=1e-3)), options(tmp_path))
    with pytest.raises(EnmaError, match=f"^{state}: holds unknown|^{state}: lacks|^{state}: .* has shape"):
        run(dynamics_task("paper"), options(tmp_path))
    state.write_bytes(before[:-3])
    with pytest.raises(EnmaError, match=f"^{state}: not a whole safetensors file"):
        run(dynamics_task("relative"), options(tmp_path))
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_finished_run_is_not_run_again(tmp_path):
    scores = run(Line(), options(tmp_path))
    log, state = (tmp_path / "log.jsonl").read_text(), (tmp_path / "state.safetensors").read_bytes()
    task = Line()
    assert run(task, options(tmp_path)) == scores
    assert task.calls == 0
    assert (tmp_path / "log.jsonl").read_text() == log
    assert (tmp_path / "state.safetensors").read_bytes() == state
    # The averaged weights are there all the same.
    assert task.module.weight.item() == json.loads(log.splitlines()[-1])["validation"]["w"]


def test_stopping_at_once_does_nothing(tmp_path):
    task = Line()
    run(task, options(tmp_path, stop_after=0))
    assert task.calls == 0
    assert not (tmp_path / "state.safetensors").exists()


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
    average.swap(module)
    assert torch.equal(module.weight, averaged)
    average.swap(module)
    assert torch.equal(module.weight, current)


def test_precision_is_chosen_or_refused(tmp_path):
    def product(precision):
        with autocast(options(tmp_path, precision=precision)):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert product("fp32") == torch.float32
    assert product("bf16") == torch.bfloat16
    assert product("auto") == (torch.bfloat16 if fast_bf16("cpu") else torch.float32)
    with pytest.raises(EnmaError, match="precision 'fp16': use auto, bf16 or fp32"):
        product("fp16")


@pytest.mark.parametrize("stage", TASKS)
def test_half_precision_takes_nearly_the_same_steps(stage, tmp_path):
    for precision in ("fp32", "bf16"):
        run(TASKS[stage]("relative", MUON), options(tmp_path / precision, precision=precision, stop_after=3))
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


LEARNING = TrainingConfig(steps=40, batch=12, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)


def test_the_tokenizer_learns(tmp_path):
    task = tokenizer_task("relative", LEARNING)
    before = task.validate(task.module)["rel_l2"]
    after = run(task, options(tmp_path, validate_every=1000))["rel_l2"]
    assert after < 0.5 * before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_dynamics_learn(optimizer, tmp_path):
    run(dynamics_task("relative", replace(LEARNING, optimizer=optimizer)), options(tmp_path, validate_every=1000))
    losses = [entry["loss"] for entry in read_log(tmp_path) if "loss" in entry]
    assert sum(losses[-5:]) / 5 < sum(losses[:3]) / 3 - 0.3
