"""A run writes what the library samples, is continued, and gives the same bytes however it is cut."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from enma_fast.data import FieldFile
from enma_fast.errors import EnmaError
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.members import sample_fields
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import load_model
from enma_fast.runs import run as run_module
from enma_fast.store import create, forecast_store
from enma_fast.store.chunks import DiskSync
from enma_fast.store.layout import LEDGER, member_file
from enma_fast.store.ledger import Ledger, RunLock, write_ledger
from enma_fast.store.read import read_forecast
from enma_fast.utils.launch import Launch
from tests._stacked import stacked

from .._files import contents
from .._runs import ALONE, start


@pytest.mark.parametrize("model", ["tiny", "tiny_fast"])
@pytest.mark.parametrize("task", ["temporal", "initial-value", "generation"])
def test_a_run_writes_what_the_library_samples(
    data: FieldFile, tmp_path: Path, task: str, model: str, request: pytest.FixtureRequest
) -> None:
    rows, checkpoint = [4, 2, 9], request.getfixturevalue(model)
    done = start(
        data, tmp_path / "run.zarr", checkpoint=checkpoint, task=task, num_members=5, seed=3, trajectories=rows
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
    assert store.attrs["sampling"].startswith("linear, ") == (model == "tiny_fast")
    assert (done["members_sampled"], done["num_frames"]) == (15, 20 - seen)


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
    common = {"num_members": 7, "trajectories": [0, 11, 23], "quantiles": (0.25, 0.5), "thresholds": (0.1,)}
    start(data, tmp_path / "a.zarr", **common).execute()
    start(data, tmp_path / "b.zarr", **common, **options).execute()
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_statistics_are_those_of_the_members(data: FieldFile, tmp_path: Path) -> None:
    common = {"num_members": 21, "trajectories": [3, 5], "quantiles": (0.05, 0.5, 0.95), "thresholds": (-0.2, 0.3)}
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
    common = {"num_members": 6, "trajectories": [1, 2], "chunk": 3, "checkpoint": request.getfixturevalue(model)}
    start(data, tmp_path / "whole.zarr", **common).execute()

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done >= 6:
            raise KeyboardInterrupt

    out = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        start(data, out, **common).execute(stop)
    again = start(data, out, **common)
    # The members that were sampled before the stop have been written.
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


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_left_half_written_is_removed_by_the_last_process(
    data: FieldFile, tmp_path: Path, alone: bool
) -> None:
    common = {"num_members": 6, "trajectories": [1, 2], "chunk": 3, "quantiles": (0.5,)}
    start(data, tmp_path / "whole.zarr", **common).execute()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        start(data, out, **common).execute(stop)
    other = None
    if not alone:
        other = RunLock(out, ALONE.run)
        other.share()
    left = [out / name for name in ("u/.c.0.1.0.0.01234567.tmp", "..statistics-0.npz.01234567.tmp", "u_mean/.c.0.tmp")]
    for file in left:
        file.write_bytes(b"half")
    assert start(data, out, **common).execute()["members_sampled"] > 0
    if other is not None:
        # That one may be writing them.
        assert all(file.exists() for file in left)
        other.close()
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr", "whole.zarr"]


@pytest.mark.parametrize("options", [{}, {"quantiles": (0.5,)}])
def test_a_ledger_that_was_exchanged_is_kept(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    common = {"num_members": 6, "trajectories": [1, 2], "chunk": 3, **options}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        start(data, out, **common).execute(stop)
    again, copy = start(data, out, **common), (out / LEDGER).read_bytes()
    other, finished = Ledger(out / LEDGER, again.layout.num_units), Ledger.finished
    assert other.claim(0, 12)

    def exchanged(ledger: Ledger) -> bool:
        """While this process waits for the other one."""
        (tmp_path / "copy").write_bytes(copy)
        (tmp_path / "copy").replace(out / LEDGER)
        return finished(ledger)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finished", exchanged)
        with pytest.raises(EnmaError, match=r"run\.zarr: its ledger was exchanged; repeat the command$"):
            again.execute()
    assert (out / LEDGER).read_bytes() == copy
    other.close()
    assert start(data, out, **common).execute()["members_sampled"] > 0
    assert not (out / LEDGER).exists()


def test_saved_statistics_are_continued(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    common = {"num_members": 9, "trajectories": [1, 2], "chunk": 2, "keep_members": False, "quantiles": (0.5,)}
    start(data, tmp_path / "whole.zarr", **common).execute()
    monkeypatch.setattr(run_module, "_SAVE", 0.0)
    out = tmp_path / "run.zarr"

    def stop(done: int, total: int) -> None:
        if done in (9 + 4, 9 + 5):
            raise KeyboardInterrupt

    # The first pass ends after the first trajectory and four members of the second, of which two are saved.
    with pytest.raises(KeyboardInterrupt):
        start(data, out, **common).execute(stop)
    (saved,) = out.glob(".statistics-*.npz")
    copy = Path(shutil.copytree(out, tmp_path / "copy.zarr"))
    assert start(data, out, **common).execute()["members_sampled"] == 7
    assert not caplog.records
    assert contents(out) == contents(tmp_path / "whole.zarr")
    saved = copy / saved.name
    saved.write_bytes(saved.read_bytes()[:-30])
    assert start(data, copy, **common).execute()["members_sampled"] == 9
    assert "is damaged; its trajectory is sampled again" in caplog.text
    assert contents(copy) == contents(tmp_path / "whole.zarr")


def test_a_second_store_continues_an_ensemble(data: FieldFile, tmp_path: Path) -> None:
    common = {"trajectories": [3, 5], "chunk": 4}
    start(data, tmp_path / "all.zarr", **common, num_members=9).execute()
    start(data, tmp_path / "first.zarr", **common, num_members=5).execute()
    start(data, tmp_path / "rest.zarr", **common, num_members=4, first_member=5, shard=2).execute()
    parts = [read_forecast(tmp_path / name)[["u"]] for name in ("first.zarr", "rest.zarr")]
    both = xarray.concat(parts, "realization")
    xarray.testing.assert_equal(both, read_forecast(tmp_path / "all.zarr")[["u"]])
    assert (
        start(data, tmp_path / "rest.zarr", **common, num_members=4, first_member=5, shard=2).plan().members_missing
        == 0
    )
    with pytest.raises(EnmaError, match="belongs to another run: first_member is 5 there, 0 here"):
        start(data, tmp_path / "rest.zarr", **common, num_members=4, shard=2).plan()


def test_a_link_stays_a_link(data: FieldFile, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run.zarr").symlink_to("scratch/here.zarr")
    common = {"num_members": 2, "trajectories": [0]}
    for force in (False, True, True):
        done = start(data, tmp_path / "run.zarr", **common, force=force).execute()
        assert done["members_sampled"] == 2
        assert (tmp_path / "run.zarr").is_symlink()
        assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["here.zarr"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.zarr", "scratch"]


def spoil(monkeypatch: pytest.MonkeyPatch, members: tuple[int, ...] = (4,)) -> None:
    """From now on these members of trajectory 4 are not finite."""
    sample = FileForecast.sample

    def spoiled(forecast: FileForecast, part: ForecastRequest, **options: Any) -> torch.Tensor:
        samples = sample(forecast, part, **options)
        numbers = list(part.trajectories or ())
        for member in members:
            if member in part.members and 4 in numbers:
                samples[numbers.index(4), part.members.index(member), -1, 7] = torch.inf
        return samples

    monkeypatch.setattr(FileForecast, "sample", spoiled)


def test_members_that_are_not_finite_are_named_without_statistics(
    data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, (11, 14, 15))
    common = {"num_members": 6, "first_member": 10, "trajectories": [3, 4], "chunk": 3}
    start(data, tmp_path / "run.zarr", **common).execute()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["trajectory 4: its member 11 is not finite", "trajectory 4: its members 14, 15 are not finite"]


@pytest.mark.parametrize("keep_members", [True, False])
def test_a_member_that_is_not_finite_costs_the_statistics_of_its_trajectory_only(
    data: FieldFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    keep_members: bool,
) -> None:
    common = {"num_members": 6, "trajectories": [3, 4], "chunk": 3, "quantiles": (0.5,), "keep_members": keep_members}
    start(data, tmp_path / "whole.zarr", **common).execute()
    spoil(monkeypatch)
    start(data, tmp_path / "run.zarr", **common).execute()
    assert "trajectory 4 has no statistics: its member 4 is not finite" in caplog.text
    assert caplog.text.count("not finite") == 1
    found, whole = (read_forecast(tmp_path / name) for name in ("run.zarr", "whole.zarr"))
    for name in ("u_mean", "u_spread", "u_quantile"):
        np.testing.assert_array_equal(found[name][0], whole[name][0])
        assert found[name][1].isnull().all()
    if keep_members:
        np.testing.assert_array_equal(found["u"][:, :4], whole["u"][:, :4])


def test_a_member_that_is_lost_is_not_taken_for_numbers(data: FieldFile, tmp_path: Path) -> None:
    common = {"num_members": 6, "trajectories": [3], "shard": 2}
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

    given = start(data, tmp_path / "run.zarr", num_members=6, trajectories=[0], chunk=2, quantiles=(0.5,))
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
    said = r"run\.zarr: cannot be written .*No space left.*; what was written is kept, fix this and repeat the command"
    for force, how in ((False, "$"), (True, " without --force$")):
        with pytest.raises(EnmaError, match=said + how):
            start(data, out, num_members=2, trajectories=[0], force=force).execute()


def test_the_store_of_another_tool_is_left_alone(data: FieldFile, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    xarray.Dataset({"u": ("x", [1.0])}).to_zarr(out, consolidated=False)
    before = contents(out)
    for force in (False, True):
        with pytest.raises(EnmaError, match=r"run\.zarr: "):
            start(data, out, num_members=2, trajectories=[0], force=force).execute()
    (tmp_path / "half.zarr" / "u").mkdir(parents=True)
    with pytest.raises(EnmaError, match=r"half\.zarr: is not a Zarr store|half\.zarr: exists and is not"):
        start(data, tmp_path / "half.zarr", num_members=2, trajectories=[0]).execute()
    assert contents(out) == before
