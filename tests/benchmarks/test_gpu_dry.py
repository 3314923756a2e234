"""The parts that `make gpu` would run, and how it keeps to its time; nothing is compiled here."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from benchmarks import compare, gpu, gpu_tests, gpu_tree
from benchmarks.gpu_bootstrap import architecture

ROOT = Path(__file__).resolve().parents[2]
# Groups whose parts compile for minutes.
LAST = ("compiled", "training")


def test_a_group_is_a_call_of_ten_minutes():
    groups: dict[str, int] = {}
    for part in gpu.parts():
        groups[part.group] = groups.get(part.group, 0) + part.limit
    # Facts of the first minute first, what torch.compile takes long for last.
    assert list(groups) == ["smoke", "build", "trajectories", "operators", "tries", "tests", "baselines", *LAST]
    assert all(seconds <= gpu.CALL == 600 for seconds in groups.values())
    assert groups["smoke"] <= 60
    trajectories = [part for part in gpu.parts() if part.group == "trajectories"]
    assert [part.name for part in trajectories] == [
        f"{kind}-{count}" for kind in ("flow", "pass", "field") for count in (1, 64, 256, 1024)
    ]
    # One process each, without a compiler's baselines; the tests end in order before they are killed.
    assert all("--alone" in part.command or "benchmarks.gpu_fields" in part.command for part in trajectories)
    tests = next(part for part in gpu.parts() if part.name == "tests")
    assert (tests.limit, tests.timed) == (gpu_tests.SECONDS, True)
    assert gpu_tests.GRACE < gpu_tests.MARGIN


def test_the_page_has_a_row_for_each_call():
    page = (ROOT / "docs" / "results" / "gpu.md").read_text()
    rows = {name: int(most) for name, most in re.findall(r"^\| `make gpu ONLY=(\w+)` \| (\d+) \|", page, re.MULTILINE)}
    groups: Counter[str] = Counter()
    for part in gpu.parts():
        groups[part.group] += part.limit
    assert rows == groups


@pytest.mark.parametrize("builds", [20, 300])
def test_a_call_ends_in_time_though_a_build_comes_first(builds, tmp_path, monkeypatch):
    """Each part takes all the time that it has, but for the build."""
    clock, limits = [1000.0], {}

    def run(part, *, limit, logs):
        if limit <= 0:
            return gpu.Outcome(part=part, verdict="left out", seconds=0.0, note="no time is left")
        limits[part.name] = limit
        seconds = builds if part.name == "build" else limit
        clock[0] += seconds
        return gpu.Outcome(part=part, verdict="ok", seconds=seconds)

    every = gpu.parts()
    for name, value in (
        ("ask_gpu", lambda field: "a gpu"),
        ("parts", lambda *_: every),
        ("result_of", lambda _: tmp_path / "results.json"),
        ("OUT", tmp_path),
        ("PYTHON", Path(sys.executable)),
        ("BUILT", tmp_path / "built.txt"),
        ("pack", lambda: None),
        ("run", run),
    ):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    outcomes = gpu.measure(["operators"])
    assert clock[0] - 1000 <= gpu.CALL - gpu.RESERVE
    asked = [part for part in every if part.name == "build" or part.group == "operators"]
    assert [outcome.part for outcome in outcomes] == asked
    # No part has more than its own limit, and the last that began has what was left.
    assert all(limits[part.name] <= part.limit for part in asked if part.name in limits)
    late = [part.name for part in asked if part.name not in limits]
    assert late == (["head-counter", "head"] if builds == 300 else [])
    found = {row["part"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(found) == [part.name for part in asked]
    assert [name for name, row in found.items() if row["note"] == "no time is left"] == late
    # All groups take as long as they take.
    limits.clear()
    gpu.measure()
    assert limits == {part.name: part.limit for part in every}


def test_options_of_measurements_are_known():
    """An unknown option, or one without effect, would cost a call of the GPU."""
    commands = [part.command for part in gpu.parts(device="cpu") if "benchmarks.compare" in part.command]
    assert len(commands) > 20
    for command in commands:
        options = compare.command_line().parse_args(command[3:])
        assert compare.unusable(options) is None, command


def test_compiled_code_is_a_baseline_of_both_models_at_small_and_large_numbers():
    commands = [part.command for part in gpu.parts() if part.group in ("baselines", "compiled")]
    options = [compare.command_line().parse_args(command[3:]) for command in commands]
    compiled = {(given.preset, rows) for given in options if not given.no_compile for rows in given.rows}
    assert compiled == {
        *(("combined-paper", rows) for rows in (1, 64, 256)),
        *(("combined-fast-paper", rows) for rows in (1, 64)),
    }


def test_training_is_measured_with_and_without_torch_compile():
    steps = [part.command for part in gpu.parts() if part.group == "training"]
    assert all("benchmarks.train_step" in command for command in steps)
    found = Counter((command[command.index("--preset") + 1], "--compile" in command) for command in steps)
    assert found == Counter((preset, how) for preset in ("combined-paper", "combined-fast-paper") for how in (0, 1))


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


def test_the_parts_that_are_asked_for():
    every = gpu.parts()

    def names(*only: str, built: bool = True) -> list[str]:
        return [part.name for part in gpu.choose(every, only, built=built)]

    assert names("rms_norm", "flow-1") == ["flow-1", "rms_norm"]
    # A part comes with those that it needs; the smoke needs none.
    assert names("racecheck", built=False) == ["build", "check", "racecheck"]
    assert names("smoke", built=False) == ["smoke"]
    assert names("smoke", "head", built=False) == ["smoke", "build", "head"]
    assert names("tests") == ["tests", "check", "memcheck", "racecheck", "ncu"]
    assert names("ncu") == ["check", "ncu"]
    assert gpu.choose(every, [], built=True) == every
    with pytest.raises(SystemExit, match="speed"):
        gpu.choose(every, ["speed"], built=True)


# What the settings of all tests take of PyTorch; processes that test nothing of it start in half the time without it.
TORCH = """
from types import SimpleNamespace

cuda = SimpleNamespace(is_available=lambda: True)
utils = SimpleNamespace(deterministic=SimpleNamespace())
get_num_threads = lambda: 1
set_num_threads = set_num_interop_threads = manual_seed = lambda number: None
use_deterministic_algorithms = lambda mode, warn_only: None
class Generator: pass
"""


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """Run tests of these sources by so many processes: exit statuses, and the names of the tests of each."""
    monkeypatch.setattr(gpu_tests, "MARK", "not gpu")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    # With it Triton would be imported, and that PyTorch.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text().replace("from .", "from tests."))

    def run(count, seconds=600.0, **sources):
        for name, source in sources.items():
            (tmp_path / f"test_{name}.py").write_text(source)
        found = gpu_tests.run(tmp_path / "out", (str(tmp_path),), count=count, seconds=seconds)
        reports = [(tmp_path / "out" / f"tests-{i}.xml").read_text() for i in range(count)]
        return found, [re.findall(r'<testcase [^>]*name="(\w+)', report) for report in reports]

    return run


@pytest.mark.slow
def test_processes_divide_the_tests_and_a_failure_is_one(shared, tmp_path, monkeypatch, capsys):
    good = "".join(f"def test_{i}():\n    pass\n" for i in range(5))
    statuses, names = shared(2, good=good, bad="def test_bad():\n    assert False\n")
    assert sorted(map(len, names)) == [3, 3]
    assert sorted(chain(*names)) == ["test_0", "test_1", "test_2", "test_3", "test_4", "test_bad"]
    assert sorted(statuses) == [0, 1]
    given = []
    monkeypatch.setattr(gpu_tests, "run", lambda folder, seconds: given.append(seconds) or statuses)
    for more in ([], ["90"], ["3"]):
        monkeypatch.setattr(sys, "argv", ["gpu_tests", str(tmp_path / "out"), *more])
        assert gpu_tests.main() == 1
    assert "3 passed" in capsys.readouterr().out
    # The rest of the time is for their end.
    assert given == [300.0, 60.0, 0.0]


@pytest.mark.slow
def test_what_was_interrupted_is_named(shared, tmp_path):
    slow = (
        "import os, signal\ndef test_quick():\n    pass\ndef test_endless():\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    (status,), (names,) = shared(1, slow=slow)
    assert status == 2
    assert "test_quick" in names
    assert "test_endless" in (tmp_path / "out" / "tests-0.log").read_text()


def test_tests_that_take_too_long_are_interrupted(tmp_path, monkeypatch):
    wait = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    raise SystemExit(2)"
    monkeypatch.setattr(gpu_tests, "command", lambda *_: [sys.executable, "-SEc", wait])
    # As under `make gpu &`.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        begin = time.monotonic()
        statuses = gpu_tests.run(tmp_path, count=2, seconds=1.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(status in (2, -2) for status in statuses)
    assert time.monotonic() - begin < 30


@pytest.mark.slow
def test_triton_value_tests_are_gpu_tests_where_there_is_one():
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: True; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    arguments = ["-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", "tests/ops"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = Counter(line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line)
    operators = (
        "flow_head_triton",
        "frame_attention",
        "frame_layer",
        "philox_normal",
        "point_attention",
        "rms_norm",
    )
    assert min(found[f"tests/ops/test_{name}.py"] for name in operators) >= 10, found


def test_the_flow_head_has_a_program_for_the_sanitizers():
    check = next(part for part in gpu.parts() if part.name == "check")
    assert all((ROOT / source).is_file() for source in gpu.CHECK_SOURCES)
    assert set(gpu.CHECK_SOURCES) < set(check.command)
    for name in ("memcheck", "racecheck"):
        part = next(part for part in gpu.parts() if part.name == name)
        # No Python in it, which a sanitizer would take minutes for.
        assert part.command[-1] == str(ROOT / check.command[-1])


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
    assert len(names) == len(set(names)) == len(gpu.CUBINS) * 3 + 4


def test_each_exchange_of_the_flow_head_is_a_process():
    for exchange in gpu.EXCHANGES:
        part = next(part for part in gpu.parts() if part.name == f"head-{exchange}")
        assert part.command[part.command.index("--exchange") + 1] == exchange
        assert "--alone" in part.command


def test_a_rehearsal_is_on_the_device_that_is_asked_for():
    for part in gpu.parts(device="cpu"):
        assert "cuda" not in part.command
        measured = part.group not in ("build", "tests")
        assert ("--device" in part.command) == measured


def test_the_listing_has_a_line_for_each_part():
    lines = gpu.listing(gpu.parts()).splitlines()
    assert [line.split()[:2] for line in lines] == [[part.group, part.name] for part in gpu.parts()]
    assert not any(str(ROOT) in line.replace(sys.executable, "") for line in lines)
    # Rows of all parts go to one file.
    kept = {word for part in gpu.parts() for word in part.command if word.endswith(".json")}
    assert kept == {"benchmarks/results/gpu/results.json"}


def python_part(code: str, **changes) -> gpu.Part:
    return gpu.Part(name="one", command=(sys.executable, "-c", code), **{"limit": 20} | changes)


def test_a_part_ends_with_the_program_that_runs_it(tmp_path, monkeypatch):
    alive = tmp_path / "pid"
    code = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    waiting = subprocess.Popen.wait

    def wait(self, timeout=None):
        if timeout is None:
            return waiting(self)
        while not (alive.exists() and alive.read_text()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(python_part(code), limit=20)
    assert not Path(f"/proc/{alive.read_text()}").exists()


@pytest.mark.parametrize("part_limit", [0.5, 20])
def test_a_part_ends_with_its_time(part_limit):
    outcome = gpu.run(python_part("import time; time.sleep(60)", limit=part_limit), limit=0.5)
    assert outcome.verdict == "too long"
    assert outcome.seconds < 10


def test_the_tree_that_travels_is_small(tmp_path):
    gpu_tree.copy(tmp_path)
    # What `make gpu-wheels` brings by default are 8 MiB more.
    size = sum((ROOT / name).stat().st_size for name in gpu_tree.travelling())
    assert 5 << 20 < size <= gpu_tree.MOST - (12 << 20)
    assert gpu_tree.MOST == 40 << 20
    # What the parts read is there.
    for part in gpu.parts():
        for word in part.command:
            if word.startswith(("tests/", "csrc/")):
                assert (tmp_path / word).is_file(), word
            if word.startswith(("tests.", "benchmarks.")):
                assert (tmp_path / f"{word.replace('.', '/')}.py").is_file(), word
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".h5")]


def test_what_cannot_run_is_left_out():
    part = python_part("print()", tool="a-tool-that-nobody-has")
    assert gpu.run(part, limit=20).note == "there is no a-tool-that-nobody-has"
    outcome = gpu.run(python_part("print()"), limit=0)
    assert (outcome.verdict, outcome.note) == ("left out", "no time is left")
    assert "left out" in gpu.table([outcome])


def test_a_part_is_told_its_time(tmp_path):
    part = python_part("import sys; print(sys.argv[1])", limit=30, timed=True)
    gpu.run(part, limit=20, logs=tmp_path)
    gpu.run(replace(part, name="two"), limit=50, logs=tmp_path)
    assert [(tmp_path / f"{name}.log").read_text() for name in ("one", "two")] == ["20\n", "30\n"]


def test_names_of_a_gpu():
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert [architecture(capability) for capability in ("8.0", "8.9", "9.0", "10.0")] == ["80", "89", "90a", "100a"]
