"""One run at a time writes a store; its processes come and go."""

import shutil
import socket
import time
from pathlib import Path

import pytest

from enma_fast.store.layout import LEDGER

from .._files import contents
from ._harness import Process, Server, beside, phase, steps, units

# Settle after each block, so that there are members that are done.
SETTLE = {"store.writer._SYNC_INTERVAL": -1.0}
RANKS = [{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": "1"} for rank in (0, 1)]


@pytest.fixture
def store(quick: Path) -> Path:
    return quick / "run.zarr"


@pytest.fixture
def arguments(store: Path, test_in: Path, tiny: Path) -> tuple[object, ...]:
    options = ("--members", 4, "--select", "0:2", "--chunk", 2, "--json")
    return ("forecast", test_in, "--out", store, "-c", tiny, *options)


@pytest.fixture
def whole(server: Server, store: Path, test_in: Path, tiny: Path) -> dict[str, bytes]:
    out = store.with_name("whole.zarr")
    options = ("--members", 4, "--select", "0:2", "--chunk", 2)
    assert server.run("forecast", test_in, "--out", out, "-c", tiny, *options).status == 0
    found = contents(out)
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    out.rmdir()
    return found


def stopped(server: Server, store: Path, arguments: tuple[object, ...], *, at: tuple[int, ...] = (10,), **options):
    """A process of a run that stands still at some steps; by default once members have been written."""
    trap = {"folder": str(store.parent), "how": "stop", "at": at, "match": options.pop("match", "/run.zarr/u/")}
    process = server.start(*arguments, trap=trap, patch=SETTLE, **options)
    assert process.state() == "stopped"
    return process


def busy(process: Process, store: Path) -> str:
    return f"{store}: is being written by another run (process {process.pid} on {socket.gethostname()}); wait for it"


def test_a_second_run_is_refused(server: Server, store: Path, arguments: tuple, whole: dict[str, bytes]) -> None:
    first = stopped(server, store, arguments)
    assert phase(store) == "members"
    before = contents(store.parent)
    for more in ((), ("--seed", 1), ("--force",)):
        second = server.run(*arguments, *more)
        # A run of another seed is refused by the store, before it asks for a lock.
        expected = f"{store}: belongs to another run" if "--seed" in more else busy(first, store)
        assert second.error().startswith(expected)
        assert contents(store.parent) == before
    first.go_on()
    assert first.end().json["members_sampled"] == 8
    assert contents(store) == whole
    assert beside(store) == []


def test_a_killed_run_locks_nothing(server: Server, store: Path, arguments: tuple, whole: dict[str, bytes]) -> None:
    first = stopped(server, store, arguments)
    first.kill()
    assert beside(store) == [".run.zarr.lock"]
    second = server.run(*arguments)
    assert second.status == 0, second.err
    assert 0 < second.json["members_sampled"] < 8
    assert contents(store) == whole
    assert beside(store) == []


def test_a_run_that_comes_while_the_store_is_made_is_refused(server: Server, store: Path, arguments: tuple) -> None:
    first = stopped(server, store, arguments, match=".run.zarr.tmp", at=(30,))
    second = server.start(*arguments)
    assert second.state(0.5) == "running"
    assert not store.exists()
    # The other process makes the store that the killed one had begun.
    first.kill()
    assert second.end().json["members_sampled"] == 8
    # While the store is made, and again while members are written.
    shutil.rmtree(store)
    trace = store.parent.with_name(f"{store.parent.name}-trace")
    assert server.run(*arguments, trap={"folder": str(store.parent), "match": "/", "trace": str(trace)}).status == 0
    found = steps(trace)
    shutil.rmtree(store)
    members = [number for number, step in enumerate(found, start=1) if "/run.zarr/u/" in step]
    first = stopped(server, store, arguments, match="/", at=(30, members[9]))
    second = server.start(*arguments)
    assert second.state(0.5) == "running"
    first.go_on()
    assert first.state() == "stopped"
    assert store.exists()
    assert second.end().error().startswith(busy(first, store))
    first.go_on()
    assert first.end().json["members_sampled"] == 8


def test_processes_of_one_run_share_it(server: Server, store: Path, arguments: tuple, whole: dict[str, bytes]) -> None:
    arguments = (*arguments, "--chunk", 1)
    first = stopped(server, store, arguments, environ=RANKS[0], at=(2,))
    second = server.start(*arguments, environ=RANKS[1], patch=SETTLE)
    # The second does all that the first has not claimed, and waits for the rest.
    last = time.monotonic() + 120
    while units(store)[0] < 3 and time.monotonic() < last:
        assert second.state(0.05) == "running"
    assert second.state(0.5) == "running"
    done, count = units(store)
    assert 3 <= done < count == 8
    # Others are refused still.
    assert server.run(*arguments).error().startswith(busy(first, store))
    first.go_on()
    ended = [process.end() for process in (first, second)]
    assert [process.status for process in ended] == [0, 0]
    assert sum(process.json["members_sampled"] for process in ended) == 8
    assert all(process.json["members_sampled"] for process in ended)
    assert contents(store) == whole
    assert beside(store) == []


def test_the_last_process_removes_the_lock(server: Server, store: Path, arguments: tuple) -> None:
    first = stopped(server, store, arguments, environ=RANKS[0], match="/run.zarr/.unfinished", at=(2,))
    # The first is about to remove the ledger, all is done; the second finds nothing to do.
    second = server.run(*arguments, environ=RANKS[1])
    assert second.json["members_sampled"] == 0
    assert beside(store) == [".run.zarr.lock"]
    first.go_on()
    assert first.end().status == 0
    assert beside(store) == []


def test_verify_unmarks_nothing_while_a_run_writes(
    server: Server, store: Path, arguments: tuple, whole: dict[str, bytes]
) -> None:
    first = stopped(server, store, arguments)
    found = server.run("verify", store, "--json")
    assert found.status == 0, found.err
    assert found.json["unfinished"]
    assert found.json["damaged"] == []
    member = store / "u" / "c.0.0.0.0"
    member.write_bytes(member.read_bytes()[:-1] + b"!")
    ledger = (store / LEDGER).read_bytes()
    assert server.run("verify", store, "--mark").error().startswith(busy(first, store))
    assert (store / LEDGER).read_bytes() == ledger
    first.go_on()
    assert first.end().status == 0
    assert "u/c.0.0.0.0 (flipped" in server.run("verify", store, "--mark").error()
    assert server.run(*arguments).json["members_sampled"] == 1
    assert contents(store) == whole
    assert beside(store) == []
