"""Work in a forked child: threads do not live on in one, and whoever waits for those of the parent waits for ever.

That is so for Python's pools and for OpenMP's, with which PyTorch and the extension share their loops. So a child
starts with one thread for PyTorch, as a worker of a `DataLoader` does, and samples in a thread of its own, which has an
OpenMP pool of its own: `torch.set_num_threads` in the child gives it more threads again.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Child:
    """The state of a forked child: whether this is one, and its thread for work."""

    forked = False
    pool: ThreadPoolExecutor | None = None
    thread: int | None = None


def _start_again() -> None:
    _Child.forked, _Child.pool, _Child.thread = True, None, None
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def run_in_own_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `work`; in a forked child, in a thread that was made there, with as many threads as this one has."""
    if not _Child.forked or threading.get_ident() == _Child.thread:
        return work(*args, **kwargs)
    if _Child.pool is None:
        _Child.pool = ThreadPoolExecutor(1, thread_name_prefix="enma_fast_fork")
        _Child.thread = _Child.pool.submit(threading.get_ident).result()
    count = torch.get_num_threads()

    def call() -> _T:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return work(*args, **kwargs)

    return _Child.pool.submit(call).result()


def forkable(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function whose calls go through :func:`run_in_own_thread`."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run_in_own_thread(function, *args, **kwargs)

    return call


def iterate_in_own_thread(items: Iterator[_T]) -> Iterator[_T]:
    """Items of an iterator, each made by :func:`run_in_own_thread`."""
    end: list[_T] = []
    while (item := run_in_own_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_again)
