"""The plan of a run says what it will take, or why it cannot be."""

from dataclasses import asdict
from pathlib import Path

import pytest

from enma_fast.data import FieldFile
from enma_fast.errors import EnmaError
from enma_fast.runs import run as run_module

from .._runs import start


def test_a_rank_may_make_the_store_while_another_plans(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"num_members": 3, "trajectories": [0]}
    first, second = start(data, tmp_path / "run.zarr", **common), start(data, tmp_path / "run.zarr", **common)
    original = run_module.check_place

    def slowly(path: Path) -> None:
        first.execute()
        original(path)

    monkeypatch.setattr(run_module, "check_place", slowly)
    second.plan(measure=False)
    assert second.execute()["members_sampled"] == 0


@pytest.mark.parametrize("force", [False, True])
def test_the_plan_knows_where_no_store_can_be(data: FieldFile, tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for place, message in (
        ("file", "exists and is not a forecast store; choose another --out"),
        ("folder", "exists and is not a forecast store; choose another --out"),
        ("run.nc", "a forecast is a Zarr folder; end --out in .zarr .enma-fast export-netcdf"),
        ("run.H5", "a forecast is a Zarr folder"),
        ("file/run.zarr", r"file is a file; choose another --out"),
        ("file/deep/run.zarr", r"file is a file; choose another --out"),
        ("/proc/run.zarr", "cannot be written"),
        ("n" * 300, "cannot be written .*File name too long"),
    ):
        with pytest.raises(EnmaError, match=message):
            start(data, tmp_path / place, num_members=2, trajectories=[0], force=force).plan(measure=False)
    start(data, tmp_path / "new" / "run.zarr", num_members=2, trajectories=[0], force=force).plan(measure=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_plan_says_what_will_be_written(data: FieldFile, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    given = start(data, out, num_members=10, trajectories=[0, 1, 2], chunk=4, shard=2)
    plan = given.plan(measure=True)
    assert list(tmp_path.iterdir()) == []
    given.execute()
    chunks = list((out / "u").glob("c.*"))
    assert (plan.trajectories, plan.members, plan.frames, plan.members_missing) == (3, 10, 17, 30)
    assert plan.files == len(chunks) == 15
    values = 30 * 17 * 128 * 4
    assert plan.disk == values
    assert values < sum(p.stat().st_size for p in chunks) < 1.01 * values
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert {"weights", "keys_values", "buffers", "fields"} <= set(plan.memory)
    assert all(size > 0 for size in plan.memory.values())
    done = start(data, out, num_members=10, trajectories=[0, 1, 2], shard=2).plan()
    assert (done.members_missing, done.disk, done.files, done.seconds) == (0, 0, 0, None)
    assert asdict(done)["memory"].keys() == {"fields"}


def test_too_few_inodes_ask_for_shards(data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enma_fast.store.location._free_inodes", lambda folder: 5)
    given = {"num_members": 12, "trajectories": [0]}
    with pytest.raises(EnmaError, match="--shard"):
        start(data, tmp_path / "run.zarr", **given).plan()
    start(data, tmp_path / "run.zarr", **given, shard=4).plan()
