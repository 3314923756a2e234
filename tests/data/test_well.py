"""Field files: what is written comes back, in 1-D and 2-D, and files of others are read as they mean it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import count, describe, read, read_numbered, write  # noqa: E402
from enma_fast.errors import EnmaError  # noqa: E402

RNG = np.random.default_rng(1)
NUM, FRAMES, NX, NY = 5, 3, 4, 6


@pytest.fixture
def plane(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A 2-D file with two scalar fields and a vector field; periodic in x, open in y."""
    values = {
        "rho": RNG.normal(size=(NUM, FRAMES, NX, NY)).astype(np.float32),
        "p": RNG.normal(size=(NUM, FRAMES, NX, NY)).astype(np.float32),
        "v": RNG.normal(size=(NUM, FRAMES, NX, NY, 2)).astype(np.float32),
    }
    path = write(
        tmp_path / "plane.h5",
        name="plane",
        times=np.array([0.0, 0.5, 2.0]),
        coords=[np.arange(NX) * 0.5, np.linspace(-1, 1, NY)],
        periodic=[True, False],
        scalars={"nu": np.arange(NUM) / 4},
        t0_fields={"rho": values["rho"], "p": values["p"]},
        t1_fields={"v": values["v"]},
    )
    return path, values


def test_a_line_comes_back(field_path: Path) -> None:
    file = read(field_path)
    np.testing.assert_array_equal(file.u[..., 0], np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32))
    assert file.u.dtype == np.float32
    assert file.channels == ("u",)
    np.testing.assert_array_equal(file.times, [0.0, 0.05, 0.1, 0.15])
    np.testing.assert_array_equal(file.coords[0], np.arange(8) / 8)
    assert file.lengths == (1.0,)
    assert file.periodic == (True,)
    assert file.environment is not None
    assert file.environment.tolist() == [7, 7, 3, 3, 9, 9]
    assert file.parameters["alpha"].tolist() == [0.5, 0.5, 0.25, 0.25, 0.75, 0.75]


def test_some_trajectories_keep_their_numbers(field_path: Path) -> None:
    whole = read(field_path)
    assert count(field_path) == 6
    some = read_numbered(field_path, [5, 2])
    assert (len(some), some.num_trajectories) == (2, 6)
    np.testing.assert_array_equal(some.u[some.places([5, 2])], whole.u[[5, 2]])
    assert some.environment is not None
    assert some.environment[some.places([2])] == [3]
    assert whole.places([5, 2]) == [5, 2]
    assert whole.num_trajectories == 6


@pytest.mark.parametrize("environment", [[7, 7, 3, 3, 9, 9], [1, 2, 1, 2, 1, 2], [0] * 6])
def test_contexts_are_read_too_and_are_those_of_the_whole_file(field_path: Path, environment: list[int]) -> None:
    with h5py.File(field_path, "r+") as file:
        file["scalars/environment"][...] = environment
    whole = read(field_path)
    for numbers in ([0], [5], [1, 4], [5, 0, 3], range(6)):
        some = read_numbered(field_path, numbers, contexts=True)
        assert len(some) <= 2 * len(numbers)
        for i in numbers:
            assert some.context_for(i) == whole.context_for(i)
            np.testing.assert_array_equal(some.u[some.places([some.context_for(i)])], whole.u[[whole.context_for(i)]])
    with h5py.File(field_path, "r+") as file:
        file["scalars/environment"][...] = range(6)
    with pytest.raises(EnmaError, match="trajectory 4"):
        read_numbered(field_path, [4], contexts=True)
    assert len(read_numbered(field_path, [4])) == 1


def test_a_plane_comes_back_with_vector_components_as_channels(plane: tuple) -> None:
    path, values = plane
    file = read(path)
    assert file.channels == ("rho", "p", "v_x", "v_y")
    expected = np.concatenate([values["rho"][..., None], values["p"][..., None], values["v"]], axis=-1)
    np.testing.assert_array_equal(file.u, expected)
    assert file.periodic == (True, False)
    assert file.lengths == (2.0, 2.0)
    assert [len(x) for x in file.coords] == [NX, NY]
    assert file.environment is None


def test_fields_pick_channels_in_their_order(plane: tuple) -> None:
    path, values = plane
    file = read(path, fields=["v", "rho"])
    assert file.channels == ("v_x", "v_y", "rho")
    np.testing.assert_array_equal(file.u[..., :2], values["v"])
    np.testing.assert_array_equal(file.u[..., 2], values["rho"])


@pytest.mark.parametrize("select", [slice(1, 3), slice(None, None, -2), [4, 0, 4], np.array([2]), range(5), None])
def test_select_equals_indexing(plane: tuple, select: object) -> None:
    path, _ = plane
    rows = np.arange(NUM)[slice(None) if select is None else select]  # type: ignore[index]
    everything, some = read(path), read(path, select=select)  # type: ignore[arg-type]
    np.testing.assert_array_equal(some.u, everything.u[rows])
    np.testing.assert_array_equal(some.parameters["nu"], everything.parameters["nu"][rows])


def test_the_layout_is_the_wells(field_path: Path) -> None:
    with h5py.File(field_path) as file:
        assert set(file) == {"dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields"}
        assert dict(file.attrs)["n_trajectories"] == 6
        assert file.attrs["grid_type"] == "cartesian"
        assert file.attrs["n_spatial_dims"] == 1
        assert file.attrs["dataset_name"] == "toy-val"
        assert len(file.attrs["simulation_parameters"]) == 0
        assert list(file["dimensions"].attrs["spatial_dims"]) == ["x"]
        assert not file["dimensions/x"].attrs["time_varying"]
        boundary = file["boundary_conditions/x_periodic"]
        assert boundary.attrs["bc_type"] == "PERIODIC"
        assert list(boundary.attrs["associated_dims"]) == ["x"]
        assert boundary["mask"][:].tolist() == [True] + 6 * [False] + [True]
        assert list(file["scalars"].attrs["field_names"]) == ["environment", "alpha"]
        assert file["scalars/environment"].dtype == np.int64
        assert list(file["t0_fields"].attrs["field_names"]) == ["u"]
        u = file["t0_fields/u"]
        assert u.dtype == np.float32
        assert (u.attrs["sample_varying"], u.attrs["time_varying"]) == (True, True)
        assert u.attrs["dim_varying"].tolist() == [True]
        assert len(file["t1_fields"]) == 0


def test_fields_and_scalars_that_do_not_vary_are_broadcast(plane: tuple) -> None:
    path, _ = plane
    still, column = RNG.normal(size=(NX, NY)), RNG.normal(size=(NUM, NX))
    with h5py.File(path, "r+") as file:
        group = file["t0_fields"]
        group["still"] = still
        group["still"].attrs.update({"sample_varying": False, "time_varying": False})
        group["column"] = column
        group["column"].attrs.update({"time_varying": False, "dim_varying": [True, False]})
        group.attrs["field_names"] = ["still", "column"]
        file["scalars"].create_dataset("gravity", data=np.float32(9.5)).attrs["sample_varying"] = False
        file["scalars"].create_dataset("ramp", data=np.zeros(FRAMES)).attrs["time_varying"] = True
        file["scalars"].attrs["field_names"] = ["nu", "gravity", "ramp"]
        file.attrs["simulation_parameters"] = ["kappa"]
        file.attrs["kappa"] = 0.125
    read_back = read(path, fields=["still", "column"])
    shape = (NUM, FRAMES, NX, NY)
    np.testing.assert_array_equal(read_back.u[..., 0], np.broadcast_to(still.astype(np.float32), shape))
    expected = np.broadcast_to(column.astype(np.float32)[:, None, :, None], shape)
    np.testing.assert_array_equal(read_back.u[..., 1], expected)
    assert read_back.parameters["gravity"].tolist() == NUM * [9.5]
    assert read_back.parameters["kappa"].tolist() == NUM * [0.125]
    assert set(read_back.parameters) == {"nu", "gravity", "kappa"}


def test_bytes_attributes_and_lower_case_boundaries_are_read(edit: Callable) -> None:
    def change(file: h5py.File) -> None:
        file["dimensions"].attrs["spatial_dims"] = np.array([b"x"])
        file["boundary_conditions/x_periodic"].attrs["bc_type"] = np.bytes_("periodic")
        file.attrs["grid_type"] = np.bytes_("cartesian")
        file.attrs["dataset_name"] = np.bytes_("name-val")
        file["t0_fields"].attrs["field_names"] = np.array([b"u"])

    file = read(edit(change))
    assert (file.periodic, file.name, file.channels) == ((True,), "name-val", ("u",))


def test_context_is_the_next_trajectory_of_the_group(tmp_path: Path) -> None:
    path = write(
        tmp_path / "groups.h5",
        name="groups",
        times=np.arange(2),
        coords=[np.arange(4)],
        periodic=[True],
        scalars={"environment": [5, 5, 5, 2, 5, 2]},
        t0_fields={"u": np.zeros((6, 2, 4))},
    )
    file = read(path)
    assert [file.context_for(i) for i in range(6)] == [1, 2, 4, 5, 0, 3]
    # Only what was read can serve as context.
    assert [read(path, select=[0, 4]).context_for(i) for i in range(2)] == [1, 0]
    with pytest.raises(EnmaError, match=r"groups\.h5: trajectory 1"):
        read(path, select=[0, 3]).context_for(1)
    with pytest.raises(EnmaError, match=r"groups\.h5: trajectory 6"):
        file.context_for(6)


def test_context_without_environments_names_the_scalar(plane: tuple) -> None:
    with pytest.raises(EnmaError, match=r"scalars/environment"):
        read(plane[0]).context_for(0)


def test_describe_tells_shape_ranges_and_rms(field_path: Path, plane: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    # A limit of two trajectories (2 x 4 x 8 float32) makes it read in pieces.
    monkeypatch.setattr("enma_fast.data.well._DESCRIBE_BYTES", 256)
    told = describe(field_path)
    rms = told.pop("rms")
    u = np.random.default_rng(0).normal(size=(6, 4, 8))
    np.testing.assert_allclose(rms["u"], np.sqrt((u**2).mean()), rtol=1e-6)
    assert told.pop("time") == pytest.approx([0, 0.15])
    assert told == {
        "file": str(field_path),
        "layout": "the_well",
        "name": "toy-val",
        "split": "val",
        "trajectories": 6,
        "groups": 3,
        "frames": 4,
        "points": [8],
        "lengths": [1.0],
        "periodic": [True],
        "channels": ["u"],
        "units": {"u": "1"},
        "parameters": {"alpha": [0.25, 0.75]},
        "known": [],
        "masked": 0.0,
    }
    told = describe(plane[0])
    assert (told["split"], told["groups"], told["points"]) == (None, None, [NX, NY])
    for channel, expected in zip(("rho", "p"), ("rho", "p"), strict=True):
        np.testing.assert_allclose(told["rms"][channel], np.sqrt((plane[1][expected] ** 2).mean()), rtol=1e-6)


def test_write_refuses_a_field_that_does_not_fit(tmp_path: Path) -> None:
    arguments = {"name": "t", "times": np.arange(2), "coords": [np.arange(4)], "periodic": [True]}
    with pytest.raises(EnmaError, match=r"bad\.h5: t0_fields/u"):
        write(
            tmp_path / "bad.h5",
            **arguments,
            scalars={"a": np.zeros(3)},
            t0_fields={"u": np.zeros((3, 2, 5))},
        )
    with pytest.raises(EnmaError, match="scalars"):
        write(
            tmp_path / "bad.h5",
            **arguments,
            scalars={"a": np.zeros(3), "b": np.zeros(2)},
            t0_fields={"u": np.zeros((3, 2, 4))},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extra", [0, 1])
def test_pdebench_line(tmp_path: Path, extra: int) -> None:
    u = RNG.normal(size=(3, 4, 8)).astype(np.float32)
    path = tmp_path / "1D_Advection_Sols_beta0.4.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = u
        file["x-coordinate"] = (np.arange(8) + 0.5) / 8
        file["t-coordinate"] = 0.1 * np.arange(4 + extra)
    file = read(path, select=[2, 0])
    np.testing.assert_array_equal(file.u[..., 0], u[[2, 0]])
    assert file.lengths == (1.0,)
    assert len(file.times) == 4
    assert file.context_for(0) == 1
    assert (describe(path)["layout"], describe(path)["groups"]) == ("pdebench", 1)
    with pytest.raises(EnmaError, match=r"beta0\.4\.hdf5: PDEBench's"):
        read(path, fields=["v"])


def test_pdebench_plane_and_missing_axis_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "2D_DarcyFlow.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = np.zeros((2, 1, 4, 4), np.float32)
    with pytest.raises(EnmaError, match=r"2D_DarcyFlow\.hdf5: tensor"):
        read(path)
    with h5py.File(path, "w") as file:
        file["tensor"] = np.zeros((2, 4, 4), np.float32)
    with pytest.raises(EnmaError, match=r"2D_DarcyFlow\.hdf5: .*dataset"):
        read(path)
