"""Generated files: deterministic, prefix-stable, grouped, and written in one step."""

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import DEFAULT_GROUPS, EQUATIONS, generate, generator, hdf5, output_path, read
from enma_fast.data.equation import linspaces
from enma_fast.data.equations import advection, combined
from enma_fast.errors import EnmaError

# Lines are solved quickly; test_equations.py generates a plane.
LINES = ("advection", "combined")


@pytest.mark.parametrize("equation", LINES)
def test_same_seed_same_bytes_and_the_first_groups_are_the_same(equation: str, tmp_path: Path) -> None:
    # Nine groups reach into a second chunk of the solver; three leave most of the first one empty.
    paths = [generate(equation, "train", groups=g, seed=4, out_dir=tmp_path / str(i)) for i, g in enumerate((9, 9, 3))]
    assert paths[0].name == f"{equation}-train.h5"
    assert paths[0].read_bytes() == paths[1].read_bytes()
    many, few = read(paths[0]), read(paths[2])
    np.testing.assert_array_equal(many.u[:30], few.u)
    np.testing.assert_array_equal(many.environment[:30], few.environment)
    assert len(many) == 90

    other = read(generate(equation, "train", groups=1, seed=5, out_dir=tmp_path / "other"))
    assert not np.array_equal(other.u, many.u[:10])


@pytest.mark.each_value
@pytest.mark.parametrize("equation", LINES)
@pytest.mark.parametrize("split", DEFAULT_GROUPS)
def test_a_group_shares_parameters_and_not_initial_conditions(equation: str, split: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = generate(equation, split, groups=2, out_dir=tmp_path, progress=lambda *call: calls.append(call))
    file = read(path)
    assert calls == [(2, 2)]
    assert file.u.shape == (20, 20, 128, 1)
    assert file.name == f"{equation}-{split}"
    assert file.periodic == (True,)
    np.testing.assert_allclose(file.lengths, EQUATIONS[equation].lengths, rtol=1e-6)
    np.testing.assert_allclose(file.times, 0.05 * np.arange(20), rtol=1e-6)
    np.testing.assert_allclose(file.coords[0], np.arange(128) / 128 * file.lengths[0], rtol=1e-5)
    assert set(file.parameters) == set(EQUATIONS[equation].parameters)
    for value in (*file.parameters.values(), file.environment):
        assert (value.reshape(2, 10) == value.reshape(2, 10)[:, :1]).all()
    assert len(set(file.environment)) == 2
    assert (file.environment >= 10**6).all() == (split == "test-out")
    assert len(np.unique(file.u[:, 0, :, 0], axis=0)) == 20


def test_a_stored_trajectory_solves_its_own_parameters(tmp_path: Path) -> None:
    file = read(generate("combined", "test-out", groups=2, seed=1, out_dir=tmp_path), select=[0, 13])
    u0 = np.stack([combined.initial_conditions("test-out", seed=1, group=g)[i] for g, i in ((0, 0), (1, 3))])
    u = combined.solve(u0, file.parameters)
    # The file rounds the parameters to float32.
    np.testing.assert_allclose(file.u[..., 0], u, atol=2e-6)
    assert (file.parameters["delta"] >= 0.5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("burgers", "train"), "equation 'burgers'"),
        (("combined", "test"), "split 'test'"),
    ],
)
def test_bad_arguments_leave_no_folder_behind(arguments: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(EnmaError, match=message):
        generate(*arguments, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_run_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = generate("advection", "val", groups=1, out_dir=tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(advection, "EQUATION", replace(advection.EQUATION, solve=fail))
    with pytest.raises(KeyboardInterrupt):
        generate("advection", "val", groups=2, out_dir=tmp_path, force=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate("advection", "val", groups=20, out_dir=tmp_path / "whole").read_bytes()
    solved: list[int] = []
    folder, stop = tmp_path / "resumed", True

    def solve(u0: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
        if stop and len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(len(u0))
        return advection.EQUATION.solve(u0, parameters)

    monkeypatch.setattr(generator, "EQUATIONS", {"advection": replace(advection.EQUATION, solve=solve)})
    with pytest.raises(KeyboardInterrupt):
        generate("advection", "val", groups=20, out_dir=folder)
    # A damaged part is solved again.
    [parts] = folder.iterdir()
    first, second = sorted(parts.iterdir())
    assert (first.name[:2], second.name[:2]) == ("0-", "8-")
    second.write_bytes(second.read_bytes()[:-1])
    solved.clear()
    stop = False
    assert generate("advection", "val", groups=20, out_dir=folder).read_bytes() == expected
    assert solved == [80, 80]
    assert [file.name for file in folder.iterdir()] == ["advection-val.h5"]


def test_several_processes_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate("advection", "val", groups=34, out_dir=tmp_path / "one").read_bytes()
    solved: list[int] = []

    def slow(u0: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
        """Solve nothing before the other processes have kept three of the four whole chunks."""
        solved.append(len(u0))
        while len(list(tmp_path.glob("three/.advection-val.parts/*.npy"))) < 3:
            time.sleep(0.01)
        return advection.EQUATION.solve(u0, parameters)

    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(generator, "EQUATIONS", {"advection": replace(advection.EQUATION, solve=slow)})
    path = generate(
        "advection",
        "val",
        groups=34,
        out_dir=tmp_path / "three",
        workers=3,
        progress=lambda *call: calls.append(call),
    )
    assert path.read_bytes() == expected
    assert len(solved) == 2, "the first chunk, and the last one, which is not whole"
    assert calls == [(32, 34), (32, 34), (32, 34), (32, 34), (34, 34)]
    assert [file.name for file in path.parent.iterdir()] == ["advection-val.h5"]
    assert not multiprocessing.active_children()
    with pytest.raises(EnmaError, match=r"^workers"):
        generate("advection", "val", groups=1, out_dir=tmp_path, workers=0)


def test_what_a_helper_cannot_solve_is_left_to_the_process_that_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    numbers = np.arange(2)
    values = EQUATIONS["advection"].environments("val").checked(numbers, "val", 0)
    left = [([0], tmp_path / "a.npy"), ([1], tmp_path / "b.npy")]
    try:
        generator._help(os.getppid() + 1, "advection", "val", 0, values, left)
        assert not list(tmp_path.iterdir()), "the process that asked is gone"
        fails = replace(advection.EQUATION, solve=lambda u0, parameters: u0)
        with monkeypatch.context() as patch:
            patch.setattr(generator, "EQUATIONS", {"advection": fails})
            generator._help(os.getppid(), "advection", "val", 0, values, left)
        assert not list(tmp_path.iterdir())
        left[0][1].write_bytes(b"there already")
        generator._help(os.getppid(), "advection", "val", 0, values, left)
        assert left[0][1].read_bytes() == b"there already"
        assert np.load(left[1][1]).shape == (10, 20, 128, 1)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            BlockingIOError(11, "full"),
            r"^workers: .*processes",
        ),
        (KeyboardInterrupt(), None),
    ],
)
def test_a_helper_that_cannot_be_started_leaves_no_other_running(
    error: BaseException, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    start = SpawnProcess.start

    def second_fails(process: Any) -> None:
        if started:
            raise error
        start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", second_fails)
    with pytest.raises(EnmaError if said else type(error), match=said):
        generate("advection", "val", groups=32, out_dir=tmp_path, workers=3)
    assert not started[0].is_alive()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["parameters", "code", "version", "seed"])
def test_parts_of_another_equation_are_not_taken(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "advection.py"
    module.write_bytes(Path(advection.__file__).read_bytes())
    monkeypatch.setattr(advection, "__file__", str(module))
    solved: list[int] = []

    def solve(u0: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
        if len(solved) == 1:
            raise KeyboardInterrupt
        solved.append(len(u0))
        return advection.EQUATION.solve(u0, parameters)

    stopped = replace(advection.EQUATION, solve=solve)
    monkeypatch.setattr(generator, "EQUATIONS", {"advection": stopped})

    def interrupted(seed: int = 0) -> int:
        solved.clear()
        with pytest.raises(KeyboardInterrupt):
            generate("advection", "val", groups=20, seed=seed, out_dir=tmp_path / "out")
        return len(list((tmp_path / "out" / ".advection-val.parts").iterdir()))

    assert (interrupted(), interrupted()) == (1, 2)
    if change == "parameters":
        slower = linspaces(advection.EQUATION.inside.count, alpha=(-4.0, 4.0))
        monkeypatch.setattr(generator, "EQUATIONS", {"advection": replace(stopped, inside=slower)})
    elif change == "code":
        module.write_text(module.read_text() + "# changed\n")
    elif change == "version":
        monkeypatch.setattr(generator, "version", lambda name: "0.0")
    # None of the two is taken: the first chunk is solved again.
    assert interrupted(seed=int(change == "seed")) == 3


def test_a_file_of_the_same_call_is_left_as_it_is(tmp_path: Path) -> None:
    path = generate("advection", "val", groups=2, seed=3, out_dir=tmp_path)
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    assert generate("advection", "val", groups=2, seed=3, out_dir=tmp_path) == path
    assert output_path("advection", "val", tmp_path, groups=2, seed=3) == path
    for other in ({"groups": 3, "seed": 3}, {"groups": 2, "seed": 4}, {"groups": 2}):
        for refuse in (output_path, generate):
            with pytest.raises(EnmaError, match=r"advection-val\.h5: .*--out"):
                refuse("advection", "val", out_dir=tmp_path, **other)
    assert path.stat().st_mtime_ns == written
    generate("advection", "val", groups=2, seed=3, out_dir=tmp_path, force=True)
    assert path.stat().st_mtime_ns > written
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [FileNotFoundError("no table of viscosities"), RuntimeError("out of memory")])
def test_a_solver_that_fails_is_not_a_file_that_cannot_be_written(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(generator, "EQUATIONS", {"advection": replace(advection.EQUATION, solve=fail)})
    with pytest.raises(EnmaError, match=f"^equation advection: .*{error}"):
        generate("advection", "val", groups=1, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("Can't flush (No space left)")])
def test_a_full_disk_is_one_clear_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("h5py.Dataset.__setitem__", full)
    with pytest.raises(EnmaError, match="No space"):
        generate("advection", "val", groups=1, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_processes_of_one_number_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a container of its own, which share a folder: none takes or removes the file that the other writes."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    path = tmp_path / "both.h5"
    with hdf5.create_file(path) as first:
        first.attrs["by"] = "first"
        with pytest.raises(ZeroDivisionError), hdf5.create_file(path) as second:
            second.attrs["by"] = 1 / 0
    assert hdf5.read_file(path, lambda file, _: hdf5.text(file, "by")) == "first"
    monkeypatch.setattr("secrets.token_hex", lambda _: "same")
    (tmp_path / ".both.same.tmp.h5").write_text("another's")
    with pytest.raises(EnmaError, match="File exists"), hdf5.create_file(path):
        pass
    assert (tmp_path / ".both.same.tmp.h5").read_text() == "another's"


def test_a_solution_that_is_not_finite_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blow_up(u0: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
        u = advection.EQUATION.solve(u0, parameters)
        u[13, 5] = np.inf
        return u

    broken = replace(advection.EQUATION, solve=blow_up)
    monkeypatch.setattr(generator, "EQUATIONS", {"advection": broken})
    with pytest.raises(EnmaError, match="group 1"):
        generate("advection", "val", groups=3, out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnmaError, match=r"advection-val\.h5: .*written"):
        generate("advection", "val", groups=1, out_dir=tmp_path / "file")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EnmaError, match="h5py"):
        generate("advection", "val", groups=1, out_dir=tmp_path)
