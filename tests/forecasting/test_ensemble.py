"""Statistics and selection of an ensemble, in each kind of array."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils._python_dispatch import TorchDispatchMode

from enma_fast.errors import EnmaError
from enma_fast.forecasting.ensemble import Ensemble
from enma_fast.forecasting.labels import Labels
from enma_fast.runs.statistics import Statistics

KINDS = ["numpy", "torch", "dataarray", "dataset"]


def ensemble_of(data, kind="numpy", *, batched=True, members=None, trajectories=None, **labels):
    B, K = data.shape[: 1 + batched] if batched else (1, data.shape[0])
    labels = Labels(
        kind=kind,
        members=members or tuple(range(K)),
        trajectories=trajectories or tuple(range(B)),
        batched=batched,
        interval=0.5,
        **{"start": 2.0, "coords": {"x": (("x",), np.arange(data.shape[-2]))}, "channels": ("a", "b")} | labels,
    )
    return Ensemble(torch.tensor(data) if kind == "torch" else data, labels)


def plain(values):
    """As numpy, channels last; the kind is checked where it matters."""
    if isinstance(values, xr.Dataset):
        return values.to_dataarray("channel").transpose(..., "channel").to_numpy()
    return np.asarray(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [True, False])
def test_statistics_are_those_of_numpy(rng, kind, batched):
    data = rng.normal(size=(2, 7, 3, 5, 2)).astype(np.float32)
    data = data if batched else data[0]
    ensemble = ensemble_of(data, kind, batched=batched)
    axis = int(batched)
    wide = data.astype(np.float64)
    levels, thresholds = [0.0, 0.1, 0.5, 0.93, 1.0], [-0.3, 0.4]
    above = np.stack([(data > level).mean(axis) for level in thresholds], axis)
    cases = [
        (ensemble.mean(), wide.mean(axis), None),
        (ensemble.spread(), wide.std(axis, ddof=1), None),
        (ensemble.quantile(0.3), np.quantile(wide, 0.3, axis=axis), None),
        (ensemble.quantile(levels), np.moveaxis(np.quantile(wide, levels, axis=axis), 0, axis), "quantile"),
        (ensemble.exceedance(0.4), above.take(1, axis), None),
        (ensemble.exceedance(thresholds), above, "threshold"),
    ]
    for found, expected, extra in cases:
        assert type(found) is type(ensemble.values)
        np.testing.assert_allclose(plain(found), expected, rtol=2e-6, atol=1e-6)
        if kind == "torch":
            assert found.dtype == torch.float32
        elif kind == "numpy":
            assert found.dtype == np.float32
        else:
            one = found["a"] if kind == "dataset" else found.isel(channel=0, drop=True)
            assert one.dims == (*("trajectory",) * batched, *(extra,) * (extra is not None), "time", "x")
            np.testing.assert_array_equal(one["time"], [2.0, 2.5, 3.0])
            assert "realization" not in one.coords
    if kind in ("dataarray", "dataset"):
        values = ensemble.values
        xr.testing.assert_allclose(ensemble.mean(), values.mean("realization"), rtol=1e-5, atol=1e-6)
        xr.testing.assert_allclose(ensemble.spread(), values.std("realization", ddof=1), rtol=1e-5)
        np.testing.assert_array_equal(ensemble.quantile(levels)["quantile"], levels)
        np.testing.assert_array_equal(ensemble.exceedance(thresholds)["threshold"], thresholds)
        assert ensemble.quantile(0.3)["quantile"].item() == 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_members", [3, 7])
def test_exceedance_has_the_bits_of_the_statistics_of_a_run(rng, kind, num_members):
    # The float32 of 0.1 is above 0.1, that of 0.7 below 0.7.
    data = rng.choice(np.float32([0.1, 0.7, 1.0]), size=(num_members, 3, 5, 2))
    thresholds = [0.1, 0.5, 0.7, 1.0]
    statistics = Statistics(data.shape[1:], thresholds=thresholds)
    statistics.update(data)
    ensemble = ensemble_of(data, kind, batched=False)
    found = plain(ensemble.exceedance(thresholds))
    np.testing.assert_array_equal(found, statistics.exceedance())
    np.testing.assert_array_equal(plain(ensemble.exceedance(0.1)), np.ones_like(found[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_a_stopped_member_are_nan(rng, kind):
    data = rng.normal(size=(4, 3, 5, 2)).astype(np.float32)
    data[2, 1:] = np.nan
    ensemble = ensemble_of(data, kind, batched=False)
    for found in (ensemble.mean(), ensemble.spread(), ensemble.quantile(0.0), ensemble.exceedance(-1e9)):
        assert np.isfinite(plain(found)[0]).all()
        assert np.isnan(plain(found)[1:]).all()
    left = ensemble.sel(member=[0, 1, 3])
    np.testing.assert_allclose(plain(left.mean()), data[[0, 1, 3]].mean(0), rtol=1e-5, atol=1e-6)


def test_torch_statistics_have_gradients(rng):
    ensemble = ensemble_of(rng.normal(size=(4, 3, 5, 2)).astype(np.float32), "torch", batched=False)
    ensemble.data.requires_grad_()
    ensemble.mean().sum().backward()
    assert torch.allclose(ensemble.data.grad, torch.full_like(ensemble.data, 0.25))


def test_the_spread_of_torch_has_gradients(rng):
    data = torch.tensor(rng.normal(size=(4, 3, 5, 2)).astype(np.float32), requires_grad=True)
    labels = ensemble_of(data.detach().numpy(), batched=False).labels
    Ensemble(data, replace(labels, kind="torch")).spread().square().sum().backward()
    expected = 2 / 3 * (data - data.mean(0)).detach()
    assert torch.allclose(data.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_statistics_take_little_memory_beside_the_members(rng, batched):
    data = rng.normal(size=(200, 3, 500, 2)).astype(np.float32)
    data = data[None] if batched else data
    ensemble = ensemble_of(data, batched=batched)
    for statistic in (ensemble.mean, ensemble.spread):
        tracemalloc.start()
        statistic()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 0.5 * data.nbytes

    class Largest(TorchDispatchMode):
        """Size of the largest tensor that is made."""

        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out._base is None:
                self.size = max(self.size, out.nbytes)
            return out

    tensors = ensemble_of(data, "torch", batched=batched)
    for statistic, same in ((tensors.mean, ensemble.mean), (tensors.spread, ensemble.spread)):
        with Largest() as largest:
            found = statistic()
        assert 0 < largest.size < 0.1 * data.nbytes
        np.testing.assert_allclose(plain(found), same(), rtol=2e-7)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("batched", [True, False])
def test_statistics_are_exact_to_the_last_digit(rng, kind, batched):
    data = (1000 + rng.normal(size=(2, 200, 3, 50, 2))).astype(np.float32)
    data = data if batched else data[0]
    ensemble, axis = ensemble_of(data, kind, batched=batched), int(batched)
    wide = data.astype(np.float64)
    for found, exact in ((ensemble.mean(), wide.mean(axis)), (ensemble.spread(), wide.std(axis, ddof=1))):
        np.testing.assert_array_equal(plain(found), exact.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_selection_goes_by_number(rng, kind):
    data = rng.normal(size=(3, 4, 2, 5, 2)).astype(np.float32)
    whole = ensemble_of(data, kind, members=(7, 8, 9, 10), trajectories=(30, 3, 12))
    one = whole.sel(member=9, trajectory=3)
    assert (one.members, one.trajectories, len(one)) == ((9,), (3,), 1)
    np.testing.assert_array_equal(plain(one.values), data[1, 2:3])
    assert one.torch().shape == (1, 2, 5, 2)
    several = whole.sel(member=[10, 7], trajectory=[12, 30])
    assert (several.members, several.trajectories) == ((10, 7), (12, 30))
    np.testing.assert_array_equal(plain(several.values), data[[2, 0]][:, [3, 0]])
    np.testing.assert_array_equal(whole.sel(member=np.arange(8, 10)).numpy(), data[:, 1:3])
    np.testing.assert_array_equal(whole.sel(trajectory=12).numpy(), data[2])
    np.testing.assert_array_equal(whole.sel().numpy(), data)
    np.testing.assert_array_equal(whole.sel(trajectory=12).sel(trajectory=[12]).numpy(), data[2:])
    if kind in ("dataarray", "dataset"):
        xr.testing.assert_identical(several.values, whole.values.sel(realization=[10, 7], trajectory=[12, 30]))
    with pytest.raises(EnmaError, match=r"^member 0"):
        whole.sel(member=0)
    with pytest.raises(EnmaError, match=r"^trajectory 4"):
        whole.sel(trajectory=[3, 4])
    with pytest.raises(EnmaError, match=r"^member is"):
        whole.sel(member=[])
    for wrong in (7.5, 7.0, True, "7"):
        with pytest.raises(EnmaError, match=rf"^member {wrong}"):
            whole.sel(member=wrong)
    with pytest.raises(EnmaError, match=r"^member names"):
        whole.sel(member=[7, 7])
    for question in (whole.quantile, whole.exceedance):
        with pytest.raises(EnmaError, match="'a'"):
            question("a")


@pytest.mark.parametrize("kind", KINDS)
def test_to_xarray_follows_the_conventions_of_a_store(rng, kind):
    data = rng.normal(size=(2, 4, 3, 5, 2)).astype(np.float32)
    dataset = ensemble_of(data, kind, members=(2, 3, 4, 5)).to_xarray()
    assert isinstance(dataset, xr.Dataset)
    assert list(dataset) == dataset.attrs["channels"] == ["a", "b"]
    assert dataset.attrs["Conventions"] == "CF-1.11"
    for c, name in enumerate("ab"):
        assert dataset[name].dims == ("trajectory", "realization", "time", "x")
        np.testing.assert_array_equal(dataset[name], data[..., c])
        assert dataset[name].attrs == {"long_name": f"forecast of {name}", "units": "1"}
    assert dataset["realization"].to_numpy().tolist() == [2, 3, 4, 5]
    assert dataset["realization"].attrs["standard_name"] == "realization"
    assert dataset["time"].to_numpy().tolist() == [2.0, 2.5, 3.0]
    assert dataset["time"].attrs["axis"] == "T"
    assert dataset["trajectory"].attrs["cf_role"] == "trajectory_id"
    assert dataset["x"].attrs == {"long_name": "position along x", "units": "1", "axis": "X"}


def test_an_ensemble_says_what_it_holds():
    data = np.zeros((2, 4, 3, 5, 2), np.float32)
    assert repr(ensemble_of(data)) == (
        "Ensemble([2, 4, 3, 5, 2] numpy: trajectory, realization, time, x, channel; members 0 to 3, times 2 to 3)"
    )
    one = ensemble_of(data[0], "torch", batched=False, start=None).sel(member=[1, 3])
    assert repr(one) == "Ensemble([2, 3, 5, 2] torch: realization, time, x, channel; members 1, 3)"
    with pytest.raises(AttributeError):
        one.data = data


def test_bad_questions_are_named(rng):
    ensemble = ensemble_of(rng.normal(size=(2, 1, 3, 5, 2)).astype(np.float32))
    with pytest.raises(EnmaError, match="spread"):
        ensemble.spread()
    for q in (1.5, -0.1, [0.5, np.nan], [], [[0.5]]):
        with pytest.raises(EnmaError, match=r"^q is"):
            ensemble.quantile(q)
    for threshold in (np.nan, []):
        with pytest.raises(EnmaError, match=r"^threshold"):
            ensemble.exceedance(threshold)


def test_labels_are_replaced_not_changed(rng):
    ensemble = ensemble_of(rng.normal(size=(2, 3, 1, 5, 2)).astype(np.float32))
    ensemble.sel(member=1)
    assert ensemble.labels.members == (0, 1, 2)
    assert replace(ensemble.labels, start=None).times(np.arange(2)) is None
