"""Writing members in the background while the next ones are sampled; the ledger marks those that are on the disk."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np

from .forecast_store import ForecastStore
from .ledger import Ledger

# Blocks in the queue at the most, and seconds between two waits for the disk.
_MOST_QUEUED, _SYNC_INTERVAL = 2, 1.0


class Writer:
    """Writes blocks of members to a store in a thread of its own, and marks them in its ledger.

    The caller claims blocks; the writer releases them. On leaving the `with` block, everything that was put is on the
    disk and marked as done, even if the block failed.
    """

    def __init__(self, store: ForecastStore, ledger: Ledger) -> None:
        self.store, self.ledger = store, ledger
        self._queue: queue.Queue[tuple[str, Any, Any]] = queue.Queue(_MOST_QUEUED)
        self._error: BaseException | None = None
        # Units that are written and blocks to release, both waiting for the disk.
        self._units: list[int] = []
        self._blocks: list[Any] = []
        self._put = 0
        self._marked = 0
        self._settled = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="enma_fast_writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of members that were put and are not yet marked as done."""
        return self._put - self._marked

    def put(self, block: Any, samples: np.ndarray) -> None:
        """Write the members `[B, K, T, *x, c]` of a block; `OSError` if an earlier one could not be written."""
        self._put += samples.shape[0] * samples.shape[1]
        self._send("put", block, samples)

    def release(self, block: Any) -> None:
        """Give up the claim on a block when it is done."""
        self._send("release", block, None)

    def flush(self) -> None:
        """Wait until everything that was put is marked as done."""
        self._send("flush", None, None)
        self._queue.join()
        self._raise()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            self._stop()
        except BaseException as again:
            # A second interrupt: queued blocks are not written, but the thread ends before the caller goes on.
            self._error = self._error or again
            self._stop()
            raise
        if kind is None:
            self._raise()

    def _stop(self) -> None:
        self._queue.put(("stop", None, None))
        self._thread.join()

    def _send(self, what: str, block: Any, samples: np.ndarray | None) -> None:
        self._raise()
        self._queue.put((what, block, samples))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        what = ""
        while what != "stop":
            what, block, samples = self._queue.get()
            try:
                if self._error is None:
                    self._do(what, block, samples)
                elif what == "stop":
                    # Blocks that were written before the error are kept.
                    self._sync()
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._queue.task_done()

    def _do(self, what: str, block: Any, samples: np.ndarray | None) -> None:
        if samples is not None:
            for b, members in enumerate(samples, start=block.b):
                self.store.add(b, range(block.k, block.k_end), members)
            self._units += range(block.first, block.last)
        elif what == "release":
            self._blocks.append(block)
        if what != "put" and (what != "release" or time.monotonic() - self._settled > _SYNC_INTERVAL):
            self._sync()

    def _sync(self) -> None:
        # The system reports a failed write only once, so units are forgotten before the wait and never marked after it.
        units, blocks, self._units, self._blocks = self._units, self._blocks, [], []
        if units:
            self.store.sync()
            self.ledger.mark(units)
            self._marked += len(units)
        for block in blocks:
            self.ledger.release(block.first, block.last)
        self._settled = time.monotonic()
