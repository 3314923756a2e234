"""Rows are sampled as many at a time as the memory holds: half as many from where it runs out."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ..errors import EnmaError, first_line, out_of_memory

log = logging.getLogger("enma_fast")

_T = TypeVar("_T")


@contextlib.contextmanager
def all_in_memory() -> Iterator[None]:
    """`EnmaError` where memory runs out for members that are all in it at once, which smaller chunks do not mend."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise EnmaError(
            f"the members of a stream or with stop= do not fit the memory together ({first_line(error)}); "
            "sample fewer at a time"
        ) from error


def in_memory(
    attempt: Callable[[int], _T],
    chunk: int,
    *,
    rows: int,
    independent: bool,
    halved: Callable[[int, Exception], None] | None = None,
) -> _T:
    """The result of `attempt` by `chunk` rows at a time, or by half as many as often as memory runs out.

    Parameters
    ----------
    rows
        Rows in total.
    independent
        True if no row's result depends on those beside it.
    halved
        Called with each smaller chunk and the error that asks for it, which it may refuse by another.

    Raises
    ------
    EnmaError
        If a single row does not fit.
    """
    while True:
        try:
            return attempt(chunk)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            chunk = min(chunk, rows) // 2
            if not chunk:
                reason = first_line(error)
                raise EnmaError(f"one member does not fit the memory ({reason}); use another --device") from error
            if halved is not None:
                halved(chunk, error)
        # The error, which held what was allocated, is gone.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if independent:
            log.warning("out of memory: %d rows at a time from now on; no result changes", chunk)
        else:
            log.warning("out of memory: %d rows at a time; on this device results are rounded differently", chunk)
