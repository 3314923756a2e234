"""Scores of forecast stores: those of the same members in memory, in bounded parts, resumed after a kill."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enma_fast.data import FieldFile, read, write
from enma_fast.errors import EnmaError
from enma_fast.evaluation import store_scores
from enma_fast.evaluation.metrics import Scores
from enma_fast.evaluation.scoring import score_case
from enma_fast.evaluation.store_scores import score_store
from enma_fast.forecasting.tasks import TASKS, Case
from enma_fast.models.checkpoint import PRETRAINED, load_model, read_tensors, sha256, write_tensors
from enma_fast.store.create import create_store
from enma_fast.store.layout import LEDGER, OUTSIDE

ROOT = Path(__file__).resolve().parents[2]
TEST_IN = PRETRAINED / "combined-test-in.h5"
NUMBERS, SEEN = [1, 4, 5], 2
CHANNELS = ("u", "v")


def fields_file(path: Path, space: tuple[int, ...] = (7,), **changes: Any) -> FieldFile:
    """A field file of 6 trajectories, 6 frames and 2 channels."""
    rng = np.random.default_rng(5)
    given = {
        "name": "waves-test-in",
        "times": 0.05 * np.arange(6),
        "coords": [np.arange(n) / n for n in space],
        "periodic": [True] * len(space),
        "scalars": {"environment": np.zeros(6, np.int64)},
        "t0_fields": {name: rng.normal(size=(6, 6, *space)).astype(np.float32) for name in CHANNELS},
    }
    return read(write(path, **{**given, **changes}))


def store_of(path: Path, data: FieldFile, rows: list[int] = NUMBERS, *, members: int = 5, **changes: Any) -> np.ndarray:
    """Write a store of random members of some trajectories of a file; returns them, `[B, K, T, *x, c]`."""
    shape = (len(rows), members, len(data.times) - SEEN, *data.u.shape[2:])
    samples = changes.pop("samples", np.random.default_rng(8).normal(size=shape).astype(np.float32))
    given = {
        "channels": data.channels,
        "times": data.times[SEEN:],
        "coords": data.coords,
        "trajectories": rows,
        "num_members": members,
        "first_member": 10,
        "observed": data.u[rows, :SEEN],
        "observed_times": data.times[:SEEN],
        "truth": data.u[rows, SEEN:],
        "attributes": {
            "task": "temporal",
            "observed_frames": SEEN,
            "model": "a model",
            "seed": 3,
            "data_name": data.name,
            "data_sha256": sha256(data.path),
        },
    }
    with create_store(path, **{**given, **changes}) as store:
        if samples is not None:
            store.put(0, samples)
    return samples


@pytest.fixture
def data(tmp_path: Path) -> FieldFile:
    return fields_file(tmp_path / "fields.h5")


@pytest.fixture
def run(tmp_path: Path, data: FieldFile) -> Path:
    """A store of `data`."""
    store_of(tmp_path / "run.zarr", data)
    return tmp_path / "run.zarr"


def assert_close(got: Any, expected: Any, rel: float = 1e-12) -> None:
    """Equal, but numbers only to `rel`."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            assert_close(got[name], expected[name], rel)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b, rel)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=rel, abs=1e-300)
    else:
        assert got == expected


def in_memory(samples: np.ndarray, data: FieldFile) -> dict[str, Any]:
    scores = Scores()
    scores.update(samples, data.u[NUMBERS, SEEN:], data.u[NUMBERS, :SEEN])
    return {**scores.result(), "rank_histogram": scores.rank_histogram().tolist()}


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_the_same_members_scored_as_they_are_sampled(tmp_path: Path, task: str) -> None:
    model, data, rows = load_model("combined-small"), read(TEST_IN), [3, 4, 12]
    case = Case(task=task, members=3, seed=2)
    seen = case.observed
    with create_store(
        tmp_path / "run.zarr",
        channels=data.channels,
        times=data.times[seen:],
        coords=data.coords,
        trajectories=rows,
        num_members=3,
        observed=data.u[rows, :seen] if seen else None,
        observed_times=data.times[:seen],
        truth=None if task == "generation" else data.u[rows, seen:],
        attributes={
            "task": task,
            "observed_frames": seen,
            "seed": 2,
            "model": "combined-small",
            "data_name": data.name,
            "data_sha256": sha256(TEST_IN),
            OUTSIDE: [],
        },
    ) as store:
        expected = score_case(model, data, case, rows=rows, sink=store.put)
    result = score_store(tmp_path / "run.zarr", truth=TEST_IN)
    only_of_a_run = {"seconds_per_member", "num_parameters", "sampling", "precision"}
    solved = (result.pop("solver_fidelity"), expected.pop("solver_fidelity"))
    if task == "generation":
        assert solved[0] == pytest.approx(solved[1], rel=1e-4)
    else:
        assert solved == (None, None)
    assert set(result) == set(expected) - only_of_a_run | {"store", "truth", "sampling", "precision"}
    for name in set(expected) - only_of_a_run:
        assert_close(result[name], expected[name])
    if task == "generation":
        assert result["rel_l2"] is result["rmse"] is None
        with pytest.raises(
            EnmaError,
            match=r"run\.zarr: holds no truth; give a field file that does, its frames .*--truth FILE",
        ):
            score_store(tmp_path / "run.zarr")
    else:
        own = score_store(tmp_path / "run.zarr")
        assert own == {**result, "truth": None, "solver_fidelity": None}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("space", [(7,), (6, 5)])
@pytest.mark.parametrize(("block", "part"), [(10**9, 10**9), (90, 40), (12, 7)])
def test_parts_are_bounded_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: tuple[int, ...], block: int, part: int
) -> None:
    data = fields_file(tmp_path / "fields.h5", space)
    samples = store_of(tmp_path / "run.zarr", data)
    monkeypatch.setattr(store_scores, "_BLOCK", block)
    monkeypatch.setattr(store_scores, "_PART", part)
    sizes: dict[str, int] = {"read": 0, "scored": 0}
    values, add = store_scores._values, Scores.update_in_parts

    def reading(path: Path, number: int, array: Any) -> np.ndarray:
        sizes["read"] = max(sizes["read"], array.size)
        return values(path, number, array)

    def adding(self: Scores, parts: Any, num_frames: int, **options: Any) -> None:
        given = list(parts)
        sizes["scored"] = max(members.size for _, members, _ in given)
        add(self, given, num_frames, **options)

    monkeypatch.setattr(store_scores, "_values", reading)
    monkeypatch.setattr(Scores, "update_in_parts", adding)
    # The least that is read is a row of all members, and the least that is scored a point of theirs.
    row = 5 * int(np.prod(space[1:]))
    for truth in (None, data.path):
        result = score_store(tmp_path / "run.zarr", truth=truth)
        for name, value in in_memory(samples, data).items():
            assert_close(result[name], value)
        assert 0 < sizes["read"] <= max(block, row)
        assert 0 < sizes["scored"] <= max(part, 5)


def test_one_member_has_no_calibration(tmp_path: Path, data: FieldFile) -> None:
    store_of(tmp_path / "one.zarr", data, members=1)
    result = score_store(tmp_path / "one.zarr")
    assert result["rmsce"] is result["rank_histogram"] is None
    assert result["rel_l2"] == result["rel_l2_member"]


CHILD = """
import os, signal, sys
from enma_fast.models import checkpoint
from enma_fast.evaluation import store_scores

moment, store, truth = sys.argv[1:]
parts, replace = store_scores._parts, os.replace

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def torn(path, dataset, place, truth_of):
    for number, part in enumerate(parts(path, dataset, place, truth_of)):
        if (place, number) == (1, 1):
            kill()
        yield part

def late(source, target, **folders):
    return kill() if os.path.basename(target) == "run.zarr.scores" else replace(source, target, **folders)

if moment == "reading":
    store_scores._parts = torn
elif moment == "saving":
    os.replace = late
elif moment == "finishing":
    store_scores._remove = kill
store_scores.score_store(store, truth=truth, progress=lambda done, _: kill() if (moment, done) == ("saved", 3) else 0)
"""


def test_a_killed_run_goes_on_and_gives_the_same_bits(tmp_path: Path, data: FieldFile) -> None:
    path = tmp_path / "run.zarr"
    store_of(path, data, list(range(6)))
    expected = score_store(path, truth=data.path)
    before = sorted(tmp_path.iterdir())
    state = tmp_path / "run.zarr.scores"
    done = []
    for moment, scored in (("reading", 1), ("saving", 1), ("saved", 3), ("finishing", 6)):
        command = [sys.executable, "-c", CHILD, moment, str(path), str(data.path)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == -9, (moment, process.stderr)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_scores, "_remove", lambda state: None)
            patch.setattr(store_scores, "_save", lambda *arguments: None)
            calls: list[tuple[int, int]] = []
            assert score_store(path, truth=data.path, progress=lambda *call, to=calls: to.append(call)) == expected
            done.append((moment, calls[0][0] - 1 if calls else 6))
        assert done[-1] == (moment, scored)
        assert state.is_file()
    assert len(list(tmp_path.glob(".run.zarr.scores.*"))) == 1, "what the kill in the middle of a save left"
    assert score_store(path, truth=data.path) == expected
    assert sorted(tmp_path.iterdir()) == before


def interrupt_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


def test_the_state_of_another_store_or_truth_is_not_taken(
    tmp_path: Path, data: FieldFile, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "enma_fast")
    state, calls = tmp_path / "run.zarr.scores", []

    def first_call(**options: Any) -> int:
        calls.clear()
        score_store(run, progress=lambda done, total: calls.append(done), **options)
        assert not state.exists()
        return calls[0]

    def begin(**options: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            score_store(run, progress=interrupt_after(2), **options)
        assert state.exists()

    begin()
    assert first_call() == 3
    assert "run.zarr.scores: goes on after 2 trajectories" in caplog.text
    begin()
    assert first_call(truth=data.path) == 1
    begin(truth=data.path)
    other = fields_file(tmp_path / "other.h5", name="another-name").path
    assert first_call(truth=other) == 1
    begin()
    store_of(run, data, NUMBERS, members=4, force=True)
    assert first_call() == 1
    begin()
    state.write_bytes(state.read_bytes()[:-5])
    assert first_call() == 1
    assert "not a whole safetensors file" in caplog.text


def test_where_no_state_can_be_saved_it_scores_all_the_same(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = score_store(run)
    (tmp_path / "run.zarr.scores").mkdir()
    assert score_store(run) == expected
    assert "run.zarr.scores: cannot be written" in caplog.text


def test_state_and_restore_keep_every_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    members, truth = torch.randn(5, 4, 3, 6, 2, generator=generator), torch.randn(5, 3, 6, 2, generator=generator)
    whole, begun = Scores(), Scores()
    whole.update(members, truth)
    begun.update(members[:2], truth[:2])
    state = {name: value.copy() for name, value in begun.state().items()}
    gone_on = Scores.restore(state)
    gone_on.update(members[2:], truth[2:])
    assert gone_on.result() == whole.result()
    assert begun.num_trajectories == 2
    assert all(np.array_equal(begun.state()[name], value) for name, value in state.items())
    assert Scores.restore(Scores().state()).num_trajectories == 0
    for broken in ({**state, "points": state["points"][1:]}, {**state, "other": np.zeros(1)}, {}):
        with pytest.raises(EnmaError, match="state holds"):
            Scores.restore(broken)
    with pytest.raises(EnmaError, match="state holds"):
        Scores.restore({name: value for name, value in state.items() if name != "crps"})


def test_parts_must_be_whole_frames_and_nothing_is_added_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    members, truth = torch.randn(4, 3, 6, generator=generator), torch.randn(3, 6, generator=generator)
    scores = Scores()
    with pytest.raises(EnmaError, match="between 0 and 6 points of a frame"):
        scores.update_in_parts([(0, members[:, :2], truth[:2])], 3)
    with pytest.raises(EnmaError, match="zero throughout"):
        scores.update_in_parts([(0, members, 0 * truth)], 3)
    assert scores.num_trajectories == 0
    scores.update_in_parts([(0, members, truth)], 3)
    with pytest.raises(EnmaError, match="4 members and 3 frames"):
        scores.update_in_parts([(0, members[:2], truth)], 3)
    assert scores.num_trajectories == 1


def test_a_missing_member_is_named(tmp_path: Path, data: FieldFile) -> None:
    samples = np.ones((3, 5, 4, 7, 2), np.float32)
    store_of(tmp_path / "run.zarr", data, samples=samples)
    (tmp_path / "run.zarr" / "v" / "c.1.3.0.0").unlink()
    with pytest.raises(EnmaError, match=r"run\.zarr: member 13 of trajectory 4 is missing .* run: enma-fast verify"):
        score_store(tmp_path / "run.zarr")
    # What is there is no less so for being NaN.
    samples[1, 3] = np.nan
    store_of(tmp_path / "run.zarr", data, samples=samples, force=True)
    with pytest.raises(EnmaError, match=r"run\.zarr: member 13 of trajectory 4 is not finite in u"):
        score_store(tmp_path / "run.zarr")
    samples[1, 3] = 1
    samples[2, 0, 1, 2, 1] = np.inf
    store_of(tmp_path / "run.zarr", data, samples=samples, force=True)
    with pytest.raises(EnmaError, match=r"run\.zarr: member 10 of trajectory 5 is not finite in v"):
        score_store(tmp_path / "run.zarr")


def test_an_unfinished_store_is_refused(run: Path) -> None:
    (run / LEDGER).write_bytes(b"")
    with pytest.raises(EnmaError, match=r"run\.zarr: is not finished"):
        score_store(run)
    (run / LEDGER).unlink()
    min((run / "u").glob("c.1.2.*")).unlink()
    with pytest.raises(EnmaError, match=r"run\.zarr: member 12 of trajectory 4 is missing"):
        score_store(run)


def test_a_store_of_statistics_has_no_members_to_score(tmp_path: Path, data: FieldFile) -> None:
    store_of(tmp_path / "run.zarr", data, samples=None, keep_members=False, statistics=True)
    with pytest.raises(EnmaError, match=r"run\.zarr: holds no members of u, only statistics; forecast again"):
        score_store(tmp_path / "run.zarr")


@pytest.mark.parametrize("name", ["u", "v_truth"])
def test_a_damaged_chunk_is_named(run: Path, name: str) -> None:
    chunk = min((run / name).glob("c.1.*"))
    content = bytearray(chunk.read_bytes())
    content[9] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(EnmaError, match=r"run\.zarr: trajectory 4 cannot be read .*damaged"):
        score_store(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": 0.06 * np.arange(6)}, r"other\.h5: dimensions/time has other times than time of .*run\.zarr"),
        ({"coords": [np.arange(7) / 3]}, r"other\.h5: dimensions/x has other points than x of .*run\.zarr"),
    ],
)
def test_a_truth_on_other_axes_is_refused(tmp_path: Path, run: Path, changes: dict[str, Any], message: str) -> None:
    other = fields_file(tmp_path / "other.h5", **changes)
    with pytest.raises(EnmaError, match=message):
        score_store(run, truth=other.path)


def test_a_truth_of_other_shape_is_refused(tmp_path: Path, data: FieldFile, run: Path) -> None:
    def fields(*names: str, frames: int = 6, points: int = 7) -> dict[str, np.ndarray]:
        return {name: np.ones((6, frames, points), np.float32) for name in names}

    other = tmp_path / "other.h5"
    fields_file(other, t0_fields=fields("u", "w"))
    with pytest.raises(EnmaError, match=r"other\.h5: its fields are u, w; .*run\.zarr forecasts u, v"):
        score_store(run, truth=other)
    fields_file(other, t0_fields=fields("u", "v", points=8), coords=[np.arange(8) / 8])
    with pytest.raises(EnmaError, match=r"other\.h5: the grid is 8 points; .*run\.zarr has 7"):
        score_store(run, truth=other)
    fields_file(other, t0_fields=fields("u", "v", frames=5), times=0.05 * np.arange(5))
    with pytest.raises(EnmaError, match=r"dimensions/time has 5 frames; .*run\.zarr observed 2 and forecasts 4 more"):
        score_store(run, truth=other)
    store_of(tmp_path / "far.zarr", data, trajectories=[1, 4, 9])
    with pytest.raises(EnmaError, match=r"fields\.h5: .*outside 0\.\.5"):
        score_store(tmp_path / "far.zarr", truth=data.path)
    store_of(tmp_path / "bare.zarr", data, attributes={})
    with pytest.raises(EnmaError, match=r"bare\.zarr: lacks the attribute observed_frames"):
        score_store(tmp_path / "bare.zarr", truth=data.path)


def test_another_file_of_the_same_trajectories_is_taken_with_a_warning(
    tmp_path: Path, data: FieldFile, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = score_store(run, truth=data.path)
    assert caplog.text == ""
    copy = fields_file(tmp_path / "copy.h5", name="waves-copied").path
    assert score_store(run, truth=copy) == {**expected, "truth": str(copy)}
    assert "its SHA-256 is not data_sha256" in caplog.text
    assert "begins otherwise" not in caplog.text
    changed = {name: data.u[..., c] + 0.5 for c, name in enumerate(CHANNELS)}
    result = score_store(run, truth=fields_file(tmp_path / "changed.h5", t0_fields=changed).path)
    assert "changed.h5: trajectory 5 begins otherwise than" in caplog.text
    assert result["rmse"] != expected["rmse"]


@pytest.mark.parametrize("from_file", [False, True])
def test_a_truth_of_zeros_is_refused_by_its_number(tmp_path: Path, from_file: bool) -> None:
    u = np.ones((6, 6, 7), np.float32)
    u[4, SEEN:] = 0
    data = fields_file(tmp_path / "zeros.h5", t0_fields=dict.fromkeys(CHANNELS, u))
    store_of(tmp_path / "run.zarr", data)
    with pytest.raises(EnmaError, match=r"run\.zarr: the truth of trajectory 4 is zero throughout"):
        score_store(tmp_path / "run.zarr", truth=data.path if from_file else None)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnmaError, match="nowhere: no such folder"):
        score_store(tmp_path / "nowhere")


def test_a_state_of_an_earlier_version_is_refused_and_scoring_starts_anew(
    tmp_path: Path, data: FieldFile, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, state = score_store(run), tmp_path / "run.zarr.scores"
    with pytest.raises(KeyboardInterrupt):
        score_store(run, progress=interrupt_after(2))
    tensors, metadata = read_tensors(state)
    write_tensors(state, {name: value for name, value in tensors.items() if name != "rel_l2_each"}, metadata)
    assert score_store(run) == expected
    assert "it is of another version or damaged, so score again; scoring starts anew" in caplog.text


def test_damaged_observations_are_named(run: Path) -> None:
    min((run / "u_observed").glob("c*")).write_bytes(b"")
    with pytest.raises(EnmaError, match=r"run\.zarr: .* enma-fast verify"):
        score_store(run)
