"""Numbers near to zero: taken for zero while a stage trains, by all threads, and kept before and after."""

from collections.abc import Iterator

import pytest
import torch

from enma_fast.ops import _backend
from enma_fast.training.loop import run
from enma_fast.training.subnormals import flush_subnormals

from .._extension import needs_native
from .._tiny import tokenizer_task
from ._run import options

# Large enough for every thread to have a part.
SMALL = torch.full((1 << 20,), 1e-39)


def kept() -> int:
    return int((SMALL * 1.0 != 0).sum())


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    # The threads are there before anything is asked of them.
    assert kept() == len(SMALL)
    yield
    torch.set_num_threads(before)


@needs_native  # it reaches all threads
def test_all_threads_flush_and_stop_again():
    with flush_subnormals():
        assert kept() == 0
        with flush_subnormals():
            assert kept() == 0
        assert kept() == 0
    assert kept() == len(SMALL)
    with pytest.raises(KeyboardInterrupt), flush_subnormals():
        raise KeyboardInterrupt
    assert kept() == len(SMALL)


def test_without_the_extension_this_thread_flushes(monkeypatch):
    monkeypatch.setattr(_backend, "extension", lambda: None)
    with flush_subnormals():
        assert kept() <= len(SMALL) // 2
    assert kept() == len(SMALL)


def test_a_stage_trains_so(tmp_path, monkeypatch):
    task = tokenizer_task("relative")
    seen, loss = [], task.loss
    monkeypatch.setattr(task, "loss", lambda *given: seen.append(kept()) or loss(*given))
    run(task, options(tmp_path))
    assert seen
    assert max(seen) <= len(SMALL) // 2
    assert kept() == len(SMALL)
