"""The user's own data: splits of one file and of several, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import write
from enma_fast.errors import EnmaError
from enma_fast.training import own_data

from .._own import advected, save


@pytest.mark.parametrize(("environments", "whole"), [(10, True), (2, False)])
def test_environments_stay_whole_where_there_are_enough(tmp_path: Path, environments: int, whole: bool) -> None:
    numbers = np.repeat(np.arange(environments), 40 // environments)
    splits = own_data.load_splits(save(tmp_path / "a.h5", advected(40), environment=numbers.tolist()))
    assert {split: len(data) for split, data in splits.items()} == {"train": 32, "val": 4, "test-in": 4}
    rows = np.concatenate([data.u for data in splits.values()])
    assert len(np.unique(rows.reshape(40, -1), axis=0)) == 40
    shared = set(splits["train"].environment.tolist()) & set(splits["test-in"].environment.tolist())
    assert bool(shared) != whole
    assert own_data.has_contexts(splits)
    assert not own_data.has_contexts(own_data.load_splits(save(tmp_path / "b.h5", advected(40))))


def test_windows_are_held_out_by_time_and_do_not_overlap(tmp_path: Path) -> None:
    first = np.arange(0, 40, 2)
    path = write(
        tmp_path / "series.h5",
        name="series",
        times=np.arange(8.0),
        coords=[np.arange(16.0)],
        periodic=[False],
        scalars={"environment": np.arange(20), "series": np.zeros(20), "first_frame": first},
        t0_fields={"u": advected(20)},
    )
    frames = {name: data.parameters["first_frame"] for name, data in own_data.load_splits(path).items()}
    assert frames["test-in"].tolist() == [36, 38]
    assert frames["val"].max() + 8 <= 36
    assert frames["train"].max() + 8 <= frames["val"].min()


@pytest.mark.parametrize(("environments", "each"), [(4, 40), (3, 20), (2, 15), (4, 6), (1, 30)])
def test_few_environments_are_in_every_split_with_a_context_each(tmp_path: Path, environments: int, each: int) -> None:
    numbers = np.repeat(np.arange(environments), each)
    path = save(tmp_path / "a.h5", advected(len(numbers)), environment=numbers.tolist())
    splits = own_data.load_splits(path)
    assert own_data.has_contexts(splits)
    share = {split: len(data) / len(numbers) for split, data in splits.items()}
    assert 0.08 <= share["val"] == share["test-in"] <= 0.14
    rows = np.concatenate([data.u for data in splits.values()])
    assert len(np.unique(rows.reshape(len(numbers), -1), axis=0)) == len(numbers)
    # Larger ones have some of each environment.
    if each == 40:
        assert all(len(own_data.environment_sizes(data)) == environments for data in splits.values())


def test_a_small_environment_stays_in_training(tmp_path: Path) -> None:
    numbers = np.repeat([0, 1], [6, 100])
    splits = own_data.load_splits(save(tmp_path / "a.h5", advected(106), environment=numbers.tolist()))
    assert own_data.has_contexts(splits)
    assert {split: len(data) for split, data in splits.items()} == {"train": 82, "val": 12, "test-in": 12}
    assert np.bincount(splits["train"].environment).tolist()[0] >= 2


def windows(path: Path, series: int, environment: list[int] | None = None) -> Path:
    """Four windows of each of so many series."""
    numbers = np.repeat(np.arange(series), 4)
    return write(
        path,
        name="series",
        times=np.arange(8.0),
        coords=[np.arange(16.0)],
        periodic=[False],
        scalars={
            "environment": np.arange(4 * series) if environment is None else np.array(environment)[numbers],
            "series": numbers,
            "first_frame": np.tile(8 * np.arange(4), series),
        },
        t0_fields={"u": advected(4 * series, seed=series)},
    )


@pytest.mark.parametrize("environment", [None, [0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]])
def test_windows_of_many_series_are_held_out_with_their_series(tmp_path: Path, environment: list[int] | None) -> None:
    splits = own_data.load_splits(windows(tmp_path / "a.h5", 6, environment))
    held = [set(data.parameters["series"].tolist()) for data in splits.values()]
    assert sorted(map(len, held)) == [1, 1, 4]
    assert set.union(*held) == set(range(6))
    assert {split: len(data) for split, data in splits.items()} == {"train": 16, "val": 4, "test-in": 4}
    assert own_data.has_contexts(splits) == (environment is not None)


def test_series_of_several_files_are_different_ones(tmp_path: Path) -> None:
    for i in range(3):
        windows(tmp_path / f"{i}.h5", 2 + i)
    splits = own_data.load_splits(tmp_path)
    held = [set(data.parameters["series"].tolist()) for data in splits.values()]
    assert sorted(map(len, held)) == [1, 1, 7]


def test_files_of_a_folder_are_splits_by_their_names(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test-in", 3), ("test-out", 5)):
        save(tmp_path / f"waves-{split}.h5", advected(count, seed=count))
    splits = own_data.load_splits(tmp_path)
    assert {split: len(data) for split, data in splits.items()} == {"train": 11, "val": 1, "test-in": 3}
    np.testing.assert_array_equal(splits["test-in"].u[..., 0], advected(3, seed=3))
    save(tmp_path / "more.h5", advected(4, seed=9))
    counts = {split: len(data) for split, data in own_data.load_splits(tmp_path).items()}
    assert counts == {"train": 14, "val": 2, "test-in": 3}
    (tmp_path / "waves-train.h5").unlink()
    splits = own_data.load_splits(tmp_path)
    assert {split: len(data) for split, data in splits.items()} == {"train": 3, "val": 1, "test-in": 3}
    np.testing.assert_array_equal(splits["test-in"].u[..., 0], advected(3, seed=3))
    (tmp_path / "more.h5").unlink()
    with pytest.raises(EnmaError, match="named"):
        own_data.load_splits(tmp_path)
    save(tmp_path / "waves-train.h5", advected(12, seed=12))
    (tmp_path / "waves-test-in.h5").rename(tmp_path / "waves-test.h5")
    assert {split: len(data) for split, data in own_data.load_splits(tmp_path).items()} == {
        "train": 11,
        "val": 1,
        "test-in": 3,
    }
    assert own_data.name_of(tmp_path / "waves-train.h5") == "waves"
    assert own_data.name_of(tmp_path / "my waves (2).h5") == "my-waves-2"


def test_held_out_trajectories_that_training_shows_are_refused(tmp_path: Path) -> None:
    u = advected(12)
    save(tmp_path / "a-train.h5", u)
    held = advected(3, seed=1)
    # Frames in common are no trajectory in common.
    held[0, :5] = u[3, :5]
    save(tmp_path / "a-test.h5", held)
    splits = own_data.load_splits(tmp_path)
    assert own_data.distinct_frames(splits) == {"train": 11 * 8, "val": 8, "test-in": 3 * 8}
    held[2] = u[splits["train"].environment[4]]
    save(tmp_path / "a-test.h5", held)
    with pytest.raises(EnmaError, match="for test-in"):
        own_data.distinct_frames(own_data.load_splits(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"units": {"u": "m"}}, "'m'"),
        ({"times": 0.1 * np.arange(8)}, "other steps"),
        ({"coords": [np.arange(16) / 8]}, "other steps"),
        ({"periodic": [False]}, "boundaries"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    save(tmp_path / "a.h5", advected(6))
    save(tmp_path / "b.h5", advected(6), **change)
    with pytest.raises(EnmaError, match=said):
        own_data.load_splits(tmp_path)


def test_files_of_other_places_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Longitudes from 0 and from -180 are of one length, and not of the same places."""
    save(tmp_path / "a.h5", advected(6))
    save(tmp_path / "b.h5", advected(6), times=0.05 * np.arange(8) + 3)
    own_data.load_splits(tmp_path)
    assert not caplog.messages
    save(tmp_path / "b.h5", advected(6), coords=[np.arange(16) / 16 - 0.5])
    own_data.load_splits(tmp_path)
    assert "b.h5: its x begins at -0.5, that of a.h5 at 0; the model counts places" in caplog.messages[0]


def test_data_that_cannot_be_divided_or_trained_on_are_refused(tmp_path: Path) -> None:
    def message(source: Path) -> str:
        with pytest.raises(EnmaError) as caught:
            own_data.load_splits(source)
        return str(caught.value)

    assert "holds 2 trajectories; training, validation and test need at least 3" in message(
        save(tmp_path / "two.h5", advected(2))
    )
    assert "u is 1 everywhere; import another field" in message(save(tmp_path / "flat.h5", np.ones((6, 8, 16))))
    assert "no such file or folder" in message(tmp_path / "none.h5")
    (tmp_path / "empty").mkdir()
    assert "holds no file of fields (.h5" in message(tmp_path / "empty")
    np.save(tmp_path / "a.npy", advected(4))
    assert "enma-fast data import" in message(tmp_path / "a.npy")


def test_other_formats_are_read_as_they_are(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="needs the [store] extra")
    u = advected(40)
    axes = ("trajectory", "time", "x")
    made = xarray.Dataset(
        {"u": (axes, u)}, {"time": 0.1 * np.arange(u.shape[1]), "x": np.linspace(0, 1, u.shape[2], endpoint=False)}
    )
    made.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    made.to_zarr(tmp_path / "a.zarr")
    for name in ("a.nc", "a.zarr"):
        splits = own_data.load_splits(tmp_path / name)
        assert {split: len(data) for split, data in splits.items()} == {"train": 32, "val": 4, "test-in": 4}
        assert own_data.name_of(tmp_path / name) == "a"
    np.save(tmp_path / "a.npy", u)
    with pytest.raises(EnmaError, match="--axes"):
        own_data.load_splits(tmp_path / "a.npy")


def test_series_are_cut_where_there_are_too_few_or_of_several_lengths(tmp_path: Path) -> None:
    def file(name: str, *lengths: int) -> None:
        (tmp_path / name).mkdir()
        for i, frames in enumerate(lengths):
            u = np.random.default_rng(i).normal(size=(1, frames, 8)).astype(np.float32)
            save(tmp_path / name / f"{i}.h5", u)

    file("one", 200)
    splits = own_data.load_splits(tmp_path / "one")
    assert {split: data.u.shape[:2] for split, data in splits.items()} == {
        "train": (16, 10),
        "val": (2, 10),
        "test-in": (2, 10),
    }
    assert splits["train"].parameters["first_frame"].max() < splits["val"].parameters["first_frame"].min()
    file("lengths", *(3 * [30]), *(3 * [12]))
    splits = own_data.load_splits(tmp_path / "lengths")
    assert sum(len(data) for data in splits.values()) == 3 * 2 + 3
    assert {data.u.shape[1] for data in splits.values()} == {12}


@pytest.mark.parametrize(("series", "stride"), [(1, 1), (1, 3), (2, 1), (12, 2)])
def test_overlapping_windows_are_recognised(tmp_path: Path, series: int, stride: int) -> None:
    whole = np.random.default_rng(1).normal(size=(series, 40 if series < 12 else 12, 16)).astype(np.float32)
    starts = range(0, whole.shape[1] - 8 + 1, stride)
    windows = np.concatenate([[one[t : t + 8] for t in starts] for one in whole])
    order = np.random.default_rng(0).permutation(len(windows))
    splits = own_data.load_splits(save(tmp_path / "windows.h5", windows[order]))
    assert all(len(data) for data in splits.values())
    # None of the held-out frames is among those of training, nor those of the test among those of validation.
    counts = own_data.distinct_frames(splits)
    together = np.concatenate([data.u.reshape(-1, 16) for data in splits.values()])
    assert sum(counts.values()) == len(np.unique(together, axis=0))


def test_trajectories_that_begin_alike_or_rest_are_no_windows(tmp_path: Path) -> None:
    u = advected(20)
    u[:, :2] = u[0, :2]
    u[3:5] = u[3:5, :1]
    assert "series" not in own_data.load_splits(save(tmp_path / "a.h5", u))["train"].parameters
