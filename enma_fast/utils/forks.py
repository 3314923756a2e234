"""Sampling in a forked child process: threads of the parent do not exist there, and waiting for them never ends.

This holds for Python's thread pools and for the OpenMP pool of PyTorch and the extension. So a child starts with one
PyTorch thread, as a worker of a `DataLoader` does, and samples in a new thread, which gets a new OpenMP pool.
`torch.set_num_threads` in the child gives it more threads again.
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
    """State of this process: True if it is a forked child, and then its thread for sampling."""

    forked = False
    pool: ThreadPoolExecutor | None = None
    thread: int | None = None


def _enter_child() -> None:
    _Child.forked, _Child.pool, _Child.thread = True, None, None
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def run_in_own_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `work`; in a forked child, in a new thread there, with as many PyTorch threads as this thread has."""
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
    """Decorate a function so that its calls go through :func:`run_in_own_thread`."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run_in_own_thread(function, *args, **kwargs)

    return call


def iterate_in_own_thread(items: Iterator[_T]) -> Iterator[_T]:
    """Iterate over items that are computed by :func:`run_in_own_thread`."""
    end: list[_T] = []
    while (item := run_in_own_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)
