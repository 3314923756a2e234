"""Small field models with random weights, whose floors and scales are learned from waves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from enma_fast.config import BlocksConfig, FieldConfig, KnownInput, ModelConfig, PhysicsConfig
from enma_fast.models.drivers import Drivers, Told
from enma_fast.models.floors.equation import Equations
from enma_fast.models.floors.equation_search import EquationFloor
from enma_fast.models.floors.ladder import roll
from enma_fast.models.model import Model

from ._told import arrays

FRAMES = 8
# Coefficients of an equation of one channel on a line and on a plane, and of two channels, by channel and term.
LINE = {(0, "d0 u0"): -0.3, (0, "lap u0"): 0.2, (0, "lap lap u0"): -0.02, (0, "u0 d0 u0"): -0.3, (0, "u0 u0 u0"): -0.03}
PLANE = {(0, "lap u0"): 0.15, (0, "p1 u0 d0 u0 - p0 u0 d1 u0"): 0.5}
PAIR = {
    (0, "1"): 0.02,
    (0, "u1"): 0.1,
    (0, "lap u0"): 0.1,
    (0, "u0 u1 u1"): -0.05,
    (1, "u1"): -0.05,
    (1, "d0 u1"): 0.1,
    (1, "lap u1"): 0.2,
    (1, "u0 d0 u1"): -0.1,
    (1, "p1 u0 d0 u1 - p0 u0 d1 u1"): 0.3,
}


def equation(config: ModelConfig) -> EquationFloor:
    """The floor of an equation, on grids whose first axis is odd that of a lattice: with 11 points without a flow.

    Each trajectory has a source on grids whose last axis has a multiple of five points.
    """
    codec = config.codec
    made = EquationFloor(codec.grid, codec.field_channels)
    made.lattice.fill_(codec.grid[0] % 2 == 1)
    made.forced.fill_(codec.grid[-1] % 5 == 0)
    known = PAIR if codec.field_channels > 1 else LINE if len(codec.grid) == 1 else PLANE
    if codec.grid[0] == 11:
        known = {name: value for name, value in known.items() if not name[1].startswith("p")}
    made.active.zero_()
    made.covariance.copy_(torch.eye(len(made.mean)))
    for j, name in enumerate(made.terms.names):
        made.unit[j] = 0.25 + j % 3 / 8
        if name in known:
            made.active[j] = True
            made.mean[j] = known[name] * made.unit[j]
            made.covariance[j, j] = (0.2 * made.mean[j]) ** 2
    made.starts.copy_(made.mean * torch.linspace(0.4, 1.8, len(made.starts))[:, None])
    made.change.fill_(0.5)
    made.growth.fill_(0.1)
    made.steps.fill_(8 if codec.grid[0] == 11 else 2)
    made.noise.fill_(1e-7)
    made.usual.copy_(torch.tensor([1e-7, 1e-6]))
    made.most.copy_(torch.tensor([1e-6, 1e-5]))
    made.inflation.copy_(torch.tensor([6.0, 9.0]))
    made.power.copy_(torch.tensor([0.25, 0.5]))
    made.zero.copy_(torch.linspace(-0.2, 0.3, len(made.zero)))
    return made


def solutions(
    config: ModelConfig,
    count: int,
    frames: int,
    *,
    seed: int = 0,
    more: dict[str, float] | None = None,
    finer: bool = False,
) -> Tensor:
    """What the equation makes of waves in all directions, with coefficients of each trajectory, `[B, T, *grid, c]`.

    Its first channel has more terms, by their names. It is solved on that of the fields, or, larger, on a finer one.
    """
    floor = equation(config)
    own = torch.randn(count, len(floor.mean), generator=torch.Generator().manual_seed(seed)).double()
    coefficients = floor.mean + 0.2 * floor.mean * own
    for name, value in (more or {}).items():
        j = floor.terms.names.index((0, name))
        coefficients[:, j] += value * floor.unit[j]
    starts = carried(config, count, 1, seed=seed)
    if len(config.codec.grid) == 2:
        starts = starts + carried(config, count, 1, seed=seed + 1).flip(2)
    starts = 3 * starts if finer else starts
    source = floor.terms.transform(0.05 * carried(config, count, 1, seed=seed + 2)[:, 0])
    on_finer = torch.full((count,), finer)
    state = Equations(coefficients, torch.zeros(count, 0, 0), torch.zeros(count), source, source, on_finer)
    return torch.cat([starts, roll(floor, starts, state, frames - 1)], 1)


def waves(config: ModelConfig, count: int, frames: int = FRAMES, *, seed: int = 0) -> Tensor:
    """Trajectories of which the floor tells something, `[B, T, *grid, c]`."""
    context = config.context
    made = solutions if isinstance(context, PhysicsConfig) and context.floor == "equation" else carried
    return made(config, count, frames, seed=seed)


def carried(config: ModelConfig, count: int, frames: int = FRAMES, *, seed: int = 0) -> Tensor:
    """Damped waves, each carried at a speed of its own, `[B, T, *grid, c]`."""
    codec, generator = config.codec, torch.Generator().manual_seed(seed)
    made = torch.zeros(count, frames, *codec.grid, codec.field_channels)
    places = torch.meshgrid(*(torch.arange(n) / n * 2 * math.pi for n in codec.grid), indexing="ij")
    t = torch.arange(frames).view(-1, *(1,) * len(codec.grid))
    for trajectory in made:
        for c in range(codec.field_channels):
            for _ in range(3):
                number, phase, speed = torch.rand(3, generator=generator).tolist()
                along = sum((1 + int(3 * number)) * x for x in places)
                trajectory[..., c] += (along + 6 * phase + (0.3 + speed) * t).sin() * 0.97**t
    return made


def told(made: Model, count: int, frames: int = FRAMES, *, seed: int = 0) -> Drivers | None:
    """What it is told of so many trajectories, of which no two are told the same."""
    return made.told(arrays(count, frames, grid=made.config.codec.grid, seed=seed), count)


def field_model(
    *,
    grid: tuple[int, ...] = (16,),
    periodic: tuple[bool, ...] = (True,),
    floor: str = "persistence",
    channels: int = 1,
    block: int = 1,
    known: tuple[KnownInput, ...] = (),
    masked: bool = False,
    **step: int,
) -> Model:
    """A model whose correction is heard, and whose members draw from all sources."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="field-tiny",
        dataset="waves",
        num_frames=FRAMES,
        codec=BlocksConfig(
            grid=grid,
            lengths=tuple(float(n) for n in grid),
            periodic=periodic,
            field_channels=channels,
            block=block,
            frames=1,
            masked=masked,
        ),
        context=PhysicsConfig(floor=floor, patch=(1,) * len(grid), width=8, hidden=24),
        step=FieldConfig(**{"width": 24, "layers": 2, "middle_width": 16, **step}),
        known=known,
    )
    made = Model(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for name, p in made.named_parameters():
        if name.endswith(("down.weight", "head.weight")):
            torch.nn.init.normal_(p, std=0.3, generator=generator)
    if made.codec.mask is not None:
        # Land of all channels, and a place where one of them has no values.
        made.codec.mask[1:3] = False
        made.codec.mask[(-1,) * len(grid)][0] = False
    if made.drivers is not None:
        made.drivers.learn(arrays(40, grid=grid))
    fields = made.codec.standardised(waves(config, 40))
    if floor == "equation":
        made.dynamics.context.floor.load_state_dict(equation(config).state_dict())
    else:
        made.dynamics.context.floor.learn(fields)
    step_model = made.dynamics.step.model
    for scales in (made.dynamics.context.encoder.scales, step_model.scales):
        scales.learn(fields)
    step_model.scales.error.mul_(0.1)
    # Small, so that the correction counts; not 0, where a rounding would decide whether it does.
    step_model.usual.fill_(1e-2)
    step_model.size.fill_(0.75)
    step_model.residuals.normal_(std=1e-3, generator=generator)
    seen, drivers = made.encode(fields[:6, :4]), told(made, 6)
    read = made.dynamics.context.begin([seen if drivers is None else Told(seen, drivers)], room=0)
    if float(made.dynamics.step.reliance(read)[0].median()) == 0:
        # What it adds is wrong as a rule: less of it counts then.
        step_model.network.head.weight.neg_()
    step_model.misfit.copy_(made.dynamics.step.reliance(read)[1].mean())
    return made
