"""Forecasts of models that are told more than fields: arrays, files and stores, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import Scores
from enma_fast.evaluation.scoring import score
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest

from .._tiny import CONFIGS
from .._tiny import model as other
from .._told import GRID, arrays, field_file, model


@pytest.fixture
def told():
    """A model whose network counts in every forecast."""
    made = model()
    made.drivers.learn(arrays())
    return made


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enma_fast.models.field_step.known_share", lambda correction, off: torch.ones(len(off)))


def test_every_way_of_giving_a_driver_is_the_same_forecast(told) -> None:
    data, given = field_file(), arrays()
    expected = enma_fast.forecast(told, data.u[:, :3], num_members=2, known=given).numpy()
    short = {"nu": given["nu"].ravel(), "wind": given["wind"].ravel()}
    short |= {"depth": given["depth"][0, 0], "heat": given["heat"]}
    for known in (short, {name: torch.tensor(values) for name, values in short.items()}):
        again = enma_fast.forecast(told, data.u[:, :3], num_members=2, known=known).numpy()
        np.testing.assert_array_equal(again, expected)
    forecast = FileForecast(told, data, ForecastRequest(num_members=2))
    forecast.check()
    for part, values in forecast.samples():
        np.testing.assert_array_equal(values, expected[part])
    single = {**short, "nu": given["nu"][1, 0, 0, 0], "heat": given["heat"][1]}
    one = enma_fast.forecast(told, data.u[1, :3], num_members=2, trajectories=[1], known=single)
    np.testing.assert_allclose(one.numpy(), expected[1], rtol=1e-5, atol=1e-5)
    streamed = list(enma_fast.stream(told, data.u[:, :3], num_members=2, known=given))
    np.testing.assert_allclose(np.stack(streamed, 2), expected, rtol=1e-5, atol=1e-5)
    xarray = pytest.importorskip("xarray", reason="needs the [store] extra")
    heat = xarray.DataArray(given["heat"], dims=("trajectory", "time", "x", "y"))
    heat = heat.transpose("y", "time", "x", "trajectory")
    again = enma_fast.forecast(told, data.u[:, :3], num_members=2, known={**short, "heat": heat}).numpy()
    np.testing.assert_array_equal(again, expected)


def test_a_parameter_of_a_file_need_not_be_marked(told) -> None:
    data = field_file()
    nu = data.known.pop("nu").ravel()
    plain = FileForecast(told, field_file(), ForecastRequest(num_members=1))
    as_column = FileForecast(told, replace(data, parameters={"nu": nu}), ForecastRequest(num_members=1))
    as_column.check()
    for (_, a), (_, b) in zip(plain.samples(), as_column.samples(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nu": None}, r"nu \(parameter \[B\]\)$"),
        ({"salt": 1.0}, "told salt"),
        ({"heat": np.zeros((3, 7, *GRID))}, "heat.*7.*8"),
        ({"nu": np.zeros(4)}, "nu.*4.*3"),
        ({"depth": np.zeros((4, 6))}, "depth.*4 x 6.*6 x 4"),
        ({"wind": np.zeros((2, 3, 8))}, r"wind.*\[2, 3, 8\].*\[B, 8\]"),
        ({"depth": np.full(GRID, np.nan)}, "depth.*missing"),
        ({"nu": np.array("a")}, "nu.*real"),
    ],
)
def test_what_is_not_known_as_it_has_to_be_is_refused(told, change: dict, said: str) -> None:
    given = {name: values for name, values in {**arrays(), **change}.items() if values is not None}
    with pytest.raises(EnmaError, match=said):
        enma_fast.forecast(told, field_file().u[:, :3], num_members=1, known=given)


def test_a_forcing_has_to_reach_as_far_as_the_forecast(told) -> None:
    data = field_file()
    request = ForecastRequest(num_members=1, num_frames=9)
    with pytest.raises(EnmaError, match=r"wind.*8.*12"):
        FileForecast(told, data, request).check()
    longer = replace(data, known={name: np.asarray(x, np.float32) for name, x in arrays(frames=12).items()})
    FileForecast(told, longer, request).check()
    with pytest.raises(EnmaError, match=r"lacks.*nu"):
        FileForecast(told, replace(data, known={}), ForecastRequest()).check()


def test_models_of_fields_alone_take_nothing() -> None:
    made = other("relative")
    with pytest.raises(EnmaError, match="told nu"):
        enma_fast.forecast(made, np.zeros((3, *CONFIGS["relative"].codec.grid, 1), np.float32), known={"nu": 1.0})


def test_scores_are_of_the_places_with_values() -> None:
    made = model((), masked=True)
    there = np.ones((*GRID, 1), bool)
    there[1:3, 2] = False
    made.codec.take_mask(there)
    u = np.where(there, field_file().u, np.float32(np.nan))
    data = field_file(u=u, known={})
    found = score(made, data, num_members=3)
    members = enma_fast.forecast(made, u[:, :3], num_members=3).numpy()
    assert np.isnan(members[..., ~there]).all()
    scores = Scores()
    scores.update(members[..., there, None], u[:, 3:][..., there, None], u[:, :3][..., there, None])
    expected = scores.result()
    for name in ("rel_l2", "crps", "rmse", "spread"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    # What lies on land is not read.
    again = enma_fast.forecast(made, np.nan_to_num(u[:, :3], nan=9.0), num_members=3).numpy()
    np.testing.assert_array_equal(again, members)
    other_land = u.copy()
    other_land[:, :, 4, :3] = np.nan
    with pytest.raises(EnmaError, match="3 places"):
        FileForecast(made, replace(data, u=other_land), ForecastRequest()).check()
    with pytest.raises(EnmaError, match="not finite"):
        enma_fast.forecast(made, other_land[:, :3], num_members=3)


def test_views_of_a_model_that_is_told_are_refused(told) -> None:
    walls = replace(told.config, codec=replace(told.config.codec, periodic=(False, False)))
    made = type(told)(walls).eval()
    settings = replace(walls.sampling, shifts=2)
    with pytest.raises(EnmaError, match="shifts"):
        enma_fast.forecast(made, field_file().u[:, :3], known=arrays(), settings=settings, num_members=2)
