"""Training the tokenizer: shifts, observed points, validation, and a loss that falls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from enma_fast.errors import EnmaError
from enma_fast.models.model import Model
from enma_fast.training.augment import Emphasis, Scattered, Shift, roll
from enma_fast.training.loop import run, step_generator
from enma_fast.training.ranks import Rank
from enma_fast.training.tokenizer import TokenizerStage, TokenizerTask

from .._tiny import CONFIGS, stage, tokenizer_task, waves, waves_file
from ._run import LEARNING, options


@pytest.mark.parametrize("grid", [(6,), (5, 4)])
def test_rolling_moves_each_sample_by_its_own_shift(grid):
    u = torch.randn(3, 2, *grid, 2)
    shifts = [torch.tensor([0, 1, 7]), torch.tensor([2, 0, -1])][: len(grid)]
    expected = [u[i].roll([int(s[i]) for s in shifts], dims=tuple(range(1, 1 + len(grid)))) for i in range(3)]
    assert torch.equal(roll(u, shifts), torch.stack(expected))


def test_axes_without_a_shift_are_not_copied():
    u, none = torch.randn(3, 2, 5, 4, 2), torch.zeros(3, dtype=torch.int64)
    assert roll(u, [none, none]) is u
    assert torch.equal(roll(u, [none, none + 1]), u.roll(1, dims=3))


def test_observed_points_are_a_random_share():
    task = tokenizer_task("points", augment=(Scattered(share=1.0),))
    index, valid = task._observed(400, step_generator(0, 0))
    assert index.shape == valid.shape == (400, 32)
    assert torch.equal(index.sort(-1)[0], torch.arange(32).expand(400, -1))
    counts = valid.sum(-1)
    assert (counts.min(), counts.max()) == (6, 32)
    assert counts.float().mean() == pytest.approx(19.2, abs=1.0)
    # Any point as often as any other.
    often = torch.zeros(32).scatter_add_(0, index[valid], torch.ones(int(valid.sum()))) / 400
    assert (often - 19.2 / 32).abs().max() < 0.12


def test_tokenizer_validation_is_the_error_of_the_posterior_means():
    task = tokenizer_task("points")
    out = task.module.decode(task.module.encode(task.val), 8)
    expected = [((a - b).norm() / b.norm()).item() for a, b in zip(out, task.val, strict=True)]
    assert task.validate()["rel_l2"] == pytest.approx(sum(expected) / 3, rel=1e-5)


def windows_task(fields, parameters=None, **changes):
    """A task on these trajectories, which it does not move."""
    config = CONFIGS["relative"]
    data = replace(waves_file(config, fields), parameters=parameters or {}, environment=np.arange(len(fields)))
    trained = stage(TokenizerStage, config, **{"augment": ()} | changes)
    return TokenizerTask(Model(config), trained, train=data, val=fields)


def batch_of(fields, step=0, **changes):
    """Fields and noise that the tokenizer is given in a step."""
    seen = []

    class Spy(nn.Module):
        weight = nn.Parameter(torch.zeros(()))

        def forward(self, u, noise):
            seen.append((u, noise))
            return u.sum(), u.sum()

    task = windows_task(fields, **changes)
    task.loss(Spy(), step_generator(0, step), Rank())
    (batch,) = seen
    return batch


def test_the_tokenizer_sees_shifted_fields():
    fields = waves(1, 1, 3, CONFIGS["relative"].codec)
    (moved, noise), (plain, _) = (batch_of(fields, batch=64, augment=augment) for augment in ((Shift(),), ()))
    assert torch.equal(plain, fields.expand(64, -1, -1, -1))
    turns = torch.stack([fields[0].roll(s, dims=1) for s in range(32)])
    which = [(turns - u).abs().amax((1, 2, 3)).argmin().item() for u in moved]
    assert all(torch.equal(turns[s], u) for s, u in zip(which, moved, strict=True))
    assert len(set(which)) > 20
    assert noise.shape == (64, 2, 16, 2)
    assert noise.std() == pytest.approx(1.0, abs=0.05)


def test_trajectories_are_drawn_by_their_odds():
    fields = waves(3, 1, 3, CONFIGS["relative"].codec)
    parameters = {"rate": np.array([1.0, 2.0, 4.0])}
    u, _ = batch_of(fields, batch=2_000, parameters=parameters, augment=(Emphasis(powers=(("rate", -1.0),)),))
    counts = [(u == one).flatten(1).all(1).double().mean().item() for one in fields]
    assert counts == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.04)


def test_a_window_is_frames_in_a_row_from_any_one_on():
    fields = waves(1, 1, 7, CONFIGS["relative"].codec)
    u, noise = batch_of(fields, batch=64, window=3)
    parts = fields[0].unfold(0, 3, 1).movedim(-1, 1)
    begins = {next(i for i, part in enumerate(parts) if torch.equal(part, sample)) for sample in u}
    assert begins == set(range(5))
    assert noise.shape == (64, 2, 16, 2)
    with pytest.raises(EnmaError, match="window=8: trajectories have 7 frames"):
        windows_task(fields, window=8)


def test_some_windows_fill_the_last_latent_as_trajectories_do():
    for frames, expected in ((7, {5}), (8, {4, 5})):
        fields = waves(1, 2, frames, CONFIGS["relative"].codec)
        found = [batch_of(fields, step, batch=2, window=5) for step in range(60)]
        counts = [u.shape[1] for u, _ in found]
        assert set(counts) == expected
        assert {noise.shape[1] for _, noise in found} == {3}
        assert counts.count(4) <= 30


@pytest.mark.slow
def test_the_tokenizer_learns(tmp_path):
    task = tokenizer_task("relative", **LEARNING)
    before = task.validate()["rel_l2"]
    after = run(task, options(tmp_path, validate_every=1000))["rel_l2"]
    assert after < 0.5 * before
