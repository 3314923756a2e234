"""The ledger of a run, and its lock: finished units, claims on units, and one run at a time for a store.

A *unit* is a member of a trajectory, or the statistics of a trajectory. The ledger is a file with one byte per unit
behind a short header. A process claims a unit by a lock on its byte, which the system releases when the process ends in
any way; a unit is done when its byte is 1. So ranks on any number of machines share the units without messages, other
ranks take over the work of one that has died, and the same command resumes a killed run.

The locks are those of `fcntl` (open file description) and `flock`; on a network file system they must be enabled.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import EnmaError
from ..utils.files import make_parents, open_file, remove_empty, write_file
from .location import remove_unwritten

_MAGIC = b"enmaunit"
# Magic, and the number of rows at a time that fits the memory (0: as the run asks).
_HEADER = struct.Struct("<8sq")
# States of a unit; any other value means that it is missing.
_DONE, DAMAGED = 1, 2
_MOST_READ = 2**30
# Seconds between two looks at a store that another process is creating, and until a line says so.
_POLL, _PATIENCE = 0.05, 30.0

log = logging.getLogger("enma_fast")


class Ledger:
    """The open ledger of a store, with `num_units` units; `EnmaError` if the file at `path` is not such a ledger.

    Without `locks` no process claims units. Then a client of NFS may send a whole page of its own copy where one byte
    was written, over what other machines wrote there (Linux, fs/nfs/write.c, nfs_can_extend_write), unless each write
    is synchronous.
    """

    def __init__(self, path: Path, num_units: int, *, locks: bool = True) -> None:
        self.path, self.num_units = path, num_units
        self._locks, self._claimed = locks, False
        try:
            self._file = open_file(path, os.O_RDWR | (0 if locks else os.O_DSYNC))
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise EnmaError(f"{path}: is not a ledger ({error.strerror}); write the forecast again") from error
            # On a read-only disk the ledger can be read but not written.
            self._file = open_file(path, os.O_RDONLY)
        size = os.fstat(self._file).st_size
        head = os.pread(self._file, _HEADER.size, 0)
        if size != _HEADER.size + num_units or head[:8] != _MAGIC or _HEADER.unpack(head)[1] < 0:
            os.close(self._file)
            raise EnmaError(f"{path}: is not the ledger of {num_units} units; write the forecast again with --force")

    def close(self) -> None:
        """Release all claims."""
        os.close(self._file)
        # The system gives this descriptor to the next file that is opened.
        self._file = -1

    @property
    def chunk(self) -> int:
        """Rows at a time that fit the memory; 0 if the run may take as many as it asks."""
        head = self._read(_HEADER.size, 0)
        return 0 if head is None else int(_HEADER.unpack(head)[1])

    def limit_chunk(self, chunk: int) -> None:
        """Record that at most `chunk` rows at a time fit the memory; the least of all processes is kept."""
        # The header is locked, or a process that has read an older limit could write over a lower one.
        if self._locks and not self._lock(fcntl.F_WRLCK, -_HEADER.size, 0, wait=True):
            # The run is over.
            return
        try:
            if chunk < (self.chunk or chunk + 1):
                os.pwrite(self._file, struct.pack("<q", chunk), 8)
        finally:
            if self._locks:
                self._lock(fcntl.F_UNLCK, -_HEADER.size, 0)

    def done(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """True for each of the units `first, ..., last - 1` that is done, `[n]` bool."""
        last = self.num_units if last is None else last
        states = self._states(first, last)
        # If there are none, the run is over.
        return np.ones(last - first, bool) if states is None else states == _DONE

    def damaged(self) -> np.ndarray:
        """True for each unit that is marked as damaged, `[num_units]` bool."""
        states = self._states(0, self.num_units)
        return np.zeros(self.num_units, bool) if states is None else states == DAMAGED

    def mark(self, units: Sequence[int] | np.ndarray, *, done: bool = True) -> None:
        """Mark units as done, once their files are on the disk, or as damaged, which counts as missing."""
        numbers = np.asarray(units)
        for run in np.split(numbers, np.nonzero(np.diff(numbers) != 1)[0] + 1):
            if run.size:
                os.pwrite(self._file, bytes([_DONE if done else DAMAGED]) * len(run), _HEADER.size + int(run[0]))

    def claim(self, first: int, last: int) -> bool:
        """Try to claim units `first, ..., last - 1` for this process alone; False if another one holds any of them."""
        self._claimed = True
        return self._lock(fcntl.F_WRLCK, first, last)

    def release(self, first: int, last: int) -> None:
        """Release a claim; a process with a fixed share has claimed nothing."""
        if self._claimed:
            self._lock(fcntl.F_UNLCK, first, last)

    def finished(self) -> bool:
        """True if the ledger has been removed, as at the end of the run, or exchanged."""
        return _is_gone(self._file)

    def _states(self, first: int, last: int) -> np.ndarray | None:
        """States of the units `first, ..., last - 1`, `[n]` uint8; None if another machine has removed the ledger."""
        parts = []
        # The system reads at most 2 GB at a time.
        while first < last:
            part = self._read(min(last - first, _MOST_READ), _HEADER.size + first)
            if part is None:
                return None
            if not part:
                raise EnmaError(f"{self.path}: ends before unit {first}; write the forecast again with --force")
            parts.append(np.frombuffer(part, np.uint8))
            first += len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    def _read(self, size: int, offset: int) -> bytes | None:
        """Read bytes of the file; None if another machine has removed it from a network file system."""
        try:
            return os.pread(self._file, size, offset)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise

    def _lock(self, kind: int, first: int, last: int, *, wait: bool = False) -> bool:
        """Lock or unlock units `first, ..., last - 1`; those before 0 are the header."""
        request = struct.pack("hhqqi", kind, os.SEEK_SET, _HEADER.size + first, last - first, 0)
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
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
    """Raise `EnmaError` unless an open file can be locked and unlocked."""
    try:
        for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK):
            # An offset beyond the end of any ledger.
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, 1 << 40, 1, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise EnmaError(f"{target}: {_without_locks(error)}") from error


def _is_gone(file: int) -> bool:
    """True if an open file has been removed."""
    try:
        return os.fstat(file).st_nlink == 0
    except OSError as error:
        # A network file system reports a file that another machine has removed as stale.
        if error.errno == errno.ESTALE:
            return True
        raise


def _flock(file: int, kind: int) -> bool:
    """Try to lock a file without waiting; False if another process holds the lock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_ledger(path: Path, states: np.ndarray) -> None:
    """Write a new ledger; `states` is `[n]`, each True (done), False (missing) or DAMAGED."""
    write_file(path, _HEADER.pack(_MAGIC, 0) + states.astype(np.uint8).tobytes())


class RunLock:
    """A lock that lets the processes of one run, and no other run, write a store.

    The first process of a run holds it alone until it calls `share`, so that it can create the store first. The lock is
    a file beside the store `target`, which the last process removes; `run` is the name of the run, the same in all of
    its processes. `EnmaError` if another run holds the lock, or the file system has no locks.
    """

    def __init__(self, target: Path, run: str) -> None:
        # A store that is reached by a link has the same lock.
        real = target.resolve()
        self.target, self.path, self.run = target, real.with_name(f".{real.name}.lock"), run
        self._file, self.first = -1, False
        # Folders that the lock has created; innermost first.
        self._parents: list[Path] = []
        self._take()

    def share(self) -> None:
        """Let the other processes of the run in."""
        if not self.first:
            return
        # The system releases the exclusive lock before it grants the shared one: another run may lock in between.
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH)
            gone = _is_gone(self._file)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            gone = True
        if not gone:
            self._require_same_run()
        else:
            self.close()
            self._take()
            self.share()

    def close(self) -> None:
        """Release the lock; the last process removes its file, half-written files, and new folders that are empty."""
        if self._file >= 0:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A lock on a file that was removed keeps nobody from the store.
                if not _is_gone(self._file):
                    remove_unwritten(self.target)
                    self.path.unlink(missing_ok=True)
            self._drop()
        remove_empty(self._parents)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self) -> None:
        """Wait until this process holds the lock, alone or beside processes of the same run."""
        try:
            self._parents += make_parents(self.path)
            begun, told = time.monotonic(), False
            while True:
                try:
                    self._file = open_file(self.path, os.O_RDWR | os.O_CREAT)
                    if self._enter():
                        return
                except OSError as error:
                    # Another machine has removed the file that was opened.
                    if error.errno != errno.ESTALE:
                        raise
                self._drop()
                if not told and time.monotonic() - begun > _PATIENCE:
                    said = "%s: waiting for another process that makes or repairs the store; if it is dead, remove %s"
                    log.warning(said, self.target, self.path)
                    told = True
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
        # If the first process dies before it shares, the next one is first: so none waits for a shared lock.
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
        # If the first process died before it created the store, one of the waiting processes takes its place.
        return self.target.exists()

    def _drop(self) -> None:
        if self._file >= 0:
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
