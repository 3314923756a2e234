"""Field files, checkpoints and manifests with changes: a command ends with right values, or with one line and status 2.

`corpus.json` keeps the changes that once ended otherwise, and a few that are near them.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

st = pytest.importorskip("hypothesis.strategies")
pytest.importorskip("h5py", reason="needs the [data] extra")

from hypothesis import HealthCheck, given, seed, settings  # noqa: E402

from enma_fast.data import describe, write  # noqa: E402
from enma_fast.models.checkpoint import CONFIG, MANIFEST, WEIGHTS, write_manifest  # noqa: E402

from ._changes import BYTES, byte_changes, change_bytes, change_json, hdf5_changes, json_changes  # noqa: E402
from ._runner import Runner  # noqa: E402

CORPUS = json.loads(Path(__file__).with_name("corpus.json").read_text())
# Changes that leave the values as they are.
HARMLESS = ("chunks",)
# Examples of a test, and how often a long one runs, each time with others.
FEW, MANY, ROUNDS = 40, 360, 4


def case(examples: int, *arguments: Any) -> Callable:
    """A test of so many examples."""
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

    def decorate(test: Callable) -> Callable:
        return settings(max_examples=examples, derandomize=examples <= FEW, suppress_health_check=unhealthy)(
            given(*arguments)(test)
        )

    return decorate


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field file of one page or four."""
    rng = np.random.default_rng(0)
    return write(
        tmp_path_factory.mktemp("fuzz") / "good.h5",
        name="toy-val",
        times=0.05 * np.arange(4),
        coords=[np.arange(8) / 8],
        periodic=[True],
        scalars={"environment": [7, 7, 3, 3, 9, 9], "alpha": np.repeat([0.5, 0.25, 0.75], 2)},
        t0_fields={"u": rng.normal(size=(6, 4, 8))},
    )


def check_fields(runner: Runner, good: Path, changes: list[list[Any]]) -> None:
    """`data info` of a changed file."""
    path = good.with_name("changed.h5")
    shutil.copy(good, path)
    if not runner.change(path, changes):
        return
    found = runner.run("field file", "data", "info", path)
    if found is None:
        return
    if all(change[0] in HARMLESS for change in changes):
        expected = describe(good)
        assert {**found, "file": ""} == {**expected, "file": ""}
    assert found["file"] == str(path)
    assert found["trajectories"] >= 1
    assert found["frames"] >= 1
    assert all(math.isfinite(value) for value in (*found["rms"].values(), *found["time"], *found["lengths"]))
    assert all(low <= high for low, high in found["parameters"].values())


def check_checkpoint(
    runner: Runner, tiny: Path, folder: Path, name: str, changes: list[list[Any]], signed: bool
) -> None:
    """`verify` of a checkpoint with a changed file, whose manifest fits it or does not."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny, folder)
    path = folder / name
    before = path.read_bytes()
    for change in changes:
        if change[0] in BYTES:
            path.write_bytes(change_bytes(path.read_bytes(), change))
        else:
            try:
                document = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                break
            path.write_text(change_json(document, change))
    if signed and name != MANIFEST:
        write_manifest(folder)
    found = runner.run(f"{name}{', signed' if signed else ''}", "verify", folder)
    if found is None:
        return
    assert found["checkpoint"] == str(folder)
    assert found["num_parameters"] > 0
    if name == MANIFEST:
        same = json.loads(before)["files"]
        assert all(found["files"][key] == same[key] for key in (CONFIG, WEIGHTS))
    elif not signed:
        assert path.read_bytes() == before


FILES = st.lists(st.one_of(byte_changes(), hdf5_changes(), hdf5_changes()), min_size=1, max_size=3)
DOCUMENTS = st.lists(st.one_of(json_changes(), json_changes(), json_changes(), byte_changes()), min_size=1, max_size=3)
DAMAGE = st.lists(byte_changes(), min_size=1, max_size=2)


# The first hangs the library, and the command waits for seconds; tests/data/test_untrusted_files.py has a quicker one.
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), *range(1, len(CORPUS["fields"]))])
def test_field_files_that_were_once_broken(number: int, runner: Runner, good: Path) -> None:
    check_fields(runner, good, CORPUS["fields"][number])


@pytest.mark.parametrize("number", range(len(CORPUS["checkpoints"])))
def test_checkpoints_that_were_once_broken(number: int, runner: Runner, tiny: Path, tmp_path: Path) -> None:
    name, changes, signed = CORPUS["checkpoints"][number]
    check_checkpoint(runner, tiny, tmp_path / "changed", name, changes, signed)


@case(FEW, FILES)
def test_field_files(runner: Runner, good: Path, changes: list) -> None:
    check_fields(runner, good, changes)


@case(FEW, DOCUMENTS)
def test_manifests(runner: Runner, tiny: Path, tmp_path: Path, changes: list) -> None:
    check_checkpoint(runner, tiny, tmp_path / "changed", MANIFEST, changes, False)


@case(FEW, DOCUMENTS, st.booleans())
def test_configs(runner: Runner, tiny: Path, tmp_path: Path, changes: list, signed: bool) -> None:
    check_checkpoint(runner, tiny, tmp_path / "changed", CONFIG, changes, signed)


@case(FEW, DAMAGE, st.booleans())
def test_weights(runner: Runner, tiny: Path, tmp_path: Path, changes: list, signed: bool) -> None:
    check_checkpoint(runner, tiny, tmp_path / "changed", WEIGHTS, changes, signed)


@pytest.mark.long
@pytest.mark.parametrize("number", range(ROUNDS))
def test_many_field_files(number: int, runner: Runner, good: Path) -> None:
    @seed(number)
    @case(MANY, FILES)
    def check(changes: list) -> None:
        check_fields(runner, good, changes)

    check()


@pytest.mark.long
@pytest.mark.parametrize("name", [CONFIG, MANIFEST, WEIGHTS])
@pytest.mark.parametrize("number", range(ROUNDS))
def test_many_checkpoints(number: int, name: str, runner: Runner, tiny: Path, tmp_path: Path) -> None:
    @seed(number)
    @case(MANY // 3, DAMAGE if name == WEIGHTS else DOCUMENTS, st.booleans())
    def check(changes: list, signed: bool) -> None:
        check_checkpoint(runner, tiny, tmp_path / "changed", name, changes, signed)

    check()
