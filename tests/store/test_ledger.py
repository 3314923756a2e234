"""The ledger of a run and its lock: finished units, claims, and the traces of a dead process."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast.errors import EnmaError
from enma_fast.store import ledger as ledger_module
from enma_fast.store.checksums import CHECKSUMS, Recorder, read_checksums, write_checksums
from enma_fast.store.ledger import Ledger, RunLock, write_ledger

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
    with pytest.raises(EnmaError, match=r"\.unfinished: its file system gives no locks"):
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
    with pytest.raises(EnmaError, match="ends before unit 17"):
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
    with pytest.raises(EnmaError, match=r"\.unfinished: is not the ledger of 20 units; .*--force"):
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


def test_one_run_at_a_time(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    with RunLock(store, "a") as first:
        assert first.first
        store.mkdir()
        first.share()
        message = rf"run\.zarr: is being written by another run \(process {os.getpid()} on {socket.gethostname()}\)"
        with pytest.raises(EnmaError, match=message):
            RunLock(store, "b")
        with RunLock(store, "a") as joined:
            assert not joined.first
    assert list(tmp_path.iterdir()) == [store]
    with RunLock(store, "b") as later:
        assert later.first
    assert list(tmp_path.iterdir()) == [store]


def test_a_store_has_one_lock_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "run.zarr").symlink_to("here/run.zarr")
    (tmp_path / "here" / "run.zarr").mkdir()
    with RunLock(tmp_path / "here" / "run.zarr", "a") as lock:
        lock.share()
        for other in (tmp_path / "link" / "run.zarr", tmp_path / "run.zarr", tmp_path / "link" / ".." / "run.zarr"):
            with pytest.raises(EnmaError, match="is being written by another run"):
                RunLock(other, "b")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["run.zarr"]


def test_who_was_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the other run has ended in the meantime, which could not remove the file then."""
    store = tmp_path / "run.zarr"
    first = RunLock(store, "a")
    store.mkdir()
    first.share()
    owner = RunLock._owner

    def slowly(lock: RunLock) -> dict[str, str | int]:
        found = owner(lock)
        first.close()
        return found

    monkeypatch.setattr(RunLock, "_owner", slowly)
    with pytest.raises(EnmaError, match="is being written by another run"):
        RunLock(store, "b")
    assert list(tmp_path.iterdir()) == [store]


def test_the_others_wait_until_the_first_shares(tmp_path: Path) -> None:
    store, entered = tmp_path / "run.zarr", threading.Event()

    def join() -> None:
        with RunLock(store, "a"):
            entered.set()

    first = RunLock(store, "a")
    thread = threading.Thread(target=join)
    thread.start()
    assert not entered.wait(0.3)
    store.mkdir()
    first.share()
    assert entered.wait(30)
    thread.join()
    first.close()


def test_one_of_those_who_wait_takes_the_place_of_a_first_that_made_nothing(tmp_path: Path) -> None:
    store, entered = tmp_path / "run.zarr", []

    def join() -> None:
        with RunLock(store, "a") as lock:
            if lock.first:
                store.mkdir(exist_ok=True)
            assert store.exists()
            lock.share()
            entered.append(lock.first)

    first = RunLock(store, "a")
    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    # A dead process leaves its lock file and no store.
    os.close(first._file)
    for thread in threads:
        thread.join(60)
    assert len(entered) == 4
    assert any(entered)


@pytest.mark.parametrize("other", ["a", "b"])
def test_a_lock_that_is_shared_is_of_a_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Between the two locks of `share` another process may enter, leave, and remove the file."""
    store = tmp_path / "run.zarr"
    first = RunLock(store, "a")
    store.mkdir()
    original, came = fcntl.flock, []

    def flock(file: int, kind: int) -> None:
        if kind == fcntl.LOCK_SH and not came:
            came.append(other)
            original(file, fcntl.LOCK_UN)
            RunLock(store, other).close()
        original(file, kind)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        first.share()
    assert came
    with pytest.raises(EnmaError, match="is being written by another run"):
        RunLock(store, "c")
    first.close()
    assert list(tmp_path.iterdir()) == [store]


@pytest.mark.parametrize(
    ("name", "failure"), [("_write", OSError(28, "No space left on device")), ("_enter", KeyboardInterrupt())]
)
def test_an_error_between_two_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: BaseException
) -> None:
    store = tmp_path / "run.zarr"
    original = fcntl.flock

    def flock(file: int, kind: int) -> None:
        if kind == fcntl.LOCK_SH:
            store.with_name(".run.zarr.lock").unlink()
        original(file, kind)

    def fail(lock: RunLock) -> None:
        raise failure

    def share() -> None:
        with RunLock(store, "a") as lock:
            store.mkdir()
            monkeypatch.setattr(fcntl, "flock", flock)
            monkeypatch.setattr(RunLock, name, fail)
            lock.share()

    with pytest.raises((EnmaError, KeyboardInterrupt)) as caught:
        share()
    assert isinstance(failure, KeyboardInterrupt) or "No space left" in str(caught.value)
    monkeypatch.undo()
    with RunLock(store, "b"):
        pass


def test_another_run_is_refused_where_the_store_is_gone(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    first = RunLock(store, "a")
    store.mkdir()
    first.share()
    store.rmdir()
    with pytest.raises(EnmaError, match="is being written by another run"):
        RunLock(store, "b")
    first.close()


def test_a_lock_file_that_was_left_behind_locks_nothing(tmp_path: Path) -> None:
    file = tmp_path / ".run.zarr.lock"
    file.write_text(json.dumps({"run": "dead", "pid": 1, "host": "gone"}))
    with RunLock(tmp_path / "run.zarr", "new") as lock:
        assert lock.first
        assert json.loads(file.read_text())["run"] == "new"
    file.write_text("{torn")
    with RunLock(tmp_path / "run.zarr", "new") as lock:
        assert lock.first


def test_no_place_for_a_lock_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnmaError, match=r"run\.zarr: cannot be written .*choose another --out"):
        RunLock(tmp_path / "file" / "run.zarr", "a")


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


def test_who_waits_for_long_says_what_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "run.zarr"
    first, waits = RunLock(store, "a"), 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 5:
            store.mkdir()
            first.share()

    monkeypatch.setattr("enma_fast.store.ledger._PATIENCE", -1.0)
    monkeypatch.setattr("enma_fast.store.ledger.time.sleep", sleep)
    RunLock(store, "a").close()
    (said,) = [record.getMessage() for record in caplog.records]
    file = tmp_path / ".run.zarr.lock"
    expected = "waiting for another process that makes or repairs the store; if it is dead, remove"
    assert said == f"{store}: {expected} {file}"
    first.close()


def test_a_lock_file_that_another_machine_has_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stale = tmp_path / "run.zarr", []
    opened, flock = ledger_module.open_file, fcntl.flock

    def fail(what: str) -> None:
        if what not in stale:
            stale.append(what)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def opening(path: Path, flags: int) -> int:
        fail("open")
        return opened(path, flags)

    def locking(file: int, kind: int) -> None:
        fail("share" if kind == fcntl.LOCK_SH else "take")
        flock(file, kind)

    monkeypatch.setattr(ledger_module, "open_file", opening)
    monkeypatch.setattr(fcntl, "flock", locking)
    with RunLock(store, "a") as lock:
        store.mkdir()
        lock.share()
        assert stale == ["open", "take", "share"]
        with pytest.raises(EnmaError, match="is being written by another run"):
            RunLock(store, "b")
    assert list(tmp_path.iterdir()) == [store]


def test_a_lock_on_a_file_that_was_removed_frees_no_other(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    gone = RunLock(store, "a")
    gone.path.unlink()
    with RunLock(store, "b") as lock:
        gone.close()
        assert lock.path.exists()


def test_a_folder_that_is_no_store_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "run.zarr").mkdir()
    (tmp_path / "run.zarr" / ".a.01234567.tmp").write_text("")
    RunLock(tmp_path / "run.zarr", "a").close()
    assert (tmp_path / "run.zarr" / ".a.01234567.tmp").exists()
