"""Shifts of a periodic field: a member equals the plain member of the shifted field, shifted back."""

from dataclasses import replace

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import forecast, stream
from enma_fast.forecasting.members import sample_fields
from enma_fast.sampling.shifts import shift_amounts

from .._tiny import CONFIGS, SAMPLING, model, waves

SHIFTED = replace(SAMPLING, shifts=3)


@pytest.fixture(scope="module", params=["relative", "plane"])
def made(request):
    return model(request.param)


@pytest.fixture
def fields(made):
    return waves(2, 2, 8, made.config.tokenizer)


@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_a_member_is_the_plain_member_of_the_moved_field(made, fields, task):
    history, context = {
        "temporal": (fields[:2, :3], None),
        "initial-value": (fields[:2, :1], fields[2:]),
        "generation": (None, fields[2:]),
    }[task]
    found = sample_fields(made, history, context=context, num_members=5, seed=3, settings=SHIFTED)
    moves = shift_amounts(made.config, SHIFTED)
    axes = (2, 3)[: made.config.tokenizer.dims]
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
    assert shift_amounts(CONFIGS["relative"], SHIFTED) == [(0,), (2,), (4,)]
    # The second dimension of the plane ends in walls.
    assert {move[1] for move in shift_amounts(CONFIGS["plane"], SHIFTED)} == {0}
    assert shift_amounts(CONFIGS["relative"], SAMPLING) == [(0,)]


def test_what_cannot_be_shifted_is_refused(fields):
    made = model("relative")
    history = waves(2, 2, 8, made.config.tokenizer)[:, :3]
    with pytest.raises(EnmaError, match=r"^shifts is 9; a token of relative has 4 grid points: use no more"):
        forecast(made, history, settings=replace(SAMPLING, shifts=9))
    closed = model("plane")
    closed.config = replace(closed.config, tokenizer=replace(closed.config.tokenizer, periodic=(False, False)))
    with pytest.raises(EnmaError, match=r"^shifts is 2; plane has no periodic dimension"):
        shift_amounts(closed.config, replace(SAMPLING, shifts=2))
