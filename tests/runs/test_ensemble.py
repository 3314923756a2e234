"""The driver: a run is what the library samples, checked before any work, continued, and the same however it is cut."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray

from enma_fast.data import FieldFile, read, read_numbered
from enma_fast.errors import EnmaError
from enma_fast.forecasting.api import sample_fields
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.runs import block_sampler
from enma_fast.runs import run as ensemble
from enma_fast.runs.run import prepare, run
from enma_fast.store import create, forecast_store
from enma_fast.store.chunks import DiskSync
from enma_fast.store.layout import LEDGER, member_file
from enma_fast.store.ledger import Ledger, write_ledger
from enma_fast.store.read import read_forecast, stacked
from enma_fast.utils.launch import Launch
from enma_fast.utils.system import versions

from .._files import contents

ALONE = Launch(launcher="alone", rank=0, num_ranks=1, local_rank=0, num_local=1, run="test")


@pytest.fixture(scope="module")
def data(test_in: Path) -> FieldFile:
    return read(test_in)


@pytest.fixture(autouse=True)
def tiny_by_default(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs here are of the tiny model."""
    original = ensemble.prepare
    monkeypatch.setattr(ensemble, "prepare", lambda *a, **k: original(*a, **{"checkpoint": tiny, **k}))


def start(data: Any, out: Path, **options: Any) -> ensemble.Run:
    return ensemble.prepare(data, out, **{"launch": ALONE, **options})


@pytest.mark.parametrize("model", ["tiny", "tiny_fast"])
@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_a_run_writes_what_the_library_samples(
    data: FieldFile, tmp_path: Path, task: str, model: str, request: pytest.FixtureRequest
) -> None:
    rows, checkpoint = [4, 2, 9], request.getfixturevalue(model)
    done = start(
        data, tmp_path / "run.zarr", checkpoint=checkpoint, task=task, members=5, seed=3, select=rows
    ).execute()
    seen = {"temporal": 3, "initial-value": 1, "generation": 0}[task]
    context = None if task == "temporal" else data.u[[data.context_for(i) for i in rows]]
    history = data.u[rows, :seen] if seen else None
    expected = sample_fields(
        load_model(checkpoint), history, context=context, num_frames=20 - seen, num_members=5, seed=3, trajectories=rows
    )
    store = read_forecast(tmp_path / "run.zarr")
    np.testing.assert_array_equal(stacked(store), expected)
    np.testing.assert_array_equal(store["trajectory"], rows)
    assert ("u_truth" in store) == (task != "generation")
    assert store.attrs["sampling"].startswith("one-pass, ") == (model == "tiny_fast")
    assert (done["members_sampled"], done["num_frames"]) == (15, 20 - seen)


@pytest.mark.parametrize("count", [1, 24])
def test_contexts_may_come_from_a_file(tiny: Path, data: FieldFile, test_in: Path, tmp_path: Path, count: int) -> None:
    other = read(test_in, select=range(count))
    start(data, tmp_path / "run.zarr", context=other, members=2, select=[7]).execute()
    context = other.u[0 if count == 1 else 7]
    expected = sample_fields(load_model(tiny), data.u[7, :1], context=context, num_members=2, trajectories=[7])
    store = read_forecast(tmp_path / "run.zarr")
    np.testing.assert_array_equal(stacked(store)[0], expected)
    assert (store.attrs["task"], store.attrs["context_file"]) == ("initial-value", "combined-test-in.h5")
    with pytest.raises(EnmaError, match=r"context_file is .* there, nothing here"):
        start(data, tmp_path / "run.zarr", task="initial-value", members=2, select=[7]).plan()


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 1},
        {"chunk": 3},
        {"chunk": 1000},
        {"chunk": 5, "launch": Launch(launcher="x", rank=2, num_ranks=3, local_rank=2, num_local=3, run="x")},
    ],
)
def test_the_bytes_do_not_depend_on_the_cut(data: FieldFile, tmp_path: Path, options: dict[str, Any]) -> None:
    common = {"members": 7, "select": [0, 11, 23], "quantiles": (0.25, 0.5), "thresholds": (0.1,)}
    start(data, tmp_path / "a.zarr", **common).execute()
    start(data, tmp_path / "b.zarr", **common, **options).execute()
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_statistics_are_those_of_the_members(data: FieldFile, tmp_path: Path) -> None:
    common = {"members": 21, "select": [3, 5], "quantiles": (0.05, 0.5, 0.95), "thresholds": (-0.2, 0.3)}
    start(data, tmp_path / "kept.zarr", **common).execute()
    start(data, tmp_path / "only.zarr", **common, keep_members=False).execute()
    kept, only = read_forecast(tmp_path / "kept.zarr"), read_forecast(tmp_path / "only.zarr")
    members = kept["u"].to_numpy().astype(np.float64)
    np.testing.assert_allclose(only["u_mean"], members.mean(1), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(only["u_spread"], members.std(1, ddof=1), rtol=1e-6, atol=1e-7)
    expected = np.quantile(members, [0.05, 0.5, 0.95], axis=1).swapaxes(0, 1)
    np.testing.assert_allclose(only["u_quantile"], expected, rtol=1e-6, atol=1e-7)
    above = np.stack([(members > t).mean(1) for t in (-0.2, 0.3)], axis=1)
    np.testing.assert_allclose(only["u_exceedance"], above, rtol=1e-6)
    for name in ("u_mean", "u_spread", "u_quantile", "u_exceedance"):
        np.testing.assert_array_equal(only[name], kept[name])
    assert "u" not in only
    assert only.attrs["num_members"] == 21
    with pytest.raises(EnmaError, match=r"keeps is members, mean, .* there, mean, spread"):
        start(data, tmp_path / "kept.zarr", **common, keep_members=False).plan()


@pytest.mark.parametrize("model", ["tiny", "tiny_fast"])
def test_a_run_that_stops_is_continued(
    data: FieldFile, tmp_path: Path, model: str, request: pytest.FixtureRequest
) -> None:
    common = {"members": 6, "select": [1, 2], "chunk": 3, "checkpoint": request.getfixturevalue(model)}
    start(data, tmp_path / "whole.zarr", **common).execute()

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done >= 6:
            raise KeyboardInterrupt

    out = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        start(data, out, **common).execute(stop)
    again = start(data, out, **common)
    # What was sampled before the stop has been written.
    assert again.plan().members_missing == 6
    seen: list[int] = []
    assert again.execute(lambda done, total: seen.append(done))["members_sampled"] == 6
    assert seen == [9, 12]
    assert contents(out) == contents(tmp_path / "whole.zarr")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert start(data, out, **common).execute()["members_sampled"] == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert start(data, out, **common, force=True).execute()["members_sampled"] == 12
    assert contents(out) == contents(tmp_path / "whole.zarr")


def test_saved_statistics_are_continued(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    common = {"members": 9, "select": [1, 2], "chunk": 2, "keep_members": False, "quantiles": (0.5,)}
    start(data, tmp_path / "whole.zarr", **common).execute()
    monkeypatch.setattr(ensemble, "_SAVE", 0.0)
    out = tmp_path / "run.zarr"

    def stop(done: int, total: int) -> None:
        if done in (9 + 4, 9 + 5):
            raise KeyboardInterrupt

    for expected in (13, 7):
        with pytest.raises(KeyboardInterrupt):
            start(data, out, **common).execute(stop)
        (saved,) = out.glob(".statistics-*.npz")
        assert expected > 0
        if expected == 7:
            saved.write_bytes(saved.read_bytes()[:-30])
    assert start(data, out, **common).execute()["members_sampled"] == 9
    assert "is damaged; its trajectory is sampled again" in caplog.text
    assert contents(out) == contents(tmp_path / "whole.zarr")


def test_what_another_run_wrote_is_refused_with_what_differs(
    tiny: Path, data: FieldFile, test_in: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    common = {"members": 3, "select": [0, 1]}
    start(data, out, **common).execute()
    before = contents(out)
    other = load_model(tiny)
    other.latent_mean += 1
    save_model(other, tmp_path / "other")
    changed = tmp_path / "data.h5"
    shutil.copy(test_in, changed)
    with changed.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    for options, message in (
        ({"seed": 4}, "seed is 0 there, 4 here"),
        ({"members": 4}, "num_members is 3 there, 4 here"),
        ({"select": [0, 2]}, "trajectories"),
        ({"history": 4}, "observed_frames is 3 there, 4 here"),
        ({"precision": "bf16"}, "precision is model there, bf16 here"),
        ({"checkpoint": tmp_path / "other"}, "model_sha256 is "),
        ({"shard": 3}, "shard is 1 there, 3 here"),
        ({"quantiles": [0.5]}, "quantiles is [] there, [0.5] here"),
    ):
        with pytest.raises(EnmaError, match=r"run\.zarr: belongs to another run: .*--force") as caught:
            start(data, out, **{**common, **options}).execute()
        assert message in str(caught.value)
        with pytest.raises(EnmaError, match="belongs to another run"):
            start(data, out, **{**common, **options}).plan()
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.h5", "other", "run.zarr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members is 0; at least 1 is needed"),
        ({"members": -3}, "members is -3"),
        ({"members": 2**32 + 1}, "members end at 4294967296; 4294967295 is the last one"),
        ({"members": 2**31}, r"needs [\d,.]+ GB, [\d,.]+ GB are free; use fewer members"),
        ({"select": [24]}, "trajectory 24 is selected; it has 0 to 23"),
        ({"select": [3, -1]}, "trajectory -1 is selected; it has 0 to 23"),
        ({"select": []}, "no trajectory is selected"),
        ({"select": [3, 3]}, "a trajectory is selected twice"),
        ({"quantiles": [0.0]}, "quantiles"),
        ({"quantiles": [0.5, 1.0]}, "quantiles"),
        ({"quantiles": [0.9, 0.1]}, "quantiles"),
        ({"quantiles": [float("nan")]}, "quantiles"),
        ({"thresholds": [1.0, 0.0]}, "thresholds"),
        ({"shard": 0}, "shard is 0; 1 to 2"),
        ({"shard": 3}, "shard is 3; 1 to 2"),
        ({"chunk": 0}, "chunk is 0"),
        ({"history": 2}, "history is 2"),
        (
            {"history": 20},
            "history is 20: of the 20 frames that combined-small was trained on none is left to forecast",
        ),
        ({"history": 21}, "holds 20 frames, history asks for 21"),
        ({"frames": 0}, "frames is 0; at least 1"),
        ({"frames": 2.5}, "frames is 2.5; a whole number"),
        ({"first_member": 1.5}, "first_member is 1.5; a whole number"),
        ({"seed": "x"}, "seed is 'x'; a whole number"),
        ({"frames": 10**9}, "frames is 1000000000; at most 30000 is possible"),
        ({"first_member": -1}, "first_member is -1; at least 0 is needed"),
        ({"first_member": 2**32 - 1}, "members end at 4294967296; 4294967295 is the last one"),
        ({"task": "weather"}, "task 'weather' is unknown"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
        ({"checkpoint": "nowhere"}, "neither a folder nor a shipped model"),
        ({"task": "temporal", "context": "self"}, "the temporal task has none"),
        ({"context": "two"}, "holds 2 contexts; give one, or one for each of the 24"),
        ({"force": True, "launch": replace(ALONE, num_ranks=2)}, "--force: one of the 2 processes could come when all"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    data: FieldFile, test_in: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"members": 2, "select": [0], **options}
    if given.get("context"):
        given["context"] = data if given["context"] == "self" else read(test_in, select=[0, 1])
    with pytest.raises(EnmaError, match=message) as caught:
        start(data, tmp_path / "run.zarr", **given).plan(measure=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_more_frames_than_the_file_holds(
    data: FieldFile, test_in: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was observed is enough to forecast; the truth is kept where all of it is known."""
    common = {"members": 3, "select": [0, 7]}
    start(data, tmp_path / "whole.zarr", **common).execute()
    whole = read_forecast(tmp_path / "whole.zarr")
    for frames in (1, 2, 3, 12):
        known = replace(data, u=data.u[:, :frames], times=data.times[:frames])
        task = "temporal" if frames > 2 else "initial-value"
        context = None if task == "temporal" else read(test_in, select=[9])
        run = start(known, tmp_path / f"{frames}.zarr", **common, task=task, context=context, history=min(frames, 3))
        run.execute()
        found = read_forecast(tmp_path / f"{frames}.zarr")
        # A file that holds more than is observed says how far to go.
        last = {1: 20, 2: 2, 3: 20, 12: 12}[frames]
        seen = 1 if frames < 3 else 3
        np.testing.assert_array_equal(found["time"], np.round(0.05 * np.arange(20), 12)[seen:last])
        assert ("u_truth" in found) == (frames in (2, 12))
        if task == "temporal":
            np.testing.assert_array_equal(found["u"], whole["u"][:, :, : last - 3])
    assert caplog.records == []
    for frames, truth in ((5, True), (17, True), (18, False), (22, False)):
        start(data, tmp_path / f"frames-{frames}.zarr", **common, frames=frames).execute()
        found = read_forecast(tmp_path / f"frames-{frames}.zarr")
        np.testing.assert_array_equal(found["time"], np.round(0.05 * np.arange(3, 3 + frames), 12))
        np.testing.assert_allclose(found["u"][:, :, :17], whole["u"][:, :, :frames], atol=1e-5)
        assert np.isfinite(found["u"]).all()
        assert ("u_truth" in found) == truth
    assert [record.getMessage() for record in caplog.records] == [
        "frames beyond 20 were not seen in training of combined-small"
    ] * 2
    with pytest.raises(EnmaError, match=r"belongs to another run: .*time"):
        start(data, tmp_path / "frames-5.zarr", **common).plan()


def test_a_second_store_continues_an_ensemble(data: FieldFile, tmp_path: Path) -> None:
    common = {"select": [3, 5], "chunk": 4}
    start(data, tmp_path / "all.zarr", **common, members=9).execute()
    start(data, tmp_path / "first.zarr", **common, members=5).execute()
    start(data, tmp_path / "rest.zarr", **common, members=4, first_member=5, shard=2).execute()
    parts = [read_forecast(tmp_path / name)[["u"]] for name in ("first.zarr", "rest.zarr")]
    both = xarray.concat(parts, "realization")
    xarray.testing.assert_equal(both, read_forecast(tmp_path / "all.zarr")[["u"]])
    assert start(data, tmp_path / "rest.zarr", **common, members=4, first_member=5, shard=2).plan().members_missing == 0
    with pytest.raises(EnmaError, match="belongs to another run: first_member is 5 there, 0 here"):
        start(data, tmp_path / "rest.zarr", **common, members=4, shard=2).plan()


@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_only_what_is_used_is_read(data: FieldFile, test_in: Path, tmp_path: Path, task: str) -> None:
    common = {"task": task, "members": 2, "select": [7, 3]}
    start(data, tmp_path / "whole.zarr", **common).execute()
    other = tmp_path / test_in.name
    shutil.copy(test_in, other)
    with h5py.File(other, "r+") as file:
        unused = sorted({*range(24)} - {7, 3, data.context_for(7), data.context_for(3)})
        for i in unused:
            file["t0_fields/u"][i] = np.nan
    start(other, tmp_path / "some.zarr", **common).execute()
    whole, some = (contents(tmp_path / name) for name in ("whole.zarr", "some.zarr"))
    # The hash of the file is another.
    assert {name for name in whole if whole[name] != some[name]} == {"zarr.json"}
    # And is none of the identity of the run.
    assert start(data, tmp_path / "some.zarr", **common).plan().members_missing == 0
    with pytest.raises(EnmaError, match="holds a NaN"):
        start(other, tmp_path / "third.zarr", **{**common, "select": unused[:1]})


@pytest.mark.parametrize("place", ["elsewhere", "itself"])
def test_a_context_that_is_the_truth_is_told(
    data: FieldFile, test_in: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    other = test_in if place == "itself" else Path(shutil.copy(test_in, tmp_path / "copy.h5"))
    start(test_in, tmp_path / "run.zarr", context=other, members=2, select=[3, 5])
    assert "the context of trajectory 3 (and those of 1 more) begins with the frame that is observed" in caplog.text
    caplog.clear()
    start(test_in, tmp_path / "run.zarr", task="initial-value", members=2, select=[3, 5])
    start(test_in, tmp_path / "run.zarr", context=read(test_in, select=[7]), members=2, select=[3, 5])
    # Of a generated trajectory it is what is asked for.
    start(test_in, tmp_path / "run.zarr", task="generation", context=other, members=2)
    assert caplog.text == ""


def test_some_trajectories_of_a_file_may_be_given(data: FieldFile, test_in: Path, tmp_path: Path) -> None:
    some = read_numbered(test_in, [7, 3])
    start(some, tmp_path / "some.zarr", members=2).execute()
    start(data, tmp_path / "whole.zarr", members=2, select=[3, 7]).execute()
    assert contents(tmp_path / "some.zarr") == contents(tmp_path / "whole.zarr")
    for options, number in (({"select": [4]}, 4), ({"select": [3], "context": read_numbered(test_in, [5])}, 3)):
        with pytest.raises(EnmaError, match=f"trajectory {number} was not read"):
            start(some, tmp_path / "other.zarr", members=2, **options)


def test_a_rank_may_make_the_store_while_another_plans(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"members": 3, "select": [0]}
    first, second = start(data, tmp_path / "run.zarr", **common), start(data, tmp_path / "run.zarr", **common)
    original = ensemble.check_place

    def slowly(path: Path) -> None:
        first.execute()
        original(path)

    monkeypatch.setattr(ensemble, "check_place", slowly)
    second.plan(measure=False)
    assert second.execute()["members_sampled"] == 0


@pytest.mark.parametrize("force", [False, True])
def test_the_plan_knows_where_no_store_can_be(data: FieldFile, tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for place, message in (
        ("file", "exists and is not a forecast store; choose another --out"),
        ("folder", "exists and is not a forecast store; choose another --out"),
        ("file/run.zarr", r"file is a file; choose another --out"),
        ("file/deep/run.zarr", r"file is a file; choose another --out"),
        ("/proc/run.zarr", "cannot be written"),
        ("n" * 300, "cannot be written .*File name too long"),
    ):
        with pytest.raises(EnmaError, match=message):
            start(data, tmp_path / place, members=2, select=[0], force=force).plan(measure=False)
    start(data, tmp_path / "new" / "run.zarr", members=2, select=[0], force=force).plan(measure=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_stays_a_link(data: FieldFile, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run.zarr").symlink_to("scratch/here.zarr")
    common = {"members": 2, "select": [0]}
    for force in (False, True, True):
        done = start(data, tmp_path / "run.zarr", **common, force=force).execute()
        assert done["members_sampled"] == 2
        assert (tmp_path / "run.zarr").is_symlink()
        assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["here.zarr"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr", "scratch"]


def test_a_folder_is_no_name_for_a_store(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        with pytest.raises(EnmaError, match=rf"{out}: is a folder; name the store in it, such as .*run\.zarr"):
            start(data, Path(out), members=2, select=[0], force=True)


def test_a_store_is_of_what_was_used(
    data: FieldFile, test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only of the files: fields may be changed, settings of a model too, and processors differ."""
    out = tmp_path / "run.zarr"
    common = {"members": 3, "select": [0, 1]}
    start(data, out, **common).execute()
    before = contents(out)
    warmer = replace(data, u=data.u + np.float32(0.01))
    other = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["sampling"]["temperature"] = 0.9
    (other / "config.json").write_text(json.dumps(config))
    manifest = json.loads((other / "manifest.json").read_text())
    data_of = (other / "config.json").read_bytes()
    manifest["files"]["config.json"] = {"bytes": len(data_of), "sha256": hashlib.sha256(data_of).hexdigest()}
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EnmaError, match="belongs to another run: input_sha256 is "):
        start(warmer, out, **common).plan()
    with pytest.raises(EnmaError, match="belongs to another run: config_sha256 is "):
        start(data, out, **common, checkpoint=other).plan()
    # As many trajectories as are used are enough, and what others of the file hold does not matter.
    assert start(read(test_in, select=[0, 1]), out, **common).plan().members_missing == 0
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(EnmaError, match=r"belongs to another run: arithmetic is native, .* there, native, AVX2 "):
        start(data, out, **common).plan()
    monkeypatch.undo()
    # The fingerprint of sampled bits stands for the release of this package.
    for package, matters in (("xarray", False), ("enma-fast", False), ("torch", True)):
        monkeypatch.setattr(
            "enma_fast.forecasting.tasks.versions", lambda package=package: versions() | {package: "0.1"}
        )
        again = ensemble.prepare(data, out, checkpoint=tiny, launch=ALONE, **common)
        if matters:
            with pytest.raises(EnmaError, match=r"belongs to another run: versions is .* there, .*torch 0\.1.* here"):
                again.plan()
        else:
            assert again.plan().members_missing == 0
    assert contents(out) == before


@pytest.mark.parametrize("keep_members", [True, False])
def test_a_member_that_is_not_finite_costs_the_statistics_of_its_trajectory_only(
    data: FieldFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    keep_members: bool,
) -> None:
    common = {"members": 6, "select": [3, 4], "chunk": 3, "quantiles": (0.5,), "keep_members": keep_members}
    start(data, tmp_path / "whole.zarr", **common).execute()
    sample = block_sampler.forecast_rows

    def spoiled(*arguments: Any, rows: list[int], members: range, **options: Any) -> torch.Tensor:
        samples = sample(*arguments, rows=rows, members=members, **options)
        if 4 in members and 4 in rows:
            samples[rows.index(4), 4 - members.start, -1, 7] = torch.inf
        return samples

    monkeypatch.setattr(block_sampler, "forecast_rows", spoiled)
    start(data, tmp_path / "run.zarr", **common).execute()
    assert "trajectory 4 has no statistics: its member 4 is not finite" in caplog.text
    found, whole = (read_forecast(tmp_path / name) for name in ("run.zarr", "whole.zarr"))
    for name in ("u_mean", "u_spread", "u_quantile"):
        np.testing.assert_array_equal(found[name][0], whole[name][0])
        assert found[name][1].isnull().all()
    if keep_members:
        np.testing.assert_array_equal(found["u"][:, :4], whole["u"][:, :4])


def test_a_member_that_is_lost_is_not_taken_for_numbers(data: FieldFile, tmp_path: Path) -> None:
    common = {"members": 6, "select": [3], "shard": 2}
    out = tmp_path / "run.zarr"
    run = start(data, out, **common, quantiles=(0.5,))
    run.execute()
    file = member_file(out, "u", run.layout, 0, 3)
    file.unlink()
    # Its statistics are to be made again, and nobody has said that it is lost.
    write_ledger(out / LEDGER, np.arange(7) < 6)
    with pytest.raises(EnmaError, match=rf"{re.escape(str(file))}: is missing; run: enma-fast verify {out}"):
        start(data, out, **common, quantiles=(0.5,)).execute()


def test_nothing_is_done_before_it_is_on_the_disk(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, then a wait, then their marks; and all marks before the ledger goes."""
    steps: list[str] = []

    def noted(owner: Any, name: str, step: str) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            steps.append(step)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    given = start(data, tmp_path / "run.zarr", members=6, select=[0], chunk=2, quantiles=(0.5,))
    noted(create, "write_file", "write")
    noted(forecast_store, "write_file", "write")
    noted(DiskSync, "sync", "sync")
    noted(Ledger, "mark", "mark")
    monkeypatch.setattr("enma_fast.store.writer._SYNC_INTERVAL", -1.0)
    original = Path.unlink
    unlink = lambda path, **options: (steps.append(f"unlink {path.name}"), original(path, **options))  # noqa: E731
    monkeypatch.setattr(Path, "unlink", unlink)
    given.execute()
    kept = [step for step in steps if step in ("write", "sync", "mark", f"unlink {LEDGER}")]
    # Three blocks of two members, and three statistics, after what the store begins with.
    expected = ["write", "write", "sync", "mark"] * 3 + ["write"] * 3 + ["sync", "mark"]
    begin = kept.index("sync") + 1
    assert kept[:begin] == ["write"] * (begin - 1) + ["sync"]
    assert kept[begin:] == [*expected, f"unlink {LEDGER}"]


def test_a_disk_that_fails_is_told_how_to_go_on(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "run.zarr", forecast_store.write_file

    def full(path: str | Path, data: bytes) -> None:
        if "/u/c." in str(path):
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(forecast_store, "write_file", full)
    said = r"run\.zarr: cannot be written .*No space left.*; what was written is kept, mend this and repeat the command"
    for force, how in ((False, "$"), (True, " without --force$")):
        with pytest.raises(EnmaError, match=said + how):
            start(data, out, members=2, select=[0], force=force).execute()


def test_the_store_of_another_tool_is_left_alone(data: FieldFile, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    xarray.Dataset({"u": ("x", [1.0])}).to_zarr(out, consolidated=False)
    before = contents(out)
    for force in (False, True):
        with pytest.raises(EnmaError, match=r"run\.zarr: "):
            start(data, out, members=2, select=[0], force=force).execute()
    (tmp_path / "half.zarr" / "u").mkdir(parents=True)
    with pytest.raises(EnmaError, match=r"half\.zarr: is not a Zarr store|half\.zarr: exists and is not"):
        start(data, tmp_path / "half.zarr", members=2, select=[0]).execute()
    assert contents(out) == before


def test_the_plan_says_what_will_be_written(data: FieldFile, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    given = start(data, out, members=10, select=[0, 1, 2], chunk=4, shard=2)
    plan = given.plan(measure=True)
    assert list(tmp_path.iterdir()) == []
    given.execute()
    chunks = list((out / "u").glob("c.*"))
    assert (plan.trajectories, plan.members, plan.frames, plan.members_missing) == (3, 10, 17, 30)
    assert plan.files == len(chunks) == 15
    values = 30 * 17 * 128 * 4
    assert plan.disk == values
    assert values < sum(p.stat().st_size for p in chunks) < 1.01 * values
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert {"weights", "keys_values", "buffers", "fields"} <= set(plan.memory)
    assert all(size > 0 for size in plan.memory.values())
    done = start(data, out, members=10, select=[0, 1, 2], shard=2).plan()
    assert (done.members_missing, done.disk, done.files, done.seconds) == (0, 0, 0, None)
    assert asdict(done)["memory"].keys() == {"fields"}


def test_too_few_inodes_ask_for_shards(data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enma_fast.store.location._free_inodes", lambda folder: 5)
    given = {"members": 12, "select": [0]}
    with pytest.raises(EnmaError, match="needs 12 files, 5 can be made; put members together: --shard"):
        start(data, tmp_path / "run.zarr", **given).plan()
    start(data, tmp_path / "run.zarr", **given, shard=4).plan()


def test_python_takes_a_path_and_gives_a_summary(tiny: Path, test_in: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    done = run(
        test_in,
        tmp_path / "run.zarr",
        checkpoint=tiny,
        members=2,
        select=[5],
        progress=lambda *progress: calls.append(progress),
    )
    assert done["store"] == str(tmp_path / "run.zarr")
    assert calls == [(2, 2)]
    assert prepare(test_in, tmp_path / "run.zarr", checkpoint=tiny, members=2, select=[5]).plan().members_missing == 0
