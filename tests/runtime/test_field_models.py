"""Field models in libenma: the members of Python, known inputs and masks, saved sessions, and what is refused."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import enma_fast
from enma_fast.models.checkpoint import save_model, write_manifest

from .._tiny_field import FRAMES, field_model, waves
from .._told import KNOWN, arrays
from ._libenma import (
    INVALID_ARGUMENT,
    UNSUPPORTED,
    Failure,
    Library,
    Model,
    assert_close,
    assert_restored_goes_on,
    run,
)
from ._programs import compiled
from .test_forecast import saved

LINE = {"floor": "waves", "grid": (16,)}
WALLS = {"floor": "vibration", "grid": (9, 7), "periodic": (False, True)}
PLANE = {"floor": "linear inverse model", "grid": (8, 6), "periodic": (True, False), "channels": 2, "block": 2}
TOLD = {"floor": "diffusion", "grid": (6, 8), "periodic": (True, False), "known": KNOWN}
MASKED = {"floor": "damped persistence", "grid": (8, 6), "periodic": (True, False), "channels": 2, "masked": True}
BOTH = {"floor": "linear inverse model", "grid": (13,), "periodic": (False,), "masked": True, "known": KNOWN[1:]}
EQUATION = {"floor": "equation", "grid": (8, 12), "periodic": (True, True), "channels": 2, "block": 2}
CASES = {
    "line": LINE,
    "plane": PLANE,
    "walls": WALLS,
    "equation": EQUATION,
    "told": TOLD,
    "masked": MASKED,
    "told-masked": BOTH,
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.fixture
def opened(case: dict, library: Library, tmp_path: Path) -> Model:
    return library.open(saved(field_model(**case), tmp_path / "it"))


def of_one(case: dict, frames: int = FRAMES, *, seed: int = 0) -> dict[str, np.ndarray]:
    """What a model is told of a trajectory, without axes along which it does not vary."""
    every = arrays(1, frames, grid=case["grid"], seed=seed)
    own = {driver.name: (driver.in_time, *[driver.in_space] * len(case["grid"])) for driver in case.get("known", ())}
    parts = {name: tuple(slice(None) if varies else 0 for varies in axes) for name, axes in own.items()}
    return {name: np.asarray(every[name][0][part]) for name, part in parts.items()}


def observed(case: dict, known: int, *, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """A history of so many frames, its context where it has to have one, and what is known of both."""
    made = field_model(**case)
    fields = waves(made.config, 2, seed=5).numpy()
    if made.codec.mask is not None:
        fields[:, :, ~made.codec.mask.numpy()] = np.nan
    if known >= 3:
        return fields[0, :known], None, {"known": of_one(case, frames)}
    told = {"known": of_one(case, frames), "context_known": of_one(case, seed=1)}
    return fields[0, :known], fields[1], told


@pytest.mark.parametrize("known", [1, 3, 5])
def test_members_are_those_of_python(case: dict, opened: Model, known: int) -> None:
    history, context, told = observed(case, known)
    asked = {"num_members": 3, "num_frames": 8 - known, "seed": 4}
    ensemble = enma_fast.forecast(field_model(**case), history, context=context, backend="native", **asked, **told)
    expected, found = ensemble.numpy(), opened.forecast(history, context, **asked, **told)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found).any() == ("masked" in case)
    assert_close(np.nan_to_num(found), np.nan_to_num(expected))


def test_threads_and_ranges_change_no_bit(case: dict, opened: Model) -> None:
    history, _, told = observed(case, 3)
    whole = opened.forecast(history, num_members=5, seed=1, **told)
    again = opened.forecast(history, num_members=5, seed=1, threads=3, **told)
    np.testing.assert_array_equal(again, whole)
    for first in range(5):
        one = opened.forecast(history, num_members=1, first_member=first, seed=1, threads=2, **told)
        np.testing.assert_array_equal(one[0], whole[first])


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_restored_session_continues_with_the_same_bits(case: dict, opened: Model, done: int) -> None:
    history, context, told = observed(case, 2)
    assert context is not None
    assert_restored_goes_on(opened, history, context, done=done, **told)


def test_a_saved_session_with_made_up_known_inputs_is_refused(told: Model) -> None:
    """With the digest that belongs to it; counts of frames at which a sum overflows are seen by sanitizers."""
    history, context, given = observed(TOLD, 2)
    session = told.session(num_members=2)
    session.observe(history, context, **given)
    session.step()
    state = session.save()
    points, values = 6 * 8, {name: np.size(array) for name, array in of_one(TOLD).items()}
    sizes = [8 + 4 * values[driver.name] for driver in KNOWN]
    # Known inputs of the context, then those of the history, each with its number of frames, end before the digest.
    places = len(state) - 32 - 2 * sum(sizes) + np.cumsum([0, *sizes, *sizes[:-1]])
    counts = [struct.unpack_from("<q", state, place)[0] for place in places]
    assert counts == 2 * [FRAMES if driver.in_time else 1 for driver in KNOWN]

    def refused(made_up: bytes, said: str) -> None:
        with pytest.raises(Failure, match=said):
            session.restore(made_up + hashlib.sha256(made_up).digest())

    for place, count in zip(places.tolist(), counts, strict=True):
        for value in (-(2**63), -1, 0, count - 1, 2**31, 2**61 // points, 2**62, 2**63 - 1):
            made_up = bytearray(state[:-32])
            struct.pack_into("<q", made_up, place, value)
            refused(bytes(made_up), "buffer: not a saved session")
        for value in (np.nan, np.inf):
            made_up = bytearray(state[:-32])
            struct.pack_into("<f", made_up, place + 8, value)
            refused(bytes(made_up), "buffer: holds a value that is not finite")
        refused(state[:place], "buffer: not a saved session|buffer: .* bytes do not fit")
        refused(state[: place + 8], "buffer: not a saved session")
    refused(state[:-33], "buffer: not a saved session")
    refused(state[:-32] + bytes(4), "buffer: .* bytes do not fit")
    # A refusal leaves the session as it was.
    assert session.save() == state


def test_members_that_are_stopped_change_no_other(case: dict, opened: Model) -> None:
    history, _, told = observed(case, 3)
    whole = opened.forecast(history, num_members=3, seed=1, **told)
    session = opened.session(num_members=3, seed=1)
    session.observe(history, **told)
    session.step()
    session.stop([1])
    left = session.forecast()
    np.testing.assert_array_equal(left[[0, 2]], whole[[0, 2], 1:])


def test_a_trajectory_of_which_nothing_is_known_is_refused(case: dict, opened: Model) -> None:
    history, context, told = observed(case, 1)
    session = opened.session()
    with pytest.raises(Failure, match="history"):
        session.observe(None, context, context_known=told["context_known"])
    session.observe(history, context, **told)
    assert np.isfinite(session.forecast()).all() == ("masked" not in case)


@pytest.fixture
def told(library: Library, tmp_path: Path) -> Model:
    return library.open(saved(field_model(**TOLD), tmp_path / "it"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nu": None, "heat": None}, r"nu .*\[8, 6, 8\]\)$"),
        ({"salt": np.array(1.0)}, "salt.*heat"),
        ({"nu": np.zeros(1)}, r"nu.*\[\]"),
        ({"depth": np.zeros((6, 7))}, r"depth.*\[6, 7\].*\[6, 8\]"),
        ({"wind": np.zeros(7)}, "wind.*7.*8"),
        ({"heat": np.zeros((7, 6, 8))}, "heat.*7.*8"),
        ({"heat": np.full((8, 6, 8), np.nan)}, "heat.*missing"),
        ({"wind": np.full(8, np.inf)}, "wind holds"),
        ({"wind": np.zeros(8, np.int32)}, "wind.*type"),
    ],
)
def test_known_inputs_that_are_not_as_in_training_are_refused(told: Model, change: dict, said: str) -> None:
    history, _, given = observed(TOLD, 3)
    known = {name: values for name, values in {**given["known"], **change}.items() if values is not None}
    session = told.session()
    with pytest.raises(Failure, match=f"^known.*{said}") as failure:
        session.observe(history, known=known)
    assert failure.value.status == INVALID_ARGUMENT
    # What was given well is kept, and a longer series is no mistake.
    session.observe(history, known={**given["known"], "wind": np.append(given["known"]["wind"], 9.0)})
    np.testing.assert_array_equal(session.forecast(), told.forecast(history, known=given["known"]))
    with pytest.raises(Failure, match=r"nu.*wind"):
        session.observe(history)


def test_a_context_has_known_inputs_of_its_own(told: Model) -> None:
    history, context, given = observed(TOLD, 1)
    with pytest.raises(Failure, match=r"^context_known.*\[8, 6, 8\]"):
        told.session().observe(history, context, known=given["known"])
    with pytest.raises(Failure, match="neither"):
        told.session().known("nu", None)


def test_models_of_fields_alone_take_nothing(library: Library, tmp_path: Path) -> None:
    session = library.open(saved(field_model(**LINE), tmp_path / "it")).session()
    with pytest.raises(Failure, match=r"nu.*nothing"):
        session.known("nu", np.array(0.1))


def test_what_is_told_has_no_views(told: Model) -> None:
    with pytest.raises(Failure, match="shifts"):
        told.session(shifts=2)


def test_land(library: Library, tmp_path: Path) -> None:
    """What lies there is not read, neither of frames nor of drivers; a value that is missing elsewhere is refused."""
    made = field_model(**BOTH)
    mask = made.codec.mask.numpy()
    model = library.open(saved(made, tmp_path / "it"))
    history, _, told = observed(BOTH, 3)
    expected = model.forecast(history, **told)
    np.testing.assert_array_equal(np.isnan(expected), np.broadcast_to(~mask, expected.shape))
    filled = np.nan_to_num(history, nan=9.0)
    np.testing.assert_array_equal(model.forecast(filled, **told), expected)
    land = ~mask.all(-1)
    depth, known = told["known"]["depth"], told["known"]
    ones = [{**known, "depth": np.where(land, value, depth)} for value in (np.nan, float(made.drivers.mean[1]))]
    np.testing.assert_array_equal(*(model.forecast(history, known=each) for each in ones))
    filled[1, np.nonzero(mask)[0][0]] = np.nan
    with pytest.raises(Failure, match="frame 1"):
        model.forecast(filled, **told)


@pytest.mark.parametrize("case", [PLANE, TOLD], ids=["fields", "told"])
@pytest.mark.parametrize("language", ["c++17", "f2018"])
def test_known_inputs_in_cpp_and_in_fortran(case: dict, library: Library, tmp_path: Path, language: str) -> None:
    history, context, told = observed(case, 2)
    assert context is not None
    made = saved(field_model(**case), tmp_path / "it")
    expected = library.open(made).forecast(history, context, num_members=2, **told)
    parts = [history, context, *(x for given in told.values() for x in given.values())]
    np.concatenate([np.asarray(x, np.float32).ravel() for x in parts]).tofile(tmp_path / "given")
    program = compiled("known_main", language, library, tmp_path)
    run([program, str(made), str(tmp_path / "given"), str(tmp_path / "out"), "told" if "known" in case else "fields"])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", np.float32).reshape(expected.shape), expected)


def test_grids_of_three_axes_are_refused(library: Library, tmp_path: Path) -> None:
    made = field_model(grid=(4, 4, 6), periodic=(True,) * 3)
    with pytest.raises(Failure, match="grid") as failure:
        library.open(saved(made, tmp_path / "it"))
    assert failure.value.status == UNSUPPORTED


def test_walls_have_no_equation(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    save_model(field_model(**EQUATION), folder)
    config = json.loads((folder / "config.json").read_text())
    config["codec"]["periodic"] = [True, False]
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder)
    with pytest.raises(Failure, match="equation") as failure:
        library.open(folder)
    assert failure.value.status == UNSUPPORTED


def test_weights_are_fp32(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="fp32") as failure:
        library.open(saved(field_model(), tmp_path / "it"), number_format=1)
    assert failure.value.status == UNSUPPORTED
