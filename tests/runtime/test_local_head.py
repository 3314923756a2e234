"""Sessions of a model with a local head: what it remembers of the past is neither lost nor mixed up."""

from pathlib import Path

import numpy as np
import pytest

from .._tiny import model, waves
from ._libenma import Library, Model, assert_restored_goes_on
from .test_forecast import saved

NAME = "plane-local"


@pytest.fixture
def opened(library: Library, tmp_path: Path) -> Model:
    return library.open(saved(model(NAME), tmp_path / "it"))


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_a_restored_session_continues_with_the_same_bits(opened: Model, done: int) -> None:
    fields = waves(2, 1, 8, model(NAME).config.codec).numpy()
    assert_restored_goes_on(opened, fields[0, :3], fields[1], done=done)


def test_threads_and_ranges_change_no_bit(opened: Model) -> None:
    history = waves(1, 1, 3, model(NAME).config.codec)[0].numpy()
    whole = opened.forecast(history, num_members=5, seed=1)
    for threads in (2, 3):
        assert np.array_equal(opened.forecast(history, num_members=5, seed=1, threads=threads), whole)
    for first in range(5):
        one = opened.forecast(history, num_members=1, first_member=first, seed=1, threads=2)
        assert np.array_equal(one[0], whole[first])


def test_what_was_observed_before_is_forgotten(opened: Model) -> None:
    fields = waves(2, 1, 8, model(NAME).config.codec).numpy()
    session = opened.session(num_members=2)
    session.observe(fields[0, :3])
    session.forecast()
    session.observe(fields[1, :1], fields[0])
    expected = opened.forecast(fields[1, :1], fields[0], num_members=2)
    assert np.array_equal(session.forecast(), expected)
