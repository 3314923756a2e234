"""Training the local head alone: what it changes, what its loss is, how far it rolls out, and what it refuses."""

import math
from collections import Counter

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models.decoders.decoder import next_past
from enma_fast.training.head import HeadStage, HeadTask, some_frames
from enma_fast.training.loop import RunOptions, run, step_generator
from enma_fast.training.ranks import Rank

from .._tiny import forecast_task

SETTINGS = {"steps": 60, "batch": 6, "learning_rate": 5e-3, "optimizer": "muon", "history": (2, 2), "frames": 2}


def task(name="line-fourier"):
    return forecast_task(name, make=HeadTask, kind=HeadStage, **SETTINGS)


def loss(one, step):
    return one.loss(one.module, step_generator(0, step), Rank())[0].item()


def test_training_lowers_the_loss_and_changes_the_head_alone(tmp_path):
    trained = task()
    before = {name: t.clone() for name, t in trained.model.state_dict().items()}
    with torch.no_grad():
        first = sum(loss(trained, step) for step in range(100, 110))
    run(trained, RunOptions(out=tmp_path, precision="fp32", validate_every=60, log_every=60))
    with torch.no_grad():
        assert sum(loss(trained, step) for step in range(100, 110)) < first + 10 * math.log(0.8)
    changed = {name for name, t in trained.model.state_dict().items() if not torch.equal(t, before[name])}
    head = {name.removeprefix("dynamics.step.") for name in changed}
    assert {f"dynamics.step.{name}" for name in head} == changed
    assert {name.partition(".")[0] for name in head} == {"frames", "blocks", "norm", "read"}
    assert "blocks.0.filter" in head


def test_members_differ_in_nothing_after_it():
    trained = task()
    features = trained.model.dynamics.step.features
    assert not features.weight.any()
    assert not features.bias.any()
    torch.nn.init.normal_(trained.model.dynamics.step.read.weight)
    scores = trained.validate()
    assert scores["rel_l2"] == pytest.approx(scores["rel_l2_member"], rel=1e-6)


def test_the_loss_in_words():
    """The log of the relative L2 of frames that the head makes one after the other, weighted by channel."""
    one = task("plane-fourier")
    dynamics, generator = one.model.dynamics, torch.Generator().manual_seed(0)
    torch.nn.init.normal_(dynamics.step.read.weight, std=0.3)
    config = one.model.config
    z = torch.randn(3, 4, config.num_tokens, config.token_channels, generator=generator)
    with torch.no_grad():
        found, terms = one.module(z, 2)
        past, errors = torch.stack([0 * z[:, 0], z[:, 0], z[:, 1]], 1), torch.zeros(3, 2)
        nothing = torch.zeros(3, config.num_tokens, config.context.width)
        for t in (2, 3):
            made = dynamics.step.tokens_of(nothing, past)
            for row in range(3):
                off, size = ((x[row] * dynamics.score_weight).square().sum().sqrt() for x in (made - z[:, t], z[:, t]))
                errors[row, t - 2] = off / size
            past = next_past(past, made)
    expected = sum(math.log(each.mean().item()) for each in errors) / 3
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert terms["relative"].item() == pytest.approx(math.exp(expected), rel=1e-5)


def test_batches_roll_out_powers_of_two():
    generator = torch.Generator().manual_seed(0)
    for most, expected in ((1, {1}), (4, {1, 2, 4}), (5, {1, 2, 4})):
        counts = Counter(some_frames(most, generator) for _ in range(600))
        assert set(counts) == expected
        assert min(counts.values()) > 600 / len(expected) * 0.75


def test_what_cannot_be_trained_alone_is_refused():
    with pytest.raises(EnmaError, match=r"^stage head\b"):
        task("relative")
