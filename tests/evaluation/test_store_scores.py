"""Scores of forecast stores: those of the same members in memory, in bounded parts; what cannot be scored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast.data import FieldFile, read
from enma_fast.errors import EnmaError
from enma_fast.evaluation import store_scores
from enma_fast.evaluation.metrics import Scores
from enma_fast.evaluation.physics import Physics
from enma_fast.evaluation.scoring import score_forecast
from enma_fast.evaluation.store_scores import score_store
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import TASKS, ForecastRequest
from enma_fast.models.checkpoint import PRETRAINED, load_model, sha256
from enma_fast.store.layout import LEDGER, OUTSIDE
from tests._made import create_store

from ._stores import CHANNELS, NUMBERS, SEEN, fields_file, store_of

TEST_IN = PRETRAINED / "combined-test-in.h5"


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
    request = ForecastRequest(task=TASKS[task], num_members=3, trajectories=rows, seed=2)
    seen = request.num_observed
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
        expected = score_forecast(FileForecast(model, data, request), sinks=[store])
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
            match=r"run\.zarr: .*truth",
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


def test_physics_are_those_of_all_members(tmp_path: Path) -> None:
    data = fields_file(tmp_path / "waves-test-in.h5", (8,))
    samples = store_of(tmp_path / "run.zarr", data, members=20)
    physics = Physics("waves", [8], 2)
    for members, row in zip(samples, NUMBERS, strict=True):
        physics.add([members], data.u[row, SEEN:], data.u[row, :SEEN])
    found = score_store(tmp_path / "run.zarr")["physics"]
    assert found["spectrum_error"] == pytest.approx(physics.result()["spectrum_error"], rel=1e-9)
    assert found["energy_error"] == pytest.approx(physics.result()["energy_error"], rel=1e-9)


def test_one_member_has_no_calibration(tmp_path: Path, data: FieldFile) -> None:
    store_of(tmp_path / "one.zarr", data, members=1)
    result = score_store(tmp_path / "one.zarr")
    assert result["rmsce"] is result["rank_histogram"] is None
    assert result["rel_l2"] == result["rel_l2_member"]


def test_a_missing_member_is_named(tmp_path: Path, data: FieldFile) -> None:
    samples = np.ones((3, 5, 4, 7, 2), np.float32)
    store_of(tmp_path / "run.zarr", data, samples=samples)
    (tmp_path / "run.zarr" / "v" / "c.1.3.0.0").unlink()
    with pytest.raises(EnmaError, match=r"run\.zarr: member 13"):
        score_store(tmp_path / "run.zarr")
    # A member that is there and NaN is not a missing one.
    samples[1, 3] = np.nan
    store_of(tmp_path / "run.zarr", data, samples=samples, force=True)
    with pytest.raises(EnmaError, match=r"run\.zarr: member 13"):
        score_store(tmp_path / "run.zarr")
    samples[1, 3] = 1
    samples[2, 0, 1, 2, 1] = np.inf
    store_of(tmp_path / "run.zarr", data, samples=samples, force=True)
    with pytest.raises(EnmaError, match=r"run\.zarr: member 10"):
        score_store(tmp_path / "run.zarr")


def test_an_unfinished_store_is_refused(run: Path) -> None:
    (run / LEDGER).write_bytes(b"")
    with pytest.raises(EnmaError, match=r"run\.zarr: .*finished"):
        score_store(run)
    (run / LEDGER).unlink()
    min((run / "u").glob("c.1.2.*")).unlink()
    with pytest.raises(EnmaError, match=r"run\.zarr: member 12"):
        score_store(run)


def test_a_store_of_statistics_has_no_members_to_score(tmp_path: Path, data: FieldFile) -> None:
    store_of(tmp_path / "run.zarr", data, samples=None, keep_members=False, statistics=True)
    with pytest.raises(EnmaError, match=r"run\.zarr: .*members"):
        score_store(tmp_path / "run.zarr")


@pytest.mark.parametrize("name", ["u", "v_truth"])
def test_a_damaged_chunk_is_named(run: Path, name: str) -> None:
    chunk = min((run / name).glob("c.1.*"))
    content = bytearray(chunk.read_bytes())
    content[9] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(EnmaError, match=r"run\.zarr: trajectory 4"):
        score_store(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"times": 0.06 * np.arange(6)},
            r"other\.h5: dimensions/time",
        ),
        ({"coords": [np.arange(7) / 3]}, r"other\.h5: dimensions/x"),
    ],
)
def test_a_truth_on_other_axes_is_refused(tmp_path: Path, run: Path, changes: dict[str, Any], message: str) -> None:
    other = fields_file(tmp_path / "other.h5", **changes)
    with pytest.raises(EnmaError, match=message):
        score_store(run, truth=other.path)


@pytest.mark.parametrize("begin", [0.0, 1e6, 1e9])
@pytest.mark.parametrize("spacing", [0.5, 1.0])
def test_a_truth_of_other_frames_is_refused_however_late(tmp_path: Path, begin: float, spacing: float) -> None:
    times, path = begin + spacing * np.arange(7), tmp_path / "run.zarr"
    data = fields_file(tmp_path / "fields.h5", times=times[:6])
    store_of(path, data)
    expected = score_store(path)
    assert score_store(path, truth=data.path)["rel_l2"] == expected["rel_l2"]
    near = fields_file(tmp_path / "near.h5", times=times[:6] + 5e-4 * spacing).path
    assert score_store(path, truth=near)["rel_l2"] == expected["rel_l2"]
    for shifted in (times[1:], times[:6] + 0.3 * spacing):
        later = fields_file(tmp_path / "later.h5", times=shifted).path
        with pytest.raises(EnmaError, match=r"later\.h5: dimensions/time"):
            score_store(path, truth=later)


def test_times_and_places_may_be_rounded_to_float32(tmp_path: Path) -> None:
    times, path = 1000 + 0.05 * np.arange(6), tmp_path / "run.zarr"
    data = fields_file(tmp_path / "fields.h5", times=times)
    store_of(path, data)
    rounded = fields_file(tmp_path / "rounded.h5", times=times.astype(np.float32).astype(float)).path
    assert score_store(path, truth=rounded)["rel_l2"] == score_store(path)["rel_l2"]


def test_a_truth_of_other_shape_is_refused(tmp_path: Path, data: FieldFile, run: Path) -> None:
    def fields(*names: str, frames: int = 6, points: int = 7) -> dict[str, np.ndarray]:
        return {name: np.ones((6, frames, points), np.float32) for name in names}

    other = tmp_path / "other.h5"
    fields_file(other, t0_fields=fields("u", "w"))
    with pytest.raises(EnmaError, match=r"other\.h5: .*fields"):
        score_store(run, truth=other)
    fields_file(other, t0_fields=fields("u", "v", points=8), coords=[np.arange(8) / 8])
    with pytest.raises(EnmaError, match=r"other\.h5: .*grid"):
        score_store(run, truth=other)
    fields_file(other, t0_fields=fields("u", "v", frames=5), times=0.05 * np.arange(5))
    with pytest.raises(EnmaError, match="dimensions/time"):
        score_store(run, truth=other)
    store_of(tmp_path / "far.zarr", data, trajectories=[1, 4, 9])
    few = r"^--truth .*fields\.h5: holds 6 trajectories; .*far\.zarr holds 3, up to number 9; give the file"
    with pytest.raises(EnmaError, match=few):
        score_store(tmp_path / "far.zarr", truth=data.path)
    store_of(tmp_path / "bare.zarr", data, attributes={})
    with pytest.raises(EnmaError, match=r"bare\.zarr: .*observed_frames"):
        score_store(tmp_path / "bare.zarr", truth=data.path)


def test_another_file_of_the_same_trajectories_is_taken_with_a_warning(
    tmp_path: Path, data: FieldFile, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = score_store(run, truth=data.path)
    assert caplog.text == ""
    copy = fields_file(tmp_path / "copy.h5", name="waves-copied").path
    assert score_store(run, truth=copy) == {**expected, "truth": str(copy)}
    assert "its SHA-256 is not data_sha256" in caplog.text
    assert "differ from those" not in caplog.text
    changed = {name: data.u[..., c] + 0.5 for c, name in enumerate(CHANNELS)}
    result = score_store(run, truth=fields_file(tmp_path / "changed.h5", t0_fields=changed).path)
    assert "changed.h5: the first frames of trajectory 5 differ from those that" in caplog.text
    assert result["rmse"] != expected["rmse"]


def test_a_truth_in_another_unit_is_warned_of(
    tmp_path: Path, data: FieldFile, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.zarr"
    store_of(path, data, units={"u": "m s-1", "v": "K"})
    fields = {name: data.u[..., c] for c, name in enumerate(CHANNELS)}
    for unit, warned in (("m/s", False), ("km/h", True)):
        other = fields_file(tmp_path / "other.h5", t0_fields=fields, units={"u": unit, "v": "kelvin"}).path
        score_store(path, truth=other)
        assert ("other.h5: u has the unit km/h, that of " in caplog.text) == warned


@pytest.mark.parametrize("from_file", [False, True])
def test_a_truth_of_zeros_is_refused_by_its_number(tmp_path: Path, from_file: bool) -> None:
    u = np.ones((6, 6, 7), np.float32)
    u[4, SEEN:] = 0
    data = fields_file(tmp_path / "zeros.h5", t0_fields=dict.fromkeys(CHANNELS, u))
    store_of(tmp_path / "run.zarr", data)
    with pytest.raises(EnmaError, match=r"run\.zarr: .*truth"):
        score_store(tmp_path / "run.zarr", truth=data.path if from_file else None)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnmaError, match=r"nowhere: .*folder"):
        score_store(tmp_path / "nowhere")


def test_damaged_observations_are_named(run: Path) -> None:
    min((run / "u_observed").glob("c*")).write_bytes(b"")
    with pytest.raises(EnmaError, match=r"run\.zarr: .*verify"):
        score_store(run)
