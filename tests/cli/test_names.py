"""Paths and names are shown as they are; numbers and files out of bounds are one line."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from enma_fast.data import write

NAMES = ("[red]a[/red].h5", "a[/red].h5", "[triton].h5", ":smile:.h5")


@pytest.mark.parametrize("name", NAMES)
def test_brackets_in_a_path_are_no_markup(
    enma: Callable, test_in: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A short path: a long one is broken over lines.
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(test_in, path)
    run = enma("data", "info", path)
    assert run.status == 0, run.err
    assert name in run.out
    with h5py.File(path, "r+") as file:
        file.attrs["dataset_name"] = "[/bold] \x1b[31mred"
    shown = enma("data", "info", path).out
    assert r"[/bold] \x1b[31mred" in shown
    assert "\x1b" not in shown
    assert name in enma("data", "info", tmp_path / "none" / name).error()


def test_a_parameter_with_the_name_of_a_variable_is_refused_with_its_file(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(test_in, tmp_path / "twice.h5"))
    with h5py.File(path, "r+") as file:
        file.move("scalars/alpha", "scalars/u")
        names = ["u" if name == "alpha" else name for name in file["scalars"].attrs["field_names"]]
        file["scalars"].attrs["field_names"] = names
    error = enma("forecast", path, "-c", tiny, "--members", 2, "--out", tmp_path / "run.zarr").error()
    assert error == f"{path}: 'u' is a variable of the store twice; rename the field or the parameter"
    assert not (tmp_path / "run.zarr").exists()


def test_control_characters_do_not_reach_the_terminal_by_an_error(enma: Callable, tmp_path: Path) -> None:
    error = enma("data", "info", tmp_path / "\x1b[31m\udcff.h5").error()
    assert r"\x1b[31m\udcff.h5: no such file" in error


def test_checkpoints_and_stores_with_brackets(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short paths: long ones are broken over lines.
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny, "[/x] folder"))
    assert "[/x] folder: whole" in enma("verify", folder).out
    out = Path("[/y].zarr")
    run = enma("forecast", test_in, "-c", folder, "--members", 2, "--select", "0:1", "--out", out)
    assert run.status == 0, run.err
    assert "[/y].zarr" in "".join(run.err.split())
    assert str(out) in run.out
    assert f"{out}: whole" in enma("verify", out).out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--threads", 100_000), "--threads is 100000; at most "),
        (
            ("--flow-steps", 10**9),
            "--flow-steps 1000000000: combined-small: sampling.flow_steps is 1000000000; at most 1000",
        ),
        (
            ("--mask-steps", 10**9),
            "--mask-steps 1000000000: combined-small: sampling.mask_steps is 1000000000; at most ",
        ),
    ],
)
def test_numbers_that_would_hang_or_crash_are_refused(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path, options: tuple, said: str
) -> None:
    for command in (("score", test_in), ("forecast", test_in, "--out", tmp_path / "run.zarr")):
        assert enma(*command, "-c", tiny, *options).error().startswith(said)
    assert not list(tmp_path.iterdir())


def test_frames_beyond_any_forecast_are_refused(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    run = enma("forecast", test_in, "-c", tiny, "--frames", 10**9, "--out", tmp_path / "run.zarr")
    assert run.error() == "num_frames is 1000000000; at most 30000 is possible"


def test_the_folder_of_a_run_is_a_checkpoint(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "checkpoint")
    run = enma("score", test_in, "-c", tmp_path, "--members", 2, "--limit", 1, "--json")
    assert run.json["num_trajectories"] == 1


def test_a_pipe_is_no_field_file(enma: Callable, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    assert (
        enma("data", "info", tmp_path / "pipe.h5").error() == f"{tmp_path / 'pipe.h5'}: is not a file; check the path"
    )


def test_the_size_of_a_plane_is_no_range(enma: Callable, tmp_path: Path) -> None:
    axis = np.arange(8) / 8
    path = write(
        tmp_path / "plane.h5",
        name="plane",
        times=np.arange(3.0),
        coords=[axis, axis[:4]],
        periodic=[True, False],
        scalars={"alpha": np.array([1.0, 2.0])},
        t0_fields={"u": np.zeros((2, 3, 8, 4)), "v": np.zeros((2, 3, 8, 4))},
    )
    shown = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in enma("data", "info", path).out.splitlines()
        if line.split()
    }
    assert (shown["points"], shown["periodic"], shown["channels"]) == ("8 x 4", "True, False", "u, v")
    assert (shown["time"], shown["parameters"]) == ("0 .. 2", "alpha 1 .. 2")
