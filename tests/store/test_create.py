"""Creating and reading stores: what is written is read, with names, units and statistics."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from enma_fast.errors import EnmaError
from enma_fast.store import forecast_store
from enma_fast.store.compare import differences
from enma_fast.store.create import create_unfinished_store
from enma_fast.store.layout import LEDGER, TOGETHER, Layout
from enma_fast.store.ledger import Ledger
from enma_fast.store.metadata import read_metadata
from enma_fast.store.read import read_forecast, read_layout
from tests._made import create_store
from tests._stacked import stacked

from ._stores import CHANNELS, contents, layout, write


@pytest.mark.parametrize("space", [(7,), (4, 3)])
def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator, space: tuple[int, ...]) -> None:
    given = contents(rng, space)
    path = tmp_path / "new" / "run.zarr"
    write(path, given, first_member=10, attributes={"seed": 7, "command": "enma-fast forecast"})
    data = read_forecast(path)
    axes = ("x", "y")[: len(space)]
    assert data["u"].dims == ("trajectory", "realization", "time", *axes)
    for suffix, name in (("", "samples"), ("_observed", "observed"), ("_truth", "truth")):
        np.testing.assert_array_equal(stacked(data, suffix), given[name])
    np.testing.assert_array_equal(data["v"].sel(trajectory=8, realization=12), given["samples"][1, 2, ..., 1])
    np.testing.assert_array_equal(data["trajectory"], [3, 8, 11])
    np.testing.assert_array_equal(data["realization"], [10, 11, 12, 13])
    np.testing.assert_array_equal(data["time"], given["times"])
    np.testing.assert_array_equal(data["observed_time"], given["observed_times"])
    for name, values in zip(axes, given["coords"], strict=True):
        np.testing.assert_array_equal(data[name], values)
    for name, values in given["columns"].items():
        np.testing.assert_array_equal(data[name], values)
        assert data[name].dims == ("trajectory",)
    assert (data.attrs["seed"], data.attrs["channels"]) == (7, list(CHANNELS))
    assert data.attrs["history"] == "enma-fast forecast"
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.zarr"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("space", [(7,), (4, 3)])
def test_readings_are_kept_with_their_points(tmp_path: Path, rng: np.random.Generator, space: tuple[int, ...]) -> None:
    given = contents(rng, space)
    given["observed"] = rng.normal(size=(3, 2, 9, 2)).astype(np.float32)
    given["observed_coords"] = rng.uniform(size=(3, 2, 9, len(space))).astype(np.float32)
    given["observed_coords"][1, 0, 6:] = given["observed"][1, 0, 6:] = np.nan
    write(tmp_path / "run.zarr", given)
    data, axes = read_forecast(tmp_path / "run.zarr"), ("x", "y")[: len(space)]
    np.testing.assert_array_equal(stacked(data, "_observed"), given["observed"])
    for i, axis in enumerate(axes):
        np.testing.assert_array_equal(data[f"{axis}_observed"], given["observed_coords"][..., i])
    for name in ("v_observed", "x_observed"):
        assert data[name].dims == ("trajectory", "observed_time", "observed_point")
        assert data[name].attrs["units"] == "1"
    np.testing.assert_array_equal(data["observed_point"], range(9))
    assert data["observed_point"].dtype == np.int64
    np.testing.assert_array_equal(stacked(data), given["samples"])
    given["channels"] = ("x", "u")
    with pytest.raises(EnmaError, match=r"^'x' is"):
        write(tmp_path / "other.zarr", given)


def test_fields_and_statistics_have_the_units_of_the_data(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng) | {"units": {"u": "K"}, "statistics": True, "quantiles": (0.5,), "thresholds": (0.0,)}
    layout = {name: value for name, value in given.items() if name != "samples"}
    create_unfinished_store(tmp_path / "run.zarr", Layout(num_members=4, **layout))
    data = read_forecast(tmp_path / "run.zarr", partial=True)
    for kind in ("", "_observed", "_truth", "_mean", "_spread", "_quantile"):
        assert (data[f"u{kind}"].attrs["units"], data[f"v{kind}"].attrs["units"]) == ("K", "1"), kind
    # A share has none.
    assert data["u_exceedance"].attrs["units"] == "1"


@pytest.mark.filterwarnings("error")
def test_xarray_opens_it_with_cf_attributes_and_one_member_per_chunk(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "run.zarr"
    write(path, contents(rng))
    data = xarray.open_zarr(path, chunks=None)
    assert data.attrs["Conventions"].startswith("CF-")
    assert data["realization"].attrs["standard_name"] == "realization"
    assert data["trajectory"].attrs["cf_role"] == "trajectory_id"
    assert (data["time"].attrs["axis"], data["x"].attrs["axis"]) == ("T", "X")
    for name in ("u", "v", "u_truth", "v_observed", "time", "x", "alpha"):
        assert data[name].attrs["units"] == "1", name
        assert data[name].attrs["long_name"], name
    assert data["u"].encoding["chunks"] == (1, 1, 5, 7)
    assert len(list((path / "u").glob("c.*"))) == 12
    assert data["u"].dtype == np.float32
    metadata = json.loads((path / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3


def test_it_exports_to_netcdf(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng)
    write(tmp_path / "run.zarr", given, attributes={"versions": "torch 2"})
    read_forecast(tmp_path / "run.zarr").to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "run.nc", engine="h5netcdf") as data:
        np.testing.assert_array_equal(data["u"], given["samples"][..., 0])


def test_unknown_truth_and_history_are_left_out(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng)
    for name in ("observed", "observed_times", "truth", "columns"):
        del given[name]
    write(tmp_path / "run.zarr", given)
    data = read_forecast(tmp_path / "run.zarr")
    assert set(data.data_vars) == {"u", "v"}
    assert stacked(data, "_truth") is stacked(data, "_observed") is None


def test_what_was_not_put_is_nan(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng)
    samples = given.pop("samples")
    with create_store(tmp_path / "run.zarr", num_members=4, **given) as store:
        store.put(1, samples[1:2])
    read = stacked(read_forecast(tmp_path / "run.zarr"))
    assert np.isnan(read[[0, 2]]).all()
    np.testing.assert_array_equal(read[1], samples[1])


@pytest.mark.parametrize("shape", [(1, 3, 5, 7, 2), (1, 4, 5, 8, 2), (1, 4, 5, 7, 1), (2, 4, 5, 7, 2)])
def test_samples_of_another_shape_are_refused(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    given = contents(rng)
    del given["samples"]
    # The last shape fits, but not at the last place.
    with (
        pytest.raises(EnmaError, match="samples"),
        create_store(tmp_path / "run.zarr", num_members=4, **given) as store,
    ):
        store.put(2, np.zeros(shape))


def test_reading_what_is_no_forecast(tmp_path: Path) -> None:
    with pytest.raises(EnmaError, match=r"nowhere: .*folder"):
        read_forecast(tmp_path / "nowhere")
    with pytest.raises(EnmaError, match="Zarr store"):
        read_forecast(tmp_path)
    xarray.Dataset({"u": ("x", [1.0])}).to_zarr(tmp_path / "other.zarr", consolidated=True, zarr_format=2)
    with pytest.raises(EnmaError, match=r"other\.zarr: .*Zarr"):
        read_forecast(tmp_path / "other.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(EnmaError, match=r"broken\.zarr: .*read"):
        read_forecast(tmp_path / "broken.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enma_fast_forecast": 2}, "enma_fast_forecast"),
        ({"enma_fast_forecast": None}, "enma_fast_forecast"),
    ],
)
def test_reading_another_format(tmp_path: Path, rng: np.random.Generator, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.zarr"
    write(path, contents(rng))
    metadata = json.loads((path / "zarr.json").read_text())
    attributes = {**metadata["attributes"], **change}
    metadata["attributes"] = {key: value for key, value in attributes.items() if value is not None}
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(EnmaError, match=message):
        read_forecast(path)


STATISTICS = {"statistics": True, "quantiles": (0.1, 0.5), "thresholds": (0.0, 1.0, 2.0)}


@pytest.mark.parametrize("keep", [True, False])
def test_statistics_have_their_own_axes(tmp_path: Path, rng: np.random.Generator, keep: bool) -> None:
    path = tmp_path / "run.zarr"
    values = {
        name: rng.normal(size=(3, *own, 5, 7, 2)).astype(np.float32)
        for name, own in {"mean": (), "spread": (), "quantile": (2,), "exceedance": (3,)}.items()
    }
    with create_store(path, layout(rng, keep_members=keep, **STATISTICS)) as store:
        for b in range(3):
            store.put_statistics(b, {name: array[b] for name, array in values.items()})
        with pytest.raises(EnmaError, match="mean"):
            store.put_statistics(0, values)
    data = read_forecast(path)
    assert ("u" in data) == ("realization" in data.coords) == keep
    for name, array in values.items():
        np.testing.assert_array_equal(stacked(data, f"_{name}"), array)
    assert data["v_quantile"].dims == ("trajectory", "quantile", "time", "x")
    np.testing.assert_array_equal(data["u_quantile"].sel(quantile=0.5), values["quantile"][:, 1, ..., 0])
    np.testing.assert_array_equal(data["u_exceedance"].sel(threshold=2), values["exceedance"][:, 2, ..., 0])
    assert data["u_spread"].attrs["cell_methods"] == "realization: standard_deviation"


@pytest.mark.parametrize("shard", [2, 3, 4])
def test_shards_hold_several_members_in_a_file(tmp_path: Path, rng: np.random.Generator, shard: int) -> None:
    given = contents(rng)
    path = tmp_path / "run.zarr"
    write(path, given, shard=shard)
    np.testing.assert_array_equal(stacked(read_forecast(path)), given["samples"])
    assert len(list((path / "v").glob("c.*"))) == 3 * -(-4 // shard)
    with create_store(path, layout(rng, shard=shard), force=True) as store:
        for first, last in ((1, 3), (0, shard - 1), (2, 6)):
            with pytest.raises(EnmaError, match="whole shards"):
                store.add(0, range(first, last), np.zeros((last - first, 5, 7, 2), np.float32))


def test_members_are_read_back_from_arrays_that_are_opened_once(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, values = tmp_path / "run.zarr", rng.normal(size=(2, 4, 5, 7, 2)).astype(np.float32)
    create_unfinished_store(path, layout(rng))
    opened, open_group = [], zarr.open_group

    def opening(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return open_group(*arguments, **options)

    monkeypatch.setattr(zarr, "open_group", opening)
    store = forecast_store.ForecastStore(path, layout(rng))
    # What is written later, by whomever, is read all the same.
    for b in range(2):
        store.add(b, range(4), values[b])
        np.testing.assert_array_equal(store.get_members(b, 0, 4), values[b])
    other = forecast_store.ForecastStore(path, layout(rng))
    other.add(0, range(4), values[1])
    np.testing.assert_array_equal(store.get_members(0, 1, 3), values[1, 1:3])
    assert len(opened) == 1
    other.close()
    store.close()
    (path / "zarr.json").write_text("{}")
    with pytest.raises(EnmaError, match=r"run\.zarr: .*read"):
        store.get_members(0, 0, 4)


def test_a_laid_out_store_is_unfinished(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "run.zarr"
    create_unfinished_store(path, layout(rng, attributes={"command": "enma-fast forecast a.h5"}))
    with pytest.raises(EnmaError, match=r"run\.zarr: .*a\.h5"):
        read_forecast(path)
    assert np.isnan(stacked(read_forecast(path, partial=True))).all()
    assert not Ledger(path / LEDGER, 12).done().any()
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    # Nothing in it depends on when or where it was made.
    create_unfinished_store(tmp_path / "again.zarr", layout(np.random.default_rng(0), attributes={"command": "x"}))
    create_unfinished_store(tmp_path / "third.zarr", layout(np.random.default_rng(0), attributes={"command": "x"}))
    files = [
        sorted((p.relative_to(r), p.read_bytes()) for p in r.rglob("*") if p.is_file()) for r in tmp_path.glob("[at]*")
    ]
    assert files[0] == files[1]


def test_stores_are_told_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    path, own = tmp_path / "run.zarr", layout(rng, attributes={"seed": 3}, **STATISTICS)
    create_unfinished_store(path, own)
    assert differences(path, own) == []
    assert read_layout(path, read_metadata(path)).num_units == own.num_units == 15
    changed = {
        "attributes": ({"seed": 4}, "seed is 3 there, 4 here"),
        "num_members": (5, "num_members is 4 there, 5 here"),
        "first_member": (1, "first_member is 0 there, 1 here"),
        "shard": (2, "shard is 1 there, 2 here"),
        "keep_members": (False, "keeps is members, mean, spread, quantile, exceedance there, mean,"),
        "quantiles": ((0.2, 0.5), "quantiles is [0.1, 0.5] there, [0.2, 0.5] here"),
        "trajectories": ([3, 8, 12], "trajectories"),
        "times": (np.arange(5.0), "time"),
        "coords": ([np.arange(7.0)], "coordinate x"),
    }
    for name, (value, message) in changed.items():
        (told,) = differences(path, replace(own, **{name: value}))
        assert message in told, name
    # Older stores do not say what follows from the model.
    assert differences(path, replace(own, attributes={"seed": 3, TOGETHER: 2})) == []
    told = differences(path, replace(own, attributes={"seed": 3, "model_sha256": "0" * 64 + "a"}))
    assert told == [f"model_sha256 is nothing there, {'0' * 57}... here"]
    plane = replace(own, coords=[np.arange(7.0), np.arange(2.0)], observed=None, truth=None)
    assert any("coordinate y" in text for text in differences(path, plane))


def test_the_order_of_names_is_not_left_to_chance(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng)
    for name in ("samples", "observed", "truth"):
        given[name] = np.concatenate([given[name]] * 2, axis=-1)
    write(tmp_path / "run.zarr", {**given, "channels": ("u", "U", "V", "v")})
    root = json.loads((tmp_path / "run.zarr" / "zarr.json").read_text())
    arrays = list(root["consolidated_metadata"]["metadata"])
    assert arrays == sorted(arrays)
    assert {"u", "U", "V", "v", "U_truth", "u_truth"} <= set(arrays)
    np.testing.assert_array_equal(stacked(read_forecast(tmp_path / "run.zarr")), given["samples"])


def test_members_of_double_precision_are_rounded_on_the_way(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng)
    write(tmp_path / "single.zarr", given)
    write(tmp_path / "double.zarr", {**given, "samples": given["samples"].astype(np.float64)})
    for file in (tmp_path / "single.zarr").rglob("c.*"):
        assert file.read_bytes() == (tmp_path / "double.zarr" / file.relative_to(tmp_path / "single.zarr")).read_bytes()


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "__x"])
def test_a_channel_that_cannot_name_an_array(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    with pytest.raises(EnmaError, match=r"channel '.*'"):
        layout(rng, channels=("u", name))


def test_units_that_are_not_known_are_not_stated(tmp_path: Path, rng: np.random.Generator) -> None:
    given = contents(rng) | {
        "units": {"u": "K", "v": "K"},
        "statistics": True,
        "thresholds": (0.0,),
        "quantiles": (0.5,),
    }
    layout = {name: value for name, value in given.items() if name != "samples"}
    create_unfinished_store(tmp_path / "run.zarr", Layout(num_members=4, dimensionless=False, **layout))
    data = read_forecast(tmp_path / "run.zarr", partial=True)
    for name in ("time", "observed_time", "x", "alpha", "environment"):
        assert "units" not in data[name].attrs, name
    assert [data[name].attrs["units"] for name in ("realization", "quantile", "threshold")] == ["1", "1", "K"]
