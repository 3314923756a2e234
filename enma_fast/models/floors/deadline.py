"""Time that a floor may take to be learned: those that search for long look at it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from contextvars import ContextVar

from ...ops._backend import inside

_ENDS: ContextVar[float] = ContextVar("ends", default=float("inf"))


class OutOfTimeError(Exception):
    """A floor could not be learned in the time that it had."""


def within(seconds: float) -> AbstractContextManager[None]:
    """So many seconds of this process for what is learned inside."""
    return inside(_ENDS, time.process_time() + seconds)


def check_time() -> None:
    """Raise :class:`OutOfTimeError` if the time is over."""
    if time.process_time() > _ENDS.get():
        raise OutOfTimeError
