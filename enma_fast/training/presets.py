"""The table of presets: models by name, and the recipes that train them.

Sizes follow the paper (arXiv 2506.06158, tables 7, 11 and 12) in the ``*-paper`` presets; what the small ones change:
docs/experiments.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..config import (
    DynamicsConfig,
    FirstConfig,
    FlowConfig,
    InterpolationConfig,
    LocalConfig,
    ModelConfig,
    SamplingConfig,
    TokenizerConfig,
)
from ..errors import EnmaError
from .config import RolloutConfig, TrainingConfig

TWO_PI = 2 * math.pi

# Behind any number of frames, and on from what the head made itself (docs/experiments.md).
HEAD_TRAINING = TrainingConfig(
    steps=7000,
    batch=16,
    optimizer="muon",
    learning_rate=3e-3,
    final_learning_rate=1e-5,
    warmup_steps=30,
    ema_decay=0.99,
    shift=True,
    context_share=0.0,
    rollout=RolloutConfig(history=(1, 9), frames=4),
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and the recipes that train it; that of a local head alone serves models that have one."""

    model: ModelConfig
    tokenizer_training: TrainingConfig
    dynamics_training: TrainingConfig
    head_training: TrainingConfig = HEAD_TRAINING
    forecast_training: TrainingConfig
    first_frame_training: TrainingConfig


PAPER_TOKENIZER_TRAINING = TrainingConfig(steps=187_000, batch=64, learning_rate=1e-3, final_learning_rate=1e-7)
PAPER_TRAINING = TrainingConfig(steps=94_000, batch=128)
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
SMALL_DYNAMICS = DynamicsConfig(
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
FAST_2D = TokenizerConfig(
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
WINDOW = 11
WINDOW_TOKENIZER_TRAINING = dataclasses.replace(
    _SMALL_TOKENIZER_TRAINING,
    steps=4000,
    batch=8,
    window=WINDOW,
    optimizer="muon",
    learning_rate=5e-3,
    final_learning_rate=2e-5,
    warmup_steps=100,
)
# Training on whole forecasts makes the sampler good at its own settings, so these can be few.
_SAMPLING_SMALL = SamplingConfig(mask_steps=1, flow_steps=2)
# Its mask and flow steps serve frame 0 of a generated trajectory only.
FAST: dict[str, Any] = {
    "dynamics": dataclasses.replace(SMALL_DYNAMICS, decoder="one-pass"),
    "sampling": SamplingConfig(mask_steps=4, flow_steps=4),
}
# Users have contexts of any length.
_SHORT_CONTEXT_SHARE = 0.5
SMALL_TRAINING = TrainingConfig(
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
_BOOSTED = dataclasses.replace(SMALL_TRAINING, boost=2.5)
# On whole forecasts, from finished dynamics: docs/experiments.md.
SMALL_FORECASTS = TrainingConfig(
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
AFTER_HEAD: dict[str, Any] = {
    "learning_rate": 2.5e-4,
    "final_learning_rate": 2.5e-6,
    "warmup_steps": 30,
    "ema_decay": 0.99,
}
# What draws frame 0 of a generated trajectory, after that.
SMALL_FIRST_FRAME = TrainingConfig(
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
        tokenizer_training=dataclasses.replace(PAPER_TOKENIZER_TRAINING, steps=225_000, batch=8)
        if plane
        else PAPER_TOKENIZER_TRAINING,
        dynamics_training=dataclasses.replace(PAPER_TRAINING, steps=94_000 * 128 // batch, batch=batch),
        forecast_training=SMALL_FORECASTS,
        first_frame_training=SMALL_FIRST_FRAME,
    )


def _small(name: str, dataset: str, tokenizer: TokenizerConfig, **model: Any) -> Preset:
    settings: dict[str, Any] = {"dynamics": SMALL_DYNAMICS, "sampling": _SAMPLING_SMALL} | model
    return Preset(
        model=ModelConfig(name=name, dataset=dataset, tokenizer=tokenizer, **settings),
        tokenizer_training=_SMALL_TOKENIZER_TRAINING,
        dynamics_training=SMALL_TRAINING,
        forecast_training=SMALL_FORECASTS,
        first_frame_training=SMALL_FIRST_FRAME,
    )


def _fast_2d(name: str, tokenizer: TokenizerConfig, *, dynamics: dict[str, Any], **model: Any) -> Preset:
    """A one-pass model of a plane; `dynamics` is what its settings differ in."""
    ring = all(tokenizer.periodic)
    positions = SMALL_DYNAMICS.positions if ring else "sincos"
    settings = {"width": 256, "heads": 8, "positions": positions} | dynamics
    preset = _small(
        name,
        name.removesuffix("-fast").replace("-", "_"),
        tokenizer,
        dynamics=dataclasses.replace(FAST["dynamics"], **settings),
        sampling=FAST["sampling"],
        **model,
    )
    tokenizer_training = dataclasses.replace(WINDOW_TOKENIZER_TRAINING, shift=ring)
    dynamics_training = dataclasses.replace(SMALL_TRAINING, steps=3400, batch=16, learning_rate=1.5e-3, shift=ring)
    forecasts = dataclasses.replace(SMALL_FORECASTS, batch=16, learning_rate=2e-4, final_learning_rate=2e-6, shift=ring)
    if "local" in dynamics:
        # A few minutes of single frames, for the transformers; the head alone; then forecasts of five latent frames
        # behind any number of frames. Forecasts of eleven, in a run after these, teach late frames their spread
        # (docs/experiments.md); the card of the shipped model has its commands.
        dynamics_training = dataclasses.replace(dynamics_training, steps=200, batch=12, encoded_shifts=1)
        behind = RolloutConfig(history=(2, 9), frames=5, first_draws=2)
        forecasts = dataclasses.replace(forecasts, steps=400, rollout=behind, **AFTER_HEAD)
    first = preset.first_frame_training
    if "first" in dynamics:
        # Two members of each frame 0, by a head that begins as a random field.
        first = dataclasses.replace(first, steps=1500, batch=16, optimizer="muon", rollout=RolloutConfig(first_draws=2))
    return dataclasses.replace(
        preset,
        tokenizer_training=tokenizer_training,
        dynamics_training=dynamics_training,
        forecast_training=forecasts,
        first_frame_training=first,
    )


def lossless(tokenizer: TokenizerConfig) -> TokenizerConfig:
    """Of a plane's tokenizer the one that begins exact: blocks of 2 x 2 points and two frames.

    On coarser places a local head has to learn shifts within a block for every place of it (docs/experiments.md).
    """
    values = 8 * tokenizer.field_channels
    return dataclasses.replace(
        tokenizer, width=values, max_width=values, latent_channels=values, layers=("time",), variational=False
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
        _small("combined-fast", "combined", _SMALL_TOKENIZER, **FAST),
        _small("advection-small", "advection", _line(1.0)),
        dataclasses.replace(_small("advection-fast", "advection", _line(1.0), **FAST), dynamics_training=_BOOSTED),
        _small("combined-points-small", "combined", _line(TWO_PI, points=True)),
        dataclasses.replace(
            _small("advection-points", "advection", _line(1.0, points=True), **FAST),
            tokenizer_training=dataclasses.replace(WINDOW_TOKENIZER_TRAINING, steps=8000, batch=16, warmup_steps=50),
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
            dynamics=dataclasses.replace(SMALL_DYNAMICS, patch=(4, 4)),
        ),
        _fast_2d(
            "gray-scott-fast",
            dataclasses.replace(
                FAST_2D,
                grid=(32, 32),
                lengths=(64.0, 64.0),
                field_channels=2,
                field_mean=(0.836, 0.063),
                field_scale=(0.226, 0.112),
            ),
            dynamics={"patch": (2, 2)},
            frame_interval=50.0,
        ),
        _fast_2d(
            "wave-fast",
            dataclasses.replace(
                FAST_2D, lengths=(63 / 64, 63 / 64), periodic=(False, False), field_mean=(0.029,), field_scale=(0.158,)
            ),
            dynamics={"patch": (4, 4)},
            num_frames=30,
            frame_interval=0.005 / 29,
        ),
        _fast_2d(
            "vorticity-fast",
            lossless(dataclasses.replace(FAST_2D, field_mean=(0.0,), field_scale=(2.55,))),
            # The transformers read the physics off the past; local heads do the rest.
            dynamics={
                "patch": (8, 8),
                "temporal_layers": 2,
                "local": LocalConfig(width=32, layers=9, modes=8),
                "first": FirstConfig(modes=16),
            },
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
