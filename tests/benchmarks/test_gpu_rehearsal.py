"""`make gpu ONLY=smoke` as on a bare machine: another Python with PyTorch and little else, no git and no compiler.

It needs Python 3.12 with the PyTorch of such machines, which is 5 GB:

    python3.12 -m venv out/gpu-python && out/gpu-python/bin/python -m pip install torch==2.11 numpy
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_tree

ROOT = Path(__file__).resolve().parents[2]
NAME = "NVIDIA H100 80GB HBM3"
# What `make gpu` calls.
TOOLS = ("sh", "make", "find", "env")
# As `nvidia-smi` answers.
SMI = f"""#!/bin/sh
case "$*" in
*compute_cap*) echo 9.0 ;;
*driver_version*) echo 580.159.04 ;;
*memory.total*) echo 81559 MiB ;;
*) echo {NAME} ;;
esac
"""
# Exit status 0 where there is PyTorch with Triton and nothing that wheels are for.
BARE = """
import sys, torch, triton
from importlib.util import find_spec
sys.exit(sys.version_info[:2] != (3, 12) or any(map(find_spec, ("pydantic", "zarr", "typer"))))
"""
# The whole ladder on the CPU, whose rungs fail as a GPU's do: by a capture, or by each kernel of Triton.
STAND_IN = """
import importlib.abc, importlib.machinery, os, sys

class CompilationError(Exception):
    pass

def captured(*_, **__):
    raise RuntimeError("operation not permitted when stream is capturing")

def launched(*_, **__):
    raise CompilationError("Python.h: No such file or directory")

def change(engine):
    from enma_fast.sampling import static_sampler, static_step
    candidates = engine.candidates
    engine.candidates = lambda *given: candidates(*given) | {"native": "is for CPUs", "graph": None, "static": None}
    static_sampler.CapturedStep = captured
    if os.environ["REHEARSED"] == "kernels":
        static_step.heads_ = launched

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "enma_fast.sampling.engine":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), change(module))
        return spec

sys.meta_path.insert(0, Finder())
"""


pytestmark = pytest.mark.long


def pythons() -> list[Path]:
    """Interpreters of Python 3.12 that may be here."""
    found = [
        ROOT / "out" / "gpu-python" / "bin" / "python",
        *sorted(Path.home().glob(".pyenv/versions/3.12.*/bin/python")),
    ]
    there = shutil.which("python3.12")
    return [path for path in (*found, *([Path(there)] if there else [])) if path.is_file()]


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter as the one of a GPU machine."""
    if not pythons():
        pytest.skip("no Python 3.12 is found: apt-get install python3.12-venv, or pyenv install 3.12")
    for path in pythons():
        if subprocess.run([path, "-c", BARE], capture_output=True).returncode == 0:
            return path
    pytest.skip(f"{pythons()[0]} has no PyTorch and Triton, or more than a bare machine; see {Path(__file__).name}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What travels, with wheels."""
    folder = tmp_path_factory.mktemp("machine") / "tree"
    gpu_tree.copy(folder)
    shutil.rmtree(folder / "out", ignore_errors=True)
    done = subprocess.run(
        ["make", "gpu-wheels", f"PYTHON={sys.executable}"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no wheels: {done.stderr.splitlines()[-1]}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= gpu_tree.MOST
    return folder


@pytest.mark.parametrize(("fails", "ends"), [("capture", "static"), ("kernels", "reference")])
def test_the_first_minute_ends_on_a_rung_that_works(
    fails: str, ends: str, python: Path, tree: Path, tmp_path: Path
) -> None:
    programs, kept = tmp_path / "bin", tmp_path / "kept"
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool) or tool)
    (programs / "nvidia-smi").write_text(SMI)
    (programs / "nvidia-smi").chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    variables = {"PATH": str(programs), "PYTHONPATH": str(tmp_path), "REHEARSED": fails, "ENMA_FAST_RESULTS": str(kept)}
    variables |= {name: os.environ[name] for name in ("LANG", "OMP_NUM_THREADS") if name in os.environ}
    command = ["make", "gpu", "ONLY=smoke", "DEVICE=cpu", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)
    said = done.stdout + done.stderr
    file = kept / "nvidia-h100-80gb-hbm3" / "results.json"
    rows = {row.get("what", row["part"]): row for row in json.loads(file.read_text())}
    # Missing packages before anything else, of which none is left with the wheels; no compiler, git or nvcc.
    assert list(rows)[:2] == ["packages", "machine"]
    assert rows["packages"]["missing"] == []
    assert set(rows["packages"]["carried"]) >= {"pydantic", "safetensors", "typer"}
    assert rows["packages"]["versions"]["torch"].startswith("2.11")
    assert rows["machine"]["gpu"]["name"] == NAME
    assert not any(rows["machine"][tool] for tool in ("nvcc", "gcc", "c++", "ninja"))
    failed = {what for what, row in rows.items() if row.get("ok") is False}
    # Of the rungs that are pinned, the ones that cannot run.
    pinned = {f"combined-paper by {rung}" for rung in ("graph", *(["static"] if fails == "kernels" else []))}
    assert failed == pinned, said
    assert not [what for what, row in rows.items() if "left_out" in row]
    ladder = rows["combined-paper by the ladder"]
    assert (ladder["backend"], ladder["ok"]) == (ends, True)
    assert f"by {ends!r} from now on" in said
    assert rows["smoke"]["verdict"] == "failed"
    assert rows["smoke"]["seconds"] <= 60
    # Each row is on standard output too.
    assert all(what in said for what in rows)
    # Nothing was built.
    assert not list((tree / "enma_fast").glob("_C*"))
