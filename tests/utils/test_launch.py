"""Ranks of a launch, from environment variables.

The variables are those of real ranks: torch 2.13, Open MPI 5.0.7, MPICH 4.2.1 and SLURM 24.11 on two nodes. Variables
that are the same for all ranks are left out.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from enma_fast.utils.launch import Launch, detect

ROOT = Path(__file__).resolve().parents[2]
# In one piece, so that the lines of two ranks do not mix.
PRINT = "import os; from enma_fast.utils.launch import detect; d = detect(); "
PRINT += 'os.write(1, f"{d.rank} {d.num_ranks} {d.local_rank} {d.num_local} {d.run}\\n".encode())'

# Ranks 0, 1 and 2 of `srun -N 2 -n 3` in job 7: two on the first node, one on the second.
STEP = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "2,1"}
SRUN = [
    STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_CPUS_ON_NODE": "2"},
    STEP | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_CPUS_ON_NODE": "2"},
    STEP | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_CPUS_ON_NODE": "1"},
]
# The batch script of a job of three tasks is one process.
BATCH = {"SLURM_JOB_ID": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
BATCH |= {"SLURM_TASKS_PER_NODE": "2,1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_ON_NODE": "2"}


def torchrun(rank: int, size: int, local: int, num_local: int, **others: str) -> dict[str, str]:
    found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": num_local}
    found |= {"GROUP_WORLD_SIZE": size // num_local, "GROUP_RANK": rank // num_local}
    known = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    return {name: str(value) for name, value in {**found, **known, **others}.items()}


def open_mpi(rank: int, size: int, local: int, num_local: int, **others: str) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    found = {f"OMPI_COMM_WORLD_{name}": str(n) for name, n in zip(names, (rank, size, local, num_local), strict=True)}
    return found | {"PMIX_NAMESPACE": "prterun-vm-24308@1", "PMIX_RANK": str(rank)} | others


def mpich(rank: int, size: int, local: int, num_local: int, **others: str) -> dict[str, str]:
    found = {"PMI_RANK": rank, "PMI_SIZE": size, "MPI_LOCALRANKID": local, "MPI_LOCALNRANKS": num_local, "PMI_FD": 9}
    return {name: str(value) for name, value in found.items()} | others


def places(ranks: list[dict[str, str]]) -> list[tuple[int, int, int, int]]:
    found = [detect(environ) for environ in ranks]
    assert len({launch.run for launch in found}) == 1, "all ranks of a launch have one name"
    assert [launch.is_reporter for launch in found] == [launch.rank == 0 for launch in found]
    return [(launch.rank, launch.num_ranks, launch.local_rank, launch.num_local) for launch in found]


def test_alone() -> None:
    launch = detect({})
    assert (launch.launcher, launch.rank, launch.num_ranks, launch.is_reporter) == ("alone", 0, 1, True)
    assert launch.run != detect({}).run, "two processes on their own are two runs"
    assert detect({"SLURM_JOB_ID": "14", "SLURM_NTASKS": "3"}).launcher == "alone", "salloc's own shell"


def test_a_batch_script_without_srun_is_one_process() -> None:
    launch = detect(BATCH)
    assert (launch.launcher, launch.num_ranks, launch.num_local) == ("alone", 1, 1)
    assert launch.threads(BATCH) is None, "it has all cores of the job"


def test_torchrun() -> None:
    ranks = [torchrun(r, 4, r % 2, 2) for r in range(4)]
    assert places(ranks) == [(0, 4, 0, 2), (1, 4, 1, 2), (2, 4, 0, 2), (3, 4, 1, 2)]
    other = [torchrun(0, 4, 0, 2, MASTER_PORT="29501"), torchrun(0, 4, 0, 2, TORCHELASTIC_RUN_ID="df86d707")]
    assert len({detect(environ).run for environ in [ranks[0], *other]}) == 3


def test_torchrun_on_one_machine_is_another_run_than_on_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = torchrun(0, 2, 0, 2)
    here = detect(environ).run
    assert here == detect(torchrun(1, 2, 1, 2)).run
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert detect(environ).run != here
    named = {"RANK": "1", "WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "by-hand"}
    assert detect(named).run == detect({**named, "RANK": "0"}).run


def test_open_mpi() -> None:
    assert places([open_mpi(r, 3, r % 2, 2 - r // 2) for r in range(3)]) == [(0, 3, 0, 2), (1, 3, 1, 2), (2, 3, 0, 1)]
    assert detect(open_mpi(0, 3, 0, 3, PMIX_NAMESPACE="prterun-vm-1@1")).run != detect(open_mpi(0, 3, 0, 3)).run


def test_mpich_and_intel_mpi_have_one_name_on_several_nodes_and_under_wrapper_scripts() -> None:
    # Nothing that hydra sets is the same on all nodes and differs between launches; the job is, where there is one.
    ranks = [mpich(r, 3, r % 2, 2 - r // 2, MPIR_CVAR_CH3_INTERFACE_HOSTNAME=f"n{r // 2}") for r in range(3)]
    assert places(ranks) == [(0, 3, 0, 2), (1, 3, 1, 2), (2, 3, 0, 1)]
    assert detect(ranks[0] | {"PBS_JOBID": "8"}).run != detect(ranks[0] | {"PBS_JOBID": "9"}).run


def test_srun_on_several_nodes() -> None:
    assert places(SRUN) == [(0, 3, 0, 2), (1, 3, 1, 2), (2, 3, 0, 1)]
    assert detect(SRUN[0] | {"SLURM_STEP_ID": "1"}).run != detect(SRUN[0]).run, "two steps of one job"
    pmi = [environ | {"PMI_RANK": environ["SLURM_PROCID"], "PMI_SIZE": "3", "PMI_FD": "17"} for environ in SRUN]
    assert places(pmi) == places(SRUN), "srun --mpi=pmi2: the local rank is SLURM's"


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("4", [4]), ("2,1", [2, 1]), ("2(x3),1", [2, 2, 2, 1]), ("1,3(x2),2(x2)", [1, 3, 3, 2, 2])],
)
def test_slurms_list_of_tasks(text: str, nodes: list[int]) -> None:
    size = str(sum(nodes))
    for node, count in enumerate(nodes):
        environ = {"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
        assert detect({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": size, **environ}).num_local == count


def test_a_task_of_a_job_array_is_a_rank() -> None:
    def task(number: int, **others: str) -> dict[str, str]:
        array = {"SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_MIN": "2"}
        array |= {"SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
        return array | others

    # Each task is a job with a number of its own; the last one's is the array's.
    alone = [detect(BATCH | task(n, SLURM_JOB_ID=job)) for n, job in ((2, "5"), (4, "6"), (6, "4"))]
    assert [(x.rank, x.num_ranks, x.local_rank, x.num_local) for x in alone] == [(r, 3, 0, 1) for r in range(3)]
    assert {x.run for x in alone} == {"SLURM array 4"}
    assert all(x.is_reporter for x in alone), "each writes a file of its own"
    steps = [detect(SRUN[r] | task(n, SLURM_JOB_ID=str(n))) for n in (2, 4, 6) for r in range(3)]
    assert [x.rank for x in steps] == list(range(9))
    assert {(x.num_ranks, x.run) for x in steps} == {(9, "SLURM array 4")}
    inner = [open_mpi(1, 2, 1, 2, PMIX_NAMESPACE="a"), torchrun(1, 2, 1, 2), mpich(1, 2, 1, 2)]
    for launch in (detect(BATCH | environ | task(4)) for environ in inner):
        assert (launch.rank, launch.num_ranks, launch.local_rank, launch.run) == (3, 6, 1, "SLURM array 4")
        assert not launch.is_reporter
    assert detect(BATCH | task(4, SLURM_ARRAY_JOB_ID="5")).run == "SLURM array 5"


def test_the_numbers_of_an_array_may_be_any() -> None:
    array = {"SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3"}
    for number in (0, 3, 7, 99999):
        launch = detect(array | {"SLURM_ARRAY_TASK_ID": str(number)})
        assert 0 <= launch.rank < launch.num_ranks == 3


def test_mpirun_in_a_slurm_job_is_not_what_slurm_says() -> None:
    # Ranks inherit the step of the helper that srun starts on each node, one task a node; on the node of the batch
    # script there may be none.
    helper = {"SLURM_JOB_ID": "3", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    helper |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    for ranks in ([open_mpi(r, 4, r % 2, 2) for r in range(4)], [mpich(r, 4, r % 2, 2) for r in range(4)]):
        inside = [BATCH | environ if r < 2 else helper | environ for r, environ in enumerate(ranks)]
        assert places(inside) == [(0, 4, 0, 2), (1, 4, 1, 2), (2, 4, 0, 2), (3, 4, 1, 2)]


def test_pals() -> None:
    ranks = [{"PMI_RANK": str(r), "PMI_SIZE": "4", "PMI_LOCAL_RANK": str(r % 2), "PMI_LOCAL_SIZE": "2"} for r in (0, 3)]
    assert places([r | {"PALS_APID": "x"} for r in ranks]) == [(0, 4, 0, 2), (3, 4, 1, 2)]


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "3"},
        {"RANK": "gold", "WORLD_SIZE": "4"},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "²", "WORLD_SIZE": "4"},
        {"OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2.5"},
        {"SLURM_ARRAY_TASK_ID": "4"},
        {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_JOB_ID": "4"},
    ],
)
def test_what_makes_no_sense_says_nothing(environ: Mapping[str, str]) -> None:
    launch = detect(environ)
    assert (launch.launcher, launch.rank, launch.num_ranks, launch.local_rank) == ("alone", 0, 1, 0)


def test_half_of_it_may_be_missing_or_wrong() -> None:
    launch = detect({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "x"})
    assert (launch.rank, launch.num_ranks, launch.local_rank, launch.num_local) == (3, 4, 0, 1)
    launch = detect({**SRUN[1], "SLURM_STEP_TASKS_PER_NODE": "2(x"})
    assert (launch.rank, launch.local_rank, launch.num_local) == (1, 1, 2), "a second rank is there, so are two"
    assert detect({"RANK": "x", "WORLD_SIZE": "2", **open_mpi(1, 2, 1, 2)}).launcher == "Open MPI"


def rank_of(local_rank: int, num_local: int) -> Launch:
    return Launch(launcher="x", rank=0, num_ranks=8, local_rank=local_rank, num_local=num_local, run="x")


def test_ranks_take_the_gpus_of_their_machine_in_turn() -> None:
    assert [rank_of(n, 6).device("cuda", 4) for n in range(6)] == [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)]
    assert rank_of(3, 4).device("cuda", 1) == "cuda:0", "a launcher that shows each rank its own GPU"
    assert rank_of(3, 4).device("cuda:2", 4) == "cuda:2", "asked for by number"
    assert rank_of(3, 4).device("cpu", 4) == "cpu"
    assert rank_of(3, 4).device("cuda", 0) == "cuda", "the error is that of the device"


@pytest.mark.parametrize(
    ("machine", "usable", "environ", "num_local", "threads"),
    [
        (64, 64, {}, 1, None),
        (64, 64, {"OMP_NUM_THREADS": "3"}, 4, None),
        (64, 64, {}, 4, 16),
        (64, 16, {}, 4, 16),  # bound to its cores
        (64, 32, {}, 4, 16),  # two ranks bound to a socket
        (64, 1, {}, 2, 1),  # mpirun -np 2 binds to one core each
        (64, 8, {"SLURM_CPUS_ON_NODE": "8"}, 4, 2),  # all ranks may use the job's cores
        (64, 2, {"SLURM_CPUS_ON_NODE": "8"}, 4, 2),  # srun --cpus-per-task 2
        (4, 4, {}, 6, 1),  # more ranks than cores
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch,
    machine: int,
    usable: int,
    environ: dict[str, str],
    num_local: int,
    threads: int | None,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    assert rank_of(0, num_local).threads(environ) == threads


def test_threads_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    shared = rank_of(0, 2).threads()
    assert shared is not None
    assert 1 <= shared <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert rank_of(0, 2).threads() is None


def ranks_of(*launcher: str) -> list[list[str]]:
    """Launches that real ranks detect, by rank."""
    strangers = ("RANK", "WORLD_SIZE", "OMPI_", "PMI", "MPI_", "SLURM_", "HYDRA_", "TORCHELASTIC_", "MASTER_", "LOCAL_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
    environ |= {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(launcher, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return sorted(line.split(maxsplit=4) for line in run.stdout.splitlines())


@pytest.mark.slow
def test_a_real_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "print.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PRINT}\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    first, second = ranks_of(*launch), ranks_of(*launch)
    assert [rank[:4] for rank in first] == [["0", "2", "0", "2"], ["1", "2", "1", "2"]]
    assert first[0][4] == first[1][4] != second[0][4]


@pytest.mark.parametrize(
    ("program", "options"),
    [("mpirun.openmpi", ("--allow-run-as-root", "--oversubscribe")), ("mpiexec.hydra", ("-launcher", "fork"))],
)
def test_a_real_mpi(program: str, options: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    # Ranks behind a wrapper script, as is usual, have no parent in common.
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f"#!/bin/sh\n'{sys.executable}' -c '{PRINT}'\nexit $?\n")
    wrapper.chmod(0o755)
    found = ranks_of(program, *options, "-np", "3", str(wrapper))
    assert [rank[:4] for rank in found] == [[str(r), "3", str(r), "3"] for r in range(3)]
    assert len({rank[4] for rank in found}) == 1
