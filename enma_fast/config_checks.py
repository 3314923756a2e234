"""Checks of a config when it is made: the bounds of its numbers, its choices, and which entries go together.

`config` imports this file, so a config has no type here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from .errors import EnmaError
from .utils.bounds import MOST_FLOAT, MOST_FRAMES
from .utils.text import shown

# Flow steps for each token; far fewer are exact to rounding.
_MOST_FLOW_STEPS = 1000
# Mask steps of a frame; more than it has tokens change nothing.
_MOST_MASK_STEPS = 65_536
# Width of a layer and number of layers in a config.
_MOST_WIDTH, _MOST_LAYERS = 65_536, 256

# Bounds of numbers in a model's config by the name of their entry, where they are not `_MOST_WIDTH` and `MOST_FLOAT`.
_MOST: Mapping[str, int] = {
    "num_frames": MOST_FRAMES,
    "shortest_context": MOST_FRAMES,
    "layers": _MOST_LAYERS,
    "middle_layers": _MOST_LAYERS,
    "mask_steps": _MOST_MASK_STEPS,
    "flow_steps": _MOST_FLOW_STEPS,
    # In the units of the data: fields, metres and seconds.
    "field_mean": 10**30,
    "field_scale": 10**30,
    "lengths": 10**12,
    "frame_interval": 10**12,
}
# Whole numbers that may be 0; all others are at least 1.
_FROM_ZERO = ("scale_shift_rank", "middle_layers", "noise", "member")


def check_model(config: Any) -> None:
    """Raise `EnmaError` for a model's config that no model can have; its `sampling` has been checked."""
    name, codec, context = config.name, config.codec, config.context
    for slot, part in config.parts.items():
        if type(part).kinds.get(part.kind) is not type(part):
            raise EnmaError(f"{name}: {slot}.kind is {part.kind!r}; leave it at its default")
    if not 1 <= codec.dims <= codec.most_dims:
        raise EnmaError(
            f"{name}: grid {codec.grid} has {codec.dims} dimensions; 1 to {codec.most_dims} are possible with codec "
            f"{codec.kind!r}"
        )
    sizes = (("lengths", codec.lengths), ("periodic", codec.periodic), ("patch", context.patch))
    for entry, value in sizes:
        if len(value) != codec.dims:
            raise EnmaError(f"{name}: {entry} has {len(value)} entries; the grid {codec.grid} needs {codec.dims}")
    for entry, values in (("grid", codec.grid), ("lengths", codec.lengths), ("patch", context.patch)):
        if min(values) <= 0:
            raise EnmaError(f"{name}: {entry} is {values}; every entry must be above 0")
    _check_counts(name, config)
    if config.shortest_context is not None and config.shortest_context > config.num_frames:
        raise EnmaError(
            f"{name}: shortest_context is {config.shortest_context}; at most num_frames={config.num_frames} can be"
        )
    check_choices(name, config)
    codec.check(name)
    for n, p in zip(codec.grid, context.patch, strict=True):
        if n % (codec.space_factor * p):
            raise EnmaError(
                f"{name}: grid {codec.grid} is not a multiple of {codec.space_factor * p} (space factor "
                f"{codec.space_factor} times patch {p}); change grid, codec or context.patch"
            )
    context.check(name, codec)
    if config.is_told and not context.takes_known:
        raise EnmaError(f"{name}: context {context.kind!r} takes no known inputs and no masks; leave them out")
    names = [driver.name for driver in config.known]
    if len(set(names)) < len(names):
        raise EnmaError(f"{name}: known names {', '.join(names)}; give each once")
    for slot, decoder in config.decoders.items():
        decoder.check(name, slot, codec)
    check_numbers(name, config)


def _check_counts(name: str, config: Any, place: str = "") -> None:
    """Raise `EnmaError` for a whole number in a config, such as a width, that is too small."""
    for entry in dataclasses.fields(config):
        value, where = getattr(config, entry.name), f"{place}.{entry.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            _check_counts(name, value, where)
        elif isinstance(value, int) and not isinstance(value, bool) and entry.type in ("int", "int | None"):
            least = int(entry.name not in _FROM_ZERO)
            if value < least:
                raise EnmaError(f"{name}: {where} is {value}; at least {least} is needed")


def require(config: Any, names: tuple[str, ...], fits: Callable[[Any], bool], needed: str, place: str = "") -> None:
    """Raise `EnmaError` for a value that does not fit; one that is no number fits no bound."""
    for name in names:
        value = getattr(config, name)
        try:
            is_fitting = fits(value)
        except TypeError:
            is_fitting = False
        if not is_fitting:
            # Quotes alone tell the text '1' from the number 1.
            said = f"{shown(value)} (text)" if isinstance(value, str) else value
            raise EnmaError(f"{place}{name} is {list(said) if isinstance(said, tuple) else said}; {needed}")


def check_numbers(name: str, config: Any, place: str = "") -> None:
    """Raise `EnmaError` for a number in a model's config that is not finite, or too large for any model.

    `name` is that of the model, and `config` a config, or the part of one at the dotted name `place`.
    """
    if dataclasses.is_dataclass(config):
        for entry in dataclasses.fields(config):
            check_numbers(name, getattr(config, entry.name), f"{place}.{entry.name}".lstrip("."))
    elif isinstance(config, tuple):
        if len(config) > _MOST_LAYERS:
            raise EnmaError(f"{name}: {place} has {len(config)} entries; at most {_MOST_LAYERS} are possible")
        for entry in config:
            check_numbers(name, entry, place)
    elif isinstance(config, int | float):
        most = _MOST.get(place.rpartition(".")[2], _MOST_WIDTH if isinstance(config, int) else MOST_FLOAT)
        if not math.isfinite(config):
            raise EnmaError(f"{name}: {place} is {config}; a finite number is needed")
        if abs(config) > most:
            raise EnmaError(f"{name}: {place} is {config}; at most {most:g} is possible")


def check_choices(name: str, config: Any, place: str = "") -> None:
    """Raise `EnmaError` for an entry of a model's config that is none of the choices of its type (`Literal`)."""
    for entry in dataclasses.fields(config):
        value, where = getattr(config, entry.name), f"{place}.{entry.name}".lstrip(".")
        kind: Any = type(config)
        choices = _choices(kind).get(entry.name)
        if dataclasses.is_dataclass(value):
            check_choices(name, value, where)
        elif choices is not None and value not in choices:
            raise EnmaError(f"{name}: {where} is {value!r}; use one of {', '.join(map(repr, choices))}")


@functools.cache
def _choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    """The choices of each entry of a config that has some."""
    hints = typing.get_type_hints(kind).items()
    return {entry: typing.get_args(hint) for entry, hint in hints if typing.get_origin(hint) is typing.Literal}
