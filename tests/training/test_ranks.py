"""Ranks share the batches of a run: their steps are those of one, and each step has its own random numbers."""

import atexit
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from enma_fast.commands.options import on_device
from enma_fast.errors import EnmaError, TrainingError
from enma_fast.training import first_frame, forecasts
from enma_fast.training.augment import Scattered, Shift, Strides
from enma_fast.training.first_frame import FirstFrameStage, FirstFrameTask
from enma_fast.training.forecasts import ForecastStage, ForecastTask
from enma_fast.training.loop import run, step_generator
from enma_fast.training.ranks import Rank, join_ranks

from .._tiny import dynamics_task, forecast_task
from ._run import TASKS, options, read_log, start


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # The variables that torchrun sets.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start("tokenizer,dynamics", tmp_path / "two", RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    for stage, make in TASKS.items():
        run(make("relative"), options(tmp_path / "one" / stage))
    for process in ranks:
        _, errors = process.communicate(timeout=600)
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


@pytest.mark.parametrize("make", [ForecastTask, FirstFrameTask])
def test_the_mean_of_the_ranks_losses_of_frame_0_is_the_loss(make, monkeypatch):
    # One mask of each trajectory, so that ranks differ in how many tokens it hides.
    for module in (forecasts, first_frame):
        monkeypatch.setattr(module, "FIRST_DRAWS", 1)
    monkeypatch.setattr(forecasts, "_MASK_RATIO", (0.0, 1.0))
    whole = (ForecastStage, {"context_share": 1.0, "first_frame": 1.0})
    kind, changes = whole if make is ForecastTask else (FirstFrameStage, {})
    task = forecast_task("relative-fast", make=make, kind=kind, **changes)
    for step in range(2):
        loss, terms = task.loss(task.module, step_generator(0, step), Rank())
        parts = [task.loss(task.module, step_generator(0, step), Rank(i, 2)) for i in range(2)]
        torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss, rtol=1e-5, atol=1e-6)
        assert terms.keys() >= {"first_frame" if make is ForecastTask else "flow"}
        for key, value in terms.items():
            torch.testing.assert_close((parts[0][1][key] + parts[1][1][key]) / 2, value, rtol=1e-5, atol=1e-6)


def test_ranks_share_strides_and_scattered_points():
    augment = (Shift(), Strides(steps=(1, 2)), Scattered(share=0.5))
    task, lengths = dynamics_task("points", augment=augment), set()
    for step in range(8):
        loss, _ = task.loss(task.module, step_generator(0, step), Rank())
        parts = [task.loss(task.module, step_generator(0, step), Rank(i, 2))[0] for i in range(2)]
        torch.testing.assert_close((parts[0] + parts[1]) / 2, loss, rtol=1e-5, atol=1e-6)
        length, _ = task.loss(lambda segments, draws: (segments[-1].shape[1], {}), step_generator(0, step), Rank())
        lengths.add(length)
    assert len(lengths) == 2


@pytest.mark.parametrize("make", [dynamics_task, forecast_task], ids=["dynamics", "forecasts"])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_share_a_validation(make, count, monkeypatch):
    """Two trajectories, so that the first of three ranks has none."""
    task = make("relative")
    alone = task.validate()
    parts: list[list[torch.Tensor]] = []

    def gather(part, everyone):
        if everyone is None:
            parts[-1].append(part)
        else:
            everyone[:] = [part, *(sent.pop(0) for sent in parts)]

    monkeypatch.setattr("torch.distributed.gather_object", gather)
    rows = []
    for index in range(1, count):
        parts.append([])
        assert task.validate(Rank(index, count)) == {}
        rows.append([len(part) for part in parts[-1]])
    assert rows == [[1, 1]] * (count - 1), "forecasts from three frames, and from one and a context"
    assert task.validate(Rank(0, count)) == alone
    assert parts == [[]] * (count - 1)


def test_what_the_first_rank_makes_or_refuses_reaches_the_others(monkeypatch):
    sent: list[object] = []

    def broadcast(held):
        if held[0] is None:
            held[0] = sent.pop(0)
        else:
            sent.append(held[0])

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    ranks = [Rank(0, 2), Rank(1, 2)]
    assert [rank.by_first(lambda: 3) for rank in ranks] == [3, 3]

    def fail(error):
        raise error

    for error, expected in (
        (TrainingError("too warm"), (TrainingError, "^too warm$")),
        (KeyboardInterrupt(), (EnmaError, "another process")),
    ):
        with pytest.raises(type(error)):
            ranks[0].by_first(lambda error=error: fail(error))
        with pytest.raises(expected[0], match=expected[1]):
            ranks[1].by_first(lambda: 3)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    ranks[0].align(first)
    ranks[1].align(second)
    assert torch.equal(first.weight, second.weight)


def test_ranks_share_rows_evenly_or_not_at_all():
    rows = [list(range(12))[Rank(i, 3).share(12)] for i in range(3)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [list(range(7))[Rank(i, 3).part(7)] for i in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    with pytest.raises(EnmaError, match="batch 12"):
        Rank(0, 5).share(12)
    with pytest.raises(EnmaError, match="batch 0"):
        Rank().share(0)


@pytest.mark.parametrize("stage", TASKS)
def test_a_batch_that_does_not_divide_is_refused_at_the_first_step(stage):
    task = TASKS[stage]("relative", batch=5)
    with pytest.raises(EnmaError, match="batch 5"):
        task.loss(task.module, step_generator(0, 0), Rank(0, 2))


def test_pairs_are_half_a_batch_and_must_divide_too():
    task = dynamics_task("relative", batch=6, context_share=1e-9)
    with pytest.raises(EnmaError, match="batch 3"):
        task.loss(task.module, step_generator(0, 0), Rank(0, 2))
    alone = dynamics_task("relative", batch=6, context_share=0.0)
    alone.loss(alone.module, step_generator(0, 0), Rank(0, 2))


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks() == Rank(0, 1)


@pytest.mark.parametrize(
    ("launcher", "variables"),
    [
        ("SLURM", {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}),
        ("Open MPI", {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}),
    ],
)
def test_processes_of_another_launcher_are_refused(monkeypatch, launcher, variables):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnmaError, match=rf"^{launcher} has"):
        join_ranks()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_ranks() == Rank(0, 1)


@pytest.mark.parametrize(("gpus", "gpu"), [(4, 3), (2, 1)])
def test_ranks_of_a_machine_get_a_gpu_each(monkeypatch, gpus, gpu):
    begun, current = [], []
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: begun.append((backend, list(current))))
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(atexit, "register", lambda function: None)
    assert join_ranks() == Rank(3, 4)
    # Each has its GPU before the group begins, and before a command asks whether there is one.
    assert begun == [("cpu:gloo,cuda:nccl", [gpu])]
    current.clear()
    with pytest.raises(EnmaError, match="cuda"):
        on_device("cuda")
    assert current == [gpu]


def test_a_task_of_a_job_array_is_a_run_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {"JOB_ID": "7", "TASK_ID": "2", "TASK_COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)
    assert join_ranks() == Rank(0, 1)


def test_each_step_has_its_own_numbers():
    first, again, other, seed = (torch.rand(3, generator=step_generator(*a)) for a in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seed)
