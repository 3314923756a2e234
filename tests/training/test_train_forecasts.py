"""Training on whole forecasts: the scores are proper and fair, and training by them makes forecasts better."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.training.config import RolloutConfig, TrainingConfig
from enma_fast.training.forecasts import scores
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import Rank

from .._tiny import CONFIGS, SQUARE, TRAINING, between_walls, forecast_task


def test_scores_are_the_fair_ones_by_hand():
    truth = torch.zeros(1, 1, 2, 1)
    members = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]).view(1, 3, 1, 2, 1)
    crps, energy = scores(members, truth)
    # Per channel: mean |x - y| less the mean |x_i - x_j| of the three pairs, halved.
    assert crps.item() == pytest.approx(((3 + 0 + 6) / 3 - (3 + 3 + 6) / 6 + (4 + 0 + 8) / 3 - (4 + 4 + 8) / 6) / 2)
    assert energy.item() == pytest.approx(((5 + 0 + 10) / 3 - (5 + 5 + 10) / 6) / 2**0.5)


def test_two_equal_members_score_their_error():
    truth = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    same = truth[:, None].expand(-1, 2, -1, -1, -1) + 0.5
    assert torch.allclose(scores(same, truth)[0], torch.full((4,), 0.5))
    apart = torch.stack([truth - 1, truth + 1], 1)
    assert torch.allclose(scores(apart, truth)[0], torch.zeros(4), atol=1e-6)


@pytest.mark.parametrize("which", [0, 1], ids=["crps", "energy"])
def test_members_from_the_truths_own_law_score_best(which):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20_000, 1, 2, 2, generator=generator)
    found = {}
    for spread in (0.5, 0.8, 1.0, 1.25, 2.0):
        members = spread * torch.randn(20_000, 2, 1, 2, 2, generator=generator)
        found[spread] = scores(members, truth)[which].mean().item()
    assert min(found, key=found.get) == 1.0


@pytest.mark.parametrize("decoder", [pytest.param("masked-flow", marks=pytest.mark.slow), "one-pass"])
def test_training_lowers_the_score_of_forecasts(decoder, tmp_path):
    training = replace(
        TRAINING, steps=30, batch=8, learning_rate=1e-2, rollout=RolloutConfig(history=(2, 2), first_frame=0.0)
    )
    task = forecast_task("relative", training, decoder=decoder)

    def crps():
        with torch.no_grad():
            return sum(task.loss(task.module, step_generator(7, i), Rank())[1]["crps"].item() for i in range(4)) / 4

    before = crps()
    scores = run(task, RunOptions(out=tmp_path, precision="fp32", validate_every=30, log_every=30))
    assert crps() < 0.8 * before
    assert task.validate() == scores, "the weights are those of the best validation"


def test_the_loss_is_a_function_of_its_step():
    task = forecast_task("relative")
    first, again = (task.loss(task.module, step_generator(0, 3), Rank())[0] for _ in range(2))
    other = task.loss(task.module, step_generator(0, 4), Rank())[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fields_are_encoded_in_full_precision_under_autocast():
    task = forecast_task("relative")
    exact, weight = task._tokens(step_generator(0, 0), slice(None), paired=True)
    with torch.autocast("cpu", torch.bfloat16):
        again, same = task._tokens(step_generator(0, 0), slice(None), paired=True)
    assert torch.equal(weight, same)
    for z, other in zip(exact, again, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(z, other)


@pytest.mark.parametrize("paired", [False, True])
def test_only_frames_that_are_observed_or_forecast_are_encoded(paired, monkeypatch):
    task = forecast_task("relative", replace(TRAINING, rollout=RolloutConfig(history=(2, 2), frames=1)))
    whole, weight = task._tokens(step_generator(0, 0), slice(None), paired=paired)
    part, same = task._tokens(step_generator(0, 0), slice(None), paired=paired, latents=3)
    torch.testing.assert_close(part[-1], whole[-1][:, :3], rtol=0, atol=1e-6)
    assert torch.equal(weight, same)
    if paired:
        assert torch.equal(part[0], whole[0])
    frames, encode = [], task.model.encode
    monkeypatch.setattr(task.model, "encode", lambda u: frames.append(u.shape[1]) or encode(u))
    seen = set()
    for step in range(20):
        task.loss(task.module, step_generator(0, step), Rank())
        seen.add(tuple(frames))
        frames.clear()
    # One latent frame is observed beside a context of all 8 frames, and two without; one more is forecast.
    assert seen == {(8, 3), (5,)}


def test_no_gradient_reaches_the_tokenizer():
    task = forecast_task("relative")
    task.loss(task.module, step_generator(0, 1), Rank())[0].backward()
    assert all(p.grad is None for p in task.model.tokenizer.parameters())
    assert any(p.grad is not None for p in task.model.dynamics.parameters())


def test_batches_begin_late_and_skip_frames_as_asked():
    options = RolloutConfig(strides=(1, 3), late_share=0.5, history=(1, 2))
    task = forecast_task("relative", replace(TRAINING, rollout=options))
    windows = [task._window(step_generator(0, i)) for i in range(200)]
    frames = np.arange(task.train.shape[1])
    parts = [frames[w] for w in windows]
    assert min(map(len, parts)) == 2
    assert {int(part[1] - part[0]) for part in parts} == {1, 3}
    assert 0.4 < np.mean([part[0] > 0 for part in parts]) < 0.6
    assert max(part[0] for part in parts) < len(frames) // 2
    # A part ends with a whole latent frame, and as late as it can; whole trajectories end as they do.
    for part in parts:
        if part[0] == 0 and part[1] == 1:
            assert len(part) == len(frames)
        elif len(part) > 2:
            assert len(part) % 2 == 1
            assert part[-1] + 2 * (part[1] - part[0]) > frames[-1]
    task.loss(task.module, step_generator(0, 1), Rank())


def test_some_contexts_are_short(monkeypatch):
    """Half of the batches see a whole context, the others its first 3, 5, 7 or 8 frames; targets are always whole."""
    training = replace(TRAINING, rollout=RolloutConfig(history=(2, 2)), shift=False, short_context_share=0.5)
    task = forecast_task("relative", training)
    frames = task.train.shape[1]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(task.model, "encode", lambda u: seen.append(u) or u)
    for step in range(400):
        task._tokens(step_generator(0, step), slice(None), paired=True)
        task._tokens(step_generator(0, step), slice(None), paired=False)
    contexts, targets = seen[::3], [*seen[1::3], *seen[2::3]]
    assert {u.shape[1] for u in targets} == {frames}
    counts = np.bincount([u.shape[1] for u in contexts], minlength=frames + 1) / 400
    assert frames == 8
    # Of 3 to 8 frames, those of whole latent frames.
    np.testing.assert_allclose(counts, [0, 0, 0, 1 / 6, 0, 1 / 6, 0, 1 / 12, 7 / 12], atol=0.08)
    # They begin where the whole ones do.
    assert all(any(torch.equal(u[0], whole[: u.shape[1]]) for whole in task.train) for u in contexts[:20])


@pytest.mark.parametrize(
    ("name", "tokenizer", "count"), [("relative", {}, 2), ("plane", {}, 4), ("plane", SQUARE, 8)], ids=str
)
def test_batches_between_walls_are_seen_in_all_views(name, tokenizer, count, monkeypatch):
    config = between_walls(CONFIGS[name], **tokenizer)
    task = forecast_task(config, replace(TRAINING, rollout=RolloutConfig(history=(2, 2), mirror=True)))
    axes = tuple(range(2, 2 + config.tokenizer.dims))
    seen: list[torch.Tensor] = []
    # Fields that have no symmetry of their own, and are not encoded.
    task.train = torch.randn(task.train.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(task.model, "encode", lambda u: seen.append(u) or u)
    ways = set()
    for step in range(100):
        seen.clear()
        task._tokens(step_generator(0, step), slice(None), paired=True)
        found = []
        for u in seen:
            images = {}
            for exchanged in (False, True) if count == 8 else (False,):
                for flips in range(2 ** len(axes)):
                    back = u.transpose(2, 3) if exchanged else u
                    back = back.flip([axis for i, axis in enumerate(axes) if flips >> i & 1])
                    images[exchanged, flips] = (back[:, None] == task.train[None]).flatten(2).all(-1).any(1).all()
            found.append([way for way, there in images.items() if there])
        assert len(found[0]) == 1
        assert found[0] == found[1], "context and target are seen in the same view"
        ways.add(found[0][0])
    assert len(ways) == count


def test_environments_are_drawn_in_proportion_to_powers_of_their_parameters(monkeypatch):
    """Here to 1 / (rate speed^2): a quarter as often where the speed is doubled, twice where the rate is halved."""
    rollout = RolloutConfig(history=(2, 2), emphasis=(("rate", -1.0), ("speed", -2.0)))
    plain = forecast_task("relative", replace(TRAINING, rollout=RolloutConfig(history=(2, 2))))
    rows, groups = len(plain.train), plain.groups
    speed, rate = torch.ones(rows), torch.ones(rows)
    speed[groups[0]], rate[groups[1]] = 2.0, 0.5
    parameters = {"speed": speed.numpy(), "rate": rate.numpy()}
    task = forecast_task("relative", replace(TRAINING, batch=2_000, rollout=rollout), parameters=parameters)
    drawn = []
    monkeypatch.setattr(task, "_transformed", lambda rows, _: drawn.append(rows) or task.train[rows])
    monkeypatch.setattr(task.model, "encode", lambda u: u)
    task._tokens(step_generator(0, 0), slice(None), paired=True)
    context, target = drawn
    there = torch.tensor([[row in group for group in groups.tolist()] for row in target.tolist()])
    counts = there.double().mean(0)
    expected = torch.tensor([0.25, 2.0] + [1.0] * (len(groups) - 2))
    torch.testing.assert_close(counts, (expected / expected.sum()).double(), atol=0.03, rtol=0)
    assert all(row in groups[here.nonzero()[0, 0]].tolist() for row, here in zip(context.tolist(), there, strict=True))


@pytest.mark.parametrize(
    ("emphasis", "message"),
    [
        ((("nu", -1.0),), r"rollout\.emphasis: .* has no parameter 'nu' \(it has: speed\)$"),
        ((("speed", -1.0),), r"rollout\.emphasis: speed to the power of -1 is not above 0 and finite in all environ"),
        ((("speed", 0.5),), r"rollout\.emphasis: speed to the power of 0\.5 is not above 0 and finite"),
    ],
)
def test_an_emphasis_that_gives_no_odds_is_refused(emphasis, message):
    rows = len(forecast_task("relative").train)
    speed = np.linspace(-1, 1, rows)
    speed[rows // 2] = 0.0
    rollout = RolloutConfig(history=(2, 2), emphasis=emphasis)
    with pytest.raises(EnmaError, match=message):
        forecast_task("relative", replace(TRAINING, rollout=rollout), parameters={"speed": speed})


def test_a_periodic_domain_is_not_mirrored():
    with pytest.raises(EnmaError, match=r"^rollout\.mirror is for a domain between walls; plane has a periodic one"):
        forecast_task("plane", replace(TRAINING, rollout=RolloutConfig(history=(2, 2), mirror=True)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 1}, "rollout.members is 1; a score of ensembles needs at least 2"),
        ({"frames": 0}, "rollout.frames is 0; at least 1 is needed, or null for all"),
        ({"history": (3, 2)}, r"rollout.history is \[3, 2\]; two numbers from 1 on"),
        ({"weight_floor": 0.0}, "rollout.weight_floor is 0.0; a number above 0 is needed"),
        ({"first_draws": 0}, "rollout.first_draws is 0; at least 1 is needed"),
        ({"late_share": 1.5}, "rollout.late_share is 1.5; a number from 0 to 1 is needed"),
        ({"strides": ()}, r"rollout.strides is \[\]; whole numbers from 1 on are needed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(EnmaError, match=message):
        TrainingConfig(rollout=RolloutConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": (2, 5)}, r"rollout.history is \[2, 5\]; a trajectory has 5 latent frames"),
        ({"frames": 5}, "rollout.frames is 5; a trajectory has 5 latent frames, of which at most 4"),
        ({"strides": (1, 8)}, "rollout.strides: a stride of 8 from frame 0 on leaves 1 of 8 frames, none .* one$"),
        (
            {"strides": (5,), "late_share": 0.1},
            "rollout.strides: a stride of 5 from frame 3 on leaves 1 of 8 .* smaller one or rollout.late_share=0$",
        ),
    ],
)
def test_rollouts_longer_than_the_trajectories_are_refused(changes, message):
    with pytest.raises(EnmaError, match=message):
        forecast_task("relative", replace(TRAINING, rollout=RolloutConfig(**{"history": (2, 3)} | changes)))


@pytest.mark.parametrize("changes", [{"strides": (7,)}, {"strides": (1, 4), "late_share": 1.0}])
def test_the_largest_stride_that_is_not_refused_leaves_a_frame_to_forecast(changes):
    task = forecast_task("relative", replace(TRAINING, rollout=RolloutConfig(history=(2, 3), **changes)))
    frames = np.arange(task.train.shape[1])
    assert min(len(frames[task._window(step_generator(0, i))]) for i in range(60)) == 2
    for step in range(4):
        assert task.loss(task.module, step_generator(0, step), Rank())[0].isfinite()
