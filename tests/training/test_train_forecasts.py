"""Training on whole forecasts: the scores are proper and fair, and training by them makes forecasts better."""

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.training.forecasts import scores
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import Rank

from .._tiny import forecast_task


def test_scores_are_the_fair_ones_by_hand():
    truth = torch.zeros(1, 1, 2, 1)
    members = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]).view(1, 3, 1, 2, 1)
    crps = scores(members, truth)
    # Per channel: mean |x - y| less the mean |x_i - x_j| of the three pairs, halved.
    assert crps.item() == pytest.approx(((3 + 0 + 6) / 3 - (3 + 3 + 6) / 6 + (4 + 0 + 8) / 3 - (4 + 4 + 8) / 6) / 2)


def test_two_equal_members_score_their_error():
    truth = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    same = truth[:, None].expand(-1, 2, -1, -1, -1) + 0.5
    assert torch.allclose(scores(same, truth), torch.full((4,), 0.5))
    apart = torch.stack([truth - 1, truth + 1], 1)
    assert torch.allclose(scores(apart, truth), torch.zeros(4), atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param("relative", marks=pytest.mark.slow), "relative-fast"])
def test_training_lowers_the_score_of_forecasts(name, tmp_path):
    changes = {"steps": 30, "batch": 8, "learning_rate": 1e-2, "history": (2, 2), "first_frame": 0.0}
    task = forecast_task(name, **changes)

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
    exact, weight = task.tokens(step_generator(0, 0), slice(None), paired=True)
    with torch.autocast("cpu", torch.bfloat16):
        again, same = task.tokens(step_generator(0, 0), slice(None), paired=True)
    assert torch.equal(weight, same)
    for z, other in zip(exact, again, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(z, other)


@pytest.mark.parametrize("paired", [False, True])
def test_only_frames_that_are_observed_or_forecast_are_encoded(paired, monkeypatch):
    task = forecast_task("relative", history=(2, 2), frames=1)
    whole, weight = task.tokens(step_generator(0, 0), slice(None), paired=paired)
    part, same = task.tokens(step_generator(0, 0), slice(None), paired=paired, latents=3)
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
    assert all(p.grad is None for p in task.model.codec.parameters())
    assert any(p.grad is not None for p in task.model.dynamics.parameters())


def test_members_from_the_truths_own_law_score_best():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20_000, 1, 2, 2, generator=generator)
    found = {}
    for spread in (0.5, 0.8, 1.0, 1.25, 2.0):
        members = spread * torch.randn(20_000, 2, 1, 2, 2, generator=generator)
        found[spread] = scores(members, truth).mean().item()
    assert min(found, key=found.get) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "forecasts: frames is 0"),
        ({"history": (3, 2)}, r"forecasts: history is \[3, 2\]"),
        ({"context_share": 1.5}, "forecasts: context_share is 1.5"),
        ({"history": (2, 5)}, r"forecasts: history is \[2, 5\]; a trajectory has 5 latent frames"),
        ({"frames": 5}, "forecasts: frames is 5; a trajectory has 5 latent frames, of which at most 4"),
    ],
)
def test_rollouts_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(EnmaError, match=message):
        forecast_task("relative", **changes)
