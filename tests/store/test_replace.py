"""A store appears complete or not at all and replaces nothing but a store; what killed processes leave is removed."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from enma_fast.errors import EnmaError
from enma_fast.store import create, forecast_store
from enma_fast.store.create import create_unfinished_store
from enma_fast.store.read import read_forecast
from tests._made import create_store
from tests._stacked import stacked

from ._stores import contents, layout, write


def fail_after_one(path: Path, given: dict[str, Any], failure: BaseException) -> None:
    """Begin to write a store, forced if there is one, and fail."""
    given = dict(given)
    samples = given.pop("samples")
    with create_store(path, num_members=4, force=True, **given) as store:
        store.put(0, samples[:1])
        raise failure


def failing(call: Callable[..., None], number: int, code: int) -> tuple[Callable[..., None], list[Any]]:
    """A function whose call of this number is an error of the system, and the arguments that it was given so far."""
    calls: list[Any] = []

    def fail(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            raise OSError(code, os.strerror(code))
        call(*args)

    return fail, calls


@pytest.mark.parametrize("failure", [RuntimeError("sampling failed"), KeyboardInterrupt()])
def test_a_failure_leaves_an_unfinished_store(tmp_path: Path, rng: np.random.Generator, failure: BaseException) -> None:
    path, given = tmp_path / "run.zarr", contents(rng)
    with pytest.raises(type(failure)):
        fail_after_one(path, given, failure)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    with pytest.raises(EnmaError, match="not finished"):
        read_forecast(path)
    write(path, given, force=True)
    np.testing.assert_array_equal(stacked(read_forecast(path)), given["samples"])


def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, left in ((create, []), (forecast_store, ["run.zarr"])):
        full, _ = failing(create.write_file, 5, errno.ENOSPC)
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_file", full)
            with pytest.raises(EnmaError, match="No space"):
                write(tmp_path / "run.zarr", contents(rng))
        assert [p.name for p in tmp_path.iterdir()] == left


def test_a_store_is_replaced_only_when_asked(tmp_path: Path, rng: np.random.Generator) -> None:
    path, old, new = tmp_path / "run.zarr", contents(rng), contents(rng, (9,))
    write(path, old)
    with pytest.raises(EnmaError, match=r"run\.zarr: exists"):
        write(path, new)
    np.testing.assert_array_equal(stacked(read_forecast(path)), old["samples"])
    write(path, new, force=True)
    np.testing.assert_array_equal(stacked(read_forecast(path)), new["samples"])
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_the_old_store_is_put_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "run.zarr", contents(rng)
    write(path, old)
    for make in (write, lambda path, given, force: create_unfinished_store(path, layout(rng), force=force)):
        fail, moves = failing(create.move, 2, errno.EIO)
        with monkeypatch.context() as patch:
            patch.setattr(create, "move", fail)
            with pytest.raises(EnmaError, match=r"run\.zarr: .*written"):
                make(path, contents(rng, (9,)), force=True)
        assert len(moves) == 3
        np.testing.assert_array_equal(stacked(read_forecast(path)), old["samples"])
        assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_store_is_created_by_one_process_at_a_time(tmp_path: Path, rng: np.random.Generator) -> None:
    path, given = tmp_path / "run.zarr", contents(rng)
    samples = given.pop("samples")
    with create_store(path, num_members=4, **given) as store:
        with pytest.raises(EnmaError, match="another run"):
            write(path, {**given, "samples": samples + 1}, force=True)
        write(tmp_path / "run.zarr.other", {**given, "samples": samples})
        store.put(0, samples)
    np.testing.assert_array_equal(stacked(read_forecast(path)), samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr", "run.zarr.other"]


def _replace_and_die(path: Path, given: dict[str, Any]) -> None:
    def move_and_die(source: Path, target: Path) -> None:
        os.replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    create.move = move_and_die
    write(path, given, force=True)


def test_what_a_killed_creator_has_left_is_removed_by_the_next(tmp_path: Path, rng: np.random.Generator) -> None:
    path, given = tmp_path / "run.zarr", contents(rng)
    write(path, given)
    process = multiprocessing.get_context("spawn").Process(target=_replace_and_die, args=(path, contents(rng)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".old", ".tmp"]
    # The old store had no other place left.
    with pytest.raises(EnmaError, match=r"run\.zarr: exists"):
        write(path, contents(rng))
    np.testing.assert_array_equal(stacked(read_forecast(path)), given["samples"])
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_link_beside_a_store_is_no_store_to_put_back(tmp_path: Path, rng: np.random.Generator) -> None:
    other = tmp_path / "other.zarr"
    write(other, contents(rng))
    (tmp_path / ".run.zarr.old").symlink_to(other)
    (tmp_path / ".run.zarr.tmp").symlink_to(other)
    write(tmp_path / "run.zarr", contents(rng))
    assert not (tmp_path / "run.zarr").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.zarr", "run.zarr"]
    read_forecast(other)


@pytest.mark.parametrize("kind", ["folder", "file", "other-zarr"])
def test_nothing_else_is_ever_replaced(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("keep")
    elif kind == "folder":
        path.mkdir()
        (path / "notes").write_text("keep")
    else:
        xarray.Dataset({"u": ("x", [1.0])}).to_zarr(path, consolidated=False)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EnmaError, match="precious: exists"):
        write(path, contents(rng), force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_impossible_place_is_one_clear_line(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnmaError, match=r"run\.zarr: .*written"):
        write(tmp_path / "file" / "run.zarr", contents(rng))
