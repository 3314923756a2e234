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
from .utils.text import counted, shown, times

# Flow steps for each token; far fewer are exact to rounding.
_MOST_FLOW_STEPS = 1000
# Mask steps of a frame; more than it has tokens change nothing.
_MOST_MASK_STEPS = 65_536
# Width of a layer and number of layers in a config.
_MOST_WIDTH, _MOST_LAYERS = 65_536, 256

# Bounds of numbers in a model's config, where they are not `_MOST_WIDTH` and `MOST_FLOAT`.
_MOST: Mapping[str, int] = {
    "num_frames": MOST_FRAMES,
    "shortest_context": MOST_FRAMES,
    "dynamics.temporal_layers": _MOST_LAYERS,
    "dynamics.spatial_layers": _MOST_LAYERS,
    "dynamics.flow.layers": _MOST_LAYERS,
    "dynamics.mlp_ratio": 64,
    "tokenizer.interpolation.max_log2_frequency": 64,
    "tokenizer.interpolation.refine_depth": _MOST_LAYERS,
    "sampling.mask_steps": _MOST_MASK_STEPS,
    "sampling.flow_steps": _MOST_FLOW_STEPS,
    "sampling.last_flow_steps": _MOST_FLOW_STEPS,
    # In the units of the data.
    "tokenizer.field_mean": 10**30,
    "tokenizer.field_scale": 10**30,
}
# Whole numbers that must be at least 1, unless they are None.
_COUNTS = (
    "num_frames",
    "shortest_context",
    "tokenizer.field_channels",
    "tokenizer.latent_channels",
    "tokenizer.width",
    "tokenizer.max_width",
    "tokenizer.kernel",
    "tokenizer.kernel_time",
    "tokenizer.kernel_ends",
    "tokenizer.stride_ends",
    "dynamics.temporal_layers",
    "dynamics.spatial_layers",
    "dynamics.local.width",
    "dynamics.local.layers",
    "dynamics.local.past",
    "dynamics.first.width",
    "dynamics.first.layers",
    "dynamics.flow.width",
    "dynamics.flow.layers",
    "dynamics.flow.draws",
)


def check_model(config: Any) -> None:
    """Raise `EnmaError` for a model's config that no model can have; its `sampling` has been checked."""
    _check_sizes(config)
    check_choices(config.name, config)
    _check_tokenizer(config, config.tokenizer)
    _check_dynamics(config, config.dynamics)
    check_numbers(config.name, config)


def _check_sizes(config: Any) -> None:
    """Raise `EnmaError` for a grid that no model has, and for numbers of layers, widths and the like below 1."""
    tok, dyn = config.tokenizer, config.dynamics
    if tok.dims not in (1, 2):
        raise EnmaError(f"{config.name}: grid {tok.grid} has {tok.dims} dimensions; 1 or 2 are supported")
    for name, value in (("lengths", tok.lengths), ("periodic", tok.periodic), ("patch", dyn.patch)):
        if len(value) != tok.dims:
            raise EnmaError(f"{config.name}: {name} has {len(value)} entries; the grid {tok.grid} needs {tok.dims}")
    for name, sizes in (("grid", tok.grid), ("lengths", tok.lengths), ("patch", dyn.patch), ("heads", (dyn.heads,))):
        if min(sizes) <= 0:
            raise EnmaError(f"{config.name}: {name} is {sizes}; every entry must be above 0")
    for name in _COUNTS:
        if (count := _part(config, name)) is not None and count < 1:
            raise EnmaError(f"{config.name}: {name} is {count}; at least 1 is needed")
    if config.shortest_context is not None and config.shortest_context > config.num_frames:
        raise EnmaError(
            f"{config.name}: shortest_context is {config.shortest_context}; at most num_frames={config.num_frames} can "
            "be"
        )


def _check_tokenizer(config: Any, tok: Any) -> None:
    if (seen := tok.interpolation) is not None and (seen.heads < 1 or seen.features % seen.heads):
        raise EnmaError(
            f"{config.name}: tokenizer.interpolation.features is {seen.features}; a multiple of its heads "
            f"({seen.heads}) is needed"
        )
    place = f"{config.name}: tokenizer."
    require(tok, ("kernel", "kernel_ends"), lambda n: n % 2 == 1, "an odd number is needed", place)
    if (tok.field_mean is None) != (tok.field_scale is None):
        raise EnmaError(f"{config.name}: give tokenizer.field_mean and field_scale both, or neither")
    for name, values in (("field_mean", tok.field_mean), ("field_scale", tok.field_scale)):
        if values is not None and len(values) != tok.field_channels:
            raise EnmaError(
                f"{config.name}: tokenizer.{name} has {len(values)} entries; one for each of "
                f"{counted(tok.field_channels, 'channel')} is needed"
            )
    if tok.field_scale is not None and not min(tok.field_scale) > 0:
        raise EnmaError(f"{config.name}: tokenizer.field_scale is {tok.field_scale}; every entry must be above 0")
    unknown = sorted(set(tok.layers) - {"residual", "space", "time"})
    if unknown:
        raise EnmaError(f"{config.name}: tokenizer.layers holds {unknown}; known are residual, space and time")
    for n, p in zip(tok.grid, config.dynamics.patch, strict=True):
        if n % (tok.space_factor * p):
            raise EnmaError(
                f"{config.name}: grid {tok.grid} is not a multiple of {tok.space_factor * p}"
                f" (space factor {tok.space_factor} times patch {p}); change grid, tokenizer.layers or dynamics.patch"
            )
    for n, wraps in zip(tok.grid, tok.periodic, strict=True):
        ends, tokens_there = n // tok.stride_ends, n // tok.space_factor
        if wraps and (tok.kernel_ends // 2 > ends or tok.kernel // 2 > tokens_there):
            raise EnmaError(
                f"{config.name}: tokenizer.kernel {tok.kernel} and kernel_ends {tok.kernel_ends} reach more than once "
                f"around a periodic dimension of {n} points and {counted(tokens_there, 'token')}; take smaller ones"
            )


def _check_dynamics(config: Any, dyn: Any) -> None:
    for name, head in (("local", dyn.local), ("first", dyn.first)):
        if head is not None:
            _check_local(config, name, head)
    if dyn.decoder == "one-pass" and dyn.flow.draws < 2:
        raise EnmaError(
            f"{config.name}: dynamics.flow.draws is {dyn.flow.draws}; frames decided in one pass need 2 or more"
        )
    if dyn.scale_shift_rank < 0 or not dyn.mlp_ratio > 0:
        raise EnmaError(
            f"{config.name}: dynamics.scale_shift_rank is {dyn.scale_shift_rank} and mlp_ratio {dyn.mlp_ratio}; 0 or "
            "more and above 0 are needed"
        )
    place = f"{config.name}: dynamics.flow."
    require(dyn.flow, ("time_features",), lambda n: n >= 2 and n % 2 == 0, "an even number is needed", place)
    if dyn.width % dyn.heads or (dyn.width // dyn.heads) % 4:
        raise EnmaError(f"{config.name}: dynamics.width {dyn.width} must be a multiple of 4 * heads ({dyn.heads})")
    # With fewer channels the rotary table has no angle for one of the dimensions, or for the frame.
    dims = config.tokenizer.dims
    if dyn.positions == "rotary" and dyn.width // dyn.heads < 8 * dims:
        raise EnmaError(
            f"{config.name}: dynamics.width {dyn.width} over {dyn.heads} heads is {dyn.width // dyn.heads} channels a"
            f" head; rotary positions in {counted(dims, 'dimension')} need {8 * dims}"
        )


def _check_local(config: Any, name: str, local: Any) -> None:
    name = f"{config.name}: dynamics.{name}"
    if config.dynamics.decoder != "one-pass":
        raise EnmaError(f"{name} is set and the decoder is {config.dynamics.decoder!r}; use decoder='one-pass' with it")
    if local.width % 16:
        raise EnmaError(f"{name}.width is {local.width}; a multiple of 16 is needed")
    if local.modes is None:
        return
    tokenizer = config.tokenizer
    if not all(tokenizer.periodic):
        raise EnmaError(f"{name}.modes is {local.modes} and the domain has walls; Fourier blocks need a periodic one")
    most = (min(tokenizer.token_grid) + 1) // 2
    if not 1 <= local.modes <= most:
        raise EnmaError(
            f"{name}.modes is {local.modes}; 1 to {most} are possible on {times(tokenizer.token_grid)} latent places"
        )


def _part(config: Any, name: str) -> Any:
    """A value by its dotted name; None where a part on the way is absent."""
    value: Any = config
    for key in name.split("."):
        value = None if value is None else getattr(value, key)
    return value


def require(config: Any, names: tuple[str, ...], fits: Callable[[Any], bool], needed: str, place: str = "") -> None:
    """Raise `EnmaError` for a value that does not fit; one that is no number fits no bound."""
    for name in names:
        value = getattr(config, name)
        try:
            found = fits(value)
        except TypeError:
            found = False
        if not found:
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
        most = _MOST.get(place, _MOST_WIDTH if isinstance(config, int) else MOST_FLOAT)
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
