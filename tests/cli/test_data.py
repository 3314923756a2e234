"""`enma-fast data generate`, `data subset` and `data info`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import EQUATIONS, describe, generate, read


def test_generate_writes_what_the_library_writes(enma: Callable, tmp_path: Path) -> None:
    command = ("data", "generate", "advection", "--groups", 2, "--seed", 3, "--split", "val")
    result = enma(*command, "--out", tmp_path / "a", "--json").json
    path = tmp_path / "a" / "advection-val.h5"
    assert result == {
        "file": str(path),
        "equation": "advection",
        "split": "val",
        "bytes": path.stat().st_size,
    }
    expected = read(generate("advection", "val", groups=2, seed=3, out_dir=tmp_path / "b"))
    made = read(path)
    np.testing.assert_array_equal(made.u, expected.u)
    np.testing.assert_array_equal(made.parameters["alpha"], expected.parameters["alpha"])


def test_generate_writes_all_splits(enma: Callable, tmp_path: Path) -> None:
    result = enma("data", "generate", "advection", "--groups", 1, "--out", tmp_path, "--json").json
    splits = ["train", "val", "test-in", "test-out"]
    assert [entry["split"] for entry in result["files"]] == splits
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"advection-{split}.h5" for split in splits)


def test_generate_resumes_all_splits(enma: Callable, tmp_path: Path) -> None:
    command = ("data", "generate", "advection", "--groups", 1, "--out", tmp_path)
    [train, *others] = [Path(entry["file"]) for entry in enma(*command, "--json").json["files"]]
    written = train.stat().st_mtime_ns
    # As if the call had been interrupted after the first.
    for path in others:
        path.unlink()
    assert len(enma(*command, "--json").json["files"]) == 4
    assert train.stat().st_mtime_ns == written
    assert all(path.exists() for path in others)


def test_generate_replaces_no_file_without_force(enma: Callable, tmp_path: Path) -> None:
    own = tmp_path / "advection-test-in.h5"
    own.write_text("somebody's own")
    command = ("data", "generate", "advection", "--groups", 1, "--out", tmp_path)
    for options in ((), ("--split", "test-in")):
        error = enma(*command, *options).error()
        assert error == f"{own}: is there already; give another --out, or replace it by --force"
        assert own.read_text() == "somebody's own"
        assert list(tmp_path.iterdir()) == [own]
    own.unlink()
    own.symlink_to("nowhere")
    assert "is there already" in enma(*command).error()
    assert enma(*command, "--split", "test-in", "--force", "--json").json["bytes"] == own.stat().st_size
    assert not own.is_symlink()


def test_nobody_is_told_to_generate_into_a_folder_of_their_own(enma: Callable, tmp_path: Path, test_in: Path) -> None:
    own = tmp_path / "own.h5"
    own.write_bytes(test_in.read_bytes()[:5000])
    command = ("train", "combined-small", "--data", tmp_path, "--out", tmp_path / "run")
    expected = f"{tmp_path / 'combined-train.h5'}: no such file; --data is the folder that holds combined-train.h5"
    assert enma(*command).error() == expected
    assert "generate" not in enma("data", "info", own).error()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heat",), "equation 'heat' is unknown; use one of " + ", ".join(EQUATIONS)),
        (("advection", "--split", "test"), "split 'test' is unknown; use one of train, val, test-in, test-out"),
        (("advection", "--groups", 0), "groups is 0; the split 'train' has between 1 and 900000 groups"),
        (("advection", "--groups", 50_001), "groups is 50001; the split 'val' has between 1 and 50000 groups"),
        (("advection", "--seed", -1), "seed is -1; use a seed of 0 or more"),
    ],
)
def test_generate_refuses(enma: Callable, tmp_path: Path, arguments: tuple, message: str) -> None:
    out = tmp_path / "new"
    assert enma("data", "generate", *arguments, "--out", out).error() == message
    assert not out.exists()


def test_info(enma: Callable, test_in: Path) -> None:
    assert enma("data", "info", test_in, "--json").json == describe(test_in)
    shown = enma("data", "info", test_in).out
    for words in (("trajectories", "24"), ("groups", "12"), ("points", "128"), ("split", "test-in")):
        assert any(line.split() == list(words) for line in shown.splitlines()), words


def test_subset_keeps_what_stands_for_all(enma: Callable, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "some.h5"
    result = enma("data", "subset", test_in, "--out", out, "--environments", 5, "--json").json
    assert result == {"file": str(out), "trajectories": 10, "bytes": out.stat().st_size}
    whole, some = read(test_in), read(out)
    rows = [0, 1, 4, 5, 8, 9, 14, 15, 18, 19]
    np.testing.assert_array_equal(some.u, whole.u[rows])
    np.testing.assert_array_equal(some.environment, whole.environment[rows])
    for name, values in whole.parameters.items():
        np.testing.assert_array_equal(some.parameters[name], values[rows])
    assert (some.name, some.channels, some.periodic, some.lengths) == (
        whole.name,
        whole.channels,
        whole.periodic,
        whole.lengths,
    )
    np.testing.assert_array_equal(some.times, whole.times)
    # The whole file is its own subset of all its environments.
    again = enma("data", "subset", test_in, "--out", tmp_path / "all.h5", "--json").json
    assert again["trajectories"] == len(whole)
    np.testing.assert_array_equal(read(tmp_path / "all.h5").u, whole.u)


def test_subset_refuses(enma: Callable, test_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "some.h5"

    def error(*options: object) -> str:
        return enma("data", "subset", test_in, "--out", out, *options).error()

    assert error("--environments", 13) == f"{test_in}: holds 12 environments, 13 are asked for; ask for fewer"
    assert error("--each", 3).endswith("has 2 trajectories, 3 are asked for; ask for fewer")
    assert error("--each", 0) == "each is 0; at least 1 is needed"
    assert error("--environments", 0) == "environments is 0; at least 1 is needed"
    assert not out.exists()
    out.write_text("mine")
    assert error() == f"{out}: exists; choose another --out, or use --force"
    assert out.read_text() == "mine"
    assert enma("data", "subset", test_in, "--out", out, "--force").status == 0
    assert len(read(out)) == 24


def test_import_writes_a_field_file_and_tells_what_it_holds(enma: Callable, tmp_path: Path) -> None:
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(3, 6, 8)))
    command = ("data", "import", tmp_path / "waves.npy", "--out", tmp_path / "waves.h5")
    assert enma(*command).error().endswith("--axes trajectory,time,x")
    command += ("--axes", "trajectory,time,x", "--dt", 0.1, "--spacing", 0.5, "--periodic", "x", "--unit", "u=m")
    found = enma(*command, "--json").json
    assert (found["trajectories"], found["frames"], found["periodic"], found["units"]) == (3, 6, [True], {"u": "m"})
    assert found["lengths"] == [4.0]
    assert enma(*command).error().endswith("exists; choose another --out, or use --force")
    assert (
        "3 trajectories in 3 environments, 6 frames, 8 points (periodic), channels u" in enma(*command, "--force").out
    )
    assert (
        enma(*command[:-1], "u", "--force").error() == "--unit u: write CHANNEL=UNIT, for example --unit temperature=K"
    )
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(1, 1, 8)))
    assert "1 trajectory in 1 environment, 1 frame, 8 points" in enma(*command, "--force").out
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(3, 6, 8)))
    cropped = enma(*command, "--force", "--crop", "x=2:8,time=0:5", "--periodic", "none", "--json").json
    assert (cropped["points"], cropped["frames"]) == ([6], 5)
    for text in ("x=2", "x=-1:4", "x=0:4,x=0:4", "0:4"):
        expected = f"--crop {text}: write AXIS=A:B once for each axis, for example --crop x=0:48,y=0:36"
        assert enma(*command, "--force", "--crop", text).error() == expected
