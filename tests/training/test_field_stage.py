"""The stage of field models: it learns what frames tell and survives losses of NaN."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from enma_fast.config import BlocksConfig, FieldConfig, ModelConfig, PhysicsConfig, SamplingConfig
from enma_fast.errors import EnmaError
from enma_fast.models.floors.ladder import roll
from enma_fast.models.model import Model
from enma_fast.sampling.engine import Engine
from enma_fast.training import field_stage
from enma_fast.training.augment import Shift
from enma_fast.training.field_choices import Choices
from enma_fast.training.field_stage import FieldStage, FieldTask
from enma_fast.training.loop import RunOptions, run
from enma_fast.training.ranks import BatchDraws
from enma_fast.training.stage import Material, Optimizer

from .._clock import count_readings
from .._tiny import model as other
from .._tiny import waves_file
from ._run import read_log

PLACE = torch.arange(16) / 16 * 2 * math.pi


def model(floor="persistence", **step):
    torch.manual_seed(0)
    codec = BlocksConfig(grid=(16,), lengths=(16.0,), periodic=(True,), block=1, frames=1)
    context = PhysicsConfig(floor=floor, patch=(1,), width=16, hidden=32)
    sizes = {"width": 16, "layers": 2, "noise": 0, "member": 0, **step}
    return Model(
        ModelConfig(
            name="tiny",
            dataset="waves",
            num_frames=8,
            codec=codec,
            context=context,
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


def train(made, u, environments, folder, *, steps=200, seconds=None, better=None):
    """The task of a stage of so many steps, or of seconds, that was run in a folder and finished."""
    stage = FieldStage(
        steps=steps,
        batch=16,
        augment=(Shift(),),
        optimizer=Optimizer(
            kind="muon", learning_rate=3e-3, final_learning_rate=1.5e-5, warmup_steps=5, weight_decay=0.0
        ),
    )
    data = waves_file(made.config, u)
    data = replace(data, environment=np.arange(len(u)) if environments is None else environments.numpy())
    held, _ = waves(20, frames=u.shape[1], seed=7)
    contexts = None if environments is None else held.view(5, 4, *held.shape[1:]).roll(1, 1).flatten(0, 1)
    task = FieldTask(
        made.requires_grad_(False),
        stage,
        Material(
            train=lambda: data, val=held, val_contexts=contexts, folder=folder, seconds=seconds, tell=lambda *_: None
        ),
    )
    run(task, RunOptions(out=folder, precision="fp32", log_every=1, validate_every=100, seconds=seconds, better=better))
    task.finish()
    return task


def error(made, u, *, known=3, context=None):
    made.eval()
    rows = torch.arange(len(u))
    segments = [made.encode(part) for part in (context, u[:, :known]) if part is not None]
    frames = Engine(made.dynamics).trajectory(
        segments, num_latents=u.shape[1], seeds=rows, members=rows * 0, settings=SamplingConfig(temperature=0.0)
    )
    off = made.decode(torch.stack(list(frames), 1)) - u[:, known:]
    return float(off.norm() / u[:, known:].norm())


def test_speeds_are_learned_from_known_frames_and_from_companions(tmp_path):
    made, (u, environments) = model(), waves(80)
    task = train(made, u, environments, tmp_path)
    assert task.shifts == [0]
    frames = [entry["frames"] for entry in read_log(tmp_path) if "frames" in entry]
    assert [frames[int(200 * s)] for s in (0, 0.35, 0.55)] == [1, 2, 4]
    held, _ = waves(20, seed=9)
    still = float((held[:, 2:3] - held[:, 3:]).norm() / held[:, 3:].norm())
    assert error(made, held) < 0.3 * still
    others = held.view(5, 4, *held.shape[1:]).roll(1, 1).flatten(0, 1)
    assert error(made, held, known=1, context=others) < 0.5 * still
    assert 0 < float(made.dynamics.step.model.usual.min()) <= 1


@pytest.mark.slow
def test_members_are_as_far_apart_as_they_are_wrong(tmp_path):
    made, (u, environments) = model(noise=2, member=4), waves(80)
    task = train(made, u, environments, tmp_path)
    step = task.step
    chosen = step.spread.clone()
    assert bool((chosen > 0).all())
    held = task.choices.scores(20, 8)
    for name in ("spread_skill", "spread_skill_ivp"):
        assert 0.6 < held[name] < 1.6
    step.spread.copy_(3 * chosen)
    assert task.choices.scores(20, 8)["spread_skill"] > 1.3 * held["spread_skill"]


def test_members_are_not_so_far_apart_that_their_mean_is_lost(tmp_path, monkeypatch):
    made, (u, _) = model(noise=2, member=4), waves(40)
    task = train(made, u, None, tmp_path, steps=1)

    def scores(self, count, members):
        factor = float(self.step.spread[0])
        return {"spread_skill": 0.1 * factor, "crps": 3.0 - factor if factor < 2 else factor}

    monkeypatch.setattr(Choices, "scores", scores)
    task.step.spread.fill_(1.0)
    ratio = task.choices.calibrate(8).ratio
    # As large as the error they would be with a factor of 10.
    assert 1 < float(task.step.spread[0]) < 2
    assert ratio == pytest.approx(0.1 * float(task.step.spread[0]))


@pytest.mark.parametrize(
    ("ratio", "crps", "least", "most"),
    [
        # Larger factors only cost CRPS: there the spread says nothing of the error.
        (lambda factor: 0.2 * factor, lambda factor: 0.0026 + 0.001 * factor, 0, 0.1),
        # The mean of members that are too far apart is off by as much, until they are close.
        (lambda factor: max(1.0, min(2.1, 50 * factor)), lambda factor: factor + 0.02, 0, 0.03),
        # Far from where it begins.
        (lambda factor: factor / 60, lambda factor: 2 - factor / 60, 55, 65),
    ],
)
def test_the_spread_is_found_wherever_it_is(tmp_path, monkeypatch, ratio, crps, least, most):
    made, (u, _) = model(noise=2, member=4), waves(40)
    task = train(made, u, None, tmp_path, steps=1)

    def scores(self, count, members):
        factor = float(self.step.spread[0])
        return {"spread_skill": ratio(factor), "crps": crps(factor)}

    monkeypatch.setattr(Choices, "scores", scores)
    task.step.spread.fill_(1.0)
    task.choices.calibrate(8)
    assert least < float(task.step.spread[0]) < most


def test_forecasts_of_a_training_begin_with_frames_that_are_a_little_wrong(tmp_path):
    made, (u, environments) = model("waves"), waves(80)
    task = train(made, u, environments, tmp_path, steps=1)
    past = u[:, :3]
    draws = BatchDraws(torch.Generator().manual_seed(0), len(past))
    off = (task.disturbed(past, draws) - past) / task.step.scales.error
    each = off.flatten(1).std(1) / field_stage.NOISE
    assert float(each.max()) < 1.3
    assert float(each.min()) < 0.2
    assert float(each.mean()) == pytest.approx(0.5, abs=0.15)


def test_before_the_first_step_the_floor_is_a_model(tmp_path):
    made, (u, environments) = model("waves"), waves(80)
    kept = []
    task = train(made, u, environments, tmp_path, seconds=0.0, better=lambda: kept.append(made.state_dict()))
    assert len(kept) == 1
    assert not bool(task.step.network.head.weight.any())
    held, _ = waves(20, seed=9)
    still = float((held[:, 2:3] - held[:, 3:]).norm() / held[:, 3:].norm())
    assert error(made, held) < still


def test_a_stage_of_seconds_ends_by_the_clock_and_goes_on(tmp_path, monkeypatch):
    count_readings(monkeypatch)
    made, (u, environments) = model(), waves(40)
    train(made, u, environments, tmp_path, steps=10_000, seconds=3.0)
    entries = read_log(tmp_path)
    rates = [entry["lr"] for entry in entries if "lr" in entry]
    assert 10 < len(rates) < 300
    # The rate falls to the end, though nobody knew how many steps there would be.
    assert rates[-1] < 0.05 * max(rates)
    assert len([entry for entry in entries if "validation" in entry]) == 9
    assert [entry["frames"] for entry in entries if "frames" in entry][-1] == 5


def test_a_correction_that_does_harm_is_made_smaller(tmp_path):
    made, (u, environments) = model("waves"), waves(80)
    task = train(made, u, environments, tmp_path, steps=1)
    torch.nn.init.normal_(task.step.network.head.weight)
    task.finish()
    assert float(task.step.size) == 0


@pytest.mark.parametrize("least", [2.0, 0.5])
def test_members_of_a_floor_alone_draw_residuals_where_these_are_better(tmp_path, monkeypatch, least):
    made, (u, _) = model("waves"), waves(80)
    task = train(made, u, None, tmp_path, steps=1)
    torch.nn.init.normal_(task.step.network.head.weight)

    def scores(self, count, members):
        crps = least if self.step.residuals.any() else 1.0 if self.step.spread.any() else 3.0
        return {"spread_skill": 1.0 if crps < 3 else 0.0, "crps": crps}

    monkeypatch.setattr(Choices, "scores", scores)
    task.finish()
    assert float(task.step.size) == 0
    assert bool(task.step.residuals.any()) == (least < 1)
    assert bool(task.step.spread.any()) == (least > 1)


def test_a_loss_that_is_not_finite_leaves_the_best_weights(tmp_path, monkeypatch, caplog):
    count_readings(monkeypatch)
    made, (u, environments) = model(), waves(40)
    real = FieldTask._loss

    def broken(self, *args, **more):
        return real(self, *args, **more) * (math.nan if self.share > 0.5 else 1.0)

    monkeypatch.setattr(FieldTask, "_loss", broken)
    train(made, u, environments, tmp_path, seconds=2.0)
    assert all(bool(torch.isfinite(p).all()) for p in made.parameters())
    assert "best validation" in caplog.text


@pytest.mark.parametrize("floor", ["waves", "damped persistence"])
def test_a_floor_is_what_the_network_adds_to(floor, tmp_path):
    made, (u, environments) = model(floor), waves(80)
    task = train(made, u, environments, tmp_path, steps=60)
    assert task.shifts == ([0] if floor == "waves" else [])
    assert (tmp_path / field_stage.FLOOR).exists()
    held, _ = waves(20, seed=9)
    persistence = float((held[:, 2:3] - held[:, 3:]).norm() / held[:, 3:].norm())
    assert error(made, held) < 0.5 * persistence


def test_the_same_seed_trains_the_same_model(tmp_path):
    (u, environments), made = waves(40), [model(), model()]
    for i, each in enumerate(made):
        train(each, u, environments, tmp_path / str(i), steps=5)
    assert all(torch.equal(p, q) for p, q in zip(made[0].parameters(), made[1].parameters(), strict=True))


def test_mirror_images_are_trained_where_they_could_be_data(tmp_path):
    (u, environments), made = waves(80), model()
    both = torch.stack([u, u.flip(2)], 1).flatten(0, 1)
    assert train(made, both, environments.repeat_interleave(2), tmp_path / "both", steps=2).mirrors == {0: (1,)}
    assert train(model(), u, environments, tmp_path / "one", steps=2).mirrors == {}


def test_another_model_is_refused(tmp_path):
    given = Material(train=lambda: None, val=torch.zeros(1), val_contexts=None, folder=tmp_path)
    with pytest.raises(EnmaError, match="leave the stage out"):
        FieldTask(other(), FieldStage(steps=1, batch=4), given)


def test_a_stage_without_a_step_leaves_the_floor_alone_and_measures_its_members(tmp_path):
    made, (u, environments) = model("waves"), waves(80)
    task = train(made, u, environments, tmp_path, steps=0)
    step = task.step
    assert not step.network.head.weight.any()
    assert bool((step.spread > 0).all())
    held, _ = waves(20, seed=9)
    state = task.floor.infer(held[:, None, :3])
    alone = roll(task.floor, held[:, 1:3], state, 5)
    assert error(made, held) == pytest.approx(float((alone - held[:, 3:]).norm() / held[:, 3:].norm()), abs=1e-5)
    assert [entry["step"] for entry in read_log(tmp_path)] == [0]
    with pytest.raises(EnmaError, match="steps"):
        FieldStage(steps=-1, batch=1)
