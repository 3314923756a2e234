"""Presets derived for other data: a one-pass model for fields of any grid that it can halve, and its recipes."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import DynamicsConfig, LocalConfig, ModelConfig, TokenizerConfig
from ..errors import EnmaError
from ..utils.bounds import FEWEST_FRAMES, MOST_FLOAT
from ..utils.names import SPACE
from ..utils.text import times
from .config import RolloutConfig
from .presets import (
    AFTER_HEAD,
    FAST,
    FAST_2D,
    HEAD_TRAINING,
    PAPER_TOKENIZER_TRAINING,
    PAPER_TRAINING,
    SMALL_DYNAMICS,
    SMALL_FIRST_FRAME,
    SMALL_FORECASTS,
    SMALL_TRAINING,
    WINDOW,
    WINDOW_TOKENIZER_TRAINING,
    Preset,
    lossless,
)

SIZES = ("small", "base", "paper")
# Bounds of derived models: fewest tokens of a dimension, and most tokens of a frame.
_FEWEST_TOKENS, _MOST_TOKENS = 4, 1024
# Points along the sides of periodic planes of which a derived model decides on blocks of 2 x 2: where that was measured
# (docs/experiments.md).
_FINE_SIDES = (64, 128)
_BASE_DYNAMICS = dataclasses.replace(
    SMALL_DYNAMICS,
    width=320,
    heads=10,
    temporal_layers=4,
    spatial_layers=3,
    flow=dataclasses.replace(SMALL_DYNAMICS.flow, width=256),
)


def derived_preset(
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
) -> Preset:
    """A one-pass model for fields of any grid that it can halve, with the recipes of the presets of its size.

    Parameters
    ----------
    name : of the model and its data set
    size : "small" or "paper" as the presets of that name, or "base" between them
    grid, lengths, periodic : points, domain size and boundaries per dimension, of one or two
    mean, scale : of each channel of the training data, which the model standardises
    num_frames, frame_interval : frames of a trajectory, and their distance in time
    shift : the physics is the same at every place of a periodic domain, so training may move the fields
    contexts : the environments have several trajectories each, so one can be the context of another

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
    tokenizer = TokenizerConfig(
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
        # As the presets of planes: the first halving is the first convolution's.
        tokenizer = dataclasses.replace(
            tokenizer,
            width=FAST_2D.width,
            max_width=2 * tokenizer.max_width,
            kernel_ends=FAST_2D.kernel_ends,
            stride_ends=2,
            layers=tokenizer.layers[1:],
        )
    dynamics = {"small": SMALL_DYNAMICS, "base": _BASE_DYNAMICS, "paper": DynamicsConfig()}[size]
    # Relative places make the dynamics the same everywhere, which only a homogeneous ring is.
    positions = dynamics.positions if shift and all(periodic) else "sincos"
    latents = tokenizer.latent_frames(num_frames)
    share: dict[str, Any] = {} if contexts else {"context_share": 0.0}
    rollout = RolloutConfig(history=(2, min(4, latents - 1)))
    forecasts = dataclasses.replace(SMALL_FORECASTS, batch=16, shift=shift, rollout=rollout, **share)
    alone = RolloutConfig(history=(1, min(11, latents - 1)), frames=min(4, latents - 1))
    fewest, most = _FINE_SIDES
    if plane and not paper and shift and all(periodic) and fewest <= min(grid) and max(grid) <= most:
        tokenizer = lossless(tokenizer)
        patch = tuple(p * 2**space // tokenizer.space_factor for p in patch)
        width, layers = {"small": (32, 6), "base": (48, 9)}[size]
        local = LocalConfig(width=width, layers=layers, modes=min(8, min(tokenizer.token_grid) // 2))
        dynamics = dataclasses.replace(dynamics, local=local)
        behind = RolloutConfig(history=(2, max(2, min(9, latents - 5))), frames=min(5, latents - 1))
        forecasts = dataclasses.replace(forecasts, rollout=behind, **AFTER_HEAD)
    windows = dataclasses.replace(WINDOW_TOKENIZER_TRAINING, window=WINDOW if num_frames > WINDOW else None)
    tokenizer_training = PAPER_TOKENIZER_TRAINING if paper else windows
    training = PAPER_TRAINING if paper else SMALL_TRAINING
    return Preset(
        model=ModelConfig(
            name=name,
            dataset=name,
            num_frames=num_frames,
            frame_interval=frame_interval,
            tokenizer=tokenizer,
            dynamics=dataclasses.replace(dynamics, decoder="one-pass", patch=patch, positions=positions),
            sampling=FAST["sampling"],
        ),
        tokenizer_training=dataclasses.replace(tokenizer_training, batch=8 if plane and not paper else 16, shift=shift),
        dynamics_training=dataclasses.replace(training, batch=32, shift=shift, **share),
        head_training=dataclasses.replace(HEAD_TRAINING, shift=shift, rollout=alone),
        forecast_training=forecasts,
        first_frame_training=dataclasses.replace(SMALL_FIRST_FRAME, shift=shift, rollout=rollout),
    )


def refusal(found: Mapping[str, Any]) -> str | None:
    """Why no model can be trained on the fields of a file that `data.describe` has described; None if one can."""
    first, last = found["time"]
    try:
        derived_preset(
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
