"""The lock of a run: one run at a time, whose processes join it, and the traces of a dead process."""

import errno
import fcntl
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from enma_fast.errors import EnmaError
from enma_fast.store import ledger as ledger_module
from enma_fast.store.ledger import RunLock


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
            with pytest.raises(EnmaError, match="another run"):
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
    with pytest.raises(EnmaError, match="another run"):
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
    with pytest.raises(EnmaError, match="another run"):
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
    assert isinstance(failure, KeyboardInterrupt) or "No space" in str(caught.value)
    monkeypatch.undo()
    with RunLock(store, "b"):
        pass


def test_another_run_is_refused_where_the_store_is_gone(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    first = RunLock(store, "a")
    store.mkdir()
    first.share()
    store.rmdir()
    with pytest.raises(EnmaError, match="another run"):
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
    with pytest.raises(EnmaError, match=r"run\.zarr: .*--out"):
        RunLock(tmp_path / "file" / "run.zarr", "a")


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
        with pytest.raises(EnmaError, match="another run"):
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
