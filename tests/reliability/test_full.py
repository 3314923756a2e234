"""A full disk, a disk that is read only: one clear line, and nothing that was written is lost."""

import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from enma_fast.errors import EnmaError
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.store.ledger import RunLock
from enma_fast.store.read import read_forecast

from .._files import contents
from .._runs import prepare
from ._harness import Server, beside, steps, units

KINDS = {
    "members": (("--members", 12, "--chunk", 3), {"store.writer._SYNC_INTERVAL": -1.0}),
    "shards": (("--members", 12, "--chunk", 3, "--shard", 5, "--quantiles", "0.5"), {}),
    "statistics": (("--members", 4, "--chunk", 1, "--statistics-only"), {"runs.run._SAVE": -1.0}),
}


def kinds(kind: str) -> pytest.MarkDecorator:
    """Every kind of store, of which `make test` runs this one; shards are written as members are."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize("kind", [name if name == kind else pytest.param(name, marks=slow) for name in KINDS])


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Make small file systems in memory, which takes the rights of root."""
    made: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"disk-{len(made)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
        made.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def wholes(server: Server, test_in: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """The files of each kind of store, from an uninterrupted run."""
    made = {}
    for kind, (options, _) in KINDS.items():
        out = tmp_path_factory.mktemp(kind) / "run.zarr"
        assert server.run("forecast", test_in, "--out", out, "-c", tiny, "--select", "0:2", *options).status == 0
        made[kind] = contents(out)
    return made


@pytest.fixture
def command(test_in: Path, tiny: Path) -> Callable[..., tuple[object, ...]]:
    def make(out: Path, *options: object) -> tuple[object, ...]:
        return ("forecast", test_in, "--out", out, "-c", tiny, "--select", "0:2", *options, "--json")

    return make


@kinds("members")
def test_a_full_disk(server: Server, wholes: dict, command: Callable, mount: Mount, kind: str) -> None:
    """At every stage: what is free grows until the run has room."""
    disk = mount("size=2m")
    out, ballast = disk / "run.zarr", disk / "ballast"
    options, patch = KINDS[kind]
    stages = set()
    for free in itertools.count(8, 48):
        total = shutil.disk_usage(disk).total
        with open(ballast, "wb") as file:
            file.write(bytes(total - 1024 * free))
        ended = server.run(*command(out, *options), patch=patch)
        made = units(out)
        ballast.unlink()
        if ended.status == 0:
            break
        told = ended.error()
        assert told.startswith(f"{out}: needs " if " are free" in told else f"{out}: cannot be written ([Errno 28]")
        stages.add("plan" if " are free" in told else "making" if made is None else "sampling")
        # The store opens, and its finished members are whole.
        if made is not None:
            read_forecast(out, partial=True)
            assert server.run("verify", out).status == 0
            again = server.run(*command(out, *options), patch=patch)
            assert again.status == 0, again.err
            if kind != "statistics":
                kept = 24 - again.json["members_sampled"]
                assert kept == min(made[0], 24), (free, told)
            assert contents(out) == wholes[kind]
        shutil.rmtree(out, ignore_errors=True)
        assert beside(out) == []
    assert stages >= {"plan", "making" if kind == "statistics" else "sampling"}
    assert contents(out) == wholes[kind]


@kinds("statistics")
def test_a_disk_that_becomes_full(server: Server, wholes: dict, command: Callable, quick: Path, kind: str) -> None:
    """The same with writes that fail from the n-th on, which every machine can do."""
    out = quick / "run.zarr"
    options, patch = KINDS[kind]
    trace = quick.with_name(f"{quick.name}-trace")
    assert (
        server.run(*command(out, *options), patch=patch, trap={"folder": str(quick), "trace": str(trace)}).status == 0
    )
    shutil.rmtree(out)
    found = steps(trace)
    # The writes that make the store come first.
    made = found[: found.index(f"os.rename {quick}/.run.zarr.tmp")].count("os.write")
    for number in (1, 2, 7, 12, 15, 19):
        trap = {"folder": str(quick), "how": "full", "at": [made + number], "match": "os.write"}
        ended = server.run(*command(out, *options), patch=patch, trap=trap)
        if ended.status == 0:
            break
        told = ended.error()
        assert told.startswith(f"{out}: cannot be written ([Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}")
        assert "repeat the command" in told
        assert not list(out.rglob("*.tmp"))
        done, _ = units(out)
        again = server.run(*command(out, *options), patch=patch)
        if kind == "members":
            # One file, one member: what was written whole before is not written twice.
            assert again.json["members_sampled"] == 24 - done == 24 - (number - 1) // 3 * 3
        assert contents(quick) == {f"run.zarr/{name}": data for name, data in wholes[kind].items()}
        shutil.rmtree(out)
    assert number >= 12


def test_a_disk_without_room_for_a_lock(mount: Mount) -> None:
    disk = mount("size=64k")
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
    with pytest.raises(EnmaError, match=r"run\.zarr: .*written"):
        RunLock(disk / "run.zarr", "a")
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_too_few_inodes(server: Server, wholes: dict, command: Callable, mount: Mount) -> None:
    """The plan knows the members; what a store begins with may still be too much."""
    disk = mount("size=4m,nr_inodes=22")
    out = disk / "run.zarr"
    told = server.run(*command(out, *KINDS["members"][0])).error()
    assert told == f"{out}: needs 24 files, 21 can be made; put members together: --shard"
    assert beside(out) == []
    told = server.run(*command(out, "--members", 12, "--shard", 12)).error()
    assert told.startswith(f"{out}: cannot be written ([Errno 28]")
    assert list(disk.iterdir()) == []


def test_a_disk_that_is_read_only(server: Server, wholes: dict, command: Callable, mount: Mount) -> None:
    disk = mount("size=4m")
    out, options = disk / "run.zarr", KINDS["members"][0]
    trap = {"folder": str(disk), "how": "kill", "at": [20], "match": "/run.zarr/u/"}
    assert server.run(*command(out, *options), patch=KINDS["members"][1], trap=trap).status == -9
    damaged = shutil.copytree(out, disk / "damaged.zarr") / "u" / "c.0.0.0.0"
    damaged.write_bytes(damaged.read_bytes()[1:])
    before = contents(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for target in (out, disk / "new.zarr", disk / "deep" / "new.zarr"):
        told = server.run(*command(target, *options)).error()
        assert told.startswith(f"{target}: cannot be written ([Errno 30]")
        assert "choose another --out" in told
    assert server.run(*command(out, *options), "--dry-run").json["plan"]["members_missing"] < 24
    assert server.run("verify", out, "--json").json["unfinished"]
    told = server.run("verify", damaged.parent.parent, "--mark", "--json")
    assert "cannot be written ([Errno 30]" in told.error()
    assert [entry["file"] for entry in told.json["damaged"]] == ["u/c.0.0.0.0"], "what was found is told"
    assert read_forecast(out, partial=True)["u"].shape[:2] == (2, 12)
    assert contents(disk) == before
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert server.run(*command(out, *options)).status == 0
    assert contents(out) == wholes["members"]


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("shutil.disk_usage", SimpleNamespace(free=1000), "--statistics-only"),
        (
            "os.statvfs",
            SimpleNamespace(f_files=9, f_favail=3, f_bavail=9**9, f_blocks=9**9, f_bfree=9**9, f_frsize=1),
            "files",
        ),
    ],
)
def test_the_plan_refuses_before_any_work(
    test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: object, message: str
) -> None:
    run = prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, num_members=4, trajectories=[0])
    with monkeypatch.context() as patch:
        patch.setattr(name, lambda path: found)
        patch.setattr(FileForecast, "sample", None)
        with pytest.raises(EnmaError, match=message):
            run.plan()
    assert list(tmp_path.iterdir()) == []
    run.plan()
