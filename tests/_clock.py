"""A clock whose readings are equally far apart, so that training takes the same steps on every machine."""

import itertools
import time
from collections.abc import Callable, Sequence

import pytest


def count_readings(
    monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01, clocks: Sequence[str] = ("monotonic",)
) -> Callable[[], float]:
    """Let clocks of `time` be one that goes on by so many seconds each time it is read; returns it."""
    readings = itertools.count()

    def clock() -> float:
        return seconds * next(readings)

    for name in clocks:
        monkeypatch.setattr(time, name, clock)
    return clock
