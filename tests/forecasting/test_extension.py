"""Finished forecasts that go on: the frames that are there stay, and the others are those of a longer forecast."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

import enma_fast
from enma_fast.data import FieldFile, read
from enma_fast.errors import EnmaError
from enma_fast.forecasting import store_layout
from enma_fast.forecasting.extension import BESIDE
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.runs import prepare as module
from enma_fast.store.read import read_forecast
from tests._stacked import stacked

from .. import _told
from .._files import contents
from ..models.test_field_decoder import carried, model, shaken


@pytest.mark.parametrize("observed", [3, 5])
def test_members_of_a_field_model_go_on_as_if_forecast_at_once(observed: int) -> None:
    made, u = shaken(model(floor="persistence", noise=1, member=2)), carried(3, 10)
    torch.nn.init.normal_(made.dynamics.step.model.residuals, std=0.1)
    given: dict[str, Any] = {"num_members": 4, "seed": 5, "first_member": 2}
    short = enma_fast.forecast(made, u[:, :observed], num_frames=2, **given)
    long = enma_fast.forecast(made, u[:, :observed], num_frames=5, **given)
    further = enma_fast.forecast(made, u[:, :observed], num_frames=5, **given, earlier=short)
    assert torch.equal(further.values[:, :, :2], short.values)
    torch.testing.assert_close(further.values, long.values, rtol=1e-3, atol=1e-4)
    assert float(long.values.std(1).mean()) > 1e-2


def test_members_that_were_forecast_from_a_context_go_on() -> None:
    made, u = shaken(model(noise=1, member=2)), carried(2, 10)
    given: dict[str, Any] = {"num_members": 3, "context": u[1]}
    short = enma_fast.forecast(made, u[0, :1], num_frames=3, **given)
    further = enma_fast.forecast(made, u[0, :1], num_frames=6, **given, earlier=short)
    long = enma_fast.forecast(made, u[0, :1], num_frames=6, **given)
    assert further.values.shape == (3, 6, 16, 1)
    torch.testing.assert_close(further.values, long.values, rtol=1e-3, atol=1e-4)


def test_members_of_a_latent_model_go_on_from_their_own_frames(tiny: Path, test_in: Path) -> None:
    made, u = load_model(tiny), read(test_in).u[:2]
    given: dict[str, Any] = {"num_members": 3, "trajectories": [4, 7]}
    short = enma_fast.forecast(made, u[:, :3], num_frames=6, **given)
    further = enma_fast.forecast(made, u[:, :3], num_frames=12, **given, earlier=np.asarray(short))
    np.testing.assert_array_equal(np.asarray(further)[:, :, :6], short)
    for k in range(3):
        known = np.concatenate([u[:, :3], np.asarray(short)[:, k]], 1)
        alone = enma_fast.forecast(
            made, known, num_frames=6, num_members=1, first_member=k, trajectories=given["trajectories"]
        )
        np.testing.assert_array_equal(np.asarray(further)[:, k, 6:], np.asarray(alone)[:, 0])


def test_frames_of_other_members_are_refused(tiny: Path, test_in: Path) -> None:
    made, u = load_model(tiny), read(test_in).u[:1]
    short = np.asarray(enma_fast.forecast(made, u[:, :3], num_frames=4, num_members=2))
    for wrong, frames in ((short[:, :1], 6), (short, 4), (short * np.nan, 6), (short[..., :-1, :], 6)):
        with pytest.raises(EnmaError, match="earlier"):
            enma_fast.forecast(made, u[:, :3], num_frames=frames, num_members=2, earlier=wrong)


@pytest.fixture(scope="module")
def fields(test_in: Path) -> FieldFile:
    return read(test_in)


def run(fields: FieldFile, out: Path, tiny: Path, frames: int, **options: Any) -> xarray.Dataset:
    names = ("num_members", "seed", "trajectories", "chunk")
    request = enma_fast.forecasting.request.ForecastRequest(
        num_frames=frames, **{name: options.pop(name) for name in names if name in options}
    )
    module.prepare(fields, out, request, checkpoint=tiny, **options).execute()
    return read_forecast(out)


def test_a_store_is_extended_by_another_one(fields: FieldFile, tmp_path: Path, tiny: Path) -> None:
    common: dict[str, Any] = {"num_members": 5, "seed": 3}
    short = run(fields, tmp_path / "short.zarr", tiny, 6, trajectories=[1, 4, 9], **common)
    parts: dict[str, Any] = {"trajectories": [4, 9], "extend": tmp_path / "short.zarr", "quantiles": (0.5,)}
    long = run(fields, tmp_path / "long.zarr", tiny, 12, **common, **parts)
    values = stacked(long)
    assert values.shape[2] == 12
    np.testing.assert_array_equal(values[:, :, :6], stacked(short)[1:])
    known = np.concatenate([fields.u[4, None, :3], stacked(short)[1, 2][None]], 1)
    alone = enma_fast.forecast(
        load_model(tiny), known, num_frames=6, num_members=1, first_member=2, seed=3, trajectories=[4]
    )
    np.testing.assert_array_equal(values[0, 2, 6:], np.asarray(alone)[0, 0])
    np.testing.assert_allclose(long["u_mean"], long["u"].mean("realization"), rtol=1e-5, atol=1e-6)
    assert long.attrs["extends"] == "short.zarr, 6 frames"
    run(fields, tmp_path / "cut.zarr", tiny, 12, chunk=2, **common, **parts)
    assert contents(tmp_path / "long.zarr") == contents(tmp_path / "cut.zarr")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"num_members": 6}, "member"),
        ({"trajectories": [2]}, "trajectory"),
        ({"frames": 6}, "frames"),
        ({"out": "short.zarr"}, "another"),
        ({"values": 2.0}, "observed"),
    ],
)
def test_another_request_is_no_extension(
    fields: FieldFile, tmp_path: Path, tiny: Path, changes: dict[str, Any], named: str
) -> None:
    asked: dict[str, Any] = {"num_members": 2, "seed": 0, "trajectories": [1], "frames": 9, "out": "long.zarr"}
    short = {name: value for name, value in asked.items() if name not in ("frames", "out")}
    run(fields, tmp_path / "short.zarr", tiny, 6, **short)
    asked |= changes
    others = replace(fields, u=fields.u * asked.pop("values", 1.0))
    out, frames = tmp_path / asked.pop("out"), asked.pop("frames")
    with pytest.raises(EnmaError, match=named):
        run(others, out, tiny, frames, extend=tmp_path / "short.zarr", **asked)


@pytest.mark.parametrize("own", [False, True], ids=["a file of contexts", "contexts of the same file"])
def test_another_context_is_no_extension(
    fields: FieldFile, tmp_path: Path, tiny: Path, own: bool, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forecast(out: str, frames: int, values: float = 1.0, **options: Any) -> xarray.Dataset:
        scaled = replace(fields, u=fields.u * np.float32(values))
        # Observed frames stay; those that a context has beside them do not.
        scaled.u[:, :1] = fields.u[:, :1]
        data, context = (scaled, None) if own else (fields, scaled)
        request = enma_fast.forecasting.request.ForecastRequest(
            task=enma_fast.forecasting.request.INITIAL_VALUE, num_frames=frames, num_members=2, trajectories=[1, 4]
        )
        module.prepare(data, tmp_path / out, request, checkpoint=tiny, context=context, **options).execute()
        return read_forecast(tmp_path / out)

    short = forecast("short.zarr", 5)
    assert len(set(short.attrs[BESIDE])) == 2
    long = forecast("long.zarr", 8, extend=tmp_path / "short.zarr")
    np.testing.assert_array_equal(stacked(long)[:, :, :5], stacked(short))
    with pytest.raises(EnmaError, match="trajectory 1"):
        forecast("wrong.zarr", 8, values=1.5, extend=tmp_path / "short.zarr")
    # As stores of earlier versions are.
    monkeypatch.setattr(store_layout, "beside_hashes", lambda *given: [])
    forecast("old.zarr", 5)
    monkeypatch.undo()
    forecast("longer.zarr", 8, extend=tmp_path / "old.zarr")
    assert "does not say from which context" in caplog.text


def test_other_known_inputs_are_no_extension(tmp_path: Path) -> None:
    save_model(_told.model(), tmp_path / "told")
    data = _told.field_file(2, 8)

    def forecast(out: str, frames: int, data: FieldFile, **options: Any) -> xarray.Dataset:
        request = enma_fast.forecasting.request.ForecastRequest(num_frames=frames, num_members=2)
        module.prepare(data, tmp_path / out, request, checkpoint=tmp_path / "told", **options).execute()
        return read_forecast(tmp_path / out)

    def changed(frame: int) -> FieldFile:
        wind = data.known["wind"].copy()
        wind[:, frame] += 1
        return replace(data, known={**data.known, "wind": wind})

    forecast("short.zarr", 2, data)
    with pytest.raises(EnmaError, match="trajectory 0"):
        forecast("wrong.zarr", 4, changed(4), extend=tmp_path / "short.zarr")
    # What follows the frames that are there may be another forcing.
    assert stacked(forecast("long.zarr", 4, changed(5), extend=tmp_path / "short.zarr")).shape[2] == 4
