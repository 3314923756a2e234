"""Time that a floor may take to be learned: those that search for long look at it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ENDS: ContextVar[float] = ContextVar("ends", default=float("inf"))


class OutOfTimeError(Exception):
    """A floor could not be learned in the time that it had."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """So many seconds of this process for what is learned inside."""
    token = _ENDS.set(time.process_time() + seconds)
    try:
        yield
    finally:
        _ENDS.reset(token)


def check_time() -> None:
    """Raise :class:`OutOfTimeError` if the time is over."""
    if time.process_time() > _ENDS.get():
        raise OutOfTimeError
