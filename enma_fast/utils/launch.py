"""Rank and number of ranks of this process, read from the variables of `torchrun`, MPI and SLURM.

Ranks share work through the ledger of the store that they write. So they need no collective communication, and a wrong
number of ranks costs speed only.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .system import usable_cores

# Launcher -> its variables for the rank, the number of ranks, the rank on this machine, and the ranks on this machine.
# The first match wins. MPI launchers start a helper on each machine by srun, so their ranks inherit the helper's SLURM
# variables. Ranks that srun itself starts may have PMI variables too (`--mpi=pmi2`), but none for a local rank.
_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # Variables of the step, not of the job: a batch script without srun is one process, whatever --ntasks says.
    "SLURM": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "PALS": ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
}
# Variables that name a launch, and those that name the job it is part of.
_NAMES = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),
    "Open MPI": ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    "MPICH": (),
    "SLURM": ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    "PALS": ("PALS_APID",),
}
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process of a run.

    Attributes
    ----------
    launcher : program that started the process, "alone" if there is none
    rank, num_ranks : its number among all processes, and how many there are
    local_rank, num_local : the same among the processes of this machine
    run : name of the run, equal for all of its processes
    is_reporter : True if it reports progress for all processes that share its output
    """

    launcher: str
    rank: int
    num_ranks: int
    local_rank: int
    num_local: int
    run: str
    is_reporter: bool = True

    def device(self, kind: str, count: int) -> str:
        """Device of this process: `cuda` becomes one of the `count` GPUs, chosen by local rank."""
        return f"cuda:{self.local_rank % count}" if kind == "cuda" and count else kind

    def threads(self, environ: Mapping[str, str] | None = None) -> int | None:
        """Number of threads, so that the processes of a machine share its cores; None to leave it unchanged."""
        variables = os.environ if environ is None else environ
        if self.num_local == 1 or "OMP_NUM_THREADS" in variables:
            return None
        # Some launchers bind a rank to its own cores, others let all ranks use all cores of the job: the smaller wins.
        cores = _number(variables, "SLURM_CPUS_ON_NODE") or os.cpu_count() or 1
        return min(usable_cores(), max(1, cores // self.num_local))


def detect(environ: Mapping[str, str] | None = None) -> Launch:
    """Read the launch from the environment variables of this process; senseless values are ignored."""
    variables = os.environ if environ is None else environ
    launch = Launch(launcher="alone", rank=0, num_ranks=1, local_rank=0, num_local=1, run=uuid.uuid4().hex)
    for launcher, names in _VARIABLES.items():
        rank, size, local_rank, local_size = (_number(variables, name) for name in names)
        if rank is None or size is None or rank >= size or (local_rank is None and names[0] == "PMI_RANK"):
            continue
        local = local_rank or 0
        launch = Launch(
            launcher=launcher,
            rank=rank,
            num_ranks=size,
            local_rank=local,
            num_local=max(local + 1, local_size or 1),
            run=_run(launcher, size, variables),
            is_reporter=rank == 0,
        )
        break
    return _array_task(launch, variables)


def _run(launcher: str, num_ranks: int, variables: Mapping[str, str]) -> str:
    """Name that all processes of a launch share on all machines, and that other launches do not have if possible."""
    own = [variables.get(name, "") for name in _NAMES[launcher]]
    if launcher == "torchrun" and own[0] in ("", "none") and variables.get("GROUP_WORLD_SIZE") == "1":
        # Then the address is a local one, which is the same on every machine.
        own.append(socket.gethostname())
    if any(own):
        return " ".join([launcher, *own])
    # If two launches have the same name, their processes share the work, which does no harm.
    job = [variables[name] for name in _JOBS if name in variables]
    return " ".join([launcher, str(num_ranks), "ranks", *job])


def _array_task(launch: Launch, variables: Mapping[str, str]) -> Launch:
    """Make the tasks of a SLURM job array ranks of one run, whatever launched each of them."""
    task, array = _number(variables, "SLURM_ARRAY_TASK_ID"), variables.get("SLURM_ARRAY_JOB_ID")
    if task is None or array is None:
        return launch
    first_task = _number(variables, "SLURM_ARRAY_TASK_MIN") or 0
    step = _number(variables, "SLURM_ARRAY_TASK_STEP") or 1
    count = _number(variables, "SLURM_ARRAY_TASK_COUNT") or 1
    # The tasks of an array may have any numbers, such as 0,3,7-9.
    place = max(0, task - first_task) // step % count
    return replace(
        launch,
        launcher="SLURM array" if launch.launcher in ("alone", "SLURM") else f"SLURM array, {launch.launcher}",
        rank=place * launch.num_ranks + launch.rank,
        num_ranks=count * launch.num_ranks,
        run=f"SLURM array {array}",
    )


def _number(variables: Mapping[str, str], name: str) -> int | None:
    text = variables.get(name, "")
    if name == "SLURM_STEP_TASKS_PER_NODE":
        return _of_this_node(text, _number(variables, "SLURM_NODEID") or 0)
    return int(text) if text.isascii() and text.isdecimal() else None


def _of_this_node(text: str, node: int) -> int | None:
    """Entry of a node in SLURM's list of tasks, such as `2(x3),1`: two on each of three nodes, then one."""
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part, re.ASCII)
        if match is None:
            return None
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    return None
