"""The table of presets: models by name, and the recipes that train them; and presets derived for other data.

Sizes follow the paper (arXiv 2506.06158, tables 7, 11 and 12) in the ``*-paper`` presets; what the small ones change:
docs/experiments.md.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import (
    DynamicsConfig,
    FlowConfig,
    InterpolationConfig,
    LocalConfig,
    ModelConfig,
    RolloutConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainingConfig,
)
from .errors import EnmaError
from .utils.bounds import FEWEST_FRAMES
from .utils.names import SPACE
from .utils.text import times

TWO_PI = 2 * math.pi


# Behind any number of frames, and on from what the head made itself (docs/experiments.md).
_HEAD_TRAINING = TrainingConfig(
    steps=7000,
    batch=16,
    optimizer="muon",
    learning_rate=3e-3,
    final_learning_rate=1e-5,
    warmup_steps=30,
    ema_decay=0.99,
    shift=True,
    context_share=0.0,
    rollout=RolloutConfig(history=(1, 11), frames=4),
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and the recipes that train it; that of a local head alone serves models that have one."""

    model: ModelConfig
    tokenizer_training: TrainingConfig
    dynamics_training: TrainingConfig
    head_training: TrainingConfig = _HEAD_TRAINING
    forecast_training: TrainingConfig
    first_frame_training: TrainingConfig


_PAPER_TOKENIZER_TRAINING = TrainingConfig(steps=187_000, batch=64, learning_rate=1e-3, final_learning_rate=1e-7)
_PAPER_TRAINING = TrainingConfig(steps=94_000, batch=128)
_PAPER_1D = TokenizerConfig(grid=(128,), lengths=(TWO_PI,), latent_channels=4)
_PAPER_2D = TokenizerConfig(
    grid=(64, 64),
    lengths=(math.pi, math.pi),
    periodic=(True, True),
    latent_channels=8,
    layers=("residual", "space", "residual", "space", "residual", "time", "residual"),
)
_SAMPLING_2D = SamplingConfig(mask_steps=16)

# 16 tokens of 4 channels as in the paper, at a tenth of its cost: smooth fields need no residual at full resolution.
_SMALL_TOKENIZER = dataclasses.replace(
    _PAPER_1D, max_width=32, layers=("space", "space", "space", "residual", "time", "residual")
)
_SMALL_TOKENIZER_TRAINING = TrainingConfig(
    steps=2000, batch=32, learning_rate=4e-3, final_learning_rate=2e-5, warmup_steps=200, shift=True
)
# Why each switch: docs/experiments.md.
_SMALL_DYNAMICS = DynamicsConfig(
    width=192,
    heads=6,
    temporal_layers=3,
    spatial_layers=2,
    patch=(4,),
    positions="rotary",
    condition="add",
    scale_shift_rank=0,
    flow=FlowConfig(width=128, layers=2, time_features=64, target="residual", draws=2),
)
# Planes: nothing is computed at full resolution, and 16 tokens a frame keep attention cheap (docs/experiments.md).
_FAST_2D = TokenizerConfig(
    grid=(64, 64),
    lengths=(math.pi, math.pi),
    periodic=(True, True),
    latent_channels=8,
    width=32,
    max_width=64,
    kernel_ends=3,
    stride_ends=2,
    layers=("space", "residual", "time", "residual"),
)
# Windows of half a trajectory give more steps in the same time than whole ones; of 5 frames they are too short, since
# then latent frames beyond the third, whose past the convolutions see, are never trained (docs/experiments.md).
_WINDOW = 11
_WINDOW_TOKENIZER_TRAINING = dataclasses.replace(
    _SMALL_TOKENIZER_TRAINING,
    steps=4000,
    batch=8,
    window=_WINDOW,
    optimizer="muon",
    learning_rate=5e-3,
    final_learning_rate=2e-5,
    warmup_steps=100,
)
# Training on whole forecasts makes the sampler good at its own settings, so these can be few.
_SAMPLING_SMALL = SamplingConfig(mask_steps=1, flow_steps=2)
# Its mask and flow steps serve frame 0 of a generated trajectory only.
_FAST: dict[str, Any] = {
    "dynamics": dataclasses.replace(_SMALL_DYNAMICS, decoder="one-pass"),
    "sampling": SamplingConfig(mask_steps=4, flow_steps=4),
}
# Users have contexts of any length.
_SHORT_CONTEXT_SHARE = 0.5
_SMALL_TRAINING = TrainingConfig(
    steps=3600,
    batch=64,
    optimizer="muon",
    learning_rate=2e-3,
    final_learning_rate=2e-5,
    warmup_steps=100,
    mask_ratio=(0.0, 1.0),
    shift=True,
    short_context_share=_SHORT_CONTEXT_SHARE,
)
# Speeds of Advection beyond those of the data, which lie within 5.
_BOOSTED = dataclasses.replace(_SMALL_TRAINING, boost=2.5)
# On whole forecasts, from finished dynamics: docs/experiments.md.
_SMALL_FORECASTS = TrainingConfig(
    steps=6000,
    batch=64,
    optimizer="muon",
    learning_rate=5e-4,
    final_learning_rate=5e-6,
    warmup_steps=50,
    ema_decay=0.998,
    shift=True,
    context_share=1 / 3,
    short_context_share=_SHORT_CONTEXT_SHARE,
    rollout=RolloutConfig(),
)
# Of these after a head was trained alone: a rate at which it keeps what it knows.
_AFTER_HEAD: dict[str, Any] = {
    "learning_rate": 2.5e-4,
    "final_learning_rate": 2.5e-6,
    "warmup_steps": 30,
    "ema_decay": 0.99,
}
# The flow that draws frame 0 of a generated trajectory, after that.
_SMALL_FIRST_FRAME = TrainingConfig(
    steps=2500,
    batch=32,
    learning_rate=2e-3,
    final_learning_rate=1e-5,
    warmup_steps=50,
    weight_decay=0.0,
    ema_decay=0.99,
    shift=True,
    short_context_share=_SHORT_CONTEXT_SHARE,
    rollout=RolloutConfig(),
)


def _paper(
    name: str, *, dataset: str | None = None, sampling: SamplingConfig | None = None, batch: int = 128, **model: Any
) -> Preset:
    # 12,000 trajectories: 1000 epochs of the dynamics and of a 1-D tokenizer, 150 of a 2-D one.
    plane = model["tokenizer"].dims == 2
    return Preset(
        model=ModelConfig(
            name=f"{name}-paper",
            dataset=dataset or name.replace("-", "_"),
            sampling=sampling or SamplingConfig(),
            **model,
        ),
        tokenizer_training=dataclasses.replace(_PAPER_TOKENIZER_TRAINING, steps=225_000, batch=8)
        if plane
        else _PAPER_TOKENIZER_TRAINING,
        dynamics_training=dataclasses.replace(_PAPER_TRAINING, steps=94_000 * 128 // batch, batch=batch),
        forecast_training=_SMALL_FORECASTS,
        first_frame_training=_SMALL_FIRST_FRAME,
    )


def _small(name: str, dataset: str, tokenizer: TokenizerConfig, **model: Any) -> Preset:
    settings: dict[str, Any] = {"dynamics": _SMALL_DYNAMICS, "sampling": _SAMPLING_SMALL} | model
    return Preset(
        model=ModelConfig(name=name, dataset=dataset, tokenizer=tokenizer, **settings),
        tokenizer_training=_SMALL_TOKENIZER_TRAINING,
        dynamics_training=_SMALL_TRAINING,
        forecast_training=_SMALL_FORECASTS,
        first_frame_training=_SMALL_FIRST_FRAME,
    )


def _fast_2d(
    name: str, tokenizer: TokenizerConfig, *, patch: tuple[int, int], local: LocalConfig | None = None, **model: Any
) -> Preset:
    ring = all(tokenizer.periodic)
    positions = _SMALL_DYNAMICS.positions if ring else "sincos"
    dynamics = dataclasses.replace(_FAST["dynamics"], width=256, heads=8, patch=patch, positions=positions, local=local)
    preset = _small(
        name,
        name.removesuffix("-fast").replace("-", "_"),
        tokenizer,
        dynamics=dynamics,
        sampling=_FAST["sampling"],
        **model,
    )
    tokenizer_training = dataclasses.replace(_WINDOW_TOKENIZER_TRAINING, shift=ring)
    dynamics_training = dataclasses.replace(_SMALL_TRAINING, steps=3400, batch=16, learning_rate=1.5e-3, shift=ring)
    forecasts = dataclasses.replace(
        _SMALL_FORECASTS, batch=16, learning_rate=2e-4, final_learning_rate=2e-6, shift=ring
    )
    if local is not None:
        # A few minutes of single frames; then forecasts of five latent frames from any part of a trajectory, of which
        # a step costs a third of one on whole forecasts.
        dynamics_training = dataclasses.replace(dynamics_training, steps=400, batch=12)
        rollout = RolloutConfig(frames=5, late_share=0.5)
        forecasts = dataclasses.replace(
            forecasts, steps=1000, batch=12, learning_rate=1e-3, final_learning_rate=1e-4, rollout=rollout
        )
    return dataclasses.replace(
        preset,
        tokenizer_training=tokenizer_training,
        dynamics_training=dynamics_training,
        forecast_training=forecasts,
    )


def _line(length: float, *, points: bool = False) -> TokenizerConfig:
    """The small tokenizer on a line of this length; with `points`, behind the interpolation of paper D.1.1."""
    # The steepest head tells neighbouring points of 128 apart (docs/experiments.md).
    slopes = (16 / length, 48 / length, 144 / length, 432 / length)
    interpolation = InterpolationConfig(features=16, slopes=slopes) if points else None
    return dataclasses.replace(_SMALL_TOKENIZER, lengths=(length,), interpolation=interpolation)


PRESETS: dict[str, Preset] = {
    preset.model.name: preset
    for preset in (
        _small("combined-small", "combined", _SMALL_TOKENIZER),
        _small("combined-fast", "combined", _SMALL_TOKENIZER, **_FAST),
        _small("advection-small", "advection", _line(1.0)),
        dataclasses.replace(_small("advection-fast", "advection", _line(1.0), **_FAST), dynamics_training=_BOOSTED),
        _small("combined-points-small", "combined", _line(TWO_PI, points=True)),
        dataclasses.replace(
            _small("advection-points", "advection", _line(1.0, points=True), **_FAST),
            tokenizer_training=dataclasses.replace(_WINDOW_TOKENIZER_TRAINING, steps=8000, batch=16, warmup_steps=50),
            dynamics_training=dataclasses.replace(_BOOSTED, scattered_share=0.5),
        ),
        _small(
            "vorticity-small",
            "vorticity",
            dataclasses.replace(
                _PAPER_2D, max_width=32, layers=("space", "space", "residual", "time", "residual"), latent_channels=8
            ),
            num_frames=30,
            frame_interval=2 / 29,
            dynamics=dataclasses.replace(_SMALL_DYNAMICS, patch=(4, 4)),
        ),
        _fast_2d(
            "gray-scott-fast",
            dataclasses.replace(
                _FAST_2D,
                grid=(32, 32),
                lengths=(64.0, 64.0),
                field_channels=2,
                field_mean=(0.836, 0.063),
                field_scale=(0.226, 0.112),
            ),
            patch=(2, 2),
            frame_interval=50.0,
        ),
        _fast_2d(
            "wave-fast",
            dataclasses.replace(
                _FAST_2D, lengths=(63 / 64, 63 / 64), periodic=(False, False), field_mean=(0.029,), field_scale=(0.158,)
            ),
            patch=(4, 4),
            num_frames=30,
            frame_interval=0.005 / 29,
        ),
        _fast_2d(
            "vorticity-fast",
            dataclasses.replace(_FAST_2D, field_mean=(0.0,), field_scale=(2.55,)),
            patch=(4, 4),
            local=LocalConfig(),
            num_frames=30,
            frame_interval=2 / 29,
        ),
        _paper("combined", tokenizer=_PAPER_1D),
        _paper("combined-fast", dataset="combined", tokenizer=_PAPER_1D, dynamics=DynamicsConfig(decoder="one-pass")),
        _paper("advection", tokenizer=dataclasses.replace(_PAPER_1D, lengths=(1.0,))),
        _paper(
            "gray-scott",
            tokenizer=dataclasses.replace(
                _PAPER_2D, grid=(32, 32), lengths=(64.0, 64.0), field_channels=2, latent_channels=4
            ),
            dynamics=DynamicsConfig(patch=(1, 1)),
            frame_interval=50.0,
            sampling=_SAMPLING_2D,
        ),
        _paper(
            "wave",
            tokenizer=dataclasses.replace(_PAPER_2D, lengths=(63 / 64, 63 / 64), periodic=(False, False)),
            dynamics=DynamicsConfig(patch=(2, 2)),
            num_frames=30,
            frame_interval=0.005 / 29,
            sampling=_SAMPLING_2D,
            batch=64,
        ),
        _paper(
            "vorticity",
            tokenizer=_PAPER_2D,
            dynamics=DynamicsConfig(patch=(2, 2)),
            num_frames=30,
            frame_interval=2 / 29,
            sampling=_SAMPLING_2D,
            batch=64,
        ),
    )
}


def find_preset(name: str | Preset) -> Preset:
    """A row of :data:`PRESETS`, or a preset itself; an unknown name lists the known ones."""
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise EnmaError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    return PRESETS[name]


SIZES = ("small", "base", "paper")
# Bounds of derived models: fewest tokens of a dimension, and most tokens of a frame.
_FEWEST_TOKENS, _MOST_TOKENS = 4, 1024
# Points along the sides of periodic planes of which a derived model decides on blocks of 2 x 2: where that was measured
# (docs/experiments.md).
_FINE_SIDES = (64, 128)
_BASE_DYNAMICS = dataclasses.replace(
    _SMALL_DYNAMICS,
    width=320,
    heads=10,
    temporal_layers=4,
    spatial_layers=3,
    flow=dataclasses.replace(_SMALL_DYNAMICS.flow, width=256),
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
            width=_FAST_2D.width,
            max_width=2 * tokenizer.max_width,
            kernel_ends=_FAST_2D.kernel_ends,
            stride_ends=2,
            layers=tokenizer.layers[1:],
        )
    dynamics = {"small": _SMALL_DYNAMICS, "base": _BASE_DYNAMICS, "paper": DynamicsConfig()}[size]
    # Relative places make the dynamics the same everywhere, which only a homogeneous ring is.
    positions = dynamics.positions if shift and all(periodic) else "sincos"
    latents = tokenizer.latent_frames(num_frames)
    share: dict[str, Any] = {} if contexts else {"context_share": 0.0}
    rollout = RolloutConfig(history=(2, min(4, latents - 1)))
    forecasts = dataclasses.replace(_SMALL_FORECASTS, batch=16, shift=shift, rollout=rollout, **share)
    alone = RolloutConfig(history=(1, min(11, latents - 1)), frames=min(4, latents - 1))
    fewest, most = _FINE_SIDES
    if plane and not paper and shift and all(periodic) and fewest <= min(grid) and max(grid) <= most:
        # Lossless: blocks of 2 x 2 points and two frames. On coarser places a local head has to learn shifts within a
        # block for every place of it (docs/experiments.md).
        values = 8 * tokenizer.field_channels
        tokenizer = dataclasses.replace(
            tokenizer, width=values, max_width=values, latent_channels=values, layers=("time",), variational=False
        )
        patch = tuple(p * 2**space // tokenizer.space_factor for p in patch)
        width, layers = {"small": (32, 6), "base": (48, 9)}[size]
        local = LocalConfig(width=width, layers=layers, modes=min(8, min(tokenizer.token_grid) // 2))
        dynamics = dataclasses.replace(dynamics, local=local)
        behind = RolloutConfig(history=(2, max(2, min(9, latents - 5))), frames=min(5, latents - 1))
        forecasts = dataclasses.replace(forecasts, rollout=behind, **_AFTER_HEAD)
    windows = dataclasses.replace(_WINDOW_TOKENIZER_TRAINING, window=_WINDOW if num_frames > _WINDOW else None)
    tokenizer_training = _PAPER_TOKENIZER_TRAINING if paper else windows
    training = _PAPER_TRAINING if paper else _SMALL_TRAINING
    return Preset(
        model=ModelConfig(
            name=name,
            dataset=name,
            num_frames=num_frames,
            frame_interval=frame_interval,
            tokenizer=tokenizer,
            dynamics=dataclasses.replace(dynamics, decoder="one-pass", patch=patch, positions=positions),
            sampling=_FAST["sampling"],
        ),
        tokenizer_training=dataclasses.replace(tokenizer_training, batch=8 if plane and not paper else 16, shift=shift),
        dynamics_training=dataclasses.replace(training, batch=32, shift=shift, **share),
        head_training=dataclasses.replace(_HEAD_TRAINING, shift=shift, rollout=alone),
        forecast_training=forecasts,
        first_frame_training=dataclasses.replace(_SMALL_FIRST_FRAME, shift=shift, rollout=rollout),
    )


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
