"""Ensembles elsewhere suffer from members that are there twice, results that depend on the number of workers, seeds
that give other numbers, and processes that end without a word: none of it here."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enma_fast.store.read import read_forecast

from .._files import contents
from ._harness import Server, beside

MEMBERS, TRAJECTORIES = 6, 2
ALL = MEMBERS * TRAJECTORIES


@pytest.fixture
def command(test_in: Path, tiny: Path) -> Callable[..., tuple[object, ...]]:
    def make(out: Path, *options: object) -> tuple[object, ...]:
        fixed = ("--members", MEMBERS, "--select", f"0:{TRAJECTORIES}", "--chunk", 2, "--json")
        return ("forecast", test_in, "--out", out, "-c", tiny, *fixed, *options)

    return make


def ranks(count: int) -> list[dict[str, str]]:
    return [{"RANK": str(n), "WORLD_SIZE": str(count), "MASTER_PORT": "1"} for n in range(count)]


def members(store: Path) -> np.ndarray:
    return read_forecast(store)["u"].to_numpy().reshape(ALL, -1)


def test_no_member_is_there_twice_on_several_ranks(server: Server, command: Callable, quick: Path) -> None:
    """As if each rank drew the same noise."""
    out = quick / "run.zarr"
    started = [server.start(*command(out), environ=environ) for environ in ranks(3)]
    assert sum(process.end().json["members_sampled"] for process in started) == ALL
    assert len(np.unique(members(out), axis=0)) == ALL


def test_results_do_not_depend_on_the_number_of_workers(server: Server, command: Callable, quick: Path) -> None:
    found = []
    for count in (1, 3):
        for how in ((), ("--static",)):
            out = quick / f"{count}{'-static' * len(how)}.zarr"
            started = [server.start(*command(out, *how), environ=environ) for environ in ranks(count)]
            assert all(process.end().status == 0 for process in started)
            if how:
                # Two that end together may both have missed that they were the last.
                assert server.run(*command(out, *how)).status == 0
            found.append(contents(out))
    assert all(files == found[0] for files in found)


def test_a_seed_gives_the_same_ensemble_and_another_seed_another(
    server: Server, command: Callable, quick: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert server.run(*command(quick / f"{name}.zarr", "--seed", seed)).status == 0
    a, b, c = (members(quick / f"{name}.zarr") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert contents(quick / "a.zarr") == contents(quick / "b.zarr")
    assert (a != c).any(axis=1).all()


def test_a_stopped_rank_holds_its_members_for_a_while_only(server: Server, command: Callable, quick: Path) -> None:
    whole = quick / "whole.zarr"
    assert server.run(*command(whole)).status == 0
    out = quick / "run.zarr"
    trap = {"folder": str(out), "how": "stop", "at": [1], "match": "/run.zarr/u/"}
    first = server.start(*command(out), environ=ranks(2)[0], trap=trap)
    assert first.state() == "stopped"
    second = server.run(
        *command(out), environ=ranks(2)[1], patch={"runs.blocks._PATIENCE": 0.5, "runs.blocks._LONGER": 0.0}
    )
    assert second.status == 0
    assert "a process holds members and has done none for" in second.err
    assert contents(out) == contents(whole)
    # When it goes on it writes the same once more, and ends.
    first.go_on()
    assert first.end().status == 0
    assert contents(out) == contents(whole)
    assert beside(out) == ["whole.zarr"]


def test_a_terminated_run_ends_with_a_line_and_goes_on(server: Server, command: Callable, quick: Path) -> None:
    out = quick / "run.zarr"
    trap = {"folder": str(quick), "how": "stop", "at": [3], "match": "/run.zarr/u/"}
    process = server.start(*command(out, "--chunk", 1), trap=trap)
    assert process.state() == "stopped"
    os.kill(process.pid, signal.SIGTERM)
    process.go_on()
    ended = process.end()
    assert ended.status == 143
    assert ended.err.splitlines()[-1] == "error: stopped by SIGTERM; what was written is kept"
    assert beside(out) == []
    again = server.run(*command(out))
    assert 0 < again.json["members_sampled"] < ALL


def test_a_run_with_nothing_to_do_says_so(server: Server, command: Callable, quick: Path) -> None:
    out = quick / "run.zarr"
    plain = [argument for argument in command(out) if argument != "--json"]
    assert "12 members sampled in" in server.run(*plain).out
    assert "2 trajectories, 6 members; all were there, nothing was left to sample" in server.run(*plain).out
