"""A run that is resumed, killed or begun again takes the steps of an uninterrupted one, or is refused."""

import json
import signal
import time

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import read_tensors
from enma_fast.training.loop import run

from .._clock import count_readings
from .._tiny import dynamics_task
from ._run import TASKS, Line, assert_same_run, options, read_log, start


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stage", TASKS)
def test_a_resumed_run_is_the_uninterrupted_one(stage, optimizer, tmp_path):
    whole, parts = TASKS[stage]("relative", optimizer=optimizer), TASKS[stage]("relative", optimizer=optimizer)
    scores = run(whole, options(tmp_path / "whole"))
    assert [entry["step"] for entry in read_log(tmp_path / "whole")] == [1, 2, 3, 4, 4, 5, 6, 6]
    run(parts, options(tmp_path / "parts", stop_after=2))
    state = (tmp_path / "parts" / "state.safetensors").read_bytes()
    # Steps 3 to 5 are logged and then lost, as their state is.
    run(TASKS[stage]("relative", optimizer=optimizer), options(tmp_path / "parts", stop_after=5))
    (tmp_path / "parts" / "state.safetensors").write_bytes(state)
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "validation": {"rel_l2": 1.0}')
    last = TASKS[stage]("relative", optimizer=optimizer)
    assert run(last, options(tmp_path / "parts")) == scores
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    for (key, a), b in zip(last.module.state_dict().items(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_a_stage_that_went_on_to_its_last_part_stays_there(tmp_path, monkeypatch):
    count_readings(monkeypatch)

    class Stuck(Line):
        """Never better than before its first step; stops soon after the last part has begun, or not."""

        last_part, stops = 0.7, True

        def loss(self, module, generator, rank):
            shares.append(self.share)
            if self.stops and sum(share >= self.last_part for share in shares) == 3:
                raise KeyboardInterrupt
            return super().loss(module, generator, rank)

        def validate(self, rank):
            return {"w": 1.0}

    shares, timed = [], options(tmp_path, seconds=20.0, save_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(Stuck(steps=10**6), timed)
    assert shares[-4] < 0.5
    last, task = shares.pop(), Stuck(steps=10**6)
    task.stops = False
    run(task, timed)
    assert shares == sorted(shares)
    assert last - 0.02 < shares[-task.calls] < last + 0.02


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    process = start("dynamics", tmp_path, 4)
    deadline = time.monotonic() + 600
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


def test_a_state_of_other_settings_is_refused(tmp_path):
    run(dynamics_task("relative"), options(tmp_path, stop_after=1))
    state = tmp_path / "state.safetensors"
    before, log = state.read_bytes(), (tmp_path / "log.jsonl").read_text()
    with pytest.raises(EnmaError, match=rf"^{state}: .*--out"):
        run(dynamics_task("relative", learning_rate=1e-3), options(tmp_path))
    with pytest.raises(EnmaError, match=f"^{state}: "):
        run(dynamics_task("paper"), options(tmp_path))
    state.write_bytes(before[:-3])
    with pytest.raises(EnmaError, match=rf"^{state}: .*whole"):
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
