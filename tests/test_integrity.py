"""What is marked as damaged is damaged when it is marked, in the store that is there then."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from enma_fast.integrity import check_store, mark
from enma_fast.ledger import Ledger
from enma_fast.output import LEDGER, Layout, create_store


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
    mark(store, found)
    assert missing(store, 6) == [5]
    second.write_bytes(whole)
    (store / LEDGER).unlink()
    mark(store, found)
    assert not (store / LEDGER).exists()


def test_a_store_that_was_begun_anew_is_marked_as_it_is(store: Path) -> None:
    (store / "u" / "c.1.2.0.0").unlink()
    found = check_store(store)
    shutil.rmtree(store)
    with create_store(store, layout(8)) as made:
        made.put(0, np.ones((2, 8, 5, 7, 1), np.float32))
    (store / "u" / "c.1.2.0.0").unlink()
    mark(store, found)
    assert missing(store, 16) == [10]
