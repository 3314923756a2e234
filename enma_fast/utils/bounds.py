"""Bounds of numbers that a user, a file or another program gives: beyond them lies a hang or a crash, not a result."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Mapping
from typing import Any

from ..errors import EnmaError

# Threads that any machine has room for; more than this only in proportion to the cores.
ALWAYS_THREADS, THREADS_PER_CORE = 64, 4
# Of the sampler, for each token; the flow is exact to rounding long before.
MOST_FLOW_STEPS = 1000
# More than a frame has tokens change nothing.
MOST_MASK_STEPS = 65_536
# The sampler counts frames, those of a context included, by 16 bits.
MOST_FRAMES = 30_000
# Of a config: sizes of layers, and how many there are.
MOST_WIDTH, MOST_LAYERS = 65_536, 256
MOST_FLOAT = 1e6
# Points of one axis of a field file, and components of a vector.
MOST_POINTS, MOST_COMPONENTS = 1 << 20, 64
# Trajectories of a field file.
MOST_TRAJECTORIES = 2**31 - 1


def most_threads() -> int:
    """Threads that a process may ask for: beyond a few for each core the system refuses their memory."""
    return max(ALWAYS_THREADS, THREADS_PER_CORE * (os.cpu_count() or 1))


def whole_number(name: str, value: int, *, least: int | None = 1, most: int | None = None) -> int:
    """A number as an int, or an `EnmaError`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise EnmaError(f"{name} is {value!r}; a whole number is expected") from None
    if least is not None and number < least:
        raise EnmaError(f"{name} is {number}; at least {least} is needed")
    if most is not None and number > most:
        raise EnmaError(f"{name} is {number}; at most {most} is possible")
    return number


# Numbers of a model's config with other bounds than `MOST_WIDTH` and `MOST_FLOAT`.
_MOST: Mapping[str, int] = {
    "num_frames": MOST_FRAMES,
    "dynamics.temporal_layers": MOST_LAYERS,
    "dynamics.spatial_layers": MOST_LAYERS,
    "dynamics.flow.layers": MOST_LAYERS,
    "dynamics.mlp_ratio": 64,
    "tokenizer.interpolation.max_log2_frequency": 64,
    "tokenizer.interpolation.refine_depth": MOST_LAYERS,
    "sampling.mask_steps": MOST_MASK_STEPS,
    "sampling.flow_steps": MOST_FLOW_STEPS,
    "sampling.last_flow_steps": MOST_FLOW_STEPS,
}


def check_numbers(name: str, config: Any, place: str = "") -> None:
    """Raise `EnmaError` for a number in a model's config that is not finite, or too large for any model.

    Parameters
    ----------
    name : of the model
    config : a dataclass, or a part of one at `place`
    """
    if dataclasses.is_dataclass(config):
        for entry in dataclasses.fields(config):
            check_numbers(name, getattr(config, entry.name), f"{place}.{entry.name}".lstrip("."))
    elif isinstance(config, tuple):
        if len(config) > MOST_LAYERS:
            raise EnmaError(f"{name}: {place} has {len(config)} entries; at most {MOST_LAYERS} are possible")
        for entry in config:
            check_numbers(name, entry, place)
    elif isinstance(config, int | float):
        most = _MOST.get(place, MOST_WIDTH if isinstance(config, int) else MOST_FLOAT)
        if not math.isfinite(config):
            raise EnmaError(f"{name}: {place} is {config}; a finite number is needed")
        if abs(config) > most:
            raise EnmaError(f"{name}: {place} is {config}; at most {most:g} is possible")
