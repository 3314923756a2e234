"""Runs where the file system gives no locks, or none that other machines see."""

import errno
import fcntl
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from enma_fast.errors import EnmaError
from enma_fast.runs import static_share
from enma_fast.runs.run import Run
from enma_fast.runs.static_share import require_shared_locks
from enma_fast.store.layout import LEDGER
from enma_fast.store.verify import check_store
from enma_fast.utils.launch import Launch

from .._files import contents
from .._runs import prepare


def rank(number: int, count: int, *, local: int = 1) -> Launch:
    return Launch(launcher="SLURM", rank=number, num_ranks=count, local_rank=0, num_local=local, run="test")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(fcntl, "fcntl", fail)


KINDS = {
    "members": {},
    "shards": {"shard": 3},
    "both": {"quantiles": (0.1, 0.9)},
    "statistics": {"keep_members": False, "statistics": True},
}


def begin(test_in: Path, tiny: Path, out: Path, kind: str, launch: Launch | None = None, **options: Any) -> Run:
    common = {"checkpoint": tiny, "num_members": 7, "trajectories": [0, 1, 2], "chunk": 2}
    return prepare(test_in, out, **common, **KINDS[kind], launch=launch, **options)


@pytest.mark.parametrize("which", ["flock", "fcntl"])
def test_no_locks_are_one_line_with_what_to_do(
    test_in: Path, tiny: Path, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, which, fail)
    with pytest.raises(EnmaError, match=r"run\.zarr: .*file"):
        begin(test_in, tiny, tmp_path / "new" / "run.zarr", "members").execute()
    assert [path for path in tmp_path.rglob("*") if path.name != ".run.zarr.lock"] in ([], [tmp_path / "new"])


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_shares_write_the_bytes_of_one_process(
    test_in: Path, tiny: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    begin(test_in, tiny, tmp_path / "whole.zarr", kind).execute()
    request.getfixturevalue("no_locks")
    out = tmp_path / "run.zarr"
    sampled = []
    for number in range(3):
        run = begin(test_in, tiny, out, kind, rank(number, 3), static=True)
        sampled.append(run.execute()["members_sampled"])
        assert (out / LEDGER).exists() == (number < 2)
    assert sum(sampled) == 21
    assert all(count > 0 for count in sampled)
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert check_store(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr", "whole.zarr"]


def test_a_share_that_was_lost_is_sampled_by_the_command_repeated(
    test_in: Path, tiny: Path, tmp_path: Path, no_locks: None
) -> None:
    out = tmp_path / "run.zarr"
    for number in (0, 2):
        begin(test_in, tiny, out, "both", rank(number, 3), static=True).execute()
    assert (out / LEDGER).exists()
    (out / "u" / ".c.0.2.0.0.01234567.tmp").write_bytes(b"half")
    begin(test_in, tiny, out, "both", rank(0, 3), static=True).execute()
    # A process that is under way may be writing it.
    assert (out / "u" / ".c.0.2.0.0.01234567.tmp").exists()
    # Any number of processes can finish the run.
    done = begin(test_in, tiny, out, "both", rank(0, 1), static=True).execute()
    assert 0 < done["members_sampled"] < 21
    assert not (out / LEDGER).exists()
    assert not list(out.rglob("*.tmp"))
    assert check_store(out) == []


def test_other_ranks_wait_for_the_store(
    test_in: Path, tiny: Path, tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(static_share, "_WAIT", 0.1)
        with pytest.raises(EnmaError, match="rank 0"):
            begin(test_in, tiny, out, "members", rank(1, 2), static=True).execute()
    second = begin(test_in, tiny, out, "members", rank(1, 2), static=True)
    waiting = threading.Thread(target=second.execute)
    waiting.start()
    begin(test_in, tiny, out, "members", rank(0, 2), static=True).execute()
    waiting.join(60)
    begin(test_in, tiny, out, "members", rank(0, 1), static=True).execute()
    assert check_store(out) == []
    assert not (out / LEDGER).exists()


MOUNTS = """21 1 0:20 / / rw,relatime - ext4 /dev/sda1 rw
30 21 0:40 / {point} rw,relatime shared:1 - {kind} server:/x {options}
"""


@pytest.mark.parametrize(
    ("kind", "options", "local"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", None),
        ("nfs", "rw,vers=3,nolock,local_lock=all", "nolock"),
        ("nfs4", "rw,local_lock=flock", "local_lock=flock"),
        ("lustre", "rw,flock", None),
        ("lustre", "rw,localflock", "localflock"),
        ("cifs", "rw,nobrl", "nobrl"),
        ("fuse.sshfs", "rw", "without"),
        ("ext4", "rw", None),
    ],
)
def test_locks_that_other_machines_do_not_see_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, local: str | None
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS.format(point=tmp_path / "disk", kind=kind, options=options))
    monkeypatch.setattr(static_share, "_MOUNTS", tmp_path / "mounts")
    out = tmp_path / "disk" / "deep" / "run.zarr"
    # One machine sees its own locks, and another disk is another matter.
    require_shared_locks(out, rank(0, 4, local=4))
    require_shared_locks(tmp_path / "disks" / "run.zarr", rank(0, 4))
    if local is None:
        require_shared_locks(out, rank(0, 4))
    else:
        with pytest.raises(EnmaError, match=rf"run\.zarr: .*{kind}"):
            require_shared_locks(out, rank(0, 4))


@pytest.mark.parametrize("name", ["d\u00efsk", "a disk", "\udcff", "a\\134b", "a\u00a0b\x0c"])
def test_a_mount_point_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    point = re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", str(tmp_path / name))
    text = MOUNTS.format(point=point, kind="nfs4", options="rw,nolock")
    (tmp_path / "mounts").write_bytes(os.fsencode(text))
    monkeypatch.setattr(static_share, "_MOUNTS", tmp_path / "mounts")
    with pytest.raises(EnmaError, match="mounted"):
        require_shared_locks(tmp_path / name / "run.zarr", rank(0, 4))
    require_shared_locks(tmp_path / "run.zarr", rank(0, 4))
