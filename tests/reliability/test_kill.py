"""A run that is killed at any step and repeated ends with the files of one that was never killed, and no others."""

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .._files import contents
from ._harness import PHASES, Ended, Process, Server, beside, phase, steps

pytestmark = pytest.mark.kill

# The request, options of the run, and what is changed so that a short run does all that a long one does: settle after
# each block, save folds.
MODES: dict[str, tuple[dict[str, int], dict[str, Any], dict[str, float]]] = {
    "members": ({"num_members": 3, "chunk": 2}, {}, {"store.writer._SYNC_INTERVAL": -1.0}),
    "shards": ({"num_members": 4, "chunk": 2}, {"shard": 3}, {"store.writer._SYNC_INTERVAL": -1.0}),
    "quantiles": ({"num_members": 3, "chunk": 2}, {"quantiles": [0.1, 0.9]}, {"store.writer._SYNC_INTERVAL": 1e9}),
    "statistics": (
        {"num_members": 3, "chunk": 1},
        {"keep_members": False, "thresholds": [0.5]},
        {"runs.run._SAVE": -1.0},
    ),
}
# A process of the run dies as soon as it has the store it made.
MADE = {"how": "kill", "match": "/run.zarr/.unfinished", "at": [1]}


class Runs:
    """Runs of one mode in one folder."""

    def __init__(self, server: Server, folder: Path, data: Path, checkpoint: Path, mode: str) -> None:
        self.server, self.folder = server, folder
        self.store, self.made = folder / "run.zarr", folder.with_name(f"{folder.name}-made")
        asked, options, self.patch = MODES[mode]
        request = {"trajectories": [0, 1], **asked}
        self.options = {"data": data, "out": self.store, "request": request, "checkpoint": checkpoint, **options}
        self.trace = folder.with_name(f"{folder.name}-trace")
        ended = self.run()
        assert ended.status == 0, ended.err
        self.whole = contents(folder)
        assert beside(self.store) == []

    def start(self, environ: dict[str, str] | None = None, **trap: Any) -> Process:
        """A process of the run, with a trap."""
        given = {"folder": str(self.folder), **trap} if trap else None
        return self.server.start(run=self.options, trap=given, patch=self.patch, environ=environ)

    def run(self, **trap: Any) -> Ended:
        return self.start(**trap).end()

    def clear(self, template: Path | None = None) -> None:
        """An empty folder, or a copy of another."""
        shutil.rmtree(self.folder)
        if template is None:
            self.folder.mkdir()
        else:
            shutil.copytree(template, self.folder)

    def make(self) -> None:
        """Keep a copy of a store that has just been made; runs that begin with it need no making."""
        self.clear()
        assert self.run(**MADE).status == -9
        assert phase(self.store) == "empty"
        shutil.copytree(self.folder, self.made)

    def steps(self) -> list[str]:
        """The steps of a run to its end."""
        ended = self.run(trace=str(self.trace))
        assert ended.status == 0, ended.err
        return steps(self.trace)

    def check(self, landed: Counter[str]) -> None:
        """After a kill: note where it landed, do it again, and compare."""
        landed[phase(self.store)] += 1
        # A store that has been replaced is only continued.
        options = self.options
        if phase(self.store) == "empty":
            self.options = {**options, "force": False}
        ended = self.run()
        self.options = options
        assert ended.status == 0, ended.err
        assert contents(self.folder) == self.whole


@pytest.fixture
def runs(request: pytest.FixtureRequest, server: Server, quick: Path, test_in: Path, tiny: Path) -> Runs:
    folder = quick / "runs"
    folder.mkdir()
    return Runs(server, folder, test_in, tiny, request.param)


def every(runs: Runs, numbers: range, template: Path | None) -> Counter[str]:
    """Kill at each of these steps, and in the middle of it if it writes; how many kills landed in which phase."""
    landed: Counter[str] = Counter()
    for how in ("kill", "half"):
        for number in numbers:
            runs.clear(template)
            named = {} if how == "kill" else {"match": "write"}
            ended = runs.run(how=how, at=[number], **named)
            if ended.status != -9:
                # There are fewer writes than steps.
                assert (ended.status, how) == (0, "half"), ended.err
                break
            runs.check(landed)
    return landed


@pytest.mark.parametrize("runs", MODES, indirect=True)
def test_at_every_step_of_sampling_writing_and_finishing(runs: Runs) -> None:
    runs.make()
    count = len(runs.steps())
    # Statistics take more steps, of no more kinds.
    stride = 2 if "keep_members" in runs.options or "quantiles" in runs.options else 1
    landed = every(runs, range(1, count + 1, stride), runs.made)
    assert landed["making"] == 0
    assert landed["empty"] >= 5
    assert landed["finishing"] + landed["finished"] >= 2
    assert landed["members"] >= 5
    assert landed.total() >= 25


@pytest.mark.parametrize("runs", ["members"], indirect=True)
def test_while_the_store_is_made(runs: Runs) -> None:
    runs.clear()
    found = runs.steps()
    made = next(i for i, step in enumerate(found) if step == f"os.rename {runs.folder}/.run.zarr.tmp")
    numbers = range(1, made, 9)
    landed = every(runs, numbers, None)
    # In the middle of writes too, of which there are fewer.
    assert landed["making"] > len(numbers) + 1


@pytest.mark.parametrize("runs", ["members"], indirect=True)
def test_while_a_store_is_replaced(runs: Runs) -> None:
    """With `force` a run begins anew every time it is repeated; nothing of the old store may stay behind."""
    runs.clear()
    options = runs.options
    runs.options = {**options, "request": {**options["request"], "seed": 7}}
    assert runs.run().status == 0
    old = runs.folder.with_name("runs-old")
    shutil.copytree(runs.folder, old)
    runs.options = {**options, "force": True}
    found = runs.steps()
    first = next(i for i, step in enumerate(found) if step == f"os.rename {runs.store}")
    last = next(i for i, step in enumerate(found) if step == f"open {runs.store}/.unfinished")
    assert last - first > 10
    landed = every(runs, range(first, last + 2, 2), old)
    # With the old store, with none, and with the new one beside what is left of the old.
    assert landed["finished"] >= 1
    assert landed["empty"] >= 5


@pytest.mark.parametrize("runs", MODES, indirect=True)
def test_at_random_moments_several_times_in_a_row(runs: Runs, rng: np.random.Generator) -> None:
    landed: Counter[str] = Counter()
    runs.options["request"] |= {"num_members": 12, "chunk": 1}
    times = []
    for _ in range(3):
        runs.clear()
        ended = runs.run()
        assert ended.status == 0, ended.err
        times.append(ended.json["seconds"])
    runs.whole = contents(runs.folder)
    longest = 1.2 * min(times)
    # Around the making of the store, which happens once, and among the members: what is there first, and the most then.
    moments = (("making", 0.02), ("empty", 0.1 * longest), ("making", longest), ("members", longest))
    end = time.monotonic() + 240
    # On a busy machine a round may miss what it aims at.
    while landed.total() < 8 or not (landed["making"] and landed["members"]):
        assert time.monotonic() < end, landed
        runs.clear()
        for reached, last in moments:
            process = runs.start()
            while PHASES.index(phase(runs.store)) < PHASES.index(reached) and process.state(1e-3) == "running":
                pass
            if process.state(rng.uniform(0, last)) == "running" and process.kill().status == -9:
                landed[phase(runs.store)] += 1
        runs.check(Counter())


@pytest.mark.parametrize("runs", MODES, indirect=True)
def test_the_other_process_of_a_run_takes_over(runs: Runs) -> None:
    runs.make()
    killed = 0
    for number in range(3, 24, 4):
        runs.clear(runs.made)
        ranks = [{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": "1"} for rank in (0, 1)]
        dying = runs.start(ranks[0], how="kill", at=[number])
        other = runs.start(ranks[1])
        assert dying.end().status in (-9, 0)
        killed += dying.status == -9
        ended = other.end()
        assert ended.status == 0, ended.err
        # The other may have gone before the first died, and with it the lock.
        if beside(runs.store) or phase(runs.store) != "finished":
            assert runs.run().status == 0
        assert contents(runs.folder) == runs.whole
    assert killed >= 3
