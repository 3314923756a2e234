"""The stage of field models: it learns what frames tell, from one series too, and survives losses of NaN."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from enma_fast.config import BlocksConfig, FieldConfig, ModelConfig, PhysicsConfig, SamplingConfig
from enma_fast.models.model import Model
from enma_fast.sampling.engine import Engine
from enma_fast.training.field_stage import FieldStage, FieldTraining

STAGE = FieldStage(batch=16, bf16=False, warmup_steps=5)
PLACE = torch.arange(16) / 16 * 2 * math.pi


def model(floor="persistence", **step):
    torch.manual_seed(0)
    codec = BlocksConfig(grid=(16,), lengths=(16.0,), periodic=(True,), block=1, frames=1)
    context = PhysicsConfig(floor=floor, patch=(1,), width=16, hidden=32, numbers=8)
    sizes = {"width": 16, "layers": 2, "noise": 0, "member": 0, **step}
    return Model(
        ModelConfig(
            name="tiny",
            dataset="waves",
            num_frames=8,
            codec=codec,
            context=context,
            trunk=None,
            step=FieldConfig(**sizes),
        )
    )


def waves(count, frames=8, seed=0):
    """Steepening waves at speeds that trajectories share by four."""
    generator = torch.Generator().manual_seed(seed)
    speed = torch.rand(count // 4, 1, 1, generator=generator).repeat_interleave(4, 0)
    phase = 6 * torch.rand(count, 1, 1, generator=generator)
    angle = PLACE + phase + speed * torch.arange(frames)[:, None]
    return (angle + 0.3 * angle.sin()).sin()[..., None], torch.arange(count) // 4


def steps(count):
    number = itertools.count()
    return lambda: next(number) / count


def error(made, u, *, known=3, context=None):
    made.eval()
    rows = torch.arange(len(u))
    z, c = made.encode(u[:, :known]), None if context is None else made.encode(context)
    frames = Engine(made.dynamics).trajectory(
        z, num_latents=u.shape[1], seeds=rows, members=rows * 0, context=c, settings=SamplingConfig(temperature=0.0)
    )
    off = made.decode(torch.stack(list(frames), 1)) - u[:, known:]
    return float(off.norm() / u[:, known:].norm())


def test_speeds_are_learned_from_known_frames_and_from_companions():
    made, (u, environments) = model(), waves(80)
    training = FieldTraining(made, u, environments=environments, stage=STAGE)
    assert training.shifts == [0]
    progress = list(training.run(steps(200)))
    assert [p.step for p in progress] == list(range(1, 201))
    assert [progress[int(200 * s)].frames for s in (0, 0.35, 0.55)] == [1, 2, 4]
    held, _ = waves(20, seed=9)
    still = float((held[:, 2:3] - held[:, 3:]).norm() / held[:, 3:].norm())
    assert error(made, held) < 0.3 * still
    others = held.view(5, 4, *held.shape[1:]).roll(1, 1).flatten(0, 1)
    assert error(made, held, known=1, context=others) < 0.5 * still
    assert 0 < float(made.dynamics.step.model.usual.min()) <= 1


def test_one_series_is_enough():
    angle = PLACE + 0.4 * torch.arange(200)[:, None]
    u = (angle + 0.3 * angle.sin()).sin()[None, ..., None]
    made = model()
    training = FieldTraining(made, u, stage=STAGE)
    list(training.run(steps(150)))
    still = float((u[0, 50:55] - u[0, 52:53]).norm() / u[0, 50:55].norm())
    assert error(made, u[:, 50:58]) < 0.3 * still


def test_members_are_scored_by_their_spread():
    made, (u, environments) = model(noise=2, member=4), waves(80)
    noisy = u + 0.1 * torch.randn(u.shape, generator=torch.Generator().manual_seed(1))
    list(FieldTraining(made, noisy, environments=environments, stage=replace(STAGE, members_from=0.3)).run(steps(200)))
    z = made.encode(noisy[:1, :3])
    members = torch.arange(30)
    frame = next(
        Engine(made.dynamics).trajectory(z, num_latents=4, seeds=members * 0, members=members, groups=members * 0)
    )
    spread = made.decode(frame[:, None])[:, 0].std(0).mean()
    assert 0.02 < float(spread) < 0.3


def test_weights_stay_where_a_loss_is_not_finite():
    made, (u, environments) = model(), waves(40)
    training = FieldTraining(made, u, environments=environments, stage=STAGE)
    before = {name: p.clone() for name, p in made.named_parameters()}
    training.fields = training.fields * math.nan
    progress = list(training.run(steps(25)))
    assert progress[-1].step == 0
    assert progress[-1].skipped == 25
    assert all(torch.equal(p, before[name]) for name, p in made.named_parameters())


@pytest.mark.parametrize("floor", ["waves", "damped persistence"])
def test_a_floor_is_what_the_network_adds_to(floor):
    made, (u, environments) = model(floor), waves(80)
    made.dynamics.context.floor.learn(u)
    training = FieldTraining(made, u, environments=environments, stage=STAGE)
    assert training.shifts == ([0] if floor == "waves" else [])
    list(training.run(steps(60)))
    held, _ = waves(20, seed=9)
    persistence = float((held[:, 2:3] - held[:, 3:]).norm() / held[:, 3:].norm())
    assert error(made, held) < 0.5 * persistence


def test_the_same_seed_trains_the_same_model():
    (u, environments), made = waves(40), [model(), model()]
    for each in made:
        list(FieldTraining(each, u, environments=environments, stage=STAGE).run(steps(5)))
    assert all(torch.equal(p, q) for p, q in zip(made[0].parameters(), made[1].parameters(), strict=True))
