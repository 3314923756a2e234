"""Models small enough to test properties on, and synthetic fields: travelling waves."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enma_fast.config import (
    CausalTransformerConfig,
    ConvConfig,
    DecoderConfig,
    FlowConfig,
    InterpolationConfig,
    LinearConfig,
    LocalConfig,
    ModelConfig,
    PointsConfig,
    SamplingConfig,
    TrunkConfig,
)
from enma_fast.data import FieldFile
from enma_fast.models.model import Model
from enma_fast.training.augment import Scattered, Shift, Strides, found
from enma_fast.training.dynamics import DynamicsStage, DynamicsTask
from enma_fast.training.forecasts import ForecastStage, ForecastTask
from enma_fast.training.latents import encode_all
from enma_fast.training.stage import Optimizer
from enma_fast.training.tokenizer import TokenizerStage, TokenizerTask

INTERPOLATION = InterpolationConfig(features=8, heads=2, slopes=(1.0, 3.0))

LINE = ConvConfig(
    grid=(32,),
    lengths=(2 * math.pi,),
    latent_channels=2,
    width=8,
    max_width=12,
    layers=("residual", "space", "residual", "time", "residual"),
)
PLANE = replace(LINE, grid=(16, 8), lengths=(2.0, 1.0), periodic=(True, False), field_channels=2, latent_channels=3)
RINGS = replace(PLANE, periodic=(True, True))


def with_points(codec: ConvConfig) -> PointsConfig:
    """A codec of the same sizes for scattered points."""
    shared = {entry.name: getattr(codec, entry.name) for entry in fields(codec) if entry.name != "kind"}
    return PointsConfig(**shared, interpolation=INTERPOLATION)


# The paper's choices: fixed embeddings, 2N tokens, the token itself as the flow's target, scaling and shift.
FLOW = FlowConfig(width=24, layers=2, time_features=16)
PAPER = {
    "context": CausalTransformerConfig(width=32, heads=2, layers=2, patch=(2,), scale_shift_rank=4),
    "trunk": TrunkConfig(layers=2),
    "step": FLOW,
}
# The choices of the small presets: rotary places, N tokens, the standardised residual as the target.
RESIDUAL = replace(FLOW, target="residual")
RELATIVE = {
    "context": replace(PAPER["context"], positions="rotary", scale_shift_rank=0),
    "trunk": TrunkConfig(layers=2, condition="add"),
    "step": RESIDUAL,
}
LOCAL = LocalConfig(width=16, layers=2)
# Frames in one pass: with either kind of places and condition, and by local convolutions.
ONE_PASS = ("paper-fast", "relative-fast", "line-local")
SAMPLING = SamplingConfig(mask_steps=3, flow_steps=2)


def _config(name, codec, base, step=None, patch=None):
    """A model; with `step` the flow of `base` decides frame 0 alone."""
    slots = dict(base)
    if patch is not None:
        slots["context"] = replace(slots["context"], patch=patch)
    if step is not None:
        slots |= {"initial": slots["step"], "step": step}
    return ModelConfig(name=name, dataset="waves", num_frames=8, codec=codec, sampling=SAMPLING, **slots)


# 8 tokens of 4 channels on a line, 8 tokens of 12 channels on a plane of 4 x 2.
CONFIGS = {
    config.name: config
    for config in (
        _config("paper", LINE, PAPER),
        _config("relative", LINE, RELATIVE),
        _config("points", with_points(LINE), RELATIVE),
        _config("plane", PLANE, RELATIVE, patch=(2, 2)),
        _config("paper-fast", LINE, PAPER, LinearConfig()),
        _config("relative-fast", LINE, RELATIVE, LinearConfig()),
        _config("line-local", LINE, RELATIVE, LOCAL),
        _config("plane-local", PLANE, PAPER, LOCAL, patch=(2, 2)),
        _config("plane-paper", with_points(PLANE), PAPER, patch=(2, 2)),
        _config("line-fourier", LINE, RELATIVE, replace(LOCAL, modes=3)),
        _config("plane-fourier", RINGS, PAPER, replace(LOCAL, modes=2, layers=4), patch=(2, 2)),
    )
}


def in_one_pass(config: ModelConfig, step: DecoderConfig | None = None) -> ModelConfig:
    """A model of mask steps with another decoder of all frames but frame 0, a linear one by default."""
    return replace(config, initial=config.step, step=step or LinearConfig())


def between_walls(config: ModelConfig, **codec: Any) -> ModelConfig:
    """A model on a domain that ends in walls, with other entries of its codec."""
    walls = (False,) * config.codec.dims
    return replace(config, codec=replace(config.codec, periodic=walls, **codec))


# A plane whose dimensions may be exchanged.
SQUARE: dict[str, Any] = {"grid": (8, 8), "lengths": (1.0, 1.0)}

# On the grid of the shipped Combined files.
COMBINED = ModelConfig(
    name="tiny",
    dataset="combined",
    codec=ConvConfig(
        lengths=(2 * math.pi,),
        latent_channels=2,
        width=4,
        max_width=8,
        layers=("space", "space", "space", "time", "residual"),
    ),
    context=CausalTransformerConfig(width=16, heads=2, layers=1, scale_shift_rank=0),
    trunk=TrunkConfig(layers=1),
    step=FlowConfig(width=16, layers=1, time_features=8),
    sampling=SamplingConfig(mask_steps=2, flow_steps=1),
)


def shaken(module, seed=0, scale=0.2):
    """Add noise to every parameter, so that nothing is trivial because it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return module


def model(name="relative", seed=0):
    """A model with random weights everywhere, ready to sample."""
    return random_model(CONFIGS[name], seed)


def random_model(config, seed=0):
    """A model of a config with random weights everywhere, ready to sample."""
    torch.manual_seed(seed)
    made = shaken(Model(config), seed, scale=0.1)
    made.latent_mean += 0.3
    made.latent_std *= 1.7
    return made.eval().requires_grad_(False)


def waves(environments, trajectories, frames, options, seed=0):
    """Travelling waves `[environments * trajectories, frames, *grid, c]`, one velocity for each environment."""
    generator = torch.Generator().manual_seed(seed)
    count = environments * trajectories
    speed = (2 * torch.rand(environments, generator=generator) - 1).repeat_interleave(trajectories)
    axes = [torch.arange(n) * (2 * math.pi / n) for n in options.grid]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)
    time = torch.arange(frames).view(-1, *[1] * options.dims) * 0.3
    shape = (count, 1, *[1] * options.dims)
    channels = []
    for _ in range(options.field_channels):
        phase = (2 * math.pi * torch.rand(count, generator=generator)).view(shape)
        height = (0.5 + torch.rand(count, generator=generator)).view(shape)
        channels.append(height * torch.sin(place - speed.view(shape) * time + phase))
    return torch.stack(channels, dim=-1)


def waves_file(config, u):
    """A field file of `waves` with two trajectories for each environment."""
    tok = config.codec
    return FieldFile(
        path=Path("waves-train.h5"),
        name="waves-train",
        u=u.numpy(),
        times=np.arange(config.num_frames) * config.frame_interval,
        lengths=tok.lengths,
        coords=tuple(np.arange(n) * spacing for n, spacing in zip(tok.grid, tok.spacings, strict=True)),
        channels=tuple("uvw"[: tok.field_channels]),
        periodic=tok.periodic,
        parameters={},
        environment=np.arange(len(u) // 2).repeat(2),
    )


OPTIMIZER = Optimizer(learning_rate=3e-3, warmup_steps=2, ema_decay=0.9)
# Entries of a stage that takes no time.
TRAINING: dict[str, Any] = {"steps": 6, "batch": 4}


def stage(kind, config, **changes):
    """A stage of a kind for a model, moved where its domain has a ring; `changes` of it or of its optimiser."""
    names = {entry.name for entry in fields(Optimizer)} - {"kind"}
    optimizer = replace(OPTIMIZER, **{name: changes.pop(name) for name in names & changes.keys()})
    if "optimizer" in changes:
        optimizer = replace(optimizer, kind=changes.pop("optimizer"))
    moved = (Shift(),) if any(config.codec.periodic) else ()
    return kind(**TRAINING | {"optimizer": optimizer, "augment": moved} | changes)


def tokenizer_task(name, **changes):
    """A codec and 12 trajectories to train it on; the same for the same arguments."""
    config = CONFIGS[name]
    torch.manual_seed(1)
    data = waves_file(config, waves(6, 2, config.num_frames, config.codec))
    if config.codec.at_points and "augment" not in changes:
        changes["augment"] = (Shift(), Scattered(share=1.0))
    made = Model(config)
    return TokenizerTask(made, stage(TokenizerStage, config, **changes), train=data, val=torch.from_numpy(data.u[:3]))


def dynamics_task(name, **changes):
    """Dynamics behind a random codec, and 12 trajectories in 6 environments; the same for the same arguments."""
    config = CONFIGS[name]
    torch.manual_seed(1)
    made = Model(config)
    shaken(made.codec)
    u = waves(6, 2, config.num_frames, config.codec)
    trained = stage(DynamicsStage, config, **{"mask_ratio": (0.75, 1.0)} | changes)
    scattered, strides = found(trained.augment, Scattered), found(trained.augment, Strides)
    environment = torch.arange(6).repeat_interleave(2)
    latents = {
        n: encode_all(made.codec, u[:, ::n], environment, shift=True, scattered=scattered)
        for n in {1, *(strides.steps if strides else ())}
    }
    return DynamicsTask(made, trained, latents=latents, val=u[0:4:2], val_contexts=u[1:4:2], members=2)


def forecast_task(name, *, make=ForecastTask, kind=ForecastStage, parameters=None, **changes):
    """A model behind a random codec, and 12 trajectories in 6 environments to train whole forecasts on."""
    config = name if isinstance(name, ModelConfig) else CONFIGS[name]
    torch.manual_seed(1)
    made = Model(config)
    shaken(made.codec)
    made.codec.requires_grad_(False)
    u = waves(6, 2, config.num_frames, config.codec)
    z = made.codec.encode(u).flatten(0, -2)
    made.latent_mean.copy_(z.mean(0))
    made.latent_std.copy_(z.std(0))
    data = waves_file(config, u)
    if parameters is not None:
        data = replace(data, parameters=parameters)
    if kind is ForecastStage:
        changes = {"history": (2, 3)} | changes
    trained = stage(kind, config, **changes)
    return make(made, trained, train=data, val=u[0:4:2], val_contexts=u[1:4:2], members=2)


def distance(a, b):
    """Largest difference relative to the largest entry of `b`."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()
