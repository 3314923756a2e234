"""A run is checked before any work: what it reads, what belongs to it, and what is refused."""

import hashlib
import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from enma_fast.commands.options import DEFAULT_CHECKPOINT
from enma_fast.data import FieldFile, read, read_numbered
from enma_fast.errors import EnmaError
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.checkpoint import load_model, save_model
from enma_fast.ops import rates
from enma_fast.runs.prepare import prepare as original
from enma_fast.store.read import read_forecast
from enma_fast.utils.system import versions
from tests._stacked import stacked

from .._files import contents
from .._runs import ALONE, prepare, start


def test_the_model_is_by_default_that_of_the_command() -> None:
    assert inspect.signature(original).parameters["checkpoint"].default == DEFAULT_CHECKPOINT


@pytest.mark.parametrize("count", [1, 24])
def test_contexts_may_come_from_a_file(tiny: Path, data: FieldFile, test_in: Path, tmp_path: Path, count: int) -> None:
    other = read(test_in, select=range(count))
    start(data, tmp_path / "run.zarr", context=other, num_members=2, trajectories=[7]).execute()
    context = other.u[0 if count == 1 else 7]
    expected = sample_fields(load_model(tiny), data.u[7, :1], context=context, num_members=2, trajectories=[7])
    store = read_forecast(tmp_path / "run.zarr")
    np.testing.assert_array_equal(stacked(store)[0], expected)
    assert (store.attrs["task"], store.attrs["context_file"]) == ("initial-value", "combined-test-in.h5")
    with pytest.raises(EnmaError, match="context_file"):
        start(data, tmp_path / "run.zarr", task="initial-value", num_members=2, trajectories=[7]).plan()


def test_what_another_run_wrote_is_refused_with_what_differs(
    tiny: Path, data: FieldFile, test_in: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    common = {"num_members": 3, "trajectories": [0, 1]}
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
        ({"num_members": 4}, "num_members is 3 there, 4 here"),
        ({"trajectories": [0, 2]}, "trajectories"),
        ({"num_history": 4}, "observed_frames is 3 there, 4 here"),
        ({"precision": "bf16"}, "precision is model there, bf16 here"),
        ({"checkpoint": tmp_path / "other"}, "model_sha256 is "),
        ({"shard": 3}, "shard is 1 there, 3 here"),
        ({"quantiles": [0.5]}, "quantiles is [] there, [0.5] here"),
    ):
        with pytest.raises(EnmaError, match="another run") as caught:
            start(data, out, **{**common, **options}).execute()
        assert message in str(caught.value)
        with pytest.raises(EnmaError, match="another run"):
            start(data, out, **{**common, **options}).plan()
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.h5", "other", "run.zarr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_members": 0}, "num_members is 0"),
        ({"num_members": -3}, "num_members is -3"),
        ({"num_members": 2**32 + 1}, "num_members is 4294967297"),
        ({"num_members": 2**31}, "fewer members"),
        ({"trajectories": [24]}, "trajectory 24"),
        ({"trajectories": [3, -1]}, "a trajectory is -1"),
        ({"trajectories": []}, "trajectory"),
        ({"trajectories": [3, 3]}, "trajectories"),
        ({"quantiles": [0.0]}, "quantiles"),
        ({"quantiles": [0.5, 1.0]}, "quantiles"),
        ({"quantiles": [0.9, 0.1]}, "quantiles"),
        ({"quantiles": [float("nan")]}, "quantiles"),
        ({"thresholds": [1.0, 0.0]}, "thresholds"),
        ({"shard": 0}, "shard"),
        ({"shard": 3}, "shard"),
        ({"chunk": 0}, "chunk is 0"),
        ({"num_history": 2}, "history is 2"),
        (
            {"num_history": 20},
            "history",
        ),
        ({"num_history": 21}, "frames"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": 2.5}, "num_frames is 2.5"),
        ({"first_member": 1.5}, "first_member is 1.5"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"num_frames": 10**9}, "num_frames is 1000000000"),
        ({"first_member": -1}, "first_member is -1"),
        ({"first_member": 2**32 - 1}, "first_member is 4294967295"),
        ({"task": "weather"}, "task 'weather'"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"checkpoint": "nowhere"}, "shipped model"),
        ({"task": "temporal", "context": "self"}, "temporal task"),
        ({"context": "two"}, "contexts"),
        ({"force": True, "launch": replace(ALONE, num_ranks=2)}, r"--force: .*processes"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    data: FieldFile, test_in: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"num_members": 2, "trajectories": [0], **options}
    if given.get("context"):
        given["context"] = data if given["context"] == "self" else read(test_in, select=[0, 1])
    with pytest.raises(EnmaError, match=message) as caught:
        start(data, tmp_path / "run.zarr", **given).plan(measure=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_more_frames_than_the_file_holds(
    data: FieldFile, test_in: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Observed frames are enough to forecast; the truth is kept where all of it is known."""
    common = {"num_members": 3, "trajectories": [0, 7]}
    start(data, tmp_path / "whole.zarr", **common).execute()
    whole = read_forecast(tmp_path / "whole.zarr")
    for frames in (1, 2, 3, 12):
        known = replace(data, u=data.u[:, :frames], times=data.times[:frames])
        task = "temporal" if frames > 2 else "initial-value"
        context = None if task == "temporal" else read(test_in, select=[9])
        run = start(
            known, tmp_path / f"{frames}.zarr", **common, task=task, context=context, num_history=min(frames, 3)
        )
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
        start(data, tmp_path / f"frames-{frames}.zarr", **common, num_frames=frames).execute()
        found = read_forecast(tmp_path / f"frames-{frames}.zarr")
        np.testing.assert_array_equal(found["time"], np.round(0.05 * np.arange(3, 3 + frames), 12))
        np.testing.assert_allclose(found["u"][:, :, :17], whole["u"][:, :, :frames], atol=1e-5)
        assert np.isfinite(found["u"]).all()
        assert ("u_truth" in found) == truth
    assert [record.getMessage() for record in caplog.records] == [
        "frames beyond 20 were not seen in training of combined-small"
    ] * 2
    with pytest.raises(EnmaError, match="another run"):
        start(data, tmp_path / "frames-5.zarr", **common).plan()


@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_only_what_is_used_is_read(data: FieldFile, test_in: Path, tmp_path: Path, task: str) -> None:
    common = {"task": task, "num_members": 2, "trajectories": [7, 3]}
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
        start(other, tmp_path / "third.zarr", **{**common, "trajectories": unused[:1]})


@pytest.mark.parametrize("place", ["elsewhere", "itself"])
def test_a_context_that_is_the_truth_is_told(
    test_in: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    other = test_in if place == "itself" else Path(shutil.copy(test_in, tmp_path / "copy.h5"))
    start(test_in, tmp_path / "run.zarr", context=other, num_members=2, trajectories=[3, 5])
    assert "the context of trajectory 3 (and those of 1 more) begins with the frame that is observed" in caplog.text
    caplog.clear()
    start(test_in, tmp_path / "run.zarr", task="initial-value", num_members=2, trajectories=[3, 5])
    start(test_in, tmp_path / "run.zarr", context=read(test_in, select=[7]), num_members=2, trajectories=[3, 5])
    # For a generated trajectory a context from the same file is normal.
    start(test_in, tmp_path / "run.zarr", task="generation", context=other, num_members=2)
    assert caplog.text == ""


def test_some_trajectories_of_a_file_may_be_given(data: FieldFile, test_in: Path, tmp_path: Path) -> None:
    some = read_numbered(test_in, [7, 3])
    start(some, tmp_path / "some.zarr", num_members=2).execute()
    start(data, tmp_path / "whole.zarr", num_members=2, trajectories=[3, 7]).execute()
    assert contents(tmp_path / "some.zarr") == contents(tmp_path / "whole.zarr")
    for options, number in (
        ({"trajectories": [4]}, 4),
        ({"trajectories": [3], "context": read_numbered(test_in, [5])}, 3),
    ):
        with pytest.raises(EnmaError, match=f"trajectory {number}"):
            start(some, tmp_path / "other.zarr", num_members=2, **options)


def test_a_folder_is_no_name_for_a_store(data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        with pytest.raises(EnmaError, match=rf"{out}: .*folder"):
            start(data, Path(out), num_members=2, trajectories=[0], force=True)


def test_a_store_is_of_what_was_used(
    data: FieldFile, test_in: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only of the files: fields may be changed, settings of a model too, and processors differ."""
    out = tmp_path / "run.zarr"
    common = {"num_members": 3, "trajectories": [0, 1]}
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
    with pytest.raises(EnmaError, match="another run"):
        start(warmer, out, **common).plan()
    with pytest.raises(EnmaError, match="another run"):
        start(data, out, **common, checkpoint=other).plan()
    # The trajectories that are used are enough; the others of the file do not matter.
    assert start(read(test_in, select=[0, 1]), out, **common).plan().members_missing == 0
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    with pytest.raises(EnmaError, match="another run"):
        start(data, out, **common).plan()
    monkeypatch.undo()
    # The fingerprint of sampled bits stands for the release of this package.
    for package, matters in (("xarray", False), ("enma-fast", False), ("torch", True)):
        monkeypatch.setattr(
            "enma_fast.forecasting.store_layout.versions", lambda package=package: versions() | {package: "0.1"}
        )
        again = start(data, out, **common, checkpoint=tiny)
        if matters:
            with pytest.raises(EnmaError, match="another run"):
                again.plan()
        else:
            assert again.plan().members_missing == 0
    assert contents(out) == before


def test_a_path_is_enough(tiny: Path, test_in: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    options = {"checkpoint": tiny, "num_members": 2, "trajectories": [5]}
    done = prepare(test_in, tmp_path / "run.zarr", **options).execute(lambda *progress: calls.append(progress))
    assert done["store"] == str(tmp_path / "run.zarr")
    assert calls == [(2, 2)]
    assert prepare(test_in, tmp_path / "run.zarr", **options).plan().members_missing == 0


def test_auto_is_what_the_store_was_begun_with(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, common = tmp_path / "run.zarr", {"trajectories": [7], "num_members": 2, "precision": "auto"}
    chosen = {"bf16": 2.0, "fp32": 1.0}
    monkeypatch.setattr(rates, "measured", lambda device: rates.Rates(products=chosen, head={}))
    start(data, out, **common).execute()
    assert read_forecast(out).attrs["precision"] == "bf16"
    before = contents(out)
    # A rank, or a later process, that measures otherwise.
    chosen["fp32"] = 3.0
    assert start(data, out, **common).execute()["members_sampled"] == 0
    assert contents(out) == before
    start(data, out, **common, force=True).execute()
    assert read_forecast(out).attrs["precision"] == "fp32"


def test_a_store_whose_number_format_is_no_text_is_refused(data: FieldFile, tmp_path: Path) -> None:
    out, common = tmp_path / "run.zarr", {"trajectories": [7], "num_members": 2, "precision": "auto"}
    start(data, out, **common).execute()
    root = json.loads((out / "zarr.json").read_text())
    root["attributes"]["precision"] = ["fp32"]
    (out / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(EnmaError, match=r"run\.zarr: .*'fp32'"):
        start(data, out, **common)
