"""Ranks of libenma beside one process: who makes which members, and what is reported."""

import itertools
import json
import subprocess

import pytest

from benchmarks import embed_ranks
from benchmarks.embed import LIBRARY
from enma_fast.errors import EnmaError

needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="needs the library of `make install`")


@needs_library
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_make_the_members_of_one_process(ranks, monkeypatch):
    def made(count, number):
        monkeypatch.setenv("ENMA_RANK", str(number))
        found = embed_ranks.rank("combined-fast", ranks=count, members=5, threads=1, repeats=1, begin=0.0)
        assert found["rank"] == number
        assert found["late"] > 0
        return found["members"]

    whole = made(1, 0)
    assert len(set(whole)) == 5
    assert list(itertools.chain(*(made(ranks, number) for number in range(ranks)))) == whole


def test_times_are_medians_of_rounds_in_turn(monkeypatch, capsys):
    sides = []

    def round_of(preset, *, ranks, members, threads, repeats):
        sides.append((ranks, threads, repeats))
        return {4: 90.0, 1: 100.0}[ranks] + len(sides), ["a", "b"]

    monkeypatch.setattr(embed_ranks, "round_of", round_of)
    monkeypatch.setattr(embed_ranks.os, "sched_getaffinity", lambda process: {0, 1})
    assert embed_ranks.main(["--ranks", "4", "--members", "8", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # A trial decides how often a round forecasts: two seconds of 101 members a second, 8 at a time.
    assert sides == [(1, 2, 1), (4, 1, 25), (1, 2, 25), (4, 1, 25), (1, 2, 25)]
    process = found["against"]["one process, 2 threads"]
    assert 1 / found["ours_s"] == pytest.approx((92 + 94) / 2, rel=1e-3)
    assert 1 / process["seconds"] == pytest.approx((103 + 105) / 2, rel=1e-3)
    # Time of the one process by that of the ranks, as of every baseline.
    assert process["ratio"] == pytest.approx((92 / 103 + 94 / 105) / 2)


def test_other_members_have_no_rate(monkeypatch, capsys):
    monkeypatch.setattr(embed_ranks, "round_of", lambda preset, *, ranks, **counts: (10.0, [str(ranks)]))
    assert embed_ranks.main(["--ranks", "2", "--rounds", "1"]) == 1
    assert "other bits" in capsys.readouterr().err


def test_a_rank_that_fails_or_is_late_is_said(monkeypatch):
    monkeypatch.setattr(embed_ranks, "READY", 0.0)
    counts = {"members": 2, "threads": 1, "repeats": 1}
    with pytest.raises(EnmaError, match="a rank failed"):
        embed_ranks.round_of("nothing", ranks=1, **counts)


def test_more_ranks_than_members_are_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        embed_ranks.main(["--ranks", "9", "--members", "8"])
    assert exit.value.code == 2
    assert "--ranks is 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("mpirun (Open MPI) 5.0.7", ["mpirun", *embed_ranks.OPEN_MPI, "-np"]),
        ("HYDRA build details:", ["mpirun", "-np"]),
    ],
)
def test_only_open_mpi_has_its_options(monkeypatch, said, words):
    done = subprocess.CompletedProcess(["mpirun"], 0, stdout=said)
    monkeypatch.setattr(embed_ranks.subprocess, "run", lambda *_, **__: done)
    assert embed_ranks.launcher.__wrapped__() == words
