"""Stores that anybody may have made or changed: every command ends with status 0 and right values, or 2 and one line.

Each case is a list of mutations, applied to a whole store and given to a command in a process of its own with limits of
time and memory. `corpus/stores.json` holds those that once broke something.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from enma_fast.store.read import read_forecast

from .._files import contents
from ..reliability._harness import Ended, Server
from ._mutations import MUTATIONS, Mutation, apply

CORPUS: list[Any] = json.loads((Path(__file__).parent / "corpus" / "stores.json").read_text())
LIMITS = {"memory": 8 << 30, "cpu": 30}
# On the clock of a busy machine: one that computes for ever meets the limit above, one that waits for ever this one.
SECONDS = 300.0
COMMANDS = ("verify", "verify", "score", "report", "plot", "export-netcdf", "forecast", "mark")
# Mutations of the suite that every change runs (about 5 s), of the slow one, and of a part of the long one, which
# reports progress.
FEW, MORE, MANY, ROUNDS = 8, 72, 200, 10
KINDS = {"members": (), "shards": ("--shard", 2, "--quantiles", "0.5"), "statistics": ("--statistics-only",)}
OPTIONS = ("--members", 3, "--select", "0:2", "--chunk", 2)


class Target:
    """A whole store of each kind, a copy to change, and something outside that nobody may change."""

    def __init__(self, server: Server, folder: Path, data: Path, checkpoint: Path) -> None:
        self.server, self.folder, self.data, self.checkpoint = server, folder, data, checkpoint
        self.store, self.outside = folder / "case" / "run.zarr", folder / "case" / "outside"
        self.values: dict[str, dict[str, np.ndarray]] = {}
        for kind, options in KINDS.items():
            made = folder / kind / "run.zarr"
            assert server.run(*self.forecast(made, options)).status == 0
            self.values[kind] = {str(name): array.to_numpy() for name, array in read_forecast(made).variables.items()}

    def forecast(self, out: Path, options: tuple[object, ...]) -> tuple[object, ...]:
        return ("forecast", self.data, "--out", out, "-c", self.checkpoint, *OPTIONS, *options, "--quiet")

    def run(self, kind: str, command: str, mutations: list[Mutation]) -> None:
        shutil.rmtree(self.store.parent, ignore_errors=True)
        shutil.copytree(self.folder / kind / "run.zarr", self.store)
        self.outside.mkdir()
        (self.outside / "file").write_bytes(b"somebody else's")
        for mutation in mutations:
            apply(self.store, mutation)
        ended = self.server.start(*self.command(kind, command), limits=LIMITS).end(SECONDS)
        self.check(kind, command, ended)

    def command(self, kind: str, command: str) -> tuple[object, ...]:
        out = self.store.parent / "out"
        given = {
            "mark": ("verify", self.store, "--mark"),
            "report": ("report", self.store, "--out", out.with_suffix(".html")),
            "plot": ("plot", self.store, "--out", out.with_suffix(".png")),
            "export-netcdf": ("export-netcdf", self.store, "--out", out.with_suffix(".nc")),
            "forecast": self.forecast(self.store, KINDS[kind]),
        }
        return given.get(command, (command, self.store))

    def check(self, kind: str, command: str, ended: Ended) -> None:
        assert contents(self.outside) == {"file": b"somebody else's"}
        assert ended.status in (0, 2), (ended.status, ended.err)
        if ended.status == 2:
            ended.error()
            return
        assert "Traceback" not in ended.err
        if command == "verify" or (command == "forecast" and self.server.run("verify", self.store).status == 0):
            # Attributes may have been changed together with their digest; values may not.
            self.values_are_those_written(kind)

    def values_are_those_written(self, kind: str) -> None:
        if not (self.store / ".unfinished").exists():
            for name, array in read_forecast(self.store).variables.items():
                if name in self.values[kind]:
                    np.testing.assert_array_equal(array.to_numpy(), self.values[kind][str(name)], err_msg=str(name))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, test_in: Path, tiny: Path) -> Iterator[Target]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.warm(test_in, tiny)
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="enma_fast-fuzz-", dir=shared if shared.is_dir() else None))
    yield Target(server, folder, test_in, tiny)
    server.close()
    shutil.rmtree(folder, ignore_errors=True)


CASES = st.tuples(
    st.sampled_from(sorted(KINDS)), st.sampled_from(COMMANDS), st.lists(MUTATIONS, min_size=1, max_size=3)
)


def decoded(case: Any) -> list[Mutation]:
    """The mutations of a case of the corpus; bytes are kept as numbers."""
    return [{k: bytes(v) if k in ("data", "states") else v for k, v in mutation.items()} for mutation in case]


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["broke"])
def test_what_once_broke_does_so_no_more(target: Target, case: dict[str, Any]) -> None:
    target.run(case["kind"], case["command"], decoded(case["mutations"]))


def suite(cases: int, *, anew: bool) -> Callable[[Target], None]:
    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=not anew,
        phases=[Phase.generate, Phase.shrink] if anew else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=CASES)
    def test(target: Target, case: tuple[str, str, list[Mutation]]) -> None:
        target.run(*case)

    return test


test_changed_stores_are_right_or_one_line = suite(FEW, anew=False)
test_more_changed_stores_are_right_or_one_line = pytest.mark.slow(suite(MORE, anew=False))


@pytest.mark.long
@pytest.mark.parametrize("number", range(ROUNDS))
def test_many_changed_stores_are_right_or_one_line(target: Target, number: int) -> None:
    suite(MANY, anew=True)(target)
