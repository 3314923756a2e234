"""Verifying a store: damage is found, marked and repaired, and only damage is marked."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast.cli import main
from enma_fast.errors import EnmaError
from enma_fast.store import verify
from enma_fast.store.checksums import CHECKSUMS, read_checksums, write_checksums
from enma_fast.store.create import create_unfinished_store
from enma_fast.store.forecast_store import ForecastStore
from enma_fast.store.inventory import files_of
from enma_fast.store.layout import DAMAGED, LEDGER, Layout
from enma_fast.store.ledger import Ledger
from enma_fast.store.metadata import DIGEST, METADATA, read_metadata
from enma_fast.store.read import read_forecast, read_layout
from enma_fast.store.repair import repair
from enma_fast.store.verify import check_store, mark_damaged
from tests._made import create_store

from .._files import contents
from .._runs import prepare


def layout(members: int) -> Layout:
    return Layout(
        channels=("u",), times=np.arange(5.0), coords=[np.arange(7.0)], trajectories=[4, 7], num_members=members
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with create_store(tmp_path / "run.zarr", layout(3)) as made:
        made.put(0, np.ones((2, 3, 5, 7, 1), np.float32))
    return tmp_path / "run.zarr"


def missing(store: Path, units: int) -> list[int]:
    ledger = Ledger(store / LEDGER, units)
    found = np.flatnonzero(~ledger.done()).tolist()
    ledger.close()
    return found


def test_what_was_repaired_meanwhile_is_not_marked(store: Path) -> None:
    first, second = store / "u" / "c.0.1.0.0", store / "u" / "c.1.2.0.0"
    whole = first.read_bytes()
    for file in (first, second):
        file.write_bytes(whole[:-1])
    found = check_store(store)
    assert [damage.file for damage in found] == ["u/c.0.1.0.0", "u/c.1.2.0.0"]
    first.write_bytes(whole)
    mark_damaged(store, found)
    assert missing(store, 6) == [5]
    second.write_bytes(whole)
    (store / LEDGER).unlink()
    mark_damaged(store, found)
    assert not (store / LEDGER).exists()


def test_a_store_that_was_begun_anew_is_marked_as_it_is(store: Path) -> None:
    (store / "u" / "c.1.2.0.0").unlink()
    found = check_store(store)
    shutil.rmtree(store)
    with create_store(store, layout(8)) as made:
        made.put(0, np.ones((2, 8, 5, 7, 1), np.float32))
    (store / "u" / "c.1.2.0.0").unlink()
    mark_damaged(store, found)
    assert missing(store, 16) == [10]


def swap(first: Path, second: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def of_values(path: Path, **options: Any) -> Path:
    """A store whose members all differ."""
    truth = np.arange(2 * 5 * 7 * 2, dtype=np.float32).reshape(2, 5, 7, 2)
    columns = {"alpha": np.array([0.5, 0.7]), "beta": np.array([0.7, 0.5])}
    made = replace(layout(4), channels=("u", "v"), truth=truth, columns=columns, **options)
    with create_store(path, made) as store:
        values = np.arange(2 * 4 * 5 * 7 * 2, dtype=np.float32).reshape(2, 4, 5, 7, 2)
        store.put(0, values)
        if made.statistics:
            for b in range(2):
                one = values[b, 0]
                store.put_statistics(b, {"mean": one, "spread": one + 1, "quantile": np.stack([one + 2, one + 3])})
    return path


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, "u/c.0.1.0.0", "u/c.0.2.0.0"),
        ({}, "u/c.0.1.0.0", "u/c.1.1.0.0"),
        ({}, "u/c.0.1.0.0", "v/c.0.1.0.0"),
        ({}, "u_truth/c.0.0.0", "u_truth/c.1.0.0"),
        ({}, "u_truth/c.1.0.0", "v_truth/c.1.0.0"),
        ({}, "alpha/c.0", "beta/c.0"),
        ({"shard": 2}, "u/c.0.0.0.0", "u/c.0.1.0.0"),
        ({"statistics": True, "quantiles": (0.1, 0.9)}, "u_mean/c.0.0.0", "u_spread/c.0.0.0"),
        ({"statistics": True, "quantiles": (0.1, 0.9)}, "u_quantile/c.0.0.0.0", "v_quantile/c.1.0.0.0"),
    ],
)
def test_two_files_that_are_swapped_are_noticed(tmp_path: Path, options: dict, first: str, second: str) -> None:
    """Each of them is whole."""
    store = of_values(tmp_path / "run.zarr", **options)
    assert check_store(store) == []
    swap(store / first, store / second)
    found = check_store(store)
    assert {damage.file for damage in found} == {first, second}
    assert {damage.problem for damage in found} == {"another file: its checksum is not the one recorded"}
    swap(store / first, store / second)
    assert check_store(store) == []


@pytest.mark.parametrize("bit", [3, 70, 64 + 8 * 4 * 3 + 5])
def test_a_flipped_bit_of_the_checksums_is_noticed(store: Path, bit: int) -> None:
    data = bytearray((store / CHECKSUMS).read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (store / CHECKSUMS).write_bytes(data)
    assert len(check_store(store)) == 1
    (store / CHECKSUMS).unlink()
    assert [damage.file for damage in check_store(store)] == [CHECKSUMS]


def test_a_store_of_before_the_checksums_is_whole(store: Path) -> None:
    root = json.loads((store / METADATA).read_text())
    del root["attributes"][DIGEST]
    (store / METADATA).write_text(json.dumps(root))
    (store / CHECKSUMS).unlink()
    assert check_store(store) == []
    assert read_forecast(store)["u"].shape == (2, 3, 5, 7)


def test_what_a_run_writes_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, given = tmp_path / "run.zarr", layout(3)
    create_unfinished_store(path, given)
    made, ledger, recorded = ForecastStore(path, given), Ledger(path / LEDGER, 6), verify._recorded

    def slowly(*arguments: Any) -> Any:
        found = recorded(*arguments)
        made.put(0, np.ones((2, 3, 5, 7, 1), np.float32))
        ledger.mark(range(6))
        return found

    monkeypatch.setattr(verify, "_recorded", slowly)
    assert check_store(path) == []
    made.close()
    ledger.close()


def test_verify_changes_nothing_and_says_so_until_it_is_repaired(
    test_in: Path, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.zarr"

    def begin() -> Any:
        return prepare(test_in, out, checkpoint=tiny, num_members=3, trajectories=[0], command="enma-fast forecast")

    begin().execute()
    whole = contents(out)
    for name in ("u/c.0.1.0.0", "time/c.0", METADATA, CHECKSUMS):
        data = bytearray(whole[name])
        if name == METADATA:
            data = data.replace(b'"seed": 0', b'"seed": 1')
        else:
            data[19] ^= 4
        (out / name).write_bytes(data)
        damaged = contents(out)
        for _ in range(3):
            assert main(["verify", str(out)]) == 2
            assert f"is damaged; repeat: enma-fast verify {out} --mark, then " in capfd.readouterr().err
            assert contents(out) == damaged
        assert main(["verify", str(out), "--mark"]) == 2
        assert "is damaged and marked; repeat: enma-fast forecast --out " in capfd.readouterr().err
        # Marked, and not yet repaired.
        marked = contents(out)
        assert main(["verify", str(out)]) == 2
        assert "is damaged and marked; repeat: enma-fast forecast --out " in capfd.readouterr().err
        assert contents(out) == marked
        assert begin().execute()["members_sampled"] == (0 if name in ("time/c.0", METADATA) else 1), name
        assert contents(out) == whole
        assert main(["verify", str(out)]) == 0
        assert capfd.readouterr().err == ""


def test_lost_checksums_are_recorded_again(test_in: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    prepare(test_in, out, checkpoint=tiny, num_members=3, trajectories=[0], quantiles=(0.5,)).execute()
    whole = contents(out)
    for lost in (None, whole[CHECKSUMS][:-1]):
        (out / CHECKSUMS).unlink()
        if lost is not None:
            (out / CHECKSUMS).write_bytes(lost)
        mark_damaged(out, check_store(out))
        done = prepare(test_in, out, checkpoint=tiny, num_members=3, trajectories=[0], quantiles=(0.5,)).execute()
        assert done["members_sampled"] == 0
        assert contents(out) == whole


def test_damaged_attributes_are_repaired_by_their_own_command_alone(test_in: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    prepare(test_in, out, checkpoint=tiny, num_members=2, trajectories=[0]).execute()
    whole = contents(out)
    damaged = whole[METADATA].replace(b'"seed": 0', b'"seed": 1')
    (out / METADATA).write_bytes(damaged)
    with pytest.raises(EnmaError, match="attributes"):
        prepare(test_in, out, checkpoint=tiny, num_members=2, trajectories=[0]).execute()
    mark_damaged(out, check_store(out))
    # The attributes now describe a run that nobody asked for.
    with pytest.raises(EnmaError, match="attributes"):
        prepare(test_in, out, checkpoint=tiny, num_members=2, trajectories=[0], seed=2).execute()
    prepare(test_in, out, checkpoint=tiny, num_members=2, trajectories=[0]).execute()
    assert contents(out) == whole


@pytest.fixture(scope="module")
def written(test_in: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a run, with truth, observations and statistics."""
    out = tmp_path_factory.mktemp("written") / "run.zarr"
    again(test_in, tiny, out)
    return out


def again(test_in: Path, tiny: Path, out: Path) -> int:
    """Run the command of that store; returns how many members it sampled."""
    run = prepare(test_in, out, checkpoint=tiny, num_members=3, trajectories=[0, 3], quantiles=(0.5,))
    return int(run.execute()["members_sampled"])


ARRAYS = ["u_truth", "u_observed", "trajectory", "realization", "time", "x", "alpha", "u", "u_quantile"]


@pytest.mark.each_value
@pytest.mark.parametrize("what", ["folder", "metadata and chunks", "chunks"])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_lost_is_found_with_all_else_and_repaired(
    test_in: Path, tiny: Path, tmp_path: Path, written: Path, name: str, what: str
) -> None:
    out = tmp_path / "run.zarr"
    shutil.copytree(written, out)
    whole = contents(out)
    lost = {file for file in whole if file.startswith(f"{name}/")} - (
        {f"{name}/{METADATA}"} if what == "chunks" else set()
    )
    if what == "folder":
        shutil.rmtree(out / name)
    else:
        for file in lost:
            (out / file).write_bytes(whole[file][:-1])
    # A member is damaged too, whatever else cannot be read.
    (out / "u" / "c.1.2.0.0").unlink(missing_ok=True)
    lost.add("u/c.1.2.0.0")
    found = check_store(out)
    assert {damage.file for damage in found} == lost
    mark_damaged(out, found)
    assert {damage.file for damage in check_store(out) if damage.marked} >= lost
    assert again(test_in, tiny, out) == (6 if name == "u" else 1)
    assert contents(out) == whole
    assert check_store(out) == []


def many(path: Path, trajectories: int) -> Layout:
    """A store of so many trajectories with truth, and one member of one value each."""
    truth = np.arange(trajectories, dtype=np.float32).reshape(-1, 1, 1, 1)
    given = {"channels": ("u",), "times": [0.0], "coords": [np.zeros(1)], "num_members": 1}
    made = Layout(**given, trajectories=range(trajectories), truth=truth)
    with create_store(path, made) as store:
        store.put(0, truth[:, None])
    return made


def test_all_damage_is_marked_and_repaired_however_much_it_is(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    made = many(store, 1003)
    whole = contents(store)
    shutil.rmtree(store / "u_truth")
    found = check_store(store)
    assert len(found) == 1004
    mark_damaged(store, found)
    assert len(json.loads((store / DAMAGED).read_text())) == 1004
    repair(store, made)
    assert contents(store) == whole
    assert check_store(store) == []


@pytest.mark.parametrize("file", ["u_truth/c.2.0.0", "alpha/c.0", "x/zarr.json", CHECKSUMS])
def test_what_is_damaged_after_the_mark_is_repaired_with_the_rest(tmp_path: Path, file: str) -> None:
    """Without the list of damaged files the store counts as whole."""
    store = tmp_path / "run.zarr"
    made = replace(many(store, 3), columns={"alpha": np.array([0.5, 0.7, 0.9])})
    with create_store(store, made, force=True) as again:
        again.put(0, np.ones((3, 1, 1, 1, 1), np.float32))
    whole = contents(store)
    (store / "time" / "c.0").unlink()
    mark_damaged(store, check_store(store))
    (store / file).write_bytes(whole[file][:-1])
    repair(store, made)
    assert contents(store) == whole
    assert check_store(store) == []


def test_a_wrong_checksum_of_what_is_written_once_is_recorded_again(tmp_path: Path) -> None:
    store = tmp_path / "run.zarr"
    made = many(store, 3)
    whole = contents(store)
    values = read_checksums(store).copy()
    values[-1] ^= 1
    write_checksums(store, values)
    found = check_store(store)
    assert [damage.file for damage in found] == ["x/c.0"]
    mark_damaged(store, found)
    repair(store, made)
    assert contents(store) == whole


def test_an_array_that_the_metadata_have_lost_is_repaired(tmp_path: Path) -> None:
    """Its own files are damaged too, and nothing but the metadata names them."""
    store = tmp_path / "run.zarr"
    made = many(store, 3)
    whole = contents(store)
    root = json.loads(whole[METADATA])
    del root["consolidated_metadata"]["metadata"]["u_truth"]
    (store / METADATA).write_text(json.dumps(root))
    (store / "u_truth" / "c.1.0.0").unlink()
    found = check_store(store)
    assert [damage.file for damage in found] == [CHECKSUMS]
    mark_damaged(store, found)
    repair(store, made)
    assert contents(store) == whole
    assert check_store(store) == []


def test_a_store_whose_members_cannot_be_checked_is_not_marked(store: Path) -> None:
    """It would be taken for whole when what was marked is repaired."""
    (store / "time" / METADATA).unlink()
    os.mkfifo(store / "u" / "c.9")
    found = check_store(store)
    assert [damage.file for damage in found] == [f"time/{METADATA}"]
    with pytest.raises(EnmaError, match=r"u/'c\.9'"):
        mark_damaged(store, found)
    assert not (store / DAMAGED).exists()


def test_each_file_is_read_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, original = [], os.open

    def opening(path: Any, *arguments: Any, **options: Any) -> int:
        opened.append(str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opening)
    for i, part in enumerate(files_of(store, layout(3))):
        recorded = int(read_checksums(store)[i])
        opened.clear()
        assert part.problem(recorded) is None
        assert part.checksum() == recorded
        assert opened == [str(part.file)] * 2


def test_the_layout_is_known_without_coordinates(store: Path) -> None:
    for name in ("time", "x", "trajectory"):
        shutil.rmtree(store / name)
    found = read_layout(store, read_metadata(store))
    assert found.frame_shape == (5, 7)
    assert found.trajectories == [0, 1]
    assert (found.num_units, found.num_files()) == (6, 6)
