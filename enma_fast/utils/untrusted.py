"""Reading untrusted files: no file may crash or hang this process, or exhaust its memory.

* `read_bytes` reads regular files only, up to a given size;
* `parse_json` accepts any text, and refuses deep nesting and numbers that are not finite;
* `read_arrays` reads NumPy's files without pickles, and has one error for all that can be wrong with them;
* `isolated` uses a library that a damaged file can crash or hang, such as HDF5, in a forked child with limited
  processor time and memory, which returns plain values and arrays;
* `require_memory` refuses a size that the machine could not hold.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import math
import mmap
import os
import signal
import stat
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import EnmaError, first_line
from .system import memory

# Limits for reading the structure of a file: processor seconds, bytes of memory, and seconds on the clock, since a tape
# may have to be mounted.
SECONDS, MEMORY, CLOCK = 5, 2 << 30, 600.0
# Bytes of values that even a slow filter decodes in a processor second, and a slow disk delivers in one on the clock.
SLOWEST, SLOWEST_DISK = 10 << 20, 1 << 20

Limits = Callable[[int], None]


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Yield a descriptor of a regular file; `EnmaError` for anything else, such as a pipe, without waiting for it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise EnmaError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise EnmaError(f"{path}: cannot be opened ({reason(error)}); check the path") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise EnmaError(f"{path}: is not a file; check the path")
        yield file
    finally:
        os.close(file)


def read_bytes(path: Path, *, most: int) -> bytes:
    """Read a regular file of at most `most` bytes; `EnmaError` for anything else."""
    with open_regular(path) as file, os.fdopen(file, "rb", closefd=False) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise EnmaError(f"{path}: is larger than {most:,} bytes, which no file of this kind is; copy it again")
    return data


def parse_json(data: bytes | str) -> Any:
    """Parse JSON whose numbers are finite; `ValueError` for anything else, and for deep nesting."""
    try:
        return json.loads(data, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_arrays(file: Path | BinaryIO) -> dict[str, np.ndarray]:
    """Arrays of a .npz file by name, or that of a .npy file as `u`, without pickles; `ValueError` if it is damaged.

    The array of a .npy file that is given by its path stays there until a part of it is asked for, and a .npz file that
    is given by its path is unpacked in a child of `isolated`.
    """
    if isinstance(file, Path) and zipfile.is_zipfile(file):
        return _isolated_arrays(file)
    try:
        loaded = np.load(file, mmap_mode="r" if isinstance(file, Path) else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"u": loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:
        # Zip files raise nearly anything where they are damaged, encrypted, or compressed in a way that is not known.
        raise ValueError(first_line(error)) from error
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise ValueError(f"{name} in it is no array")
    return arrays


def _isolated_arrays(path: Path) -> dict[str, np.ndarray]:
    def work(more: Limits) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:
                # No more than the archive says is unpacked of each.
                size = sum(entry.file_size for entry in archive.infolist())
            require_memory(path, size)
            more(size)
            with path.open("rb") as file:
                return {"arrays": read_arrays(file)}
        except EnmaError:
            raise
        except Exception as error:
            return {"problem": first_line(error)}

    outcome: dict[str, Any] = isolated(path, work)
    if "problem" in outcome:
        raise ValueError(outcome["problem"])
    arrays: dict[str, np.ndarray] = outcome["arrays"]
    return arrays


def require_memory(path: Path, num_bytes: int) -> None:
    """Raise `EnmaError` if the values of a file are larger than the main memory."""
    if num_bytes > memory():
        raise EnmaError(
            f"{path}: asks for more memory than there is ({num_bytes / 1e9:,.1f} GB of {memory() / 1e9:,.1f} GB); "
            "select a part of it, or if it should fit, the file is damaged, copy it again"
        )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def reason(error: BaseException) -> str:
    """Message of the system for an error, or else the message of the error itself."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number in errno.errorcode else first_line(error)


def isolated(path: Path, work: Callable[[Limits], Any]) -> Any:
    """Call `work` in a forked child and return its result, so that no file can crash, hang or exhaust this process.

    The child may use `SECONDS` of processor time and `MEMORY` bytes until `work` calls its argument with the number of
    bytes that it is going to read. `work` returns plain values: None, bool, int, float, str, arrays, and lists, tuples
    and dicts of them. `EnmaError` if `work` raises it, or if the file at `path` crashed the reader or took too long.
    Without `fork` the work is done in this process.
    """
    if not hasattr(os, "fork"):
        return work(lambda num_bytes: None)
    arrays = _shared_memory()
    try:
        answer, reply = os.pipe()
        try:
            # Until the child has dropped the handlers of this process, no signal may reach it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                with warnings.catch_warnings():
                    # Python warns that threads may hold locks, and JAX where a program has it; the child only reads.
                    warnings.simplefilter("ignore")
                    child = os.fork()
                if not child:
                    _serve(work, arrays, reply)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finally:
            os.close(reply)
        header, status = _receive(child, answer)
        if not header:
            _refuse(path, status)
        size = os.fstat(arrays).st_size
        shared = mmap.mmap(arrays, size) if size else b""
    finally:
        os.close(arrays)
    kind, value = json.loads(header)
    if kind == "refused":
        raise EnmaError(value)
    if kind == "memory":
        raise EnmaError(f"{path}: asks for more memory than it may; select a part of it, or copy it again")
    if kind == "failed":
        raise RuntimeError(f"{path}: {value}")
    return _decoded(value, shared)


def _refuse(path: Path, status: int) -> NoReturn:
    remedy = "the file is damaged, copy it again"
    if status in (-signal.SIGXCPU, -signal.SIGALRM):
        raise EnmaError(f"{path}: reading it does not end; {remedy}")
    if status == -signal.SIGKILL:
        raise EnmaError(
            f"{path}: its reader was killed, perhaps for lack of memory; select fewer trajectories, or {remedy}"
        )
    raise EnmaError(f"{path}: it crashes the library that reads it (status {status}); {remedy}")


def _receive(child: int, answer: int) -> tuple[bytes, int]:
    """Read the answer of the child, and its exit status: below 0, a signal ended it."""
    parts = []
    try:
        while part := os.read(answer, 1 << 16):
            parts.append(part)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(answer)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except ChildProcessError:
            # Where SIGCHLD is ignored the system keeps no status.
            status = 0
    return b"".join(parts), status


def _serve(work: Callable[[Limits], Any], arrays: int, reply: int) -> NoReturn:
    """Do the work, send its result and exit; runs in the child."""
    try:
        gc.disable()
        faulthandler.disable()
        _drop_handlers()
        _end_with_parent()
        with suppress(OSError):
            # Where memory runs out, the system ends the child and not its parent.
            Path("/proc/self/oom_score_adj").write_text("1000")
        _limit(SECONDS, MEMORY)
        signal.setitimer(signal.ITIMER_REAL, CLOCK)

        def more(num_bytes: int) -> None:
            signal.setitimer(signal.ITIMER_REAL, CLOCK + num_bytes / SLOWEST_DISK)
            _limit(SECONDS + num_bytes // SLOWEST, MEMORY + 4 * num_bytes)

        try:
            # Values are checked for being finite, so neither NumPy nor another library need warn of them.
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                told: list[Any] = ["value", _encoded(work(more), arrays)]
        except EnmaError as error:
            told = ["refused", str(error)]
        except MemoryError:
            told = ["memory", None]
        except BaseException as error:
            told = ["failed", f"{type(error).__name__}: {first_line(error)}"]
        rest = memoryview(json.dumps(told).encode())
        while rest:
            rest = rest[os.write(reply, rest) :]
    finally:
        # `_exit`: no buffer of the parent is flushed, and no handler of it runs, a second time.
        os._exit(0)


def _drop_handlers() -> None:
    """Let signals, those of a crash too, end the child: handlers and blocked signals are those of a host program."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number in (signal.SIGXCPU, signal.SIGALRM) or signal.getsignal(number) != signal.SIG_IGN:
            with suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _end_with_parent() -> None:
    """End the child when its parent is killed, so that it does not keep the locks of the parent."""
    with suppress(Exception):
        import ctypes

        # PR_SET_PDEATHSIG.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _limit(seconds: int, num_bytes: int) -> None:
    """Limit processor time and memory from now on, and write no core file."""
    import resource

    used = math.ceil(time.process_time())
    with suppress(OSError, ValueError):
        page, size = os.sysconf("SC_PAGE_SIZE"), int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, size * page + num_bytes)
    _lower(resource.RLIMIT_CPU, used + seconds)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _shared_memory() -> int:
    """Open memory that parent and child share; returns its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("enma_fast", os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _encoded(value: Any, arrays: int) -> list[Any]:
    """Encode a value as JSON; arrays are written to the shared memory, one after the other."""
    if isinstance(value, np.ndarray):
        # Aligned for vector registers.
        start = -(-os.lseek(arrays, 0, os.SEEK_END) // 64) * 64
        os.ftruncate(arrays, start)
        rest = memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.nbytes else b"")  # type: ignore[arg-type]
        at = start
        while rest:
            done = os.pwrite(arrays, rest[: 1 << 30], at)
            rest, at = rest[done:], at + done
        return ["array", start, value.dtype.str, list(value.shape)]
    if isinstance(value, dict):
        return ["dict", [[key, _encoded(item, arrays)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_encoded(item, arrays) for item in value]]
    return ["plain", value]


def _decoded(value: list[Any], shared: Any) -> Any:
    kind, *parts = value
    if kind == "array":
        start, dtype, shape = parts
        count = math.prod(shape)
        empty = not count * np.dtype(dtype).itemsize
        return np.zeros(shape, dtype) if empty else np.frombuffer(shared, dtype, count, start).reshape(shape)
    if kind == "dict":
        return {key: _decoded(item, shared) for key, item in parts[0]}
    if kind in ("list", "tuple"):
        items = [_decoded(item, shared) for item in parts[0]]
        return tuple(items) if kind == "tuple" else items
    return parts[0]
