"""Every way a field file can be wrong ends in one line that names the file, the place and the fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import describe, fields, read  # noqa: E402
from enma_fast.errors import EnmaError  # noqa: E402


def refuse(path: Path, message: str) -> None:
    """Both readers refuse the file in one line that starts with its path."""
    for reader in (read, describe):
        with pytest.raises(EnmaError, match=message) as caught:
            reader(path)
        line = str(caught.value)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line


def replace(key: str, value: Any, **attributes: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        kept = dict(file[key].attrs)
        del file[key]
        file[key] = value
        file[key].attrs.update({**kept, **attributes})

    return change


def put(key: str, index: tuple[int, ...] | int, value: float) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[key][index] = value

    return change


def drop(key: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key]

    return change


def drop_attribute(key: str, name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key].attrs[name]

    return change


def set_attribute(key: str, name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[key].attrs[name] = value

    return change


GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields")
CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    **{f"no {key}": (drop(key), f"lacks the group '{key}'; write it as The Well") for key in GROUPS},
    "group is a dataset": (replace("t1_fields", np.zeros(2)), "'t1_fields' is not a group"),
    "dataset is a group": (
        lambda file: (drop("dimensions/time")(file), file.create_group("dimensions/time")),
        "'dimensions/time' is not a dataset",
    ),
    "no time": (drop("dimensions/time"), "lacks the dataset 'dimensions/time'"),
    "no x": (drop("dimensions/x"), "lacks the dataset 'dimensions/x'"),
    "no field": (drop("t0_fields/u"), "lacks the dataset 't0_fields/u'"),
    "no scalar": (drop("scalars/alpha"), "lacks the dataset 'scalars/alpha'"),
    "no n_trajectories": (drop_attribute("/", "n_trajectories"), "lacks the attribute '@n_trajectories'"),
    "no grid_type": (drop_attribute("/", "grid_type"), "lacks the attribute '@grid_type'"),
    "no field_names": (drop_attribute("t0_fields", "field_names"), "attribute 't0_fields@field_names'"),
    "no bc_type": (
        drop_attribute("boundary_conditions/x_periodic", "bc_type"),
        "attribute 'boundary_conditions/x_periodic@bc_type'",
    ),
    "sphere": (set_attribute("/", "grid_type", "spherical"), "grid_type is 'spherical'; only cartesian"),
    "wrong n_trajectories": (
        set_attribute("/", "n_trajectories", 5),
        r"scalars/environment has shape \(6,\), expected \(5,\)",
    ),
    "no fields listed": (set_attribute("t0_fields", "field_names", []), "6 trajectories of 0 fields"),
    "flags": (set_attribute("t0_fields/u", "dim_varying", [True, True]), "2 flags for 1 dimensions"),
    "field too short": (
        replace("t0_fields/u", np.zeros((6, 4, 7), np.float32)),
        r"t0_fields/u has shape \(6, 4, 7\), expected \(6, 4, 8\)",
    ),
    "field with channel axis": (
        replace("t0_fields/u", np.zeros((6, 4, 8, 1), np.float32)),
        r"t0_fields/u has shape \(6, 4, 8, 1\), expected \(6, 4, 8\)",
    ),
    "integer field": (
        replace("t0_fields/u", np.zeros((6, 4, 8), np.int32)),
        "t0_fields/u has dtype int32; write",
    ),
    "complex field": (
        replace("t0_fields/u", np.zeros((6, 4, 8), complex)),
        "t0_fields/u has dtype complex128",
    ),
    "string field": (replace("t0_fields/u", np.full((6, 4, 8), b"a")), r"t0_fields/u has dtype \|S1"),
    "nan": (
        put("t0_fields/u", (4, 2, 5), np.nan),
        "t0_fields/u holds a NaN.* first at trajectory 4, frame 2",
    ),
    "infinity": (put("t0_fields/u", (0, 3, 0), -np.inf), "t0_fields/u .*trajectory 0, frame 3"),
    "beyond float32": (
        replace("t0_fields/u", np.full((6, 4, 8), 1e39)),
        "infinity, first at trajectory 0, frame 0",
    ),
    "nan parameter": (
        put("scalars/alpha", 3, np.nan),
        "scalars/alpha is nan at trajectory 3; write a finite",
    ),
    "float environment": (
        replace("scalars/environment", np.zeros(6)),
        "scalars/environment has dtype float64",
    ),
    "text parameter": (replace("scalars/alpha", np.full(6, b"a")), "scalars/alpha has dtype"),
    "short parameter": (
        replace("scalars/alpha", np.zeros(5)),
        r"scalars/alpha has shape \(5,\), expected \(6,\)",
    ),
    "constant of two": (
        replace("scalars/alpha", np.zeros(2), sample_varying=False),
        r"scalars/alpha does not vary but has shape \(2,\)",
    ),
    "time backwards": (
        put("dimensions/time", 3, 0.01),
        "dimensions/time must be finite and increasing; sort it",
    ),
    "nan coordinate": (put("dimensions/x", 0, np.nan), "dimensions/x must be finite and increasing"),
    "uneven ring": (put("dimensions/x", 3, 0.4), "dimensions/x is periodic but not evenly spaced"),
    "no frame": (replace("dimensions/time", np.zeros(0)), "dimensions/time has 0 values; at least 1"),
    "one point": (replace("dimensions/x", np.zeros(1)), "dimensions/x has 1 values; at least 2"),
    "time per trajectory": (
        replace("dimensions/time", np.zeros((6, 4))),
        r"dimensions/time has shape \(6, 4\)",
    ),
}


def test_the_file_is_good_before_it_is_broken(field_path: Path) -> None:
    assert len(read(field_path)) == describe(field_path)["trajectories"] == 6


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_refused(case: str, edit: Callable) -> None:
    change, message = CASES[case]
    refuse(edit(change), message)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "none.h5", "no such file; check the path")
    refuse(tmp_path, "is not a file; check the path")


@pytest.mark.parametrize("content", [b"", b"trajectory,frame\n0,1\n" * 50])
def test_not_hdf5(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.h5").write_bytes(content)
    refuse(tmp_path / "table.h5", "is not an HDF5 file; give a field file")


@pytest.mark.parametrize("ending", ["npy", "npz", "nc"])
def test_other_files_are_sent_to_the_import(tmp_path: Path, ending: str) -> None:
    """Those that are no HDF5, and NetCDF-4, which is."""
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"CDF or npy" * 50)
    refuse(path, f"is not an HDF5 file; import it first: enma-fast data import {path} --out a.h5")
    with h5py.File(path, "w") as file:
        file["u"] = np.zeros((3, 4))
    refuse(path, f"is no field file in The Well's layout; import it first: enma-fast data import {path} --out a.h5")


@pytest.mark.parametrize("kept", [8, 9, 96, 700, 0.25, 0.5, 0.75, 0.99, -1])
def test_truncated(field_path: Path, kept: float) -> None:
    whole = field_path.read_bytes()
    field_path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    refuse(field_path, "cannot be read as HDF5 .*truncated or damaged, copy it again")


def test_a_size_beyond_memory_is_one_line(field_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: Any) -> None:
        raise MemoryError("Unable to allocate 4.00 TiB")

    monkeypatch.setattr(fields, "_read_rows", allocate)
    refuse(field_path, r"asks for more memory than there is \(Unable to allocate 4\.00 TiB\); select fewer")


def test_a_bad_trajectory_can_be_left_out_and_is_named_by_its_number_in_the_file(edit: Callable) -> None:
    path = edit(put("t0_fields/u", (4, 2, 5), np.nan))
    assert np.isfinite(read(path, select=[0, 1, 2, 3, 5]).u).all()
    with pytest.raises(EnmaError, match="trajectory 4"):
        read(path, select=[5, 4])


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ([6], r"good\.h5: select"),
        ([-1], r"good\.h5: select"),
        ([], r"good\.h5: .*trajectory"),
        (slice(6, 9), r"good\.h5: .*trajectory"),
        ([0.5], r"good\.h5: select"),
        ([[0]], r"good\.h5: select"),
    ],
)
def test_bad_selections(field_path: Path, select: Any, message: str) -> None:
    with pytest.raises(EnmaError, match=message):
        read(field_path, select=select)


def test_an_unknown_field_names_those_there_are(field_path: Path) -> None:
    with pytest.raises(EnmaError, match=r"good\.h5: .*'v'"):
        read(field_path, fields=["v"])
