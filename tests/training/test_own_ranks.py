"""Several processes train a field model: the weights of one, and a run of own data that the first plans and scores."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="needs the [data] extra")

import enma_fast
from enma_fast.data import read
from enma_fast.evaluation.scoring import score
from enma_fast.models.checkpoint import LOG, load_model
from enma_fast.training import run
from enma_fast.training.field_stage import FieldTask
from enma_fast.training.loop import step_generator
from enma_fast.training.ranks import Rank

from .._own import save, steepened
from ._run import options, read_log, stepped
from .test_field_stage import model, train, waves

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def task(tmp_path: Path) -> FieldTask:
    """Of waves beside their mirror images, with companions, and members that have something to differ by."""
    u, environments = waves(40)
    both, twice = torch.stack([u, u.flip(2)], 1).flatten(0, 1), environments.repeat_interleave(2)
    made = train(model("persistence", noise=2, member=4), both, twice, tmp_path, steps=2)
    made.module.requires_grad_(True)
    made.step.spread.fill_(0.5)
    assert (made.shifts, made.mirrors) == ([0], {0: (1,)})
    assert made.companions is not None
    return made


@pytest.mark.parametrize("count", [2, 3, 20])
def test_the_mean_of_the_ranks_losses_and_gradients_is_that_of_one(task: FieldTask, count: int) -> None:
    """Of twenty ranks some have no trajectory of a batch."""

    def gradient(rank: Rank, step: int) -> tuple[float, torch.Tensor]:
        task.module.zero_grad(set_to_none=True)
        loss, _ = task.loss(task.module, step_generator(0, step), rank)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in task.module.parameters() if p.grad is not None])

    for step, task.share in enumerate((0.0, 0.4, 0.6, 0.8, 0.9, 0.95)):
        loss, whole = gradient(Rank(), step)
        parts = [gradient(Rank(index, count), step) for index in range(count)]
        assert sum(part for part, _ in parts) / count == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(sum(part for _, part in parts) / count, whole, rtol=1e-4, atol=1e-6)


def launched(*arguments: object) -> str:
    """Standard output of a command that two processes carry out."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "enma_fast",
    ]
    run = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "waves.h5", steepened(40), environment=np.arange(20).repeat(2).tolist())


@pytest.mark.slow
def test_two_ranks_train_the_weights_of_one(source: Path, tmp_path: Path) -> None:
    recipe = stepped(source, tmp_path / "data", steps=30)
    alone = run.train(recipe, options=options(tmp_path / "one", validate_every=None), data_dir=tmp_path / "data")
    launched(
        "train", tmp_path / "steps.toml", "--data", tmp_path / "data", "--out", tmp_path / "two", "--precision", "fp32"
    )
    assert alone is not None
    logs = [read_log(tmp_path / name / "field") for name in ("one", "two")]
    losses = [{entry["step"]: entry["loss"] for entry in log if "loss" in entry} for log in logs]
    assert losses[1][30] == pytest.approx(losses[0][30], rel=1e-4)
    found = load_model(tmp_path / "two").state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_two_processes_train_own_data_and_one_of_them_plans_scores_and_speaks(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = json.loads(launched("train", source, "--out", out, "--minutes", 0.3, "--json"))
    assert result["training"]["ranks"] == 2
    assert result["training"]["stages"]["field"]["steps"] > 10
    rows = {row["task"]: row for row in result["rows"]}
    assert rows.keys() == {"temporal", "initial-value"}
    row = rows["temporal"]
    assert row["rel_l2"] < 0.8 * row["methods"]["damped persistence"]["rel_l2"]
    again = score(load_model(out), read(out / "data" / "waves-test-in.h5"), num_members=row["num_members"])
    assert again["rel_l2"] == pytest.approx(row["rel_l2"], rel=1e-5)
    assert Path(result["report"]).is_file()
    # One process may go on with it, and reads what is finished.
    assert enma_fast.train(source, out, minutes=0.3).config == load_model(out).config


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_ends_the_other_with_one_line(source: Path, tmp_path: Path, lost: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "enma_fast", "train", source, "--out", tmp_path / "run", "--minutes", "5"]
    # The variables that torchrun sets, which itself would end the others.
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    try:
        until, log = time.monotonic() + 120, tmp_path / "run" / "field" / LOG
        while not log.is_file():
            assert time.monotonic() < until
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.1)
        processes[lost].kill()
        _, errors = processes[1 - lost].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - lost].returncode == 2
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: another process of this training has ended")
