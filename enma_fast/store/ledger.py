"""Which units of a run are done, who works on which, and that one run at a time writes a store.

A *unit* is a member of a trajectory, or the statistics of one. The ledger is a file of one byte per unit behind a short
header. A unit is claimed by a lock on its byte, which the system drops when the process ends, however it ends, and is
done once its byte is 1. So ranks on any number of machines share the units without messages, work is taken over from a
rank that has died, and a killed run is continued by the same command.

The locks are those of `fcntl` (open file description) and `flock`; on a network file system they have to be enabled.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from ..utils.files import make_parents, open_file, remove_empty, write_file

_MAGIC = b"enmaunit"
# Magic, and the chunk that a run was found to fit the memory with (0: as it was asked for).
_HEADER = struct.Struct("<8sq")
# Of a unit; any other value is missing.
_DONE, DAMAGED = 1, 2
_MOST_READ = 2**30
# Seconds between looks at a store that another process is making.
_POLL = 0.05


class Ledger:
    """The open ledger of a store.

    Parameters
    ----------
    path
        The file.
    num_units
        Units of the run.

    Raises
    ------
    EnmaError
        If the file is not a ledger of so many units.
    """

    def __init__(self, path: Path, num_units: int) -> None:
        self.path, self.num_units = path, num_units
        self._claimed = False
        try:
            self._file = open_file(path, os.O_RDWR)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise EnmaError(f"{path}: is not a ledger ({error.strerror}); write the forecast again") from error
            # On a disk that is read only it tells what is done, and no more.
            self._file = open_file(path, os.O_RDONLY)
        size = os.fstat(self._file).st_size
        head = os.pread(self._file, _HEADER.size, 0)
        if size != _HEADER.size + num_units or head[:8] != _MAGIC or _HEADER.unpack(head)[1] < 0:
            os.close(self._file)
            raise EnmaError(f"{path}: is not the ledger of {num_units} units; write the forecast again with --force")

    def close(self) -> None:
        """Drop all claims."""
        os.close(self._file)
        # The system gives the number to the next file that is opened.
        self._file = -1

    @property
    def chunk(self) -> int:
        """Rows at a time that were found to fit the memory, 0 for as asked."""
        head = self._read(_HEADER.size, 0)
        return 0 if head is None else int(_HEADER.unpack(head)[1])

    def fit(self, chunk: int) -> None:
        """Note that more rows at a time do not fit the memory; the least that any process notes counts."""
        if chunk < (self.chunk or chunk + 1):
            os.pwrite(self._file, struct.pack("<q", chunk), 8)

    def done(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Whether each unit of `first, ..., last - 1` is done, `[n]` bool."""
        last = self.num_units if last is None else last
        start, parts = first, []
        # The system reads no more than 2 GB at a time.
        while first < last:
            part = self._read(min(last - first, _MOST_READ), _HEADER.size + first)
            if part is None:
                # The run is over.
                return np.ones(last - start, bool)
            if not part:
                raise EnmaError(f"{self.path}: ends before unit {first}; write the forecast again with --force")
            parts.append(np.frombuffer(part, np.uint8) == _DONE)
            first += len(part)
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def damaged(self) -> np.ndarray:
        """True for each unit that is noted as damaged, `[num_units]` bool."""
        data = self._read(self.num_units, _HEADER.size)
        return np.frombuffer(data or bytes(self.num_units), np.uint8) == DAMAGED

    def mark(self, units: Sequence[int] | np.ndarray, *, done: bool = True) -> None:
        """Note units as done, after what they stand for has reached the disk; or as damaged, so as missing."""
        numbers = np.asarray(units)
        for run in np.split(numbers, np.nonzero(np.diff(numbers) != 1)[0] + 1):
            if run.size:
                os.pwrite(self._file, bytes([_DONE if done else DAMAGED]) * len(run), _HEADER.size + int(run[0]))

    def claim(self, first: int, last: int) -> bool:
        """Try to become the only one who works on units `first, ..., last - 1`."""
        self._claimed = True
        return self._lock(fcntl.F_WRLCK, first, last)

    def release(self, first: int, last: int) -> None:
        """Give a claim back; without locks, of a fixed share, there is none."""
        if self._claimed:
            self._lock(fcntl.F_UNLCK, first, last)

    def finished(self) -> bool:
        """Whether the run is over: its ledger has been removed."""
        try:
            return os.fstat(self._file).st_nlink == 0
        except OSError as error:
            # A network file system no longer knows what another machine has removed.
            if error.errno == errno.ESTALE:
                return True
            raise

    def _read(self, size: int, offset: int) -> bytes | None:
        """Bytes of the file; None if another machine has removed it, as a network file system says."""
        try:
            return os.pread(self._file, size, offset)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise

    def _lock(self, kind: int, first: int, last: int) -> bool:
        request = struct.pack("hhqqi", kind, os.SEEK_SET, _HEADER.size + first, last - first, 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.ESTALE):
                return False
            raise EnmaError(f"{self.path}: {_without_locks(error)}") from error
        return True


def _without_locks(error: OSError) -> str:
    return (
        f"its file system gives no locks ({error.strerror}); mount it with locks, choose another --out, or give each "
        "process a fixed share: --static"
    )


def _require_locks(target: Path, file: int) -> None:
    """Raise `EnmaError` unless an open file can be locked in both ways."""
    try:
        for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK):
            # Beyond what is ever written.
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, 1 << 40, 1, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise EnmaError(f"{target}: {_without_locks(error)}") from error


def _flock(file: int, kind: int) -> bool:
    """Try to lock a file."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_ledger(path: Path, states: np.ndarray) -> None:
    """Make a ledger whose units are done or not, `[n]` bool, or DAMAGED; it appears whole."""
    write_file(path, _HEADER.pack(_MAGIC, 0) + states.astype(np.uint8).tobytes())


class RunLock:
    """The right of one run, of any number of processes, to write a store.

    The first process of a run has it alone until it calls `share`; so it can make the store before the others look.

    Parameters
    ----------
    target
        The store; the lock is a file beside it that goes with the last process.
    run
        Name that all processes of the run have.

    Raises
    ------
    EnmaError
        If another run has the lock, or there can be none.
    """

    def __init__(self, target: Path, run: str) -> None:
        # Whoever comes by another name, such as a link, finds the same lock.
        real = target.resolve()
        self.target, self.path, self.run = target, real.with_name(f".{real.name}.lock"), run
        self._file, self.first = -1, False
        # Folders that were not there before; innermost first.
        self._parents: list[Path] = []
        self._take()

    def share(self) -> None:
        """Let the other processes of the run in."""
        if not self.first:
            return
        # The system lets go of the lock before it gives the other: another run may come between, and go again.
        fcntl.flock(self._file, fcntl.LOCK_SH)
        if os.fstat(self._file).st_nlink:
            self._require_same_run()
        else:
            self.close()
            self._take()
            self.share()

    def close(self) -> None:
        """Leave; the last process removes the file, and folders that were made for nothing."""
        if self._file >= 0:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink(missing_ok=True)
            except OSError:
                pass
            self._drop()
        remove_empty(self._parents)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self) -> None:
        """Wait until the lock is had alone, or beside processes of the same run."""
        try:
            self._parents += make_parents(self.path)
            while True:
                self._file = open_file(self.path, os.O_RDWR | os.O_CREAT)
                if self._enter():
                    return
                self._drop()
                time.sleep(_POLL)
        except OSError as error:
            self.close()
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise EnmaError(f"{self.target}: {_without_locks(error)}") from error
            raise EnmaError(f"{self.target}: cannot be written ({error}); choose another --out") from error
        except BaseException:
            self.close()
            raise

    def _enter(self) -> bool:
        """Try to lock the open file; sets `first`."""
        self.first = _flock(self._file, fcntl.LOCK_EX)
        # The first may die before it shares: then the next is first, so none may wait for a share alone.
        if not self.first and not _flock(self._file, fcntl.LOCK_SH):
            return False
        state = os.fstat(self._file)
        # The last process of a run may have removed the file that was opened.
        if not state.st_nlink or not (self.first or state.st_size):
            return False
        if self.first:
            _require_locks(self.target, self._file)
            self._write()
            return True
        self._require_same_run()
        # The first may have died before it made the store: then one of those who wait takes its place.
        return self.target.exists()

    def _drop(self) -> None:
        os.close(self._file)
        self._file = -1

    def _write(self) -> None:
        text = json.dumps({"run": self.run, "pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def _require_same_run(self) -> None:
        owner = self._owner()
        if owner.get("run") != self.run:
            raise EnmaError(
                f"{self.target}: is being written by another run (process {owner.get('pid', '?')} on "
                f"{owner.get('host', '?')}); wait for it, or choose another --out"
            )

    def _owner(self) -> dict[str, str | int]:
        try:
            return dict(json.loads(os.pread(self._file, 4096, 0)))
        except ValueError:
            return {}
