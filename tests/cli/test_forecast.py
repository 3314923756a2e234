"""`enma-fast forecast`."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from enma_fast.config import SamplingConfig
from enma_fast.data import read
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.checkpoint import load_model, sha256
from enma_fast.store.read import read_forecast
from tests._stacked import stacked


def test_forecast_writes_what_the_library_samples(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    options = ("--checkpoint", tiny, "--members", 3, "--seed", 4, "--history", 5, "--select", "9:12")
    result = enma("forecast", test_in, "--out", out, *options, "--json").json
    data = read(test_in)
    rows = [9, 10, 11]
    expected = sample_fields(load_model(tiny), data.u[rows, :5], num_members=3, seed=4, trajectories=rows)
    store = read_forecast(out)
    np.testing.assert_allclose(stacked(store), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stacked(store, "_observed"), data.u[rows, :5])
    np.testing.assert_array_equal(stacked(store, "_truth"), data.u[rows, 5:])
    np.testing.assert_allclose(store["time"], data.times[5:])
    np.testing.assert_allclose(store["x"], data.coords[0])
    np.testing.assert_array_equal(store["trajectory"], rows)
    np.testing.assert_array_equal(store["environment"], data.environment[rows])
    np.testing.assert_array_equal(store["alpha"], data.parameters["alpha"][rows])
    assert store.attrs["data_sha256"] == sha256(test_in)
    assert store.attrs["model_sha256"] == sha256(tiny / "model.safetensors")
    assert "--seed 4 --select 9:12" in store.attrs["command"]
    assert (result["num_trajectories"], result["num_members"], result["num_frames"]) == (3, 3, 15)


SETTINGS = ("--mask-steps", 3, "--flow-steps", 4)
SAMPLING = SamplingConfig(mask_steps=3, flow_steps=4, temperature=0.5)


def test_forecast_takes_the_settings_and_writes_them_down(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path
) -> None:
    options = ("-c", tiny, "--members", 2, "--select", "0:2")
    run = enma("forecast", test_in, "--out", tmp_path / "a", *options, *SETTINGS, "--temperature", 0.5, "--json")
    model = load_model(tiny)
    expected = sample_fields(model, read(test_in).u[:2, :3], num_members=2, trajectories=[0, 1], settings=SAMPLING)
    store = read_forecast(tmp_path / "a")
    np.testing.assert_allclose(stacked(store), expected, rtol=1e-4, atol=1e-5)
    assert run.json["sampling"] == asdict(SAMPLING)
    assert store.attrs["sampling"] == "flow, mask_steps 3, flow_steps 4, temperature 0.5"
    assert store.attrs["command"].endswith(" ".join(map(str, (*SETTINGS, "--temperature", 0.5))))
    # One option leaves the others as the model has them; none leaves all.
    assert enma("forecast", test_in, "--out", tmp_path / "b", *options, "--flow-steps", 3).status == 0
    own = "flow, mask_steps 2, flow_steps {}, temperature 1.5"
    assert read_forecast(tmp_path / "b").attrs["sampling"] == own.format(3)
    assert enma("forecast", test_in, "--out", tmp_path / "c", *options).status == 0
    assert read_forecast(tmp_path / "c").attrs["sampling"] == own.format(1)
    assert read_forecast(tmp_path / "c").attrs["command"].endswith("--select 0:2")


def test_an_empty_selection_is_refused(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    """Such as that of a variable which is not set."""
    error = enma("forecast", test_in, "--out", tmp_path / "run.zarr", "-c", tiny, "--select", "").error()
    assert error == "--select '': write A:B, for example 0:10, or one number"
    assert enma("forecast", test_in, "--out", tmp_path / "run.zarr", "-c", tiny, "--select", ":1").status == 0


def test_the_command_in_a_store_can_be_repeated_as_it_is(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With names that a shell would take apart."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(test_in, "my fields; a $copy.h5")
    shutil.copytree(tiny, "own 'model'")
    options = ("-c", "own 'model'", "--members", 2, "--select", 3, "--quantiles", "0.1,0.9", "--exceedance", "0,0.5")
    assert (
        enma("forecast", "my fields; a $copy.h5", "--out", "my run.zarr", *options, "--precision", "fp32").status == 0
    )
    file = Path("my run.zarr", "u", "c.0.1.0.0")
    file.write_bytes(file.read_bytes()[:-1])
    first, _, then = enma("verify", "my run.zarr").err.partition("repeat: ")[2].partition(", then ")
    assert enma(*shlex.split(first)[1:]).status == 2
    repeat = shlex.split(then)
    assert repeat[0] == "enma-fast"
    assert enma(*repeat[1:], "--json").json["members_sampled"] == 1
    assert enma("verify", "my run.zarr").status == 0


def test_generated_trajectories_have_no_truth(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    run = enma("forecast", test_in, "--out", out, "-c", tiny, "--task", "generation", "--members", 2, "--select", 23)
    assert run.status == 0, run.err
    store = read_forecast(out)
    assert stacked(store).shape == (1, 2, 20, 128, 1)
    assert stacked(store, "_truth") is stacked(store, "_observed") is None


def test_forecast_replaces_a_store_only_with_force(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 2)
    assert enma(*command, "--select", 0).status == 0
    error = enma(*command, "--select", 1).error()
    assert error.startswith(f"{out}: ")
    assert "trajectories" in error
    assert "--force" in error
    assert read_forecast(out)["trajectory"].to_numpy().tolist() == [0]
    assert enma(*command, "--select", "1:3", "--force").status == 0
    assert read_forecast(out)["trajectory"].to_numpy().tolist() == [1, 2]


def test_the_plan_comes_first_and_a_dry_run_stops_there(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 5, "--select", "2:4", "--chunk", 4)
    dry = enma(*command, "--dry-run")
    assert (dry.status, dry.err) == (0, "")
    rows = {line.split("  ")[0].strip(): line.split("  ")[-1].strip() for line in dry.out.splitlines()}
    assert rows["members to sample"] == "10 of 10"
    assert rows["rows at a time"] == "4 in 4 blocks"
    assert rows["disk"] == "87 kB in 10 files"
    assert rows["time"].startswith("about ")
    assert "weights" in rows["memory"]
    plan = enma(*command, "--dry-run", "--json").json["plan"]
    assert (plan["members_missing"], plan["files"], plan["ranks"]) == (10, 10, 1)
    assert list(tmp_path.iterdir()) == []
    run = enma(*command)
    assert "members to sample" in run.err
    assert run.out.startswith(f"{out}: 2 trajectories, 5 members; 10 members sampled in ")
    quiet = enma(*command, "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")
    assert enma(*command, "--json").json["members_sampled"] == 0


def test_statistics_are_asked_for(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 5, "--select", 2, "--quiet")
    options = ("--statistics-only", "--quantiles", "0.25,0.75", "--exceedance", "0.1")
    assert enma(*command, *options).status == 0
    store = read_forecast(out)
    assert {"u_mean", "u_spread", "u_quantile", "u_exceedance"} < set(store.data_vars)
    assert "u" not in store
    assert store["quantile"].to_numpy().tolist() == [0.25, 0.75]
    assert store.attrs["command"].endswith("--statistics-only --quantiles 0.25,0.75 --exceedance 0.1")
    error = enma(*command, "--quantiles", "5%").error()
    assert error == "--quantiles '5%': write numbers with commas between them, such as 0.05,0.5,0.95"
    assert "quantiles" in enma(*command, "--quantiles", "0,0.5").error()


def test_frames_and_the_first_member_are_asked_for(enma: Callable, tiny: Path, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    options = ["-c", tiny, "--members", 3, "--first-member", 4, "--frames", 19, "--select", 2, "--out", out]
    made = enma("forecast", test_in, *options, "--json").json
    assert (made["num_frames"], made["plan"]["frames"]) == (19, 19)
    store = read_forecast(out)
    assert store["realization"].to_numpy().tolist() == [4, 5, 6]
    assert store.sizes["time"] == 19
    assert "--frames 19 --members 3 --first-member 4 --seed 0" in store.attrs["command"]
    known = read(test_in).u[2:3, :3]
    expected = sample_fields(
        load_model(tiny), known, num_frames=19, num_members=3, first_member=4, trajectories=[2]
    ).numpy()
    np.testing.assert_array_equal(stacked(store), expected)
    # The file holds 20 of the 22 frames.
    assert "dimensions/time has 20 frames" in enma("score", out, "--truth", test_in).error()
    assert "holds no truth" in enma("score", out).error()


def test_a_context_file_makes_an_initial_value_problem(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 2, "--select", 2, "--quiet")
    other = shutil.copy(test_in, tmp_path / "contexts.h5")
    assert enma(*command, "--context", other).status == 0
    store = read_forecast(out)
    assert (store.attrs["task"], store.attrs["observed_frames"]) == ("initial-value", 1)
    assert "--task initial-value --history 3 --context contexts.h5" in store.attrs["command"]
    assert "the temporal task has none" in enma(*command, "--context", test_in, "--task", "temporal").error()
