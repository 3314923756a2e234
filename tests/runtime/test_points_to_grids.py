"""Models that read grids, with the covariance of their fields, and frames observed at scattered points."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.config import ModelConfig
from enma_fast.models.checkpoint import COVARIANCE, load_model, save_model, write_manifest, write_tensors
from enma_fast.models.covariance import FieldCovariance
from enma_fast.models.model import Model as Network

from .._tiny import CONFIGS, SQUARE, between_walls, random_model, waves
from ._libenma import INVALID_ARGUMENT, Failure, Library, Model, Observations, assert_close
from .test_points import by_a_program, compare_with_python, padded, scattered

LINE, PLANE = CONFIGS["relative-fast"], CONFIGS["plane"]


def with_units(config: ModelConfig) -> ModelConfig:
    c = config.codec.field_channels
    return replace(config, codec=replace(config.codec, field_mean=(0.5, -1.0)[:c], field_scale=(2.0, 0.3)[:c]))


def opened(library: Library, config: ModelConfig, folder: Path) -> tuple[Model, Network]:
    """A model with the covariance of waves, by libenma and by Python."""
    network, tok = random_model(config), config.codec
    fields = waves(8, 2, 8, tok) + 0.05 * torch.randn(
        16, 8, *tok.grid, tok.field_channels, generator=torch.Generator().manual_seed(0)
    )
    network.covariance = FieldCovariance.of(fields.numpy(), lengths=tok.lengths, periodic=tok.periodic)
    save_model(network, folder)
    return library.open(folder), load_model(folder)


CASES = {
    "line": (LINE, None),
    "line-shifts": (LINE, 3),
    "plane-shifts": (PLANE, 3),
    "plane-units": (with_units(PLANE), None),
    "line-walls": (between_walls(LINE), 2),
    "square-walls": (between_walls(PLANE, **SQUARE), 8),
}


@pytest.mark.parametrize("name", CASES)
def test_members_are_those_of_python(library: Library, tmp_path: Path, name: str) -> None:
    """From points that all frames share, and from others in each frame: a history, a context, and both."""
    config, shifts = CASES[name]
    model, network = opened(library, replace(config, sampling=replace(config.sampling, shifts=shifts)), tmp_path / "it")
    compare_with_python(model, network, count=9, num_members=18)
    counts = [5, 1, 12, 7]
    points, values = scattered(config, 0, counts)
    expected = enma_fast.forecast(network, padded(values, counts), points=padded(points, counts), num_members=3)
    session = model.session(num_members=3)
    session.observe_points(Observations.of(points, values, counts))
    assert_close(session.forecast(), expected.numpy())
    # Members by their numbers, and by any threads.
    part = model.session(num_members=2, first_member=1, threads=2)
    part.observe_points(Observations.of(points, values, counts))
    session = model.session(num_members=3)
    session.observe_points(Observations.of(points, values, counts))
    assert np.array_equal(part.forecast(), session.forecast()[1:])


def test_a_context_that_is_cut_and_one_with_its_own_points(library: Library, tmp_path: Path) -> None:
    model, network = opened(library, replace(LINE, shortest_context=5), tmp_path / "it")
    counts, others = [6, 9], [4, 5, 6, 7, 4, 9]
    points, values = scattered(LINE, 0, counts)
    there, seen = scattered(LINE, 0, others, seed=1)
    session = model.session(num_members=2)
    session.observe_points(Observations.of(points[:6], values[:6], [6]), Observations.of(there, seen, others))
    expected = enma_fast.forecast(
        network,
        padded(values[:6], [6]),
        points=padded(points[:6], [6]),
        context=padded(seen, others),
        context_points=padded(there, others),
        num_members=2,
    )
    assert_close(session.forecast(), expected.numpy())


def test_a_session_on_points_and_on_the_grid(library: Library, tmp_path: Path) -> None:
    """One after the other, what is refused between them, and saved sessions of both."""
    model, _ = opened(library, replace(LINE, sampling=replace(LINE.sampling, shifts=3)), tmp_path / "it")
    points, values = scattered(LINE, 3, [9])
    fields = waves(1, 1, 3, LINE.codec)[0].numpy()
    session, other = model.session(num_members=20), model.session(num_members=20, threads=2)
    session.observe(fields)
    on_grid = session.forecast()
    session.observe_points(Observations.of(points, values))
    first = session.step()
    other.restore(session.save())
    rest = session.forecast()
    assert np.array_equal(other.forecast(), rest)
    with pytest.raises(Failure, match="the domain is 0 to"):
        session.observe_points(Observations.of(points + 100, values))
    assert session.progress()[0] == 1 + rest.shape[1]
    session.observe(fields)
    assert np.array_equal(session.forecast(), on_grid)
    session.observe_points(Observations.of(points, values))
    assert np.array_equal(session.step(), first)
    # Where nothing was drawn, a saved session is that of before.
    session.observe(fields)
    saved = session.save()
    other.restore(saved)
    assert np.array_equal(other.forecast(), on_grid)


@pytest.mark.parametrize("errors", [[0.3], [0.1, 0.4]])
def test_errors_of_values(library: Library, tmp_path: Path, errors: list[float]) -> None:
    model, network = opened(library, PLANE, tmp_path / "it")
    counts = [9, 30, 20]
    points, values = scattered(PLANE, 0, counts)
    found = {}
    for name, given in (("with", errors), ("without", [])):
        session = model.session(num_members=3)
        session.observe_points(Observations.of(points, values, counts, given))
        found[name] = session.forecast()
        expected = enma_fast.forecast(
            network,
            padded(values, counts),
            points=padded(points, counts),
            num_members=3,
            observation_error=given or 0.0,
        )
        assert_close(found[name], expected.numpy())
    assert np.abs(found["with"] - found["without"]).max() > 1e-3


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([1.0, 2.0, 3.0], "history.num_errors is 3; 1 or 2 is expected"),
        ([-1.0], "history.errors holds a number that is below 0 or not finite"),
        ([1.0, math.nan], "history.errors holds a number that is below 0 or not finite"),
    ],
)
def test_errors_that_are_none(library: Library, tmp_path: Path, errors: list[float], said: str) -> None:
    model, _ = opened(library, PLANE, tmp_path / "it")
    points, values = scattered(PLANE, 3, [9])
    with pytest.raises(Failure, match=said) as failure:
        model.session().observe_points(Observations.of(points, values, errors=errors))
    assert failure.value.status == INVALID_ARGUMENT
    given = Observations.of(points, values)
    given.num_errors = 1
    with pytest.raises(Failure, match=r"history\.errors is NULL; num_errors is 1"):
        model.session().observe_points(given)
    network = random_model(CONFIGS["plane-paper"])
    save_model(network, tmp_path / "attending")
    points, values = scattered(network.config, 3, [9])
    with pytest.raises(
        Failure, match=r"history\.errors: are those of a model without an interpolation; leave them out"
    ):
        library.open(tmp_path / "attending").session().observe_points(Observations.of(points, values, errors=[0.1]))


def test_values_that_are_no_such_fields_are_logged(library: Library, tmp_path: Path) -> None:
    model, _ = opened(library, LINE, tmp_path / "it")
    points, values = scattered(LINE, 3, [20])
    session = model.session()
    library.messages.clear()
    session.observe_points(Observations.of(points, values))
    assert not library.messages
    session.observe_points(Observations.of(points, 1000 * values))
    assert any("history: the values are no fields such as relative-fast" in m for _, m in library.messages)
    with pytest.raises(Failure, match="history: no field of finite values fits the values; check their unit"):
        session.observe_points(Observations.of(points, np.float32(3e38) * np.sign(values)))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("deviation", lambda x: -x, "deviation is below 0"),
        ("correlation", lambda x: x + 1.5, "a correlation not between 0 and 1"),
        ("deviation", lambda x: x[:-1], "deviation has shape"),
        ("mean", lambda x: x * math.nan, "holds a value that is not finite"),
    ],
)
def test_a_file_of_other_numbers_is_refused(library: Library, tmp_path: Path, name: str, change, said: str) -> None:
    _, network = opened(library, LINE, tmp_path / "it")
    assert network.covariance is not None
    tensors = {key: x.float() for key, x in network.covariance.tensors().items()}
    write_tensors(tmp_path / "it" / COVARIANCE, tensors | {name: change(tensors[name])})
    write_manifest(tmp_path / "it")
    with pytest.raises(Failure, match=said):
        library.open(tmp_path / "it")


def test_more_points_than_fit_together(library: Library, tmp_path: Path) -> None:
    model, network = opened(library, LINE, tmp_path / "it")
    points, values = scattered(LINE, 3, [2**14 + 1])
    said = "history: frame 0 has 16385 points; at most 16384 are estimated from together"
    with pytest.raises(Failure, match=said) as failure:
        model.session().observe_points(Observations.of(points, values))
    assert failure.value.status == INVALID_ARGUMENT
    with pytest.raises(enma_fast.EnmaError, match="points has 16385 points a frame; at most 16384 are estimated from"):
        enma_fast.forecast(network, values, points=points)


@pytest.mark.parametrize("language", ["c++17", "f2018"])
def test_points_in_cpp_and_in_fortran(library: Library, tmp_path: Path, language: str) -> None:
    model, network = opened(library, PLANE, tmp_path / "it")
    by_a_program(library, model, network.config, tmp_path, language)
