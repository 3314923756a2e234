"""libenma in several ranks of one thread each, beside one process with a thread for each core.

    python -m benchmarks.embed_ranks --ranks 4 --members 64 --json

Ranks are processes that begin at the same time and forecast members of their own, so often that a round takes about
two seconds; `mpirun` starts them where it is there. Throughput is all members by the time from the common
beginning to the end of the last rank. Both take turns, and their members are compared: they have the same bits.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed import LIBRARY
from benchmarks.forecast import SEED, wave
from benchmarks.harness import machine, ratios
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import PRETRAINED, available, load_model
from tests.runtime._libenma import Library

# Open MPI binds ranks to cores and counts them unless told; others (MPICH, Intel MPI) start as many as they are told.
OPEN_MPI = ["--oversubscribe", "--bind-to", "none", "--allow-run-as-root"]
# Seconds until all ranks have opened the checkpoint.
READY = 6.0
# Number of a rank, as mpirun and this program give it.
RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "ENMA_RANK")


def mpirun() -> bool:
    """True if ranks are started by it."""
    return shutil.which("mpirun") is not None


@functools.cache
def launcher() -> list[str]:
    """`mpirun` with the options of the MPI that it is of, up to the number of ranks."""
    said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    return ["mpirun", *(OPEN_MPI if "Open MPI" in said or "OpenRTE" in said else []), "-np"]


def rank(preset: str, *, ranks: int, members: int, threads: int, repeats: int, begin: float) -> dict[str, Any]:
    """Forecast this rank's share of the members at `begin` on the system's clock; when it ended, and what it made."""
    number = next((int(os.environ[name]) for name in RANK if name in os.environ), 0)
    history = wave(load_model(PRETRAINED / preset).config)[0].numpy()
    opened = Library(LIBRARY).open(PRETRAINED / preset)
    first, last = members * number // ranks, members * (number + 1) // ranks
    asked = {"first_member": first, "num_members": last - first, "seed": SEED, "threads": threads}
    made = opened.forecast(history, **asked)
    late = time.monotonic() - begin
    while time.monotonic() < begin:
        time.sleep(0.001)
    for _ in range(repeats):
        opened.forecast(history, **asked)
    end = time.monotonic()
    members_made = [hashlib.sha256(np.ascontiguousarray(member).tobytes()).hexdigest()[:16] for member in made]
    return {"rank": number, "end": end, "late": late, "members": members_made}


def round_of(preset: str, *, ranks: int, members: int, threads: int, repeats: int) -> tuple[float, list[str]]:
    """Members a second of so many ranks, and a digest of each member."""
    with tempfile.TemporaryDirectory() as folder:
        return _round_in(Path(folder), preset, ranks=ranks, members=members, threads=threads, repeats=repeats)


def _round_in(
    folder: Path, preset: str, *, ranks: int, members: int, threads: int, repeats: int
) -> tuple[float, list[str]]:
    """The same with files of the ranks in a folder, since mpirun may join lines of their output."""
    begin = time.monotonic() + READY
    task = json.dumps([preset, repeats, begin, str(folder)])
    words = [sys.executable, "-m", "benchmarks.embed_ranks", "--worker", task]
    words += [f"--ranks={ranks}", f"--members={members}", f"--threads={threads}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if ranks > 1 and mpirun():
        commands = [([*launcher(), str(ranks), *words], environment)]
    else:
        commands = [(words, environment | {"ENMA_RANK": str(number)}) for number in range(ranks)]
    started = [subprocess.Popen(command, env=env) for command, env in commands]
    codes = [process.wait() for process in started]
    if any(codes):
        raise EnmaError("a rank failed; see its message above")
    found = sorted((json.loads(file.read_text()) for file in folder.iterdir()), key=lambda part: part["rank"])
    if len(found) != ranks or max(part["late"] for part in found) > 0:
        raise EnmaError(f"{len(found)} of {ranks} ranks were ready in {READY:g} s; the machine is too busy")
    seconds = max(part["end"] for part in found) - begin
    return members * repeats / seconds, [member for part in found for member in part["members"]]


def measure(preset: str, *, ranks: int, members: int, rounds: int) -> dict[str, Any]:
    """The ranks beside one process, in turn, by the time of a member; `EnmaError` if members differ."""
    cores = len(os.sched_getaffinity(0))
    sides = {"ranks": {"ranks": ranks, "threads": 1}, "process": {"ranks": 1, "threads": cores}}
    # About two seconds a round.
    trial, expected = round_of(preset, members=members, repeats=1, **sides["process"])
    repeats = max(1, round(2 * trial / members))
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, settings in sides.items():
            rate, made = round_of(preset, members=members, repeats=repeats, **settings)
            if made != expected:
                raise EnmaError(f"the members of {settings['ranks']} ranks have other bits; no rate is reported")
            rates[side].append(rate)
    seconds = {side: [1 / rate for rate in found] for side, found in rates.items()}
    row = {"case": "embed_ranks", "preset": preset, "rows": members, "ranks": ranks, "mpirun": mpirun()}
    against = {f"one process, {cores} threads": ratios(seconds, "ranks")["process"]}
    row |= {"ours_s": statistics.median(seconds["ranks"]), "per": "member", "against": against}
    return row | {"rounds": rounds, "threads": 1, "machine": machine()}


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed_ranks", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="combined-fast", choices=available())
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    if not 1 <= options.ranks <= options.members:
        parser.error(f"--ranks is {options.ranks}; 1 to --members ({options.members}) is expected")
    if options.worker is not None:
        preset, repeats, begin, folder = json.loads(options.worker)
        counts = {"ranks": options.ranks, "members": options.members, "threads": options.threads}
        made = rank(preset, repeats=repeats, begin=begin, **counts)
        (Path(folder) / f"{made['rank']}.json").write_text(json.dumps(made))
        return 0
    try:
        found = measure(options.preset, ranks=options.ranks, members=options.members, rounds=options.rounds)
    except EnmaError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found))
    else:
        (process,) = found["against"].values()
        print(
            f"{options.ranks} ranks of one thread: {1 / found['ours_s']:.0f} members a second, {process['ratio']:.2f} "
            f"of one process with a thread for each core ({1 / process['seconds']:.0f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
