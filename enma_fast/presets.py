"""The table of presets: models by name, and the recipes that train them.

Sizes follow the paper (arXiv 2506.06158, tables 7, 11 and 12) in the ``*-paper`` presets; what the small ones change:
docs/experiments.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .config import (
    DynamicsConfig,
    FlowConfig,
    InterpolationConfig,
    ModelConfig,
    RolloutConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainingConfig,
)
from .errors import EnmaError

TWO_PI = 2 * math.pi


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and the recipes that train it."""

    model: ModelConfig
    tokenizer_training: TrainingConfig
    dynamics_training: TrainingConfig
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
# Training on whole forecasts makes the sampler good at its own settings, so these can be few.
_SAMPLING_SMALL = SamplingConfig(mask_steps=1, flow_steps=2)
# Its mask and flow steps serve frame 0 of a generated trajectory only.
_FAST: dict[str, Any] = {
    "dynamics": dataclasses.replace(_SMALL_DYNAMICS, decoder="one-pass"),
    "sampling": SamplingConfig(mask_steps=4, flow_steps=4),
}
_SMALL_TRAINING = TrainingConfig(
    steps=3600,
    batch=64,
    optimizer="muon",
    learning_rate=2e-3,
    final_learning_rate=2e-5,
    warmup_steps=100,
    mask_ratio=(0.0, 1.0),
    shift=True,
)
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
    rollout=RolloutConfig(),
)
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


PRESETS: dict[str, Preset] = {
    preset.model.name: preset
    for preset in (
        _small("combined-small", "combined", _SMALL_TOKENIZER),
        _small("combined-fast", "combined", _SMALL_TOKENIZER, **_FAST),
        _small("advection-small", "advection", dataclasses.replace(_SMALL_TOKENIZER, lengths=(1.0,))),
        # Observations at scattered points: the interpolation of paper D.1.1 in front of the same tokenizer.
        _small(
            "combined-points-small",
            "combined",
            dataclasses.replace(_SMALL_TOKENIZER, interpolation=InterpolationConfig(features=16)),
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


def find_preset(name: str) -> Preset:
    """A row of :data:`PRESETS`; an unknown name lists the known ones."""
    if name not in PRESETS:
        raise EnmaError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    return PRESETS[name]
