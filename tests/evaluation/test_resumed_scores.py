"""The saved state of scores: an interrupted call resumes, and gives the same bits."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enma_fast.data import FieldFile
from enma_fast.errors import EnmaError
from enma_fast.evaluation import store_scores
from enma_fast.evaluation.metrics import Scores
from enma_fast.evaluation.store_scores import score_store
from enma_fast.models.checkpoint import read_tensors, write_tensors

from ._stores import NUMBERS, fields_file, store_of

ROOT = Path(__file__).resolve().parents[2]

# It imports all once, and forks for each moment that it reads; the child scores as a process of its own.
CHILD = """
import os, signal, sys
from enma_fast.models import checkpoint
from enma_fast.evaluation import store_scores

store, truth = sys.argv[1:]
parts, rename = store_scores._parts, os.rename

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def torn(path, dataset, place, truth_of):
    for number, part in enumerate(parts(path, dataset, place, truth_of)):
        if (place, number) == (1, 1):
            kill()
        yield part

def late(source, target, **folders):
    return kill() if os.path.basename(target) == "run.zarr.scores" else rename(source, target, **folders)

def score(moment):
    if moment == "reading":
        store_scores._parts = torn
    elif moment == "saving":
        os.rename = late
    elif moment == "finishing":
        store_scores._remove = kill
    at = 3 if moment == "saved" else None
    store_scores.score_store(store, truth=truth, progress=lambda done, _: kill() if done == at else 0)

for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            score(line.strip())
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bits(tmp_path: Path, data: FieldFile) -> None:
    path = tmp_path / "run.zarr"
    store_of(path, data, list(range(6)))
    expected = score_store(path, truth=data.path)
    before = sorted(tmp_path.iterdir())
    state = tmp_path / "run.zarr.scores"
    done = []
    command, pipe = [sys.executable, "-c", CHILD, str(path), str(data.path)], subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1)
    for moment, scored in (("reading", 1), ("saving", 1), ("saved", 3), ("finishing", 6)):
        server.stdin.write(f"{moment}\n")
        assert server.stdout.readline() == "-9\n", moment
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_scores, "_remove", lambda state: None)
            patch.setattr(store_scores, "_save", lambda *arguments: None)
            calls: list[tuple[int, int]] = []
            assert score_store(path, truth=data.path, progress=lambda *call, to=calls: to.append(call)) == expected
            done.append((moment, calls[0][0] - 1 if calls else 6))
        assert done[-1] == (moment, scored)
        assert state.is_file()
    server.communicate()
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
    assert "run.zarr.scores: resumed after 2 trajectories" in caplog.text
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


@pytest.mark.parametrize(("folder", "path"), [(".", "."), ("u", ".."), (".", "../run.zarr/.")])
def test_a_store_that_has_no_name_of_its_own_is_scored(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, folder: str, path: str
) -> None:
    expected = score_store(run)
    monkeypatch.chdir(run / folder)
    with pytest.raises(KeyboardInterrupt):
        score_store(path, progress=interrupt_after(2))
    assert (tmp_path / "run.zarr.scores").is_file()
    assert score_store(path) == {**expected, "store": str(Path(path))}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fields.h5", "run.zarr"]


def test_what_a_killed_save_left_is_found_by_any_name(tmp_path: Path, data: FieldFile) -> None:
    store_of(tmp_path / "run[1].zarr", data)
    for name in (".run[1].zarr.scores.0123", ".run1.zarr.scores.0123"):
        (tmp_path / name).write_text("")
    score_store(tmp_path / "run[1].zarr")
    assert sorted(file.name for file in tmp_path.glob(".*")) == [".run1.zarr.scores.0123"]


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
    with pytest.raises(EnmaError, match="points"):
        scores.update_in_parts([(0, members[:, :2], truth[:2])], 3)
    with pytest.raises(EnmaError, match="zero throughout"):
        scores.update_in_parts([(0, members, 0 * truth)], 3)
    assert scores.num_trajectories == 0
    scores.update_in_parts([(0, members, truth)], 3)
    with pytest.raises(EnmaError, match="members"):
        scores.update_in_parts([(0, members[:2], truth)], 3)
    assert scores.num_trajectories == 1


def test_a_state_of_an_earlier_version_is_refused_and_scoring_starts_again(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, state = score_store(run), tmp_path / "run.zarr.scores"
    with pytest.raises(KeyboardInterrupt):
        score_store(run, progress=interrupt_after(2))
    tensors, metadata = read_tensors(state)
    write_tensors(state, {name: value for name, value in tensors.items() if name != "rel_l2_median_each"}, metadata)
    assert score_store(run) == expected
    assert "it is of another version or damaged, so score again; scoring starts again" in caplog.text
