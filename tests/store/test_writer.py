"""The writer of a run: members that are marked as done are on the disk, and the thread ends with the block."""

import threading
from pathlib import Path

import numpy as np
import pytest

from enma_fast.forecasting.request import ForecastRequest
from enma_fast.runs.blocks import Blocks
from enma_fast.store.create import create_unfinished_store
from enma_fast.store.forecast_store import ForecastStore
from enma_fast.store.layout import LEDGER, Layout
from enma_fast.store.ledger import Ledger
from enma_fast.store.writer import Writer

LAYOUT = Layout(channels=("u",), times=np.arange(5.0), coords=[np.arange(7.0)], trajectories=range(3), num_members=4)
SAMPLES = np.zeros((1, 4, 5, 7, 1), np.float32)
BLOCKS = Blocks(ForecastRequest(trajectories=range(3), num_members=4, chunk=4))


@pytest.fixture
def store(tmp_path: Path) -> ForecastStore:
    create_unfinished_store(tmp_path / "run.zarr", LAYOUT)
    return ForecastStore(tmp_path / "run.zarr", LAYOUT)


@pytest.fixture
def ledger(store: ForecastStore) -> Ledger:
    return Ledger(store.path / LEDGER, 12)


def test_a_writer_that_fails_says_so_and_marks_nothing_wrong(
    store: ForecastStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = BLOCKS
    assert ledger.claim(0, 12)

    def full(path: str | Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with Writer(store, ledger) as writer:
            writer.put(first, SAMPLES)
            writer.release(first)
            writer.flush()
            assert ledger.done(0, 4).all()
            monkeypatch.setattr("enma_fast.store.forecast_store.write_file", full)
            writer.put(second, SAMPLES)
            writer.release(second)
            writer.flush()

    with pytest.raises(OSError, match="No space"):
        fail()
    assert not ledger.done(4, 12).any()


def test_a_second_interrupt_leaves_no_writer_behind(
    store: ForecastStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, interrupted, written, stops = threading.Event(), threading.Event(), [], []

    def add(trajectory: int, members: range, values: np.ndarray) -> None:
        began.set()
        assert interrupted.wait(30)
        written.append(trajectory)

    monkeypatch.setattr(store, "add", add)
    writer = Writer(store, ledger)
    put, join = writer._queue.put, writer._thread.join

    def watched(item: tuple[str, object, object]) -> None:
        stops.extend([item] * (item[0] == "stop"))
        if len(stops) == 2:
            interrupted.set()
        put(item)

    def impatient() -> None:
        if not interrupted.is_set():
            raise KeyboardInterrupt
        join()

    monkeypatch.setattr(writer._queue, "put", watched)
    monkeypatch.setattr(writer._thread, "join", impatient)

    def work() -> None:
        with writer:
            for block in BLOCKS[:2]:
                writer.put(block, SAMPLES)
            assert began.wait(30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not writer._thread.is_alive()
    # The block that was being written at the second interrupt is kept, those that waited are not.
    assert written == [0]
    assert np.flatnonzero(ledger.done()).tolist() == [0, 1, 2, 3]
