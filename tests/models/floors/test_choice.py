"""The floor of a data set is the kind of its physics, and the simplest where nothing helps."""

import dataclasses
import math
import time

import pytest
import torch

from enma_fast.config import BlocksConfig
from enma_fast.models.floors import choice as choice_module
from enma_fast.models.floors.choice import choose, kinds

PLACE = torch.arange(24) / 24 * 2 * math.pi


def codec(*grid, ring=True):
    return BlocksConfig(grid=grid, lengths=(1.0,) * len(grid), periodic=(ring,) * len(grid), block=1, frames=1)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def carried(count=60):
    """Three waves carried at a speed that trajectories share by six."""
    speed, phase, size = (
        uniform(count // 6, 1, 1).repeat_interleave(6, 0),
        uniform(count, 3, 1, 1, seed=1),
        uniform(count, 3, 1, 1, seed=2),
    )
    time = torch.arange(10)[:, None]
    waves = [size[:, k] * (math.tau * phase[:, k] + (k + 1) * (PLACE - speed * time)).sin() for k in range(3)]
    return sum(waves)[..., None], torch.arange(count) // 6


def test_waves_that_are_carried():
    fields, environments = carried()
    choice = choose(fields, codec(24), environments=environments)
    assert choice.name == "waves"
    assert choice.right
    assert len(choice.errors["waves"]) == 2
    assert max(choice.errors["waves"]) < 3e-3 < min(choice.errors["persistence"])
    # Nothing is tried beyond what is right.
    assert "vibration" not in choice.errors


def test_strings_between_walls():
    k, size = torch.arange(1, 5), uniform(40, 1, 4)
    shape = torch.sin(math.pi * k[:, None] * (torch.arange(24) + 1) / 25)
    speed, time = 0.5 + uniform(40, 1, 1, seed=1), torch.arange(12)[:, None]
    fields = ((size * (speed * k * math.pi / 25 * time).cos()) @ shape)[..., None]
    choice = choose(fields, codec(24, ring=False))
    assert choice.name == "vibration"
    assert choice.errors["vibration"][0] < 0.02
    assert "waves" not in choice.errors


@pytest.mark.parametrize("noisy", [True, False])
def test_nothing_helps(noisy):
    """Steps of chance from frame to frame persist, and frames of chance return to their mean."""
    steps = torch.randn(40, 10, 24, 1, generator=torch.Generator().manual_seed(0))
    choice = choose(steps if noisy else steps.cumsum(1), codec(24, ring=False))
    assert choice.name == ("damped persistence" if noisy else "persistence")
    assert not choice.right


def test_where_fields_may_be_shifted_a_floor_that_knows_places_is_not_taken():
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(40, 24, 1, generator=generator)]
    for _ in range(9):
        frames.append(0.8 * frames[-1] + 0.3 * torch.randn(40, 24, 1, generator=generator))
    fields = torch.stack(frames, 1)
    # Time for all kinds but the search for an equation, which there is not.
    alone, shifted = (choose(fields, codec(24), shifted=moves, seconds=3) for moves in (False, True))
    assert alone.name == alone.best == shifted.best == "damped persistence"
    assert shifted.name == "persistence"


def test_no_more_time_is_spent_than_given():
    fields, _ = carried()
    assert list(choose(fields, codec(24), seconds=0).errors) == ["persistence"]


def test_a_search_that_takes_longer_than_is_left_is_given_up(monkeypatch):
    fields, _ = carried()
    # Frames of chance, of which no equation is found soon.
    fields = torch.randn(fields.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(choice_module, "_seconds", lambda floor, held, contexts: 0.0)
    begun = time.process_time()
    assert "equation" not in choose(fields, codec(24), seconds=2).errors
    assert time.process_time() - begun < 8


def test_narrow_axes_have_no_second_difference():
    assert "vibration" not in kinds(codec(4, 20, ring=False))
    assert "vibration" in kinds(codec(5, 20, ring=False))
    assert "waves" in kinds(codec(4, 20))


def test_of_many_trajectories_some_environments_are_enough():
    fields, environments = carried(900)
    choice = choose(fields, codec(24), environments=environments)
    assert choice.name == "waves"
    assert choice.right


def series(step, count=120, window=8):
    """Windows `[n, window, 24, 1]` of a series, and four folds of them that share no frames."""
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(24, generator=generator)]
    for _ in range(count):
        frames.append(step(frames[-1]) + 0.5 * torch.randn(24, generator=generator))
    windows = torch.stack(frames).unfold(0, window, 1).movedim(-1, 1)[..., None]
    rows = torch.arange(len(windows))
    blocks = rows.tensor_split(4)
    return windows, [(rows[(rows < block[0] - window) | (rows > block[-1] + window)], block) for block in blocks]


@pytest.mark.parametrize(
    ("count", "best", "taken"),
    [(60, "persistence", "damped persistence"), (120, "damped persistence", "multi-model mean")],
)
def test_of_a_short_series_chance_does_not_choose_the_floor(count, best, taken):
    fields, folds = series(lambda frame: 0.95 * frame, count)
    masked = dataclasses.replace(codec(24, ring=False), masked=True)
    choice = choose(fields, masked, folds=folds)
    assert choice.best == best
    assert choice.name == taken
    # Without folds there is nothing to tell chance from.
    assert choose(fields, masked).name == choice.best


def test_of_a_short_series_a_floor_that_is_surely_better_is_taken():
    turned = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)))[0]
    fields, folds = series(lambda frame: 0.95 * turned @ frame)
    choice = choose(fields, codec(24, ring=False), folds=folds)
    assert choice.name == choice.best == "linear inverse model"
