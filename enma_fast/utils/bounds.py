"""Bounds of numbers from a user, a file or another program; a number beyond them would cause a hang or a crash."""

from __future__ import annotations

import functools
import operator
import os

from ..errors import EnmaError

# Threads that any machine has room for; beyond these the number is limited by the cores.
ALWAYS_THREADS, THREADS_PER_CORE = 64, 4
# The sampler counts frames, including those of a context, by 16 bits.
MOST_FRAMES = 30_000
# Frames of the shortest trajectories of use: three are observed, and two more make a latent frame to forecast.
FEWEST_FRAMES = 5
# Points of one axis of a field file, and components of a vector.
MOST_POINTS, MOST_COMPONENTS = 1 << 20, 64
# Largest number of a model that has no unit.
MOST_FLOAT = 1e6
# Trajectories of a field file.
MOST_TRAJECTORIES = 2**31 - 1


@functools.cache
def most_threads() -> int:
    """Largest number of threads of a process; for many more than a few per core the system has no memory."""
    return max(ALWAYS_THREADS, THREADS_PER_CORE * (os.cpu_count() or 1))


def whole_number(name: str, value: int, *, least: int | None = 1, most: int | None = None) -> int:
    """Return `value` as an int; `EnmaError` if it is not a whole number from `least` to `most`."""
    try:
        # A flag is no number, though Python counts it as 0 or 1.
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise EnmaError(f"{name} is {value!r}; a whole number is expected") from None
    if least is not None and number < least:
        raise EnmaError(f"{name} is {number}; at least {least} is needed")
    if most is not None and number > most:
        raise EnmaError(f"{name} is {number}; at most {most} is possible")
    return number
