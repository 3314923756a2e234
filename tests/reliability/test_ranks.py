"""Several processes write one store: its bytes do not depend on how many, on who dies, or on when each one comes."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .._files import contents
from ._harness import Process, Server, units

ROOT = Path(__file__).resolve().parents[2]
MEMBERS, TRAJECTORIES, CHUNK = 24, 4, 4
ALL = MEMBERS * TRAJECTORIES
BOTH = ("--quantiles", "0.1,0.9", "--exceedance", "0")
STATISTICS = ("--statistics-only", "--quantiles", "0.1,0.5,0.9", "--exceedance", "0")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")
MPIRUN = ("mpirun", "--oversubscribe", *(("--allow-run-as-root",) if os.geteuid() == 0 else ()), "-np")
# A rank that takes DELAY seconds longer for each chunk, waits where RANK is SLOW_RANK until UNTIL members are in STORE,
# and notes at once what it did.
RANK = """
import os, sys, time
from pathlib import Path
import enma_fast.runs.run, enma_fast.store.writer
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.cli import main
from tests.reliability._harness import units

sample = FileForecast.sample

def slowly(*arguments, **options):
    time.sleep(float(os.environ["DELAY"]))
    if os.environ["RANK"] == os.environ.get("SLOW_RANK"):
        while (units(Path(os.environ["STORE"])) or (0, 0))[0] < int(os.environ["UNTIL"]):
            time.sleep(0.05)
    return sample(*arguments, **options)

FileForecast.sample = slowly
enma_fast.runs.run._SAVE = enma_fast.store.writer._SYNC_INTERVAL = 0.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def forecast(test_in: Path, tiny: Path) -> Callable[..., list[str]]:
    """Arguments of the command that all runs here repeat."""

    def arguments(out: Path, *options: str) -> list[str]:
        fixed = ["forecast", str(test_in), "-c", str(tiny), "--out", str(out), "--members", str(MEMBERS)]
        return [*fixed, "--select", f"0:{TRAJECTORIES}", "--chunk", str(CHUNK), "--json", *options]

    return arguments


@pytest.fixture(scope="module")
def alone(
    forecast: Callable[..., list[str]], server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, bytes]]:
    """The store of one process that nothing disturbs, by options."""
    known: dict[tuple[str, ...], dict[str, bytes]] = {}

    def store(*options: str) -> dict[str, bytes]:
        if options not in known:
            out = tmp_path_factory.mktemp("alone") / "run.zarr"
            assert server.run(*forecast(out, *options)).json["members_sampled"] == ALL
            known[options] = contents(out)
        return known[options]

    return store


@pytest.fixture
def rank_program(tmp_path: Path) -> str:
    path = tmp_path / "rank.py"
    path.write_text(RANK)
    return str(path)


def environment(**others: str) -> dict[str, str]:
    """This one, without what says that it is itself a rank."""
    strangers = ("RANK", "WORLD_SIZE", "LOCAL_", "OMPI_", "PMI", "MPI_", "SLURM_", "TORCHELASTIC_", "MASTER_", "GROUP_")
    found = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
    return found | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | others


def results(command: list[str], **others: str) -> list[dict[str, Any]]:
    """The reports of the ranks of a launch, by rank."""
    run = subprocess.run(command, cwd=ROOT, env=environment(**others), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return sorted(found, key=lambda result: int(result["rank"]))


def array_task(number: int, job: int = 4) -> dict[str, str]:
    """The variables that SLURM sets for task `number` of an array of three."""
    array = {"ARRAY_JOB_ID": job, "ARRAY_TASK_ID": number, "ARRAY_TASK_MIN": 0, "ARRAY_TASK_COUNT": 3}
    array |= {"ARRAY_TASK_STEP": 1, "JOB_ID": job + 1 + number, "PROCID": 0, "LOCALID": 0, "NTASKS": 1}
    return {f"SLURM_{name}": str(value) for name, value in array.items()}


def torchrun(rank: int, size: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank."""
    found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "GROUP_WORLD_SIZE": 1}
    return {name: str(value) for name, value in found.items()} | {"MASTER_PORT": f"{29500 + size}"}


def wait_for(what: Callable[[], bool], seconds: float = 300.0) -> None:
    last = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < last, "it does not come"
        time.sleep(0.005)


@pytest.mark.slow
def test_four_ranks_of_torchrun_write_the_bytes_of_one(forecast: Callable, alone: Callable, quick: Path) -> None:
    found = results([*TORCHRUN, "4", "-m", "enma_fast", *forecast(quick / "run.zarr", *BOTH)])
    assert [result["rank"] for result in found] == [0, 1, 2, 3]
    assert sum(result["members_sampled"] for result in found) == ALL, "no member is sampled twice"
    assert contents(quick / "run.zarr") == alone(*BOTH)
    assert os.listdir(quick) == ["run.zarr"], "nothing is left beside it"


@pytest.mark.slow
def test_four_ranks_of_mpirun_write_the_bytes_of_one(forecast: Callable, alone: Callable, quick: Path) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun of Open MPI: apt install openmpi-bin")
    command = [*MPIRUN, "4", sys.executable, "-m", "enma_fast", *forecast(quick / "run.zarr", *STATISTICS)]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert contents(quick / "run.zarr") == alone(*STATISTICS)
    assert os.listdir(quick) == ["run.zarr"]


@pytest.mark.slow
def test_two_killed_ranks_of_torchrun_are_continued_by_three(
    forecast: Callable, alone: Callable, rank_program: str, quick: Path
) -> None:
    out = quick / "run.zarr"
    first = subprocess.Popen(
        [*TORCHRUN, "2", rank_program, *forecast(out, *BOTH)],
        cwd=ROOT,
        env=environment(DELAY="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: first.poll() is not None or bool(done_units(out)))
    # Torchrun gives its ranks sessions of their own, which outlive it. A file is opened in a child of a rank.
    ranks = children(first.pid)
    ends = [os.pidfd_open(rank) for rank in ranks]
    for pid in (first.pid, *ranks):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    for end in ends:
        # Readable when it has ended, whoever waits for it.
        assert select.select([end], [], [], 60)[0]
        os.close(end)
    assert len(ranks) == 2
    done = done_units(out)
    assert 0 < done < ALL
    found = results([*TORCHRUN, "3", "-m", "enma_fast", *forecast(out, *BOTH)])
    assert sum(result["members_sampled"] for result in found) == ALL - done, "what was done is not done again"
    assert contents(out) == alone(*BOTH)
    assert os.listdir(quick) == ["run.zarr"]


def done_units(store: Path) -> int:
    return (units(store) or (0, 0))[0]


def children(pid: int) -> list[int]:
    """Processes that a process has started, not those that they have."""
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


def test_statistics_of_two_killed_ranks_are_continued_by_three(
    server: Server, forecast: Callable, alone: Callable, quick: Path
) -> None:
    out, command = quick / "run.zarr", forecast(quick / "run.zarr", *STATISTICS)
    # Each dies where it saves what it has folded for the third time.
    trap = {"folder": str(quick), "match": f"os.rename {out}/.", "at": [3], "how": "kill"}
    options = {"trap": trap, "patch": {"runs.run._SAVE": 0.0}}
    ranks = [server.start(*command, environ=torchrun(n, 2), **options) for n in range(2)]
    assert [rank.end().status for rank in ranks] == [-signal.SIGKILL] * 2
    assert len(list(out.glob(".statistics-*.npz"))) == 2
    ranks = [server.start(*command, environ=torchrun(n, 3)) for n in range(3)]
    sampled = sum(rank.end().json["members_sampled"] for rank in ranks)
    assert sampled == ALL - 2 * 2 * CHUNK, "what was saved is not sampled again"
    assert contents(out) == alone(*STATISTICS)
    assert os.listdir(quick) == ["run.zarr"]


@pytest.mark.slow
def test_a_slow_rank_does_not_hold_the_run(forecast: Callable, alone: Callable, rank_program: str, quick: Path) -> None:
    command = [*TORCHRUN, "2", rank_program, *forecast(quick / "run.zarr")]
    others = ALL - ALL // 6
    found = results(command, DELAY="0", SLOW_RANK="1", STORE=str(quick / "run.zarr"), UNTIL=str(others))
    fast, slow = (result["members_sampled"] for result in found)
    assert fast + slow == ALL
    assert fast >= others, "half of it is the slow one's own"
    assert contents(quick / "run.zarr") == alone()


def begun(server: Server, arguments: list[str], environ: dict[str, str], folder: Path) -> Process:
    """A rank that is stopped where it writes what it has sampled first; what it has claimed stays so."""
    first = "u_mean" if "--statistics-only" in arguments else "u"
    trap = {"folder": str(folder), "match": f"open {folder}/run.zarr/{first}/", "at": [1], "how": "stop"}
    rank = server.start(*arguments, environ=environ, trap=trap)
    assert rank.state() == "stopped"
    return rank


@pytest.mark.parametrize("options", [(), ("--shard", "3"), STATISTICS], ids=["members", "shards", "statistics"])
def test_tasks_of_a_slurm_array_join_at_any_time(
    options: tuple[str, ...], server: Server, forecast: Callable, alone: Callable, quick: Path
) -> None:
    out, command = quick / "run.zarr", forecast(quick / "run.zarr", *options)
    first = begun(server, command, array_task(0), quick)
    second = server.start(*command, environ=array_task(1))
    # A rank may have claimed two more blocks of members that wait to be written, and be sampling another.
    block, most = (1, 1) if options == STATISTICS else (3 if options else CHUNK, 4)
    wait_for(lambda: (count := units(out)) is not None and 0 < count[1] - count[0] <= most * block)
    assert second.state(0.3) == "running", "it waits for what the first one works on"
    third = server.start(*command, environ=array_task(2))
    assert third.state(0.5) == "running"
    first.go_on()
    found = [task.end().json for task in (first, second, third)]
    assert [result["rank"] for result in found] == [0, 1, 2]
    assert [result["plan"]["ranks"] for result in found] == [3, 3, 3]
    sampled = [result["members_sampled"] for result in found]
    assert sum(sampled) == ALL, "no member is sampled twice"
    block *= MEMBERS if options == STATISTICS else 1
    assert block <= sampled[0] <= most * block
    assert contents(out) == alone(*options)
    late = server.run(*command, environ=array_task(2)).json
    assert late["members_sampled"] == 0, "a task that starts when all is done"
    assert contents(out) == alone(*options)


@pytest.mark.parametrize("options", [(), STATISTICS], ids=["members", "statistics"])
def test_others_take_over_from_a_dead_rank(
    options: tuple[str, ...], server: Server, forecast: Callable, alone: Callable, quick: Path
) -> None:
    out, command = quick / "run.zarr", forecast(quick / "run.zarr", *options)
    first = begun(server, command, array_task(0), quick)
    others = [server.start(*command, environ=array_task(n)) for n in (1, 2)]
    most = 1 if options else 4 * CHUNK
    wait_for(lambda: (count := units(out)) is not None and 0 < count[1] - count[0] <= most)
    assert [other.state(0.2) for other in others] == ["running", "running"]
    assert first.kill().status == -signal.SIGKILL
    assert sum(other.end().json["members_sampled"] for other in others) == ALL
    assert contents(out) == alone(*options)
    assert os.listdir(quick) == ["run.zarr"]


def test_ranks_of_another_run_are_refused(server: Server, forecast: Callable, alone: Callable, quick: Path) -> None:
    out, command = quick / "run.zarr", forecast(quick / "run.zarr")
    first = begun(server, command, array_task(0), quick)
    before = contents(out)
    for other in (array_task(1, job=8), {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, {}):
        # Several processes are refused --force anyway.
        for extra in ((),) if other else ((), ("--force",)):
            error = server.run(*command, *extra, environ=other).error()
            assert f"{out}: is being written by another run (process {first.pid} on " in error
            assert error.endswith("; wait for it, or choose another --out")
    assert contents(out) == before
    different = forecast(out, "--seed", "1")
    assert "belongs to another run: seed is 0 there, 1 here" in server.run(*different, environ=array_task(1)).error()
    first.kill()
    assert server.run(*command, environ=array_task(1, job=8)).json["members_sampled"] == ALL
    assert contents(out) == alone()
