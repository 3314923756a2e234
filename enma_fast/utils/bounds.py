"""Bounds of numbers from a user, a file or another program; a number beyond them would cause a hang or a crash."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import os
import typing
from collections.abc import Mapping
from typing import Any

from ..errors import EnmaError

# Threads that any machine has room for; beyond these the number is limited by the cores.
ALWAYS_THREADS, THREADS_PER_CORE = 64, 4
# Flow steps for each token; far fewer are exact to rounding.
MOST_FLOW_STEPS = 1000
# Mask steps of a frame; more than it has tokens change nothing.
MOST_MASK_STEPS = 65_536
# The sampler counts frames, including those of a context, by 16 bits.
MOST_FRAMES = 30_000
# Width of a layer and number of layers in a config.
MOST_WIDTH, MOST_LAYERS = 65_536, 256
MOST_FLOAT = 1e6
# Frames of the shortest trajectories of use: three are observed, and two more make a latent frame to forecast.
FEWEST_FRAMES = 5
# Points of one axis of a field file, and components of a vector.
MOST_POINTS, MOST_COMPONENTS = 1 << 20, 64
# Trajectories of a field file.
MOST_TRAJECTORIES = 2**31 - 1


@functools.cache
def most_threads() -> int:
    """Largest number of threads of a process; for many more than a few per core the system has no memory."""
    return max(ALWAYS_THREADS, THREADS_PER_CORE * (os.cpu_count() or 1))


def whole_number(name: str, value: int, *, least: int | None = 1, most: int | None = None) -> int:
    """Return `value` as an int; `EnmaError` if it is not a whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise EnmaError(f"{name} is {value!r}; a whole number is expected") from None
    if least is not None and number < least:
        raise EnmaError(f"{name} is {number}; at least {least} is needed")
    if most is not None and number > most:
        raise EnmaError(f"{name} is {number}; at most {most} is possible")
    return number


# Bounds of numbers in a model's config, where they are not `MOST_WIDTH` and `MOST_FLOAT`.
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
    # In the units of the data.
    "tokenizer.field_mean": 10**30,
    "tokenizer.field_scale": 10**30,
}


def check_numbers(name: str, config: Any, place: str = "") -> None:
    """Raise `EnmaError` for a number in a model's config that is not finite, or too large for any model.

    `name` is that of the model, and `config` a config, or the part of one at the dotted name `place`.
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


def check_choices(name: str, config: Any, place: str = "") -> None:
    """Raise `EnmaError` for an entry of a model's config that is none of the choices of its type (`Literal`)."""
    for entry in dataclasses.fields(config):
        value, there = getattr(config, entry.name), f"{place}.{entry.name}".lstrip(".")
        kind: Any = type(config)
        choices = _choices(kind).get(entry.name)
        if dataclasses.is_dataclass(value):
            check_choices(name, value, there)
        elif choices is not None and value not in choices:
            raise EnmaError(f"{name}: {there} is {value!r}; use one of {', '.join(map(repr, choices))}")


@functools.cache
def _choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    """The choices of each entry of a config that has some."""
    hints = typing.get_type_hints(kind).items()
    return {entry: typing.get_args(hint) for entry, hint in hints if typing.get_origin(hint) is typing.Literal}
