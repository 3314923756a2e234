"""What a call of `make gpu` leaves: few files, each as small as the way back takes, and all that was measured."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_bootstrap, gpu_files, gpu_tree, rows


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENMA_FAST_RESULTS", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with an extension and a kernel of Triton."""
    root = tmp_path / "there"
    out = root / "out" / "gpu"
    for module in (gpu, gpu_files, gpu_bootstrap):
        for name, value in (
            ("ROOT", root),
            ("OUT", out),
            ("BUILT", out / "built.txt"),
            ("TRITON_CACHE", out / "triton"),
        ):
            monkeypatch.setattr(module, name, value)
    (out / "triton").mkdir(parents=True)
    (root / "enma_fast").mkdir()
    for name in ("enma_fast/_C.so", "out/gpu/built.txt", "out/gpu/triton/kernel"):
        (root / name).write_text(name)
    return root


def python_part(name: str, code: str) -> gpu.Part:
    return gpu.Part(name=name, command=(sys.executable, "-c", code), limit=20)


@pytest.mark.slow
def test_rows_and_logs_are_kept_at_once(kept, tmp_path, capsys) -> None:
    for count in (1, 2):
        rows.add({"rows": count}, tmp_path / "a-gpu" / "results.json")
    for folder in (tmp_path, kept):
        assert json.loads((folder / "a-gpu" / "results.json").read_text()) == [{"rows": 1}, {"rows": 2}]
    # A part that is stopped has left what it said, here and there, also while it ran.
    talks_and_sleeps = gpu.Part(name="one", command=("sh", "-c", "echo one; sleep 60"), limit=20)
    outcome = gpu.run(talks_and_sleeps, limit=10, logs=tmp_path / "logs")
    assert outcome.verdict == "too long"
    assert capsys.readouterr().out == "one\n"
    assert (tmp_path / "logs" / "one.log").read_text() == "one\n"
    assert gpu.run(python_part("two", "print('2'); exit(3)"), limit=20, logs=tmp_path).note == "exit status 3"
    assert (kept / "logs.txt").read_text() == "=== one\none\n=== two\n2\n"


def test_a_long_log_is_cut_in_the_file_of_all(kept, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_files, "LOG_BYTES", 10)
    log = tmp_path / "a.log"
    log.write_text("12345678\n12345678\n")
    with gpu_files.shown(log, "a"):
        pass
    assert (kept / "logs.txt").read_text() == "=== a\n12345678\n1\n(the rest is left out)\n"
    assert capsys.readouterr().out == log.read_text()
    largest = max(sum(part.group == group for part in gpu.parts()) for group in {part.group for part in gpu.parts()})
    assert (largest + 1) * (512 << 10) <= gpu_files.FILE_BYTES


def test_a_call_leaves_few_files(tree, kept, monkeypatch) -> None:
    """Of a group with tests, a sanitizer and a build that is as large as one may be."""
    monkeypatch.setattr(gpu_files, "PART_BYTES", 20_000)
    (tree / "out" / "gpu" / "triton" / "kernel").write_bytes(random.Random(0).randbytes(70_000))
    report = "import pathlib\np = pathlib.Path('out/gpu/tests')\np.mkdir(parents=True)\n"
    report += "for i in range(8):\n    (p / f'tests-{i}.log').write_text('')\n    (p / f'tests-{i}.xml').write_text('')"
    parts = [python_part("tests", report), *(python_part(name, "print(1)") for name in ("memcheck", "racecheck"))]
    monkeypatch.setattr(gpu, "ask_gpu", lambda field: "A GPU")
    monkeypatch.setattr(gpu, "parts", lambda *_: parts)
    monkeypatch.setattr(gpu, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(gpu, "result_of", lambda name: tree / "results" / gpu.slug(name) / "results.json")
    assert [outcome.verdict for outcome in gpu.measure(["tests", "memcheck", "racecheck"])] == ["ok"] * 3
    files = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    cache = [f"cache.tar.gz.{i}" for i in range(4)]
    assert files == ["a-gpu/results.json", *cache, "logs.txt", "tests.tar.gz"]
    assert len(files) <= gpu_files.FILES
    with tarfile.open(kept / "tests.tar.gz") as archive:
        assert len([name for name in archive.getnames() if name.endswith((".log", ".xml"))]) == 16


def test_the_cache_is_smaller_than_what_comes_back() -> None:
    assert gpu_files.PART_BYTES < gpu_files.FILE_BYTES == 16 << 20
    # Rows, logs and reports besides.
    assert gpu_files.PARTS + 3 < gpu_files.FILES == 8
    assert gpu_files.PARTS * gpu_files.PART_BYTES < 60 << 20


def test_what_was_built_is_packed_and_taken_again(tree, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("ENMA_FAST_RESULTS", raising=False)
    gpu_files.pack()
    assert not (tmp_path / "kept").exists()
    monkeypatch.setenv("ENMA_FAST_RESULTS", str(tmp_path / "kept"))
    monkeypatch.setattr(gpu_files, "PART_BYTES", 100)
    gpu_files.pack()
    assert len(gpu_bootstrap.cache_parts(tmp_path / "kept")) > 1
    # A smaller pack has fewer parts, and nothing of the one before.
    monkeypatch.setattr(gpu_files, "PART_BYTES", 10_000)
    gpu_files.pack()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["cache.tar.gz.0"]
    again = tmp_path / "again"
    monkeypatch.setattr(gpu_bootstrap, "ROOT", again)
    monkeypatch.setattr(gpu_bootstrap, "BUILT", again / "out" / "gpu" / "built.txt")
    assert gpu_bootstrap.unpack(tmp_path / "empty", tmp_path / "kept")
    assert sorted(path.name for path in again.rglob("*") if path.is_file()) == ["_C.so", "built.txt", "kernel"]
    # What is here stays.
    assert not gpu_bootstrap.unpack(tmp_path / "kept")


def test_a_call_without_a_build_does_not_hide_one(tree, kept, tmp_path) -> None:
    """As `make gpu ONLY=smoke` before a group that needs the build."""
    carried = tmp_path / "carried"
    gpu_files.pack()
    kept.rename(carried)
    for path in (tree / "enma_fast" / "_C.so", tree / "out" / "gpu" / "built.txt"):
        path.unlink()
    gpu_files.pack()
    assert gpu_bootstrap.cache_parts(kept)
    assert gpu_bootstrap.unpack(kept, carried)
    assert (tree / "enma_fast" / "_C.so").read_text() == "enma_fast/_C.so"
    # Where the carried build lies in the tree and is not unpacked, what comes back is not less than it.
    (tree / "out" / "gpu" / "built.txt").unlink()
    for path in gpu_bootstrap.cache_parts(kept):
        path.unlink()
    shutil.copy(carried / "cache.tar.gz.0", tree / "out" / "gpu")
    gpu_files.pack()
    assert not gpu_bootstrap.cache_parts(kept)
    # Nothing is packed where there is nothing.
    shutil.rmtree(tree / "out" / "gpu")
    gpu_files.pack()
    assert not gpu_bootstrap.cache_parts(kept)


def test_kernels_that_are_too_large_do_not_cost_the_extension(tree, kept, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_files, "PART_BYTES", 1_000)
    (tree / "out" / "gpu" / "triton" / "kernel").write_bytes(random.Random(0).randbytes(70_000))
    gpu_files.pack()
    packed = b"".join(path.read_bytes() for path in gpu_bootstrap.cache_parts(kept))
    (kept / "joined").write_bytes(packed)
    with tarfile.open(kept / "joined") as archive:
        assert archive.getnames() == ["enma_fast/_C.so", "out/gpu/built.txt"]
    assert "too large" in capsys.readouterr().out


def test_what_was_built_travels(tmp_path, monkeypatch, capsys) -> None:
    root, folder = tmp_path / "root", tmp_path / "copy"
    (root / "out" / "gpu").mkdir(parents=True)
    (root / "a.py").write_text("1")
    monkeypatch.setattr(gpu_tree, "travelling", lambda root: ["a.py"])
    for i in (0, 1):
        (root / "out" / "gpu" / f"cache.tar.gz.{i}").write_bytes(bytes(100))
    assert gpu_tree.copy(folder, root) == 201
    assert [path.name for path in gpu_bootstrap.cache_parts(folder / "out" / "gpu")] == [
        "cache.tar.gz.0",
        "cache.tar.gz.1",
    ]
    # The tree without it is better than none; what an earlier copy left belongs to another build.
    monkeypatch.setattr(gpu_tree, "MOST", 200)
    assert gpu_tree.copy(folder, root) == 1
    assert not gpu_bootstrap.cache_parts(folder / "out" / "gpu")
    assert "left out" in capsys.readouterr().out
    shutil.rmtree(root / "out")
    monkeypatch.setattr(gpu_tree, "MOST", 1)
    assert gpu_tree.copy(folder, root) == 1
