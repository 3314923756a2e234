"""Shifts of a periodic field, and mirror images: a member equals the plain member of the moved field, moved back."""

from dataclasses import replace

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast, stream
from enma_fast.forecasting.members import sample_fields
from enma_fast.sampling.shifts import View, shifted, views
from enma_fast.training.recipes import RECIPES

from .._tiny import CONFIGS, SAMPLING, SQUARE, between_walls, model, random_model, waves

SHIFTED = replace(SAMPLING, shifts=3)


def walled(name):
    return between_walls(CONFIGS[name])


def square():
    return between_walls(CONFIGS["plane"], **SQUARE)


@pytest.fixture(scope="module", params=["relative", "plane"])
def made(request):
    return model(request.param)


@pytest.fixture
def fields(made):
    return waves(2, 2, 8, made.config.codec)


@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_a_member_is_the_plain_member_of_the_moved_field(made, fields, task):
    history, context = {
        "temporal": (fields[:2, :3], None),
        "initial-value": (fields[:2, :1], fields[2:]),
        "generation": (None, fields[2:]),
    }[task]
    found = sample_fields(made, history, context=context, num_members=5, seed=3, settings=SHIFTED)
    moves = [view.amount for view in views(made.config, SHIFTED)]
    axes = (2, 3)[: made.config.codec.dims]
    for k in range(5):
        move = moves[k % 3]
        parts = [None if x is None else x.roll(move, axes) for x in (history, context)]
        alone = sample_fields(made, parts[0], context=parts[1], num_members=1, first_member=k, seed=3)
        expected = alone[:, 0].roll(tuple(-a for a in move), axes)
        assert torch.equal(found[:, k], expected), k


def test_members_alone_in_chunks_and_streamed_are_the_same(made, fields):
    def run(**changes):
        return sample_fields(made, fields[:2, :3], seed=1, settings=SHIFTED, **changes)

    whole = run(num_members=7)
    assert torch.equal(run(num_members=7, chunk=3), whole)
    assert torch.equal(run(num_members=1, first_member=5)[:, 0], whole[:, 5])
    streamed = torch.stack(list(stream(made, fields[:2, :3], num_members=7, seed=1, settings=SHIFTED)), 2)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)


def test_shifts_move_periodic_dimensions_by_different_parts_of_a_token():
    # Tokens of 4 points on a line of 32.
    assert views(CONFIGS["relative"], SHIFTED) == [View((0,)), View((3,)), View((6,))]
    # The second dimension of the plane ends in walls.
    assert {view.amount[1] for view in views(CONFIGS["plane"], SHIFTED)} == {0}
    assert views(CONFIGS["relative"], SAMPLING) == [View((0,))]


@pytest.mark.parametrize("name", ["combined-fast", "gray-scott-fast", "vorticity-fast"])
def test_every_number_of_shifts_has_as_many_parts_of_a_token(name):
    config = RECIPES[name].model
    points = config.codec.grid[0] // config.token_grid[0]
    for count in range(1, points + 1):
        seen = views(config, replace(SAMPLING, shifts=count))
        parts = [tuple(amount % points for amount in view.amount) for view in seen]
        assert len(set(parts)) == count
        assert len({part[0] for part in parts}) == count


def test_what_cannot_be_shifted_is_refused():
    made = model("relative")
    history = waves(2, 2, 8, made.config.codec)[:, :3]
    with pytest.raises(EnmaError, match=r"^shifts is 9; a token of relative has 4 grid points: use no more"):
        forecast(made, history, settings=replace(SAMPLING, shifts=9))
    for config, ways in ((walled("relative"), 2), (walled("plane"), 4), (square(), 8)):
        text = rf"^shifts is {ways + 1}; a field of {config.name}, between walls, .* in {ways} ways: use no more"
        with pytest.raises(EnmaError, match=text):
            views(config, replace(SAMPLING, shifts=ways + 1))
    # Dimensions of another length, or with other tokens, are no square.
    for codec, patch in (({"lengths": (1.0, 2.0)}, (2, 2)), ({}, (2, 1)), ({"grid": (8, 16)}, (1, 2))):
        other = square()
        other = replace(other, codec=replace(other.codec, **codec))
        other = replace(other, context=replace(other.context, patch=patch))
        with pytest.raises(EnmaError, match="in 4 ways"):
            views(other, replace(SAMPLING, shifts=5))


def test_between_walls_members_see_mirror_images():
    made, settings = random_model(walled("plane")), replace(SAMPLING, shifts=4)
    history = waves(1, 2, 8, made.config.codec)[:, :3]
    found = sample_fields(made, history, num_members=6, seed=3, settings=settings)
    mirrored: list[list[int]] = [[], [2], [3], [2, 3]]
    for k in range(6):
        axes = mirrored[k % 4]
        alone = sample_fields(made, history.flip(axes), num_members=1, first_member=k, seed=3)
        assert torch.equal(found[:, k], alone[:, 0].flip(axes)), k
    # A model knows nothing of mirrors by itself.
    plain = sample_fields(made, history, num_members=6, seed=3)
    assert (found[:, 1] - plain[:, 1]).abs().max() > 1e-3
    streamed = torch.stack(list(stream(made, history, num_members=6, seed=3, settings=settings)), 2)
    torch.testing.assert_close(streamed, found, rtol=1e-4, atol=1e-5)


def test_on_a_square_between_walls_they_see_its_dimensions_exchanged_too():
    made, settings = random_model(square()), replace(SAMPLING, shifts=8)
    history = waves(1, 2, 8, made.config.codec)[:, :3]
    found = sample_fields(made, history, num_members=9, seed=3, settings=settings)
    mirrored: list[list[int]] = [[], [2], [3], [2, 3]]
    for k in range(9):
        axes, other = mirrored[k % 4], k % 8 >= 4
        seen = history.flip(axes)
        alone = sample_fields(made, seen.transpose(2, 3) if other else seen, num_members=1, first_member=k, seed=3)
        plain = alone[:, 0].transpose(2, 3) if other else alone[:, 0]
        assert torch.equal(found[:, k], plain.flip(axes)), k
    for view in views(made.config, settings):
        seen = shifted(history, view, (False, False))
        assert torch.equal(shifted(seen, view, (False, False), back=True), history)
    streamed = torch.stack(list(stream(made, history, num_members=9, seed=3, settings=settings)), 2)
    torch.testing.assert_close(streamed, found, rtol=1e-4, atol=1e-5)


def test_a_line_between_walls_has_one_mirror_image():
    assert views(walled("relative"), replace(SAMPLING, shifts=2)) == [View((0,)), View((1,))]
    made = random_model(walled("relative"))
    history = waves(1, 1, 8, made.config.codec)[:, :3]
    found = sample_fields(made, history, num_members=2, settings=replace(SAMPLING, shifts=2))
    alone = sample_fields(made, history.flip(2), num_members=1, first_member=1)
    assert torch.equal(found[:, 1], alone[:, 0].flip(2))
