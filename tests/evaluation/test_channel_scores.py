"""Scores of each channel of a field: no large channel hides the others, in a file and in a store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enma_fast.errors import EnmaError
from enma_fast.evaluation import store_scores
from enma_fast.evaluation.channel_scores import ChannelScores, channel_notes
from enma_fast.evaluation.metrics import Scores
from enma_fast.evaluation.store_scores import score_store
from enma_fast.figures.report.reader import StoreReader
from enma_fast.models.checkpoint import read_tensors, write_tensors

from ._stores import NUMBERS, SEEN, fields_file, store_of

LARGE = np.float32(1e5)


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[Path, Any, np.ndarray]:
    """A store of u of about 1 and v of about 1e5, its field file, and its members."""
    rng = np.random.default_rng(2)
    u, v = rng.normal(size=(2, 6, 6, 7)).astype(np.float32)
    data = fields_file(tmp_path / "fields.h5", t0_fields={"u": u, "v": LARGE + 100 * v}, units={"v": "Pa"})
    shape = (len(NUMBERS), 5, 4, 7, 2)
    samples = rng.normal(size=shape).astype(np.float32) * [1, 100] + [0, LARGE]
    samples = store_of(tmp_path / "run.zarr", data, samples=samples.astype(np.float32), units=data.units)
    return tmp_path / "run.zarr", data, samples


def alone(samples: np.ndarray, data: Any, c: int) -> dict[str, Any]:
    scores = Scores()
    fields = data.u[NUMBERS][..., c : c + 1]
    scores.update(samples[..., c : c + 1], fields[:, SEEN:], fields[:, :SEEN])
    return scores.result()


def test_each_channel_has_the_scores_that_it_has_alone(uneven: tuple) -> None:
    path, data, samples = uneven
    result = score_store(path)
    assert result["rel_l2"] < 2e-3, "over all channels the large one hides the other"
    assert list(result["channels"]) == ["u", "v"]
    reader = StoreReader(path)
    for c, (name, unit) in enumerate({"u": "1", "v": "Pa"}.items()):
        row, expected, pooled = result["channels"][name], alone(samples, data, c), reader.scores(c)
        for trajectory in reader:
            pooled.add(trajectory)
        truth = data.u[NUMBERS, SEEN:, ..., c].astype(np.float64)
        assert row["unit"] == unit
        assert (row["truth_mean"], row["truth_std"]) == pytest.approx((truth.mean(), truth.std()), rel=1e-9)
        del expected["per_frame"]
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=1e-10), (name, key)
            assert row[key] == pytest.approx(pooled.result()[key], rel=1e-10), "as the report has it"
    assert result["channels"]["u"]["rel_l2"] > 0.9
    whole = Scores()
    whole.update(samples, data.u[NUMBERS, SEEN:], data.u[NUMBERS, :SEEN])
    assert result["rel_l2"] == pytest.approx(whole.result()["rel_l2"], rel=1e-12)


def test_a_field_of_one_channel_has_no_scores_of_channels(tmp_path: Path) -> None:
    fields = {"u": np.random.default_rng(1).normal(size=(6, 6, 7)).astype(np.float32)}
    data = fields_file(tmp_path / "one.h5", t0_fields=fields)
    store_of(tmp_path / "run.zarr", data)
    assert score_store(tmp_path / "run.zarr")["channels"] is None
    assert ChannelScores(["u"]).state() == {}
    assert channel_notes(None) == []


def test_notes_name_the_channels_that_hide_others(uneven: tuple) -> None:
    path, _, _ = uneven
    mean, size = channel_notes(score_store(path)["channels"])
    assert mean.startswith("Relative L2 is relative to the whole field, and v is ")
    assert size.startswith("v, of RMS 1e+05, rules the scores of all channels and hides u of ")
    assert channel_notes({name: {"truth_mean": 0.0, "truth_std": 1.0} for name in "uv"}) == []


def test_batches_and_parts_give_the_same(uneven: tuple) -> None:
    _, data, samples = uneven
    fields = data.u[NUMBERS]
    together, single = ChannelScores("uv"), ChannelScores("uv")
    together.update(samples, fields[:, SEEN:], fields[:, :SEEN])
    for i in range(len(NUMBERS)):
        single.update(samples[i : i + 1], fields[i : i + 1, SEEN:], fields[i : i + 1, :SEEN])
    assert single.result({}) == together.result({})
    generated = single.result({}, has_truth=False)
    assert generated is not None
    assert generated["u"]["rel_l2"] is None
    assert generated["u"]["crps"] is not None


def test_a_channel_that_is_zero_throughout_has_no_scores(tmp_path: Path) -> None:
    u = np.random.default_rng(1).normal(size=(6, 6, 7)).astype(np.float32)
    data = fields_file(tmp_path / "fields.h5", t0_fields={"u": u, "v": 0 * u})
    store_of(tmp_path / "run.zarr", data)
    found = score_store(tmp_path / "run.zarr")["channels"]
    assert (found["v"]["rel_l2"], found["v"]["crps"], found["v"]["num_trajectories"]) == (None, None, 0)
    assert found["u"]["num_trajectories"] == 3


@pytest.mark.parametrize("stopped", [1, 2])
def test_scores_of_channels_go_on_where_they_were(uneven: tuple, stopped: int) -> None:
    path, _, _ = uneven
    expected = score_store(path)

    def stop(done: int, total: int) -> None:
        if done == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_store(path, progress=stop)
    read: list[int] = []
    parts = store_scores._parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_scores, "_parts", lambda *given: read.append(given[2]) or parts(*given))
        assert score_store(path) == expected
    assert read == list(range(stopped, 3)), "the trajectories before were not read again"


def test_a_state_without_its_channels_is_begun_again(uneven: tuple, caplog: pytest.LogCaptureFixture) -> None:
    path, _, _ = uneven
    expected, state = score_store(path), path.with_name("run.zarr.scores")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_store(path, progress=stop)
    tensors, metadata = read_tensors(state)
    write_tensors(state, {k: v for k, v in tensors.items() if not k.startswith("channels.")}, metadata)
    assert score_store(path) == expected
    assert "scoring starts again from the first trajectory" in caplog.text


def test_a_state_of_other_channels_is_refused(uneven: tuple) -> None:
    _, data, samples = uneven
    scores = ChannelScores("uv")
    scores.update(samples, data.u[NUMBERS, SEEN:])
    again = ChannelScores.restore(scores.state(), "uv")
    assert again.result({}) == scores.result({})
    for channels in ("u", "uvw"):
        with pytest.raises(EnmaError, match="score again"):
            ChannelScores.restore(scores.state(), channels)
