"""Models with an interpolation: frames observed at scattered points, the same or others in each frame."""

import ctypes
from ctypes import byref, pointer
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import enma_fast
from enma_fast.config import ModelConfig, PointsConfig
from enma_fast.models.checkpoint import save_model
from enma_fast.models.model import Model as Network
from enma_fast.training.recipes import RECIPES

from .._tiny import CONFIGS, SQUARE, between_walls, random_model, waves
from ._libenma import (
    INVALID_ARGUMENT,
    TOLERANCE,
    UNSUPPORTED,
    Failure,
    Library,
    Model,
    Observations,
    Tensor,
    assert_close,
    run,
)
from ._programs import compiled

LINE, PLANE = CONFIGS["points"], CONFIGS["plane-paper"]
ON_SQUARE = between_walls(PLANE, **SQUARE)


def opened(library: Library, network: Network, folder: Path) -> Model:
    save_model(network, folder)
    return library.open(folder)


def scattered(config: ModelConfig, frames: int, counts: list[int], *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points in the domain, both ends among them, and smooth values there: of `frames` frames, or rows of `counts`."""
    tokenizer = config.codec
    choose = np.random.default_rng(seed)
    lengths = np.array(tokenizer.lengths)
    points = (lengths * choose.random((sum(counts), len(lengths)))).astype(np.float32)
    points[:2] = [np.zeros(len(lengths)), lengths]
    phase = (points / lengths).sum(-1)[:, None] * 2 * np.pi + np.arange(tokenizer.field_channels)
    shape = (frames, *phase.shape) if frames else phase.shape
    time = 0.2 * np.arange(frames)[:, None, None] if frames else 0.0
    return points, np.broadcast_to(np.sin(phase - time), shape).astype(np.float32)


def with_units(config: ModelConfig, **changes: Any) -> ModelConfig:
    c = config.codec.field_channels
    codec = replace(config.codec, field_mean=(0.5, -1.0)[:c], field_scale=(2.0, 0.3)[:c])
    assert isinstance(codec, PointsConfig)
    return replace(config, codec=replace(codec, interpolation=replace(codec.interpolation, **changes)))


def compare_with_python(model: Model, network: Network, *, count: int, num_members: int) -> None:
    """Members from points that all frames share: of a history, a history with a context, and a context alone."""
    assert model.describe().scattered == 1
    points, values = scattered(network.config, 4, [count])
    context, options = values[::-1].copy(), {"num_members": num_members, "seed": 1}
    for history, other in ((values[:3], None), (values[:1], context), (None, context)):
        expected = enma_fast.forecast(network, history, context=other, points=points, **options).numpy()
        session = model.session(**options)
        session.observe_points(*(x if x is None else Observations.of(points, x) for x in (history, other)))
        assert_close(session.forecast(), expected)


@pytest.mark.parametrize(
    "config",
    [
        LINE,
        PLANE,
        with_units(LINE, features=20, heads=2),
        with_units(PLANE, features=9, heads=3, slopes=(1.0, 2.0, 3.0)),
    ],
    ids=["line", "plane", "line-units", "plane-units"],
)
def test_members_are_those_of_python(library: Library, tmp_path: Path, config: ModelConfig) -> None:
    """From points that all frames share: a history, a history with a context, and a context alone."""
    network = random_model(config)
    compare_with_python(opened(library, network, tmp_path / "it"), network, count=37, num_members=2)


@pytest.mark.parametrize("config", [RECIPES["combined-points-small"].model, PLANE], ids=lambda config: config.name)
def test_both_ways_round_no_worse_than_python(library: Library, tmp_path: Path, config: ModelConfig) -> None:
    """Points to latents, and latents to the field: beside float64 at most twice the error of Python's fp32."""
    network = random_model(config)
    model = opened(library, network, tmp_path / "it")
    points, values = scattered(config, 3, [90])
    session = model.session(num_frames=3)
    session.observe_points(Observations.of(points, values))
    found = torch.from_numpy(session.forecast())
    latents = torch.from_numpy(session.latents())
    observed, where = torch.from_numpy(values)[None], torch.from_numpy(points)
    whole = random_model(config).double()
    # A network in double computes attention by its reference.
    pairs = [
        (latents[:, :2], network.encode(observed, where), whole.encode(observed.double(), where.double())),
        (found, network.decode(latents)[:, 3:6], whole.decode(latents.double())[:, 3:6]),
    ]
    for ours, theirs, exact in pairs:
        error, allowed = (ours - exact).abs().max(), (theirs - exact).abs().max()
        assert error <= 2 * allowed + 1e-6 * exact.abs().max()


@pytest.mark.parametrize("config", [LINE, PLANE], ids=["line", "plane"])
@pytest.mark.parametrize("shifts", [None, 3])
def test_frames_on_the_grid(library: Library, tmp_path: Path, config: ModelConfig, shifts: int | None) -> None:
    config = replace(config, sampling=replace(config.sampling, shifts=shifts))
    network = random_model(config)
    fields = waves(2, 1, 4, config.codec).numpy()
    expected = enma_fast.forecast(network, fields[0, :3], context=fields[1], num_members=4).numpy()
    found = opened(library, network, tmp_path / "it").forecast(fields[0, :3], fields[1], num_members=4)
    assert_close(found, expected)


@pytest.fixture(scope="module")
def network() -> Network:
    return random_model(with_units(PLANE))


@pytest.fixture
def model(library: Library, network: Network, tmp_path: Path) -> Model:
    return opened(library, network, tmp_path / "it")


def forecast(model: Model, history: Observations, **options: Any) -> np.ndarray:
    session = model.session(**{"num_members": 3, **options})
    session.observe_points(history)
    return session.forecast()


def padded(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    """Rows of frames one after another as `[frames, most, ...]`, with NaN where a frame has fewer than others."""
    return pad_sequence(torch.from_numpy(rows).split(counts), batch_first=True, padding_value=float("nan")).numpy()


def test_every_frame_may_have_points_of_its_own(model: Model, network: Network) -> None:
    counts = [5, 1, 300, 18]
    points, values = scattered(network.config, 0, counts)
    found = forecast(model, Observations.of(points, values, counts))
    whole = enma_fast.forecast(network, padded(values, counts), points=padded(points, counts), num_members=3)
    assert_close(found, whole.numpy())


@pytest.mark.parametrize(
    ("config", "shifts"),
    [(LINE, 3), (PLANE, 3), (between_walls(LINE), 2), (between_walls(PLANE), 4), (ON_SQUARE, 8)],
    ids=["line", "plane", "line between walls", "plane between walls", "square between walls"],
)
def test_shifts_move_the_points(library: Library, tmp_path: Path, config: ModelConfig, shifts: int) -> None:
    config = replace(config, sampling=replace(config.sampling, shifts=shifts))
    network, counts = random_model(config), [5, 7, 30]
    points, values = scattered(config, 0, counts)
    found = forecast(
        opened(library, network, tmp_path / "it"), Observations.of(points, values, counts), num_members=shifts + 1
    )
    whole = enma_fast.forecast(network, padded(values, counts), points=padded(points, counts), num_members=shifts + 1)
    assert_close(found, whole.numpy())
    alone = replace(config.sampling, shifts=None)
    unmoved = enma_fast.forecast(
        network, padded(values, counts), points=padded(points, counts), num_members=2, settings=alone
    ).numpy()
    assert np.abs(found[0] - unmoved[0]).max() <= TOLERANCE * np.abs(unmoved).max()
    assert np.abs(found[1] - unmoved[1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("codec", "patch", "ways"),
    [
        ({}, (2, 2), 8),
        ({"lengths": (1.0, 2.0)}, (2, 2), 4),
        ({"grid": (8, 16)}, (1, 2), 4),
        ({}, (2, 1), 4),
    ],
)
def test_more_views_than_there_are_between_walls(
    library: Library, tmp_path: Path, codec: dict[str, Any], patch: tuple[int, int], ways: int
) -> None:
    config = between_walls(PLANE, **SQUARE | codec)
    config = replace(config, context=replace(config.context, patch=patch))
    made = opened(library, random_model(config), tmp_path / "it")
    made.session(shifts=ways)
    with pytest.raises(Failure, match=f"in {ways} ways: use no more"):
        made.session(shifts=ways + 1)
    with pytest.raises(Failure, match="use no more"):
        made.session(shifts=2**31 - 1)


def test_bits_do_not_depend_on_threads_or_on_how_points_are_given(model: Model, network: Network) -> None:
    points, values = scattered(network.config, 3, [41])
    whole = forecast(model, Observations.of(points, values))
    for threads in (2, 3):
        assert np.array_equal(forecast(model, Observations.of(points, values), threads=threads), whole)
    rows = (np.tile(points, (3, 1)), values.reshape(-1, 2))
    assert np.array_equal(forecast(model, Observations.of(*rows, [41] * 3)), whole)
    wide = [np.asfortranarray(x.astype(np.float64)) for x in (points, values)]
    assert np.array_equal(forecast(model, Observations.of(*wide)), whole)
    assert np.array_equal(forecast(model, Observations.of(points, values), first_member=1, num_members=2), whole[1:])


def test_duplicates_weigh_twice_as_in_python(model: Model, network: Network) -> None:
    points, values = scattered(network.config, 3, [12])
    twice = (np.concatenate([points, points[:3]]), np.concatenate([values, values[:, :3]], 1))
    found = forecast(model, Observations.of(*twice))
    assert_close(found, enma_fast.forecast(network, twice[1], points=twice[0], num_members=3).numpy())
    assert np.abs(found - forecast(model, Observations.of(points, values))).max() > 100 * TOLERANCE


def test_a_restored_session_goes_on_with_the_same_bits(model: Model, network: Network) -> None:
    points, values = scattered(network.config, 3, [12])
    session = model.session(num_members=2)
    session.observe_points(Observations.of(points, values))
    session.step()
    other = model.session(num_members=2, threads=2)
    other.restore(session.save())
    assert np.array_equal(other.forecast(), session.forecast())


def refused(status: int, message: str, model: Model, history: Observations | None, **options: Any) -> None:
    session = model.session(**options)
    with pytest.raises(Failure, match=message) as failure:
        session.observe_points(history)
    assert failure.value.status == status
    assert session.progress() == (0, 0)


def test_points_that_do_not_fit(model: Model, network: Network) -> None:
    points, values = scattered(network.config, 3, [8])

    def changed(place: tuple[int, int], value: float) -> Observations:
        moved = points.copy()
        moved[place] = value
        return Observations.of(moved, values)

    def bad(message: str, history: Observations | None, **options: Any) -> None:
        refused(INVALID_ARGUMENT, message, model, history, **options)

    rows = values.reshape(-1, 2)[:18]
    bad("both NULL", None)
    bad(r"history.points has 2\.5 in row 4; the domain is 0 to 2 along dimension 0", changed((4, 0), 2.5))
    bad(r"history.points has -0\.1 in row 0; the domain is 0 to 1 along dimension 1", changed((0, 1), -0.1))
    bad("history.points holds a value that is not finite, first in row 2", changed((2, 0), float("nan")))
    bad(r"history.points has shape \[8, 1\]; \[any, 2\]", Observations.of(points[:, :1], values))
    bad(r"history.values has shape \[3, 7, 2\]; \[any, 8, 2\]", Observations.of(points, values[:, 1:]))
    bad(r"history.values has shape \[3, 8, 1\]", Observations.of(points, values[..., :1]))
    bad(r"history.points has shape \[0, 2\]", Observations.of(points[:0], values[:, :0]))
    bad(
        "history.values holds a value that is not finite, first in frame 1",
        Observations.of(points, np.where(np.arange(3)[:, None, None] == 1, np.nan, values)),
    )
    bad("at least 3", Observations.of(points, values[:2]))
    some = np.tile(points, (3, 1))[:18]
    bad("history: frame 1 has 0 points", Observations.of(some, rows, [9, 0, 9]))
    bad("history: frame 2 has -1 points", Observations.of(some, rows, [9, 10, -1]))
    bad("history: frame 0 has 4611686018427387904 points", Observations.of(some, rows, [2**62, 2**62, 18]))
    bad(r"history.values has shape \[18, 2\]; \[19, 2\]", Observations.of(some, rows, [9, 1, 9]))
    for frames in (0, -1, 2**40):
        given = Observations.of(some, rows, [6, 6, 6])
        given.num_frames = frames
        bad(f"history.num_frames is {frames}", given)
    given = Observations.of(points, values)
    given.num_frames = 4
    bad("history.num_frames is 4; values has 3", given)
    bad("history.points is NULL", Observations(ctypes.sizeof(Observations), None, given.values))
    bad("history.values is NULL", Observations(ctypes.sizeof(Observations), given.points, None))
    bad("history.struct_size is 3", Observations(3, given.points, given.values))


def test_structs_of_other_versions(model: Model, network: Network) -> None:
    class Later(Observations):
        _fields_ = (("more", ctypes.c_int64),)

    points, values = scattered(network.config, 3, [8])
    tensors = [pointer(Tensor.of(x)) for x in (points, values)]
    later = Later(ctypes.sizeof(Later), *tensors)
    assert np.array_equal(forecast(model, later), forecast(model, Observations.of(points, values)))
    later.more = 1
    refused(UNSUPPORTED, "history sets a field that this version of libenma does not know", model, later)


def test_a_model_on_its_grid_alone_refuses_points(small: Model) -> None:
    points, values = scattered(LINE, 3, [8])
    assert small.describe().scattered == 0
    message = "history: the model 'relative-fast' has no interpolation, and its checkpoint no covariance; it works on"
    refused(INVALID_ARGUMENT, message, small, Observations.of(points, values))
    session = small.session()
    with pytest.raises(Failure, match="session is NULL"):
        small.library.call("session_observe_points", None, byref(Observations.of(points, values)), None)
    assert session.progress() == (0, 0)


def by_a_program(library: Library, model: Model, config: ModelConfig, folder: Path, language: str) -> None:
    """`points_main` gives the forecasts of the model in `folder / "it"` as the library does."""
    points, values = scattered(config, 3, [9])
    points.tofile(folder / "points")
    values.tofile(folder / "values")
    some = (np.concatenate([points[:3], points[:4], points]), np.concatenate([values[0, :3], values[1, :4], values[2]]))
    given = [Observations.of(points, values), Observations.of(*some, [3, 4, 9])]
    expected = [forecast(model, history, num_members=2) for history in given]
    session = model.session(num_members=2)
    session.observe_points(given[0], Observations.of(points[:5], values[:, :5]))
    expected.append(session.forecast())
    if not config.codec.at_points:
        expected.append(forecast(model, Observations.of(points, values, errors=[0.25]), num_members=2))
    program, out = compiled("points_main", language, library, folder), folder / "out"
    arguments = [str(folder / name) for name in ("it", "points", "values")]
    if language == "f2018":
        arguments.append("9")
    run([program, *arguments, str(out)])
    assert np.array_equal(np.fromfile(out, np.float32), np.concatenate([frames.ravel() for frames in expected]))


@pytest.mark.parametrize("language", ["c++17", "f2018"])
def test_points_in_cpp_and_in_fortran(
    library: Library, model: Model, network: Network, tmp_path: Path, language: str
) -> None:
    by_a_program(library, model, network.config, tmp_path, language)
