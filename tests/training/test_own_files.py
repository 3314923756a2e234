"""The user's own data in several files: environments that they share, one simulation each, constant channels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import FieldFile, ImportOptions, import_fields, read, write
from enma_fast.errors import EnmaError
from enma_fast.training import own_data
from enma_fast.training.card import tell_training

from .._own import advected, save
from .._tiny import model

LINE = ("trajectory", "time", "x")


def imported(out: Path, u: np.ndarray, environment: str | None = None, **columns: Any) -> Path:
    """A field file by way of a NumPy file."""
    np.savez(out.with_suffix(".npz"), u=u, **columns)
    return import_fields(
        out.with_suffix(".npz"), out, ImportOptions(axes=LINE, dt=0.05, spacing=(0.1,), environment=environment)
    )


def environments(splits: dict[str, FieldFile], name: str) -> list[set[float]]:
    return [set(data.parameters[name].tolist()) for data in splits.values()]


def test_a_model_keeps_the_units_of_its_training_data(tmp_path: Path) -> None:
    made = model()
    for unit, kept in (({"u": "m s-1"}, ("m s-1",)), ({}, ())):
        fields = {"u": advected(8)}
        path = write(
            tmp_path / "fields.h5",
            name="fields",
            times=0.05 * np.arange(fields["u"].shape[1]),
            coords=[np.arange(fields["u"].shape[2]) * 0.1],
            periodic=[True],
            scalars={"environment": np.zeros(8)},
            t0_fields=fields,
            units=unit,
        )
        tell_training(made, path)
        assert made.envelope is not None
        assert (made.envelope.channels, made.envelope.units) == (("u",), kept)


@pytest.mark.parametrize("named", [True, False])
def test_files_share_the_environments_of_equal_parameters(tmp_path: Path, named: bool) -> None:
    reynolds = np.repeat([100.0, 200, 300, 400, 500], 4)
    for i in range(2):
        data = read(
            imported(tmp_path / f"fp{i}.h5", advected(20, seed=i), "Re", Re=reynolds[:: 1 - 2 * i], batch=20 * [i])
        )
        assert data.environment_by == ("Re",)
        np.testing.assert_array_equal(data.parameters["Re"], reynolds[:: 1 - 2 * i])
        if not named:
            # As other programs write it.
            scalars = {"environment": data.environment + 7 * i, "Re": data.parameters["Re"]}
            save_as(data, scalars)
    splits = own_data.load_splits(tmp_path)
    found = environments(splits, "Re")
    assert sum(map(len, found)) == len(set.union(*found)) == 5
    assert {split: len(data) for split, data in splits.items()} == {"train": 24, "val": 8, "test-in": 8}
    assert len(np.unique(np.concatenate([data.environment for data in splits.values()]))) == 5


def save_as(data: FieldFile, scalars: dict[str, np.ndarray]) -> None:
    write(
        data.path,
        name=data.name,
        times=data.times,
        coords=data.coords,
        periodic=data.periodic,
        scalars=scalars,
        t0_fields={"u": data.u[..., 0]},
    )


def test_files_share_the_environments_of_equal_texts(tmp_path: Path) -> None:
    scenario = np.repeat(["a", "b", "c", "d", "e"], 4)
    number = np.repeat(np.arange(5), 4)
    for i in range(2):
        order = np.random.default_rng(i).permutation(20)
        imported(tmp_path / f"{i}.h5", advected(20, seed=i), "scenario", scenario=scenario[order], number=number[order])
    found = environments(own_data.load_splits(tmp_path), "number")
    assert sum(map(len, found)) == len(set.union(*found)) == 5


def test_files_of_different_columns_are_refused(tmp_path: Path) -> None:
    imported(tmp_path / "a.h5", advected(4), "Re", Re=[1, 1, 2, 2], nu=[1, 2, 3, 4])
    imported(tmp_path / "b.h5", advected(4, seed=1), "nu", Re=[1, 1, 2, 2], nu=[1, 2, 3, 4])
    with pytest.raises(EnmaError, match="environments"):
        own_data.load_splits(tmp_path)


def test_environments_without_parameters_are_those_of_their_file(tmp_path: Path) -> None:
    # Of a parameter that is not the same throughout an environment nothing follows.
    for i in range(2):
        imported(tmp_path / f"{i}.h5", advected(4, seed=i), environment=None, env_id=[3, 3, 5, 5], height=[1, 2, 1, 2])
    assert own_data.environment_sizes(own_data._joined([read(tmp_path / f"{i}.h5") for i in (0, 1)])).tolist() == 4 * [
        2
    ]


@pytest.mark.slow
def test_one_simulation_in_each_file(tmp_path: Path) -> None:
    for i in range(10):
        imported(tmp_path / f"{i}.h5", advected(1, seed=i))
    splits = own_data.load_splits(tmp_path)
    assert {split: len(data) for split, data in splits.items()} == {"train": 8, "val": 1, "test-in": 1}
    with pytest.raises(EnmaError, match="trajectory"):
        own_data.load_splits(tmp_path / "0.h5")


def test_a_channel_may_be_constant_in_some_files_only(tmp_path: Path) -> None:
    waves = advected(12)
    save(tmp_path / "a-train.h5", waves, np.where(np.arange(12)[:, None, None] < 11, waves, 3.0))
    save(tmp_path / "a-test.h5", waves[:3] + 1, np.full_like(waves[:3], 3.0))
    assert own_data.load_splits(tmp_path)["test-in"].u[..., 1].max() == 3
    save(tmp_path / "a-train.h5", waves, np.full_like(waves, 3.0))
    save(tmp_path / "a-test.h5", waves[:3] + 1, waves[:3])
    with pytest.raises(EnmaError) as caught:
        own_data.load_splits(tmp_path)
    said = str(caught.value)
    assert "v is" in said
    assert said.endswith(f"leave it out: enma-fast data import {tmp_path / 'a-train.h5'} --out NEW.h5 --fields u")
    # The advice works.
    new = import_fields(tmp_path / "a-train.h5", tmp_path / "NEW.h5", ImportOptions(fields=("u",)))
    assert own_data.load_splits(new)["train"].channels == ("u",)
