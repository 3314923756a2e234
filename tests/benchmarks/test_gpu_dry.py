"""The parts that `make gpu` would run, and how it keeps to its time; nothing is compiled here."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_bootstrap import architecture

ROOT = Path(__file__).resolve().parents[2]


def test_everything_fits_into_eight_minutes():
    chosen = gpu.parts()
    assert [part.name for part in chosen[:4]] == ["build", "tests", "memcheck", "racecheck"]
    assert sum(part.limit for part in chosen) <= gpu.TOTAL == 480


def test_tests_and_modules_that_are_named_exist():
    for part in (*gpu.parts(), *gpu.compilations()):
        for word in part.command:
            if word.startswith(("tests/", "csrc/")):
                assert (ROOT / word.partition("::")[0]).exists(), word
            if word.startswith(("tests.", "benchmarks.")):
                module, _, function = word.partition(":")
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), word
                if function:
                    assert callable(getattr(importlib.import_module(module), function)), word


def test_sanitized_tests_are_collected():
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *gpu.SANITIZED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(test in done.stdout for test in gpu.SANITIZED)


def test_every_gpu_kernel_is_compiled():
    # A file that lists launches for `_cubin.report` is in the dry run.
    declared = {
        f"tests.ops.{path.stem}:{name}"
        for path in (ROOT / "tests/ops").glob("test_*.py")
        for name in re.findall(r"^def (cubin_cases|cases_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert set(gpu.CUBINS) == declared
    names = [part.name for part in gpu.compilations()]
    assert {f"flow_head.cu {target}" for target in gpu.ARCHITECTURES} <= set(names)
    assert len(names) == len(set(names)) == len(gpu.CUBINS) * 3 + 3


def test_the_listing_has_a_line_for_each_part():
    lines = gpu.listing(gpu.parts()).splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in gpu.parts()]
    assert not any(str(ROOT) in line.replace(sys.executable, "") for line in lines)
    assert lines[-1].endswith("> trajectory.json")


def python_part(code: str, **changes) -> gpu.Part:
    return gpu.Part(name="one", command=(sys.executable, "-c", code), **{"limit": 20} | changes)


def test_a_result_is_the_last_line(tmp_path):
    outcome = gpu.run(python_part("print('a table'); print('[1, 2]')", result="x.json"), limit=20, results=tmp_path)
    assert outcome.verdict == "ok"
    assert json.loads((tmp_path / "x.json").read_text()) == [1, 2]
    outcome = gpu.run(python_part("print('no result')", result="y.json"), limit=20, results=tmp_path)
    assert (outcome.verdict, outcome.note) == ("failed", "its last line is not JSON")
    outcome = gpu.run(python_part("print('{}'); exit(1)", result="z.json"), limit=20, results=tmp_path)
    assert (outcome.verdict, outcome.note) == ("failed", "exit status 1")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("part_limit", [0.5, 20])
def test_a_part_ends_with_its_time(part_limit):
    outcome = gpu.run(python_part("import time; time.sleep(60)", limit=part_limit), limit=0.5)
    assert outcome.verdict == "too long"
    assert outcome.seconds < 10


def test_what_cannot_run_is_left_out():
    part = python_part("print()", tool="a-tool-that-nobody-has")
    assert gpu.run(part, limit=20).note == "there is no a-tool-that-nobody-has"
    outcome = gpu.run(python_part("print()"), limit=0)
    assert (outcome.verdict, outcome.note) == ("left out", "no time is left")
    assert "left out" in gpu.table([outcome])


def test_names_of_a_gpu():
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert [architecture(capability) for capability in ("8.0", "8.9", "9.0", "10.0")] == ["8.0", "8.9", "9.0a", "10.0a"]
