"""A fork server: one process that has imported everything, and forks a child for each command line or run.

Run as a program, it reads one JSON request a line and answers each with one. A child works in a fresh copy of the
imported modules, with output into files, and can be given a trap: at its n-th step that changes or locks a file below
a folder it is killed, stopped, or told that the disk is full. Steps are what Python's audit events report (files
opened for writing, renamed, removed; folders; locks of a whole run) and calls of `os.write` and `os.pwrite`.
"""

import contextlib
import errno
import gc
import importlib
import io
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PATHS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
# Place of the open folder among the arguments of an event.
_FOLDERS = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1}


class Trap:
    """Counts the steps of this process, and springs at some of them.

    how : "kill" before the step, "half" in the middle of a write, "stop" before it, "full" (this and all further
        writes and new files fail), or "" to count only
    match : only steps whose name and path contain it count
    """

    def __init__(self, folder: str, *, at: Sequence[int] = (), how: str = "", match: str = "", trace: str = "") -> None:
        self.folder, self.at, self.how, self.match = folder, at, how, match
        self.count, self.full = 0, False
        self.lock, self.process = threading.Lock(), os.getpid()
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if trace else None
        self.write, self.pwrite, self.open = os.write, os.pwrite, os.open
        os.write, os.pwrite, os.open = self._write, self._pwrite, self._open
        sys.addaudithook(self._event)

    def _event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in _PATHS or name == "open":
            path = str(arguments[0])
            if name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            # The name may be relative to an open folder; the event of `os.open` does not say to which.
            descriptor = arguments[_FOLDERS[name]] if name in _FOLDERS else -1
            if descriptor != -1:
                path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
            if not path.startswith(self.folder):
                return
            self._step(f"{name} {path}")
            if self.full and name in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif name == "fcntl.flock":
            self._step(name)

    def _step(self, what: str) -> bool:
        """True if the trap springs here, and the caller has to act on it."""
        # A child of the command, such as the one that reads field files, writes nothing that lasts.
        if self.match not in what or os.getpid() != self.process:
            return False
        with self.lock:
            self.count += 1
            if self.trace is not None:
                self.write(self.trace, f"{what}\n".encode())
            if self.count not in self.at:
                return False
            if self.how == "kill" or (self.how == "half" and "write" not in what):
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "stop":
                # To this thread: of a signal to the process it may see nothing until another has taken it.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            elif self.how == "full":
                self.full = True
            return self.how == "half"

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            whole = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
            if whole.startswith(self.folder):
                self._step(f"open {whole}")
                if self.full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), whole)
        return self.open(path, flags, mode, dir_fd=dir_fd)

    def _write(self, file: int, data: Any) -> int:
        if self._step("os.write"):
            self.write(file, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.write(file, data)

    def _pwrite(self, file: int, data: Any, offset: int) -> int:
        if self._step("os.pwrite"):
            self.pwrite(file, bytes(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.pwrite(file, data, offset)


@cache
def prepared(options: str) -> Any:
    """A run that only needs to be executed, which saves each child half of its time."""
    given = json.loads(options)
    request = importlib.import_module("enma_fast.forecasting.request").ForecastRequest(**given.pop("request"))
    return importlib.import_module("enma_fast.runs.prepare").prepare(request=request, **given)


def execute(run: Any) -> int:
    """Execute a run that was prepared before the fork, as a run of its own; its exit status."""
    run.launch = importlib.import_module("enma_fast.utils.launch").detect()
    try:
        json.dump(run.execute(), sys.stdout)
    except importlib.import_module("enma_fast.errors").EnmaError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def child(request: dict[str, Any]) -> None:
    """Run a command line, or execute a run, and leave; never returns."""
    status = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(f"{request['log']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout, sys.stderr = (os.fdopen(file, "w", closefd=False) for file in (1, 2))
        os.environ.update(request["environ"])
        if request["limits"]:
            resource.setrlimit(resource.RLIMIT_AS, (request["limits"]["memory"],) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (request["limits"]["cpu"],) * 2)
        for name, value in request["patch"].items():
            module, _, attribute = name.rpartition(".")
            setattr(importlib.import_module(f"enma_fast.{module}"), attribute, value)
        if request["trap"]:
            Trap(**request["trap"])
        if request["run"]:
            status = execute(prepared(request["run"]))
        else:
            status = importlib.import_module("enma_fast.cli").main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> dict[str, Any]:
    """How a child ended or stopped: its status (negative: a signal), "stopped", or "running" after so many seconds."""
    last = time.monotonic() + seconds
    while True:
        found, code = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(code):
            return {"state": "stopped", "status": None}
        if found:
            return {"state": "ended", "status": os.waitstatus_to_exitcode(code)}
        if time.monotonic() > last:
            return {"state": "running", "status": None}
        time.sleep(5e-4)


def warm(data: str, checkpoint: str) -> dict[str, Any]:
    """Import what is imported on first use, without a sample: that would start threads, which no child has."""
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("enma_fast.cli").main(["forecast", "--help"])
    request = {"num_members": 2, "trajectories": [0]}
    options = {"data": data, "out": "/nowhere.zarr", "request": request, "checkpoint": checkpoint}
    prepared(json.dumps(options)).plan(measure=False)
    importlib.import_module("xarray").backends.list_engines()
    return {"threads": [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]}


def keep_commands() -> None:
    """A command line is made of its functions once, not in each child."""
    typer = importlib.import_module("typer.main")
    typer.get_command = cache(typer.get_command)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for name in ("cli", "runs.prepare", "runs.run", "store.verify", "store.netcdf"):
        importlib.import_module(f"enma_fast.{name}")
    for name in ("google_crc32c", "h5py", "xarray", "zarr", "zarr.codecs"):
        importlib.import_module(name)
    keep_commands()
    # The collector of a child would write to, and so copy, every page that holds an object.
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if request["do"] == "wait":
            answer = wait(request["pid"], request["seconds"])
        elif request["do"] == "warm":
            answer = warm(request["data"], request["checkpoint"])
        else:
            if request["run"]:
                prepared(request["run"])
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
