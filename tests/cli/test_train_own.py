"""`enma-fast train FILE`: the plan, a short training with its report, and refusals."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from .._own import advected, save, steepened


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    """Two channels of different scale on 16 x 8 points; four environments of three trajectories."""
    waves = advected(12)[..., None] * np.ones(8, np.float32)
    return save(tmp_path / "plane.h5", 288 + 10 * waves, 1e-3 * waves, environment=np.arange(4).repeat(3).tolist())


def test_a_dry_run_shows_the_plan_of_a_plane_and_writes_nothing(enma: Callable, plane: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plan = enma("train", plane, "--out", out, "--dry-run", "--minutes", 20, "--json").json["plan"]
    assert not out.exists()
    model = plan["recipe"]["model"]
    assert (model["name"], model["codec"]["grid"], model["codec"]["field_channels"]) == ("plane", [16, 8], 2)
    assert model["codec"]["field_mean"][0] == pytest.approx(288, abs=1)
    assert model["codec"]["field_scale"][0] == pytest.approx(1e4 * model["codec"]["field_scale"][1], rel=1e-3)
    assert plan["trajectories"] == {"train": 10, "val": 1, "test-in": 1}
    assert plan["request"]["minutes"] == 20


def test_a_plan_of_a_large_plane_takes_seconds(enma: Callable, tmp_path: Path) -> None:
    fields = np.random.default_rng(0).standard_normal((6, 5, 256, 256)).astype(np.float32)
    path, begun = save(tmp_path / "large.h5", fields), time.process_time()
    assert enma("train", path, "--out", tmp_path / "run", "--dry-run").status == 0
    assert time.process_time() - begun < 10


def test_one_command_leaves_a_model_scores_and_a_report(enma: Callable, tmp_path: Path) -> None:
    path = save(tmp_path / "waves.h5", steepened(20), environment=np.arange(10).repeat(2).tolist())
    out = tmp_path / "run"
    curve = tmp_path / "curve.png"
    shown = enma("train", path, "--out", out, "--minutes", 0.05, "--plot", curve)
    assert shown.status == 0, shown.err
    assert curve.read_bytes()[1:4] == b"PNG"
    assert "plan of waves" in shown.err
    for text in (
        "held-out test split",
        "initial-value",
        "climatology",
        "damped persistence",
        "linear",
        "RMS errors",
        "u (1)",
        f"checkpoint: {out / 'checkpoint'}",
    ):
        assert text in shown.out
    again = enma("train", path, "--out", out, "--minutes", 0.05, "--json").json
    assert [row["task"] for row in again["rows"]] == ["temporal", "initial-value"]
    assert Path(again["report"]).read_text().startswith("<!doctype html>")
    row = again["rows"][0]
    test = out / "data" / "waves-test-in.h5"
    found = enma("score", test, "--checkpoint", out, "--members", row["num_members"], "--json").json
    assert found["rel_l2"] == pytest.approx(row["rel_l2"], rel=1e-5)
    command = ("forecast", test, "--checkpoint", out, "--members", 2, "--out", tmp_path / "run.zarr")
    assert enma(*command, "--json").json["model"] == "waves"
    stages = json.loads((out / "checkpoint" / "metrics.json").read_text())["training"]["stages"]
    assert list(stages) == ["field"]
    assert "begun with minutes 0.05, not 1000.0" in enma("train", path, "--out", out, "--minutes", 1000).error()


def test_odd_sizes_and_three_dimensions_are_trained(enma: Callable, tmp_path: Path) -> None:
    waves = steepened(8, points=9)[..., None, None] * np.ones((5, 6), np.float32)
    path = save(tmp_path / "box.h5", waves, periodic=[True, False, False])
    shown = enma("train", path, "--out", tmp_path / "run", "--minutes", 0.05)
    assert shown.status == 0, shown.err
    assert "9 periodic, 5 open, 6 open" in shown.err


def test_what_cannot_be_trained_on_is_refused_at_once(enma: Callable, plane: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "minutes is -1" in enma("train", plane, "--out", out, "--minutes", -1).error()
    assert "size 'big' is unknown" in enma("train", plane, "--out", out, "--size", "big").error()
    assert "no such file or folder" in enma("train", tmp_path / "none.h5", "--out", out).error()
    assert "recipe 'tokeniser' is unknown" in enma("train", "tokeniser", "--out", out).error()
    assert "--data" in enma("train", plane, "--out", out, "--data", tmp_path).error()
    assert "--minutes" in enma("train", "combined-fast", "--out", out, "--minutes", 3).error()
    assert "--periodic" in enma("train", "combined-fast", "--out", out, "--periodic", "x").error()
    assert "axis 'z'" in enma("train", plane, "--out", out, "--periodic", "z").error()
    assert enma("train", plane, "--out", out, "--device", "abacus").error().startswith("--device abacus:")
    assert not out.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    assert "exists and is no run" in enma("train", plane, "--out", tmp_path / "notes").error()
    assert enma("train", plane, "--out", out, "--device", "abacus").error().startswith("--device abacus:")
    assert not out.exists()


def test_options_may_stand_before_the_file(enma: Callable, tmp_path: Path) -> None:
    # A folder may have the name of a recipe.
    for out in (tmp_path / "new", "run", "combined-fast"):
        assert enma("train", "--out", out, tmp_path / "no.h5").error().startswith(f"{tmp_path / 'no.h5'}: no such file")


def test_what_is_known_is_told_and_land_is_left_out(enma: Callable, tmp_path: Path) -> None:
    """Fields that a forcing drives, which no forecast of fields alone knows; with land in the middle."""
    rng = np.random.default_rng(0)
    force = rng.normal(size=(60, 8, 1)) * np.sin(2 * np.pi * np.arange(16) / 16)
    gain = rng.uniform(0.5, 1.5, 60)
    u = np.cumsum(gain[:, None, None] * force, axis=1).astype(np.float32)
    u[..., 7:9] = np.nan
    path = save(tmp_path / "driven.h5", u, force.astype(np.float32), columns={"gain": gain})
    out = tmp_path / "run"
    command = ("train", path, "--out", out, "--minutes", 0.15, "--known", "v", "--known", "gain", "--json")
    found = enma(*command).json
    (row,) = found["rows"]
    assert row["rel_l2"] < 0.7 * min(method["rel_l2"] for method in row["methods"].values())
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    test = out / "data" / "driven-test-in.h5"
    again = enma("score", test, "--checkpoint", out, "--members", row["num_members"], "--json").json
    assert again["rel_l2"] == pytest.approx(row["rel_l2"], rel=1e-5)
    store = tmp_path / "run.zarr"
    assert enma("forecast", test, "--checkpoint", out, "--members", 2, "--out", store, "--json").status == 0
    assert enma("score", store, "--json").json["num_trajectories"] == row["num_trajectories"]
    said = enma("forecast", path, "--checkpoint", out, "--out", tmp_path / "no.zarr").error()
    assert "holds 2 channels (u, v); driven expects 1; import it with --known v" in said
    shown = enma("data", "info", test, "--json").json
    assert (shown["known"], shown["masked"]) == (["gain", "v"], 2 / 16)
    assert "begun with known" in enma("train", path, "--out", out, "--minutes", 0.15).error()
    assert (
        "--known: is an option for your own data"
        in enma("train", "combined-fast", "--out", out, "--known", "v").error()
    )
    assert "driven.h5: has no 'w'" in enma("train", path, "--out", tmp_path / "no", "--known", "w").error()


def test_a_disk_that_fills_is_one_line_and_another_machine_goes_on(
    enma: Callable, tmp_path: Path, files_of: Callable
) -> None:
    out = tmp_path / "run"
    command = ("train", save(tmp_path / "ring.h5", steepened(30)), "--out", out, "--minutes", 0.05, "--json")
    # Splits fit, weights do not.
    with files_of(200_000):
        full = enma(*command)
    assert full.status == 2
    last = full.err.splitlines()[-1]
    assert last.startswith(f"error: {out}: cannot be written")
    assert "safetensors" in last
    record = json.loads((out / "run.json").read_text())
    record["machine"] |= {"cpu": "another", "torch_simd": "AVX2", "cores": 64}
    (out / "run.json").write_text(json.dumps(record | {"precision": "fp32", "versions": {"torch": "0"}}))
    assert np.isfinite(enma(*command).json["rows"][0]["rel_l2"])


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_a_cube_is_trained_and_forecast_and_scored(enma: Callable, tmp_path: Path, masked: bool) -> None:
    """A wave along x whose speed depends on its height, with positions in metres."""
    n = 16 if masked else 24
    cubes = np.ascontiguousarray(np.broadcast_to(steepened(30, 10, n)[..., None, None], (30, 10, n, n, n)))
    if masked:
        cubes[..., 4:9, 5:11] = np.nan
    axis = 250.0 * np.arange(n) + 3e5
    path, out = save(tmp_path / "cube.h5", cubes, coords=[axis] * 3, periodic=[True, False, False]), tmp_path / "run"
    (row,) = enma("train", path, "--out", out, "--minutes", 0.2, "--json").json["rows"]
    assert row["rel_l2"] < 1.05 * row["methods"]["persistence"]["rel_l2"]
    test, store = out / "data" / "cube-test-in.h5", tmp_path / "run.zarr"
    assert enma("forecast", test, "--checkpoint", out, "--members", 2, "--out", store, "--json").status == 0
    assert np.isfinite(enma("score", store, "--json").json["rel_l2"])
