"""The ledger of a run: finished units and claims, and what a dead process leaves."""

import errno
import fcntl
import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast.errors import EnmaError
from enma_fast.store.checksums import CHECKSUMS, Recorder, read_checksums, write_checksums
from enma_fast.store.ledger import Ledger, write_ledger

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_ledger(tmp_path / ".unfinished", np.zeros(20, bool))
    return tmp_path / ".unfinished"


def test_units_are_marked_and_unmarked(path: Path) -> None:
    ledger, other = Ledger(path, 20), Ledger(path, 20)
    ledger.mark([3, 4, 5, 9, 19, 0])
    assert np.flatnonzero(other.done()).tolist() == [0, 3, 4, 5, 9, 19]
    assert other.done(3, 6).all()
    assert not other.done(6, 9).any()
    other.mark([4, 19], done=False)
    assert np.flatnonzero(ledger.done()).tolist() == [0, 3, 5, 9]
    ledger.mark([])
    assert ledger.done(0, 0).shape == (0,)


def test_the_chunk_is_remembered_beside_the_units(path: Path) -> None:
    ledger = Ledger(path, 20)
    assert ledger.chunk == 0
    ledger.mark(range(20))
    ledger.limit_chunk(2**40 + 3)
    assert Ledger(path, 20).chunk == 2**40 + 3
    assert Ledger(path, 20).done().all()
    # The process with the least memory decides.
    for chunk, expected in ((7, 7), (12, 7), (3, 3)):
        Ledger(path, 20).limit_chunk(chunk)
        assert ledger.chunk == expected


def test_the_least_chunk_is_kept_if_two_processes_change_it_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has read what there was when the other one comes."""
    first, second = Ledger(path, 20), Ledger(path, 20)
    thread = threading.Thread(target=second.limit_chunk, args=(3,))
    read = Ledger._read

    def slowly(ledger: Ledger, size: int, offset: int) -> bytes | None:
        found = read(ledger, size, offset)
        if ledger is first:
            thread.start()
            thread.join(0.5)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_read", slowly)
        first.limit_chunk(7)
    thread.join(60)
    assert first.chunk == 3
    # The units are claimed meanwhile, and nothing stays locked.
    assert first.claim(0, 20)
    second.limit_chunk(2)
    assert first.chunk == 2


def test_the_chunk_is_remembered_where_there_are_no_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    ledger = Ledger(path, 20, locks=False)
    ledger.limit_chunk(4)
    assert ledger.chunk == 4
    with pytest.raises(EnmaError, match=r"\.unfinished: .*file"):
        Ledger(path, 20).limit_chunk(3)


def test_the_system_may_read_less_than_is_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, pread = Ledger(path, 20), os.pread
    ledger.mark([2, 7, 19], done=False)
    ledger.mark([6, 13])
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 8), offset))
    assert np.flatnonzero(ledger.damaged()).tolist() == [2, 7, 19]
    assert np.flatnonzero(ledger.done()).tolist() == [6, 13]


def test_a_long_ledger_is_read_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path, 20)
    ledger.mark([0, 6, 7, 19])
    monkeypatch.setattr("enma_fast.store.ledger._MOST_READ", 7)
    assert np.flatnonzero(ledger.done()).tolist() == [0, 6, 7, 19]
    assert ledger.done(6, 20).tolist() == [True, True, *[False] * 11, True]
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(EnmaError, match="before unit"):
        ledger.done()


def test_claims_exclude_each_other_where_they_overlap(path: Path) -> None:
    ledger, other = Ledger(path, 20), Ledger(path, 20)
    assert ledger.claim(5, 10)
    assert not other.claim(9, 12)
    assert not other.claim(0, 20)
    assert other.claim(10, 12)
    assert other.claim(0, 5)
    ledger.release(5, 10)
    assert other.claim(5, 10)
    other.close()
    assert ledger.claim(0, 20)


def _claim_and_die(path: Path, claimed: Any) -> None:
    Ledger(path, 20).claim(0, 20)
    claimed.set()
    signal.pause()


def test_a_dead_process_leaves_no_claim(path: Path) -> None:
    claimed = SPAWN.Event()
    process = SPAWN.Process(target=_claim_and_die, args=(path, claimed))
    process.start()
    assert claimed.wait(60)
    ledger = Ledger(path, 20)
    assert not ledger.claim(7, 8)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert ledger.claim(7, 8)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda data: b""])
def test_what_is_no_ledger_is_refused(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EnmaError, match=r"\.unfinished: .*ledger"):
        Ledger(path, 20)
    with pytest.raises(FileNotFoundError):
        Ledger(path.with_name("nowhere"), 20)


def test_it_knows_that_the_run_is_over(path: Path) -> None:
    ledger = Ledger(path, 20)
    assert not ledger.finished()
    path.unlink()
    assert ledger.finished()


def test_what_another_machine_has_removed_is_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system says so in its own way."""
    ledger = Ledger(path, 20)
    for number, expected in ((errno.ESTALE, True), (errno.EIO, None)):

        def fail(file: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", fail)
            patch.setattr(os, "pread", lambda *arguments, number=number: fail(0, number))
            if expected:
                assert ledger.chunk == 0
                assert ledger.finished()
                assert ledger.done().tolist() == [True] * 20
                assert ledger.done(4, 7).tolist() == [True] * 3
                assert not ledger.damaged().any()
            else:
                with pytest.raises(OSError, match="Input/output"):
                    ledger.finished()


def test_without_locks_each_mark_is_written_through(path: Path) -> None:
    """Or a client of NFS may write its old copy of the page over what others marked."""
    for locks in (True, False):
        ledger = Ledger(path, 20, locks=locks)
        assert bool(fcntl.fcntl(ledger._file, fcntl.F_GETFL) & os.O_DSYNC) == (not locks)
        ledger.mark([int(locks)])
        ledger.close()
    assert np.flatnonzero(Ledger(path, 20).done()).tolist() == [0, 1]


def test_without_locks_each_checksum_is_written_through(tmp_path: Path) -> None:
    """With them a lock on a part of the file keeps a client of NFS from writing its old copy of the page."""
    for locks in (True, False):
        write_checksums(tmp_path, np.zeros(3, np.uint32))
        recorder = Recorder(tmp_path, locks=locks)
        assert bool(fcntl.fcntl(recorder._file, fcntl.F_GETFL) & os.O_DSYNC) == (not locks)
        beside = Recorder(tmp_path, locks=locks)
        beside.record(0, [7])
        recorder.record(1, [8, 9])
        with open(tmp_path / CHECKSUMS, "r+b") as file:
            request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            with pytest.raises(BlockingIOError) if locks else nullcontext():
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
        beside.close()
        recorder.close()
        assert read_checksums(tmp_path).tolist() == [7, 8, 9]
