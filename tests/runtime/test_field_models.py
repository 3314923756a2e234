"""Field models in libenma: the members of Python, saved sessions, threads, stopped members, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

import enma_fast

from .._tiny_field import field_model, waves
from ._libenma import UNSUPPORTED, Failure, Library, Model, assert_close, assert_restored_goes_on
from .test_forecast import saved

LINE = {"floor": "waves", "grid": (16,)}
WALLS = {"floor": "vibration", "grid": (9, 7), "periodic": (False, True)}
PLANE = {"floor": "linear inverse model", "grid": (8, 6), "periodic": (True, False), "channels": 2, "block": 2}


@pytest.fixture(params=[LINE, PLANE, WALLS], ids=["line", "plane", "walls"])
def case(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.fixture
def opened(case: dict, library: Library, tmp_path: Path) -> Model:
    return library.open(saved(field_model(**case), tmp_path / "it"))


@pytest.mark.parametrize("known", [1, 3, 5])
def test_members_are_those_of_python(case: dict, opened: Model, known: int) -> None:
    made = field_model(**case)
    fields = waves(made.config, 2, seed=5).numpy()
    context = fields[1] if known < 3 else None
    asked = {"num_members": 3, "num_frames": 8 - known, "seed": 4}
    ensemble = enma_fast.forecast(made, fields[0, :known], context=context, backend="native", **asked)
    expected = ensemble.numpy()
    assert_close(opened.forecast(fields[0, :known], context, **asked), expected)


def test_threads_and_ranges_change_no_bit(case: dict, opened: Model) -> None:
    history = waves(field_model(**case).config, 1, 3, seed=5)[0].numpy()
    whole = opened.forecast(history, num_members=5, seed=1)
    assert np.array_equal(opened.forecast(history, num_members=5, seed=1, threads=3), whole)
    for first in range(5):
        one = opened.forecast(history, num_members=1, first_member=first, seed=1, threads=2)
        assert np.array_equal(one[0], whole[first])


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_restored_session_continues_with_the_same_bits(case: dict, opened: Model, done: int) -> None:
    fields = waves(field_model(**case).config, 2, seed=5).numpy()
    assert_restored_goes_on(opened, fields[0, :2], fields[1], done=done)


def test_members_that_are_stopped_change_no_other(case: dict, opened: Model) -> None:
    history = waves(field_model(**case).config, 1, 3, seed=5)[0].numpy()
    whole = opened.forecast(history, num_members=3, seed=1)
    session = opened.session(num_members=3, seed=1)
    session.observe(history)
    session.step()
    session.stop([1])
    left = session.forecast()
    assert np.array_equal(left[[0, 2]], whole[[0, 2], 1:])


def test_a_trajectory_of_which_nothing_is_known_is_refused(case: dict, opened: Model) -> None:
    context = waves(field_model(**case).config, 1)[0].numpy()
    session = opened.session()
    with pytest.raises(Failure, match="history"):
        session.observe(None, context)
    session.observe(context[:3])
    assert np.isfinite(session.forecast()).all()


def test_grids_of_three_axes_are_refused(library: Library, tmp_path: Path) -> None:
    made = field_model(grid=(4, 4, 6), periodic=(True,) * 3)
    with pytest.raises(Failure, match="grid") as failure:
        library.open(saved(made, tmp_path / "it"))
    assert failure.value.status == UNSUPPORTED


def test_weights_are_fp32(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="fp32") as failure:
        library.open(saved(field_model(), tmp_path / "it"), number_format=1)
    assert failure.value.status == UNSUPPORTED
