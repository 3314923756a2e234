"""Command lines in processes of their own, to be killed, stopped, or run out of disk; and what they leave behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enma_fast.store.layout import LEDGER

PHASES = ("making", "empty", "members", "finishing", "finished")


@dataclass(frozen=True)
class Ended:
    """A process that has ended; `status` is negative for a signal."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output under `--json`."""
        return json.loads(self.out.splitlines()[-1])

    def error(self) -> str:
        """The one line of an error in the input."""
        assert self.status == 2, (self.status, self.out, self.err)
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


class Process:
    """A command line in a process of its own."""

    def __init__(self, server: "Server", pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log
        self.status: int | None = None

    def state(self, seconds: float = 300.0) -> str:
        """ "ended", "stopped", or "running" after so many seconds."""
        if self.status is not None:
            return "ended"
        answer = self.server.ask(do="wait", pid=self.pid, seconds=seconds)
        self.status = answer["status"]
        return str(answer["state"])

    def end(self, seconds: float = 300.0) -> Ended:
        """Wait for the end."""
        if self.state(seconds) != "ended":
            self.kill()
            raise AssertionError(f"process {self.pid} has not ended in {seconds} s")
        out, err = (self.log.with_name(f"{self.log.name}.{name}") for name in ("out", "err"))
        assert self.status is not None
        return Ended(self.status, out.read_text(), err.read_text())

    def kill(self) -> Ended:
        """SIGKILL, and wait for the end."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def go_on(self) -> None:
        """Continue a stopped process."""
        os.kill(self.pid, signal.SIGCONT)


class Server:
    """The client of `_server.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = [sys.executable, str(Path(__file__).with_name("_server.py"))]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, bufsize=1
        )
        self._numbers = itertools.count()

    def warm(self, data: Path, checkpoint: Path) -> None:
        """Let the server import all that children need."""
        answer = self.ask(do="warm", data=str(data), checkpoint=str(checkpoint))
        # A child has no thread but the one that forked.
        assert len(answer["threads"]) == 1, answer

    def start(
        self,
        *arguments: object,
        trap: dict[str, Any] | None = None,
        patch: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        run: dict[str, Any] | None = None,
        limits: dict[str, int] | None = None,
    ) -> Process:
        """Start a command line; or a run of these options of `prepare`, in half of the time.

        `limits` are bytes of `memory` and seconds of `cpu`.
        """
        log = self.folder / f"log-{next(self._numbers)}"
        for name in ("out", "err"):
            # A process may be killed before it opens them.
            log.with_name(f"{log.name}.{name}").touch()
        answer = self.ask(
            do="start",
            arguments=[str(argument) for argument in arguments],
            log=str(log),
            run="" if run is None else json.dumps(run, default=str),
            trap=trap or {},
            patch=patch or {},
            environ=environ or {},
            limits=limits or {},
        )
        return Process(self, answer["pid"], log)

    def run(self, *arguments: object, **options: Any) -> Ended:
        """Run a command line to its end."""
        return self.start(*arguments, **options).end()

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def units(store: Path) -> tuple[int, int] | None:
    """How many units of a store's ledger are done, and how many there are; None without a ledger."""
    try:
        data = np.frombuffer((store / LEDGER).read_bytes()[16:], np.uint8)
    except FileNotFoundError:
        return None
    return int(data.sum()), len(data)


def phase(store: Path) -> str:
    """How far a run has come, of `PHASES`: "members" when some are done."""
    if not store.exists():
        return "making"
    found = units(store)
    if found is None:
        return "finished"
    done, count = found
    return "empty" if not done else "finishing" if done == count else "members"


def beside(store: Path) -> list[str]:
    """Names of what lies beside a store."""
    return sorted(path.name for path in store.parent.iterdir() if path != store)


def steps(trace: Path) -> list[str]:
    """The steps that a trap wrote down; its file is removed."""
    found = trace.read_text().splitlines()
    trace.unlink()
    return found
