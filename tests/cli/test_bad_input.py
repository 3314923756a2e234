"""Whatever is wrong with the input is one line that names it, status 2, and nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from enma_fast.data import FieldFile, read, write
from enma_fast.models.checkpoint import write_manifest


@pytest.fixture(scope="module")
def fields(test_in: Path) -> FieldFile:
    return read(test_in, select=[0, 1, 2, 3])


@pytest.fixture
def rewrite(fields: FieldFile, tmp_path: Path) -> Callable[..., Path]:
    """Write four good trajectories with some of it changed."""

    def made(**changes: object) -> Path:
        given = {
            "name": "combined-test-in",
            "times": fields.times,
            "coords": fields.coords,
            "periodic": [True],
            "scalars": {"environment": fields.environment, **fields.parameters},
            "t0_fields": {"u": fields.u[..., 0]},
        }
        return write(tmp_path / "fields.h5", **{**given, **changes})

    return made


@pytest.fixture
def refused(enma: Callable, tiny: Path, tmp_path: Path) -> Callable[..., str]:
    """The error of scoring a file, which is that of forecasting it; neither writes anything."""

    def run(file: Path, *options: object, checkpoint: object = tiny) -> str:
        before = sorted(tmp_path.rglob("*"))
        common = (file, "--checkpoint", checkpoint, "--members", 2, *options)
        error = enma("score", *common, "--json").error()
        assert enma("forecast", *common, "--out", tmp_path / "new" / "run.zarr").error() == error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


def test_a_good_file_is_not_refused(enma: Callable, rewrite: Callable, tiny: Path) -> None:
    assert enma("score", rewrite(), "-c", tiny, "--members", 2, "--json").json["num_trajectories"] == 4


def test_no_such_file(refused: Callable, tmp_path: Path) -> None:
    assert refused(tmp_path / "no.h5") == f"{tmp_path / 'no.h5'}: no such file; check the path"


def test_not_hdf5(refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("a,b\n1,2\n")
    assert refused(tmp_path / "a.h5").startswith(f"{tmp_path / 'a.h5'}: is not")


def test_truncated_hdf5(refused: Callable, rewrite: Callable) -> None:
    path = rewrite()
    path.write_bytes(path.read_bytes()[:30_000])
    assert refused(path).startswith(f"{path}: cannot be")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--flow-steps", 0), "--flow-steps 0"),
        (("--mask-steps", -2), "--mask-steps -2"),
        (("--temperature", -1), "--temperature -1.0"),
    ],
)
def test_bad_settings_of_the_sampler(refused: Callable, rewrite: Callable, options: tuple, message: str) -> None:
    assert refused(rewrite(), *options).startswith(message)


def test_settings_that_a_one_pass_model_has_no_use_for(
    refused: Callable, rewrite: Callable, enma: Callable, tiny_fast: Path
) -> None:
    file = rewrite()
    for option, value in (("--mask-steps", 1), ("--flow-steps", 3)):
        error = refused(file, option, value, checkpoint=tiny_fast)
        assert f" is {value}; combined-fast " in error
        assert f"leave out {option}" in error
    # The model's own may be said, and the temperature is free.
    options = ("--mask-steps", 2, "--temperature", 0.5, "--members", 2, "--json")
    assert enma("score", file, "-c", tiny_fast, *options).json["sampling"]["temperature"] == 0.5


@pytest.mark.parametrize("group", ["dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields"])
def test_a_group_is_lacking(refused: Callable, rewrite: Callable, group: str) -> None:
    path = rewrite()
    with h5py.File(path, "r+") as file:
        del file[group]
    assert refused(path).startswith(f"{path}: lacks")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_is_not_finite(refused: Callable, rewrite: Callable, fields: FieldFile, value: float) -> None:
    u = fields.u[..., 0].copy()
    u[2, 5, 7] = value
    path = rewrite(t0_fields={"u": u})
    error = refused(path)
    assert error.startswith(f"{path}: t0_fields/u holds a NaN or an infinity, first at trajectory 2, frame 5")


def test_another_grid(refused: Callable, rewrite: Callable, fields: FieldFile) -> None:
    path = rewrite(coords=[fields.coords[0][::2]], t0_fields={"u": fields.u[:, :, ::2, 0]})
    assert refused(path).startswith(f"{path}: the grid")


def test_another_number_of_channels(refused: Callable, rewrite: Callable, fields: FieldFile) -> None:
    path = rewrite(t0_fields={"u": fields.u[..., 0], "v": fields.u[..., 0]})
    assert refused(path) == f"{path}: holds 2 channels (u, v); combined-small expects 1"


def test_another_frame_spacing(refused: Callable, rewrite: Callable, fields: FieldFile) -> None:
    path = rewrite(times=2 * fields.times)
    assert refused(path).startswith(f"{path}: dimensions/time")


def test_another_domain(refused: Callable, rewrite: Callable, fields: FieldFile) -> None:
    path = rewrite(coords=[fields.coords[0] / 2])
    assert refused(path).startswith(f"{path}: the domain")
    path = rewrite(periodic=[False])
    assert refused(path).startswith(f"{path}: boundary_conditions")


def test_too_few_frames(refused: Callable, rewrite: Callable, fields: FieldFile) -> None:
    path = rewrite(times=fields.times[:3], t0_fields={"u": fields.u[:, :3, :, 0]})
    few = f"{path}: holds 3 frames, history asks for 4; use a shorter one, or give a file of more frames"
    assert refused(path, "--history", 4) == few


@pytest.mark.parametrize("history", [20, 25])
def test_a_history_too_long(refused: Callable, rewrite: Callable, history: int) -> None:
    path = rewrite()
    few = f"{path}: holds 20 frames, history asks for {history}"
    assert refused(path, "--history", history).startswith(few if history > 20 else "history")


@pytest.mark.parametrize("history", [-1, 0, 1, 2])
def test_a_history_too_short(refused: Callable, rewrite: Callable, history: int) -> None:
    expected = f"history is {history}; combined-small needs at least 3 frames (or use --task initial-value)"
    assert refused(rewrite(), "--history", history) == expected


def test_no_context(refused: Callable, rewrite: Callable, fields: FieldFile) -> None:
    path = rewrite(scalars=fields.parameters)
    assert refused(path, "--task", "initial-value").startswith(f"{path}: lacks scalars/environment")
    path = rewrite(scalars={"environment": np.arange(4), **fields.parameters})
    assert "its group" in refused(path, "--task", "generation")
    # The last trajectory counts too, and before anything is sampled for the others.
    path = rewrite(scalars={"environment": np.array([7, 7, 7, 8]), **fields.parameters})
    error = refused(path, "--task", "initial-value")
    assert error.startswith(f"{path}: trajectory 3 is alone in its group, scalars/environment 8")


def test_options_out_of_range(refused: Callable, enma: Callable, rewrite: Callable, tiny: Path, tmp_path: Path) -> None:
    path = rewrite()
    assert refused(path, "--task", "magic").startswith("task 'magic'")
    assert refused(path, "--chunk", 0).startswith("chunk is 0")
    assert refused(path, "--device", "abacus").startswith("--device abacus:")
    assert refused(path, "--device", "meta").startswith("--device meta:")
    assert enma("score", path, "-c", tiny, "--members", 0).error() == "num_members is 0; at least 1 is needed"
    assert enma("score", path, "-c", tiny, "--limit", 0).error() == "limit is 0; at least 1 is needed"
    for select in ("4:5", "2:2", "-1", "a:b", "0:9", "7"):
        run = enma("forecast", path, "-c", tiny, "--out", tmp_path / "run.zarr", f"--select={select}")
        assert run.error().startswith(f"--select '{select}': "), select
    assert not (tmp_path / "run.zarr").exists()


def test_more_members_than_there_is_room_for(enma: Callable, tiny: Path, rewrite: Callable, tmp_path: Path) -> None:
    given = (rewrite(), "-c", tiny, "--members", 10**9)
    error = enma("score", *given).error()
    assert error.startswith("forecasts of 1,000,000,000 x 17 frames take 8,704 GB, this machine has ")
    assert error.endswith(" GB; use fewer at a time")
    # A store is written chunk by chunk: there the disk decides.
    error = enma("forecast", *given, "--out", tmp_path / "new" / "run.zarr").error()
    assert error.startswith(f"{tmp_path / 'new' / 'run.zarr'}: needs ")
    assert error.endswith(" GB are free; use fewer members, --statistics-only, or another --out")
    assert not (tmp_path / "new").exists()


def test_an_unknown_checkpoint(refused: Callable, rewrite: Callable, tmp_path: Path) -> None:
    error = refused(rewrite(), checkpoint="combined-huge")
    assert error.startswith("checkpoint 'combined-huge': neither a folder nor a shipped model (shipped: ")
    (tmp_path / "empty").mkdir()
    assert "holds no manifest.json" in refused(rewrite(), checkpoint=tmp_path / "empty")


def test_damaged_weights(refused: Callable, rewrite: Callable, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 4
    weights.write_bytes(data)
    assert refused(rewrite(), checkpoint=folder).startswith(f"{weights}: SHA-256 differs")
    weights.write_bytes(data[:-1000])
    assert refused(rewrite(), checkpoint=folder).startswith(f"{weights}: {len(data) - 1000} bytes, ")
    # A manifest that fits does not save a file that is not whole.
    write_manifest(folder)
    assert refused(rewrite(), checkpoint=folder).startswith(f"{weights}: not")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "blue"}, "colour"),
        ({"num_frames": "many"}, "num_frames"),
        ({"codec": {"kind": "conv", "grid": []}}, "grid"),
        ({"step": {"kind": "magic"}}, "step"),
    ],
)
def test_a_config_with_an_unknown_key_or_a_wrong_type(
    refused: Callable, rewrite: Callable, tiny: Path, tmp_path: Path, change: dict, field: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    write_manifest(folder)
    error = refused(rewrite(), checkpoint=folder)
    assert error.startswith(f"{config}: ")
    assert field in error


def test_config_and_weights_of_different_models(
    refused: Callable, rewrite: Callable, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = folder / "config.json"
    text = json.loads(config.read_text())
    text["step"]["width"] = 24
    config.write_text(json.dumps(text))
    write_manifest(folder)
    error = refused(rewrite(), checkpoint=folder)
    assert error.startswith(f"{folder / 'model.safetensors'}: dynamics.step.")
    assert "config asks" in error
