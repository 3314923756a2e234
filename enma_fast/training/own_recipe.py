"""Recipes derived for other data: a one-pass model for fields of any grid that it can halve, and its stages."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..config import (
    BlocksConfig,
    CausalTransformerConfig,
    CodecConfig,
    ConvConfig,
    DecoderConfig,
    FlowConfig,
    LinearConfig,
    LocalConfig,
    ModelConfig,
    SamplingConfig,
    TrunkConfig,
)
from ..errors import EnmaError
from ..utils.bounds import FEWEST_FRAMES, MOST_FLOAT
from ..utils.names import SPACE
from ..utils.text import times
from .augment import CutContexts, Shift
from .dynamics import DynamicsStage
from .forecasts import ForecastStage
from .head import HeadStage
from .recipes import RECIPES, Recipe
from .stage import Stage
from .tokenizer import TokenizerStage

_Stage = TypeVar("_Stage", bound=Stage)

SIZES = ("small", "base", "paper")
# Recipes that those of a line, of a plane, of a plane of blocks, and of the paper's sizes are derived from.
_LINE, _PLANE, _BLOCKS, _PAPER = (
    RECIPES[name] for name in ("combined-fast", "gray-scott-fast", "vorticity-fast", "combined-fast-paper")
)
# Context, masked transformer and flow of each size.
_SLOTS: Mapping[str, tuple[CausalTransformerConfig, TrunkConfig, FlowConfig]] = {
    "small": (
        CausalTransformerConfig(width=192, heads=6, layers=3, positions="rotary", scale_shift_rank=0),
        TrunkConfig(layers=2, condition="add"),
        FlowConfig(width=128, layers=2, time_features=64, target="residual"),
    ),
    "base": (
        CausalTransformerConfig(width=320, heads=10, layers=4, positions="rotary", scale_shift_rank=0),
        TrunkConfig(layers=3, condition="add"),
        FlowConfig(width=256, layers=2, time_features=64, target="residual"),
    ),
    "paper": (CausalTransformerConfig(), TrunkConfig(), FlowConfig()),
}
# Frames of the windows that a codec is trained on. Windows of half a trajectory give more steps in the same time than
# whole ones; of 5 frames they are too short, since then latent frames beyond the third, whose past the convolutions
# see, are never trained (docs/experiments.md).
_WINDOW = 11
# Bounds of derived models: fewest tokens of a dimension, and most tokens of a frame.
_FEWEST_TOKENS, _MOST_TOKENS = 4, 1024
# Points along the sides of periodic planes of which a derived model decides on blocks of 2 x 2: where that was measured
# (docs/experiments.md).
_FINE_SIDES = (64, 128)


def derived_recipe(
    name: str,
    *,
    size: str,
    grid: tuple[int, ...],
    lengths: tuple[float, ...],
    periodic: tuple[bool, ...],
    mean: Sequence[float],
    scale: Sequence[float],
    num_frames: int,
    frame_interval: float,
    shift: bool = True,
    contexts: bool = True,
    seed: int = 0,
) -> Recipe:
    """A one-pass model for fields of any grid that it can halve, with the stages of the recipes of its size.

    Parameters
    ----------
    name : of the model and its data set
    size : "small" or "paper" as the recipes of that name, or "base" between them
    grid, lengths, periodic : points, domain size and boundaries per dimension, of one or two
    mean, scale : of each channel of the training data, which the model standardises
    num_frames, frame_interval : frames of a trajectory, and their distance in time
    shift : the physics is the same at every place of a periodic domain, so training may move the fields
    contexts : the environments have several trajectories each, so one can be the context of another
    seed : of the training

    Raises
    ------
    EnmaError
        If the size is unknown, there are too few frames, or a grid size cannot be halved; names the nearest that can.
    """
    if size not in SIZES:
        raise EnmaError(f"size {size!r} is unknown; use one of {', '.join(SIZES)}")
    if num_frames < FEWEST_FRAMES:
        raise EnmaError(f"{name}: trajectories have {num_frames} frames; at least {FEWEST_FRAMES} are needed")
    if len(grid) > 2:
        raise EnmaError(f"{name}: fields have {len(grid)} dimensions; 1 or 2 are supported, so train on a section")
    for what, option, value in (("domain", "--spacing", max(lengths)), ("time between frames", "--dt", frame_interval)):
        if value > MOST_FLOAT:
            raise EnmaError(
                f"{name}: the {what} is {value:g} long, at most {MOST_FLOAT:g} is possible; import it again with "
                f"{option} in a larger unit"
            )
    plane, paper, shift = len(grid) == 2, size == "paper", shift and any(periodic)
    space, patch = _tokens(name, grid, 1 + plane if paper else 4)
    convolutions = ConvConfig(
        grid=grid,
        lengths=lengths,
        periodic=periodic,
        field_channels=len(scale),
        latent_channels=min(16, (8 if plane else 4) * len(scale)),
        max_width={"small": 32, "base": 64, "paper": 128}[size],
        layers=("residual", *("space", "residual") * space, "time", "residual")
        if paper
        else (*("space",) * space, "residual", "time", "residual"),
        field_mean=tuple(mean),
        field_scale=tuple(scale),
    )
    if plane and not paper:
        # As the recipes of planes: the first halving is the first convolution's.
        convolutions = dataclasses.replace(
            convolutions,
            width=32,
            max_width=2 * convolutions.max_width,
            kernel_ends=3,
            stride_ends=2,
            layers=convolutions.layers[1:],
        )
    codec: CodecConfig = convolutions
    step: DecoderConfig = LinearConfig()
    context, trunk, flow = _SLOTS[size]
    # Relative places make the dynamics the same everywhere, which only a homogeneous ring is.
    positions = context.positions if shift and all(periodic) else "sincos"
    latents = codec.latent_frames(num_frames)
    moved = (Shift(),) if shift else ()
    pairs: dict[str, Any] = (
        {"augment": (*moved, CutContexts())} if contexts else {"augment": moved, "context_share": 0.0}
    )
    first = _stage(
        _PAPER if paper else _PLANE,
        TokenizerStage,
        batch=8 if plane and not paper else 16,
        window=_WINDOW if num_frames > _WINDOW and not paper else None,
        augment=moved,
    )
    # The flow head teaches the transformers, and its mean is where one pass begins.
    frames = _stage(_PAPER if paper else _LINE, DynamicsStage, batch=32, by_flow=True, **pairs)
    forecasts = _stage(_LINE, ForecastStage, batch=16, history=(2, min(4, latents - 1)), **pairs)
    stages: tuple[Stage, ...] = (first, frames, forecasts)
    fewest, most = _FINE_SIDES
    if plane and not paper and shift and all(periodic) and fewest <= min(grid) and max(grid) <= most:
        codec = _blocks(codec)
        patch = tuple(p * 2**space // codec.space_factor for p in patch)
        width, layers = {"small": (32, 6), "base": (48, 9)}[size]
        step = LocalConfig(width=width, layers=layers, modes=min(8, min(codec.token_grid) // 2))
        alone = _stage(_BLOCKS, HeadStage, history=(1, min(11, latents - 1)), frames=min(4, latents - 1), augment=moved)
        forecasts = _stage(
            _BLOCKS,
            ForecastStage,
            steps=forecasts.steps,
            history=(2, max(2, min(9, latents - 5))),
            frames=min(5, latents - 1),
            **pairs,
        )
        stages = (frames, alone, forecasts)
    return Recipe(
        model=ModelConfig(
            name=name,
            dataset=name,
            num_frames=num_frames,
            frame_interval=frame_interval,
            codec=codec,
            context=dataclasses.replace(context, patch=patch, positions=positions),
            trunk=trunk,
            initial=flow,
            step=step,
            sampling=SamplingConfig(mask_steps=4, flow_steps=4),
        ),
        stage=stages,
        seed=seed,
    )


def _stage(recipe: Recipe, kind: type[_Stage], **changes: Any) -> _Stage:
    """The first stage of a kind in a recipe, changed."""
    return dataclasses.replace(recipe.first(kind), **changes)


def _blocks(codec: CodecConfig) -> BlocksConfig:
    """Blocks of 2 x 2 points and two frames of the fields of a codec.

    On coarser places local convolutions have to learn shifts within a block for every place of it
    (docs/experiments.md).
    """
    shared = (entry.name for entry in dataclasses.fields(CodecConfig) if entry.name != "kind")
    return BlocksConfig(**{name: getattr(codec, name) for name in shared})


def refusal(found: Mapping[str, Any]) -> str | None:
    """Why no model can be trained on the fields of a file that `data.describe` has described; None if one can."""
    first, last = found["time"]
    try:
        derived_recipe(
            found["name"],
            size=SIZES[0],
            grid=tuple(found["points"]),
            lengths=tuple(found["lengths"]),
            periodic=tuple(found["periodic"]),
            mean=[0.0] * len(found["channels"]),
            # Import says of a constant one that it is.
            scale=[found["rms"][channel] or 1.0 for channel in found["channels"]],
            # Files of fewer frames are to be forecast from.
            num_frames=max(FEWEST_FRAMES, found["frames"]),
            frame_interval=(last - first) / max(1, found["frames"] - 1) or 1.0,
        )
    except EnmaError as error:
        return str(error).removeprefix(f"{found['name']}: ")
    return None


def _tokens(name: str, grid: tuple[int, ...], widest: int) -> tuple[int, tuple[int, ...]]:
    """Number of layers that halve space, and tokens of the tokenizer in a patch along each dimension."""
    for space in range(4 - len(grid), 0, -1):
        found = [_patch(n, space, widest) for n in grid]
        patch = tuple(width for width in found if width is not None)
        if len(patch) == len(grid):
            count = math.prod(n // (2**space * p) for n, p in zip(grid, patch, strict=True))
            if count <= _MOST_TOKENS:
                return space, patch
            raise EnmaError(f"{name}: the grid {times(grid)} makes {count} tokens a frame; coarsen it")
    sizes = [tuple(max(2 * _FEWEST_TOKENS, n + step * (n % 2)) for n in grid) for step in (-1, 1)]
    kept = ",".join(f"{axis}=0:{size}" for axis, size, n in zip(SPACE, sizes[0], grid, strict=False) if size < n)
    # Fields that are too small grow by interpolation only.
    crop = f": enma-fast data import --crop {kept}" if kept and all(map(operator.le, sizes[0], grid)) else ""
    raise EnmaError(
        f"{name}: the grid {times(grid)} cannot be halved to {_FEWEST_TOKENS} tokens or more; interpolate or crop the "
        f"fields to {' or '.join(dict.fromkeys(map(times, sizes)))} points{crop}"
    )


def _patch(points: int, space: int, widest: int) -> int | None:
    """Widest patch that leaves enough tokens of so many points, halved so often; None if they cannot be."""
    tokens, rest = divmod(points, 2**space)
    if rest or tokens < _FEWEST_TOKENS:
        return None
    return next(p for p in range(widest, 0, -1) if tokens % p == 0 and (p == 1 or tokens // p >= _FEWEST_TOKENS))
