"""All that a GPU has to answer, in calls of at most ten minutes, on a machine without a network.

    make gpu-wheels        first, where there is a network: wheels that a bare machine lacks, into out/gpu-wheels;
                           for its Python, GPU_PYTHON=3.11 (3.12 by default); cmake and numpy, which are large, are
                           taken to be there: GPU_WHEELS="cmake numpy" brings them
    python -m benchmarks.gpu_tree out/gpu-tree     the tree to take there
    make gpu ONLY=smoke    under a minute and without a build: what is missing, operators, a member by each rung
    make gpu ONLY=build    the environment and the extension
    make gpu ONLY=trajectories, ONLY=operators, ONLY=tries, ONLY=tests, ONLY=baselines, ONLY=compiled, ONLY=training
    make gpu ONLY=a,b      these groups or parts alone, and the build where they need one, in one call: it ends in time
    make gpu               all groups, one after the other, for as long as they take
    make gpu DEVICE=cpu ONLY=smoke     a rehearsal, with a program `nvidia-smi` that names a GPU
    make gpu DRY=1         without a GPU: shows what would run, compiles every GPU kernel, links what is linked

Rows go to benchmarks/results/<gpu>/results.json and to standard output as they are measured, and what a part says to
out/gpu/<part>.log. Where ENMA_FAST_RESULTS names a folder, rows, logs, test reports and what was built go there at
once, in at most eight files (`benchmarks.gpu_files`). The next call finds the build there, or in out/gpu. Each part has
a time limit, and one that fails does not keep the next from running. This file imports the standard library alone,
since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gpu_reports
from benchmarks.gpu_bootstrap import BUILT, OUT, PYTHON, ROOT, TRITON_CACHE, architecture, ask_gpu
from benchmarks.gpu_files import keep_reports, pack, shown
from benchmarks.rows import add

CALL = 600  # seconds of the parts of a group, and of a call
RESERVE = 15  # of these, for packing and for the end
FOLDER = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "out" / "gpu-dry"
OPERATORS = ("flow_head", "frame_layer", "frame_attention", "point_attention", "rms_norm")
# As `enma_fast.ops._flow_head_cuda.GROUPS`.
EXCHANGES = ("remote", "cluster", "counter")
# As `enma_fast.ops._backend.WAYS`.
WAYS = ("products", "launches", "remote", "fields")
MEMBERS = (1, 64, 256, 1024)
# What Nsight Compute reads of the flow head's kernels: their time, and shares of what the GPU can do.
METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)
RESULT = "results.json"
# The flow head's kernels by themselves, for the sanitizers.
CHECK = OUT / "flow_head_check"
CHECK_SOURCES = ("tests/ops/cuda_flow_head_main.cu", "csrc/core/cuda/flow_head.cu")

CAPABILITIES = (80, 90, 100)
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
CUBINS = (
    "tests.ops.test_flow_head_triton_cubins:cases_bfloat16",
    "tests.ops.test_flow_head_triton_cubins:cases_float32",
    "tests.ops.test_frame_attention:cubin_cases",
    "tests.ops.test_frame_layer:cubin_cases",
    "tests.ops.test_philox_normal:cubin_cases",
    "tests.ops.test_point_attention_cubins:cubin_cases",
    "tests.ops.test_rms_norm_cubins:cubin_cases",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command with a time limit."""

    name: str
    command: tuple[str, ...]
    limit: int  # seconds
    # Parts of a group are one call.
    group: str = ""
    # It runs without a build.
    bare: bool = False
    # Without this program the part is left out.
    tool: str | None = None
    # The seconds that it has are the last argument of the command.
    timed: bool = False
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a part."""

    part: Part
    verdict: str  # ok, failed, too long, left out
    seconds: float
    note: str = ""


def parts(gpu: str = "GPU", capability: str = "9.0", device: str = "cuda") -> list[Part]:
    """The parts that `make gpu` runs, in this order: the most valuable facts first."""
    python = str(PYTHON)
    out = str(result_of(gpu).relative_to(ROOT))
    found: list[Part] = []

    def add_part(group: str, name: str, limit: int, *command: str, **more: Any) -> None:
        found.append(Part(name=name, group=group, limit=limit, command=command, **more))

    def measured(group: str, name: str, limit: int, *words: str, **variables: str) -> None:
        options = ("--device", device, "--flag-wrong", "--add", out)
        add_part(group, name, limit, python, "-m", "benchmarks.compare", *words, *options, variables=variables)

    def trajectory(preset: str, members: str) -> tuple[str, ...]:
        return "trajectory", "--preset", preset, "--members", members, "--rounds", "3"

    def fields(members: int) -> tuple[str, ...]:
        given = ("--members", str(members), "--device", device, "--out", out)
        return python, "-m", "benchmarks.gpu_fields", *given

    # Of all processes the first one compiles the kernels, which the others find.
    smoke = ("-m", "benchmarks.gpu_smoke", "--device", device, "--out", out)
    add_part("smoke", "smoke", 60, sys.executable, *smoke, bare=True)
    add_part("build", "build", 300, sys.executable, "-m", "benchmarks.gpu_bootstrap")
    for kind, preset, first, later in (("flow", "combined-paper", 120, 50), ("pass", "combined-fast-paper", 80, 30)):
        for count in MEMBERS:
            limit = first if count == MEMBERS[0] else later
            measured("trajectories", f"{kind}-{count}", limit, *trajectory(preset, str(count)), "--alone")
    for count in MEMBERS:
        add_part("trajectories", f"field-{count}", 40, *fields(count))
    for name in OPERATORS:
        measured("operators", name, 48, name, "--no-compile")
    # A process each: one that reads what it must not ends the others of its process too.
    for exchange in EXCHANGES:
        rows = ("--rows", "3,64,256,1024")
        measured("operators", f"head-{exchange}", 36, "flow_head", *rows, "--alone", "--exchange", exchange)
    # The goal of the head is set against compiled code under graphs, which takes minutes to compile.
    measured("operators", "head", 240, "flow_head", "--rows", "2,4,64,256")
    # What no GPU has proved yet, beside the rows of `trajectories` and the exchanges.
    # Products by the library need many rows, the flow head's kernels few.
    flow, one_pass = "combined-paper", "combined-fast-paper"
    products, launches, remote, of_fields = WAYS
    for way, preset, members in (
        (remote, flow, "1"),
        (launches, flow, "1"),
        (launches, flow, "1024"),
        (products, flow, "1024"),
        (launches, one_pass, "1024"),
        (products, one_pass, "1024"),
    ):
        kind = "flow" if preset == flow else "pass"
        measured("tries", f"{way}-{kind}-{members}", 80, *trajectory(preset, members), "--alone", ENMA_GPU_TRY=way)
    for count in (1, 256):
        add_part("tries", f"{of_fields}-{count}", 40, *fields(count), variables={"ENMA_GPU_TRY": of_fields})
    add_part("tests", "tests", 330, python, "-m", "benchmarks.gpu_tests", str(OUT / "tests"), timed=True)
    add_part("tests", "check", 60, *check_command(architecture(capability)), tool="nvcc")
    for tool in ("memcheck", "racecheck"):
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", str(CHECK))
        add_part("tests", tool, 60, *command, tool="compute-sanitizer")
    metrics = ("--clock-control", "none", "--launch-count", "24", "--csv", "--metrics", ",".join(METRICS))
    add_part("tests", "ncu", 30, "ncu", *metrics, str(CHECK), tool="ncu")
    # The sampler as it is, then as torch.compile makes it.
    measured("baselines", "eager", 150, *trajectory("combined-paper", "1,64"), "--no-compile")
    measured("baselines", "compile", 420, *trajectory("combined-paper", "1,64"))
    # A process each: what one compiles in time does not wait for the others.
    for count in ("1", "64"):
        words = (*trajectory("combined-fast-paper", count), "--no-flow")
        measured("compiled", f"compile-pass-{count}", 190, *words)
    measured("compiled", "compile-flow-256", 220, *trajectory("combined-paper", "256"))
    for compiled, limit in ((), 30), (("--compile",), 180):
        for preset in ("combined-paper", "combined-fast-paper"):
            name = "-".join(["step", *(word.strip("-") for word in compiled), preset])
            options = ("--preset", preset, "--device", device, "--out", out)
            add_part("training", name, limit, python, "-m", "benchmarks.train_step", *options, *compiled)
    return found


def result_of(gpu: str) -> Path:
    """The file of the rows of a GPU."""
    return FOLDER / slug(gpu) / RESULT


def check_command(architecture: str) -> tuple[str, ...]:
    """Compile and link the flow head's own program."""
    options = ("-std=c++20", "-O3", f"-arch=sm_{architecture}", "-I", "csrc")
    return ("nvcc", *options, *CHECK_SOURCES, "-o", str(CHECK.relative_to(ROOT)))


def compilations() -> list[Part]:
    """Every GPU kernel for every generation of GPU, without one."""
    found = [
        Part(
            name=f"{cases.removeprefix('tests.ops.test_')} sm_{capability}",
            command=(sys.executable, "-m", "tests.ops._cubin", cases, str(capability)),
            limit=600,
        )
        for cases in CUBINS
        for capability in CAPABILITIES
    ]
    for source in sorted((ROOT / "csrc" / "core" / "cuda").glob("*.cu")):
        for target in ARCHITECTURES:
            cubin = SCRATCH / f"{source.stem}_{target}.cubin"
            options = ("-std=c++20", "-O3", f"-arch={target}", "-cubin", "-I", "csrc")
            command = ("nvcc", *options, str(source.relative_to(ROOT)), "-o", str(cubin.relative_to(ROOT)))
            found.append(Part(name=f"{source.name} {target}", command=command, limit=600, tool="nvcc"))
    target = ARCHITECTURES[1].removeprefix("sm_")
    found.append(Part(name=f"{CHECK.name} sm_{target}", command=check_command(target), limit=600, tool="nvcc"))
    return found


def listing(chosen: Sequence[Part]) -> str:
    """One line for each part: limit and command, as a shell takes it."""
    rows = []
    for part in chosen:
        words = [word.removeprefix(f"{ROOT}{os.sep}") for word in part.command]
        settings = "".join(f"{name}={value} " for name, value in part.variables.items())
        rows.append(f"{part.group:<13} {part.name:<18} {part.limit:>4} s  {settings}{shlex.join(words)}")
    return "\n".join(rows)


def environment(part: Part) -> dict[str, str]:
    """The environment variables of a part."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # PyTorch names its own folder by the user, who may have no name there.
    folders = {"TRITON_CACHE_DIR": str(TRITON_CACHE), "TORCHINDUCTOR_CACHE_DIR": str(OUT / "inductor")}
    return variables | folders | part.variables


def run(part: Part, *, limit: float, logs: Path = SCRATCH) -> Outcome:
    """Run one part, writing what it says to a file as it says it; its whole process group ends with its time."""
    if part.tool is not None and shutil.which(part.tool) is None:
        return Outcome(part=part, verdict="left out", seconds=0.0, note=f"there is no {part.tool}")
    limit = min(limit, part.limit)
    if limit <= 0:
        return Outcome(part=part, verdict="left out", seconds=0.0, note="no time is left")
    command = (*part.command, *([f"{limit:.0f}"] if part.timed else []))
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{slug(part.name)}.log"
    begin = time.monotonic()
    with log.open("wb") as output, shown(log, part.name):
        options: dict[str, Any] = {"cwd": ROOT, "env": environment(part), "start_new_session": True}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
        try:
            status = process.wait(timeout=limit)
            verdict, note = ("ok", "") if status == 0 else ("failed", f"exit status {status}")
        except subprocess.TimeoutExpired:
            verdict, note = "too long", f"stopped after {limit:.0f} s"
        finally:
            # Also when this program is stopped: the part has a session of its own.
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - begin
    return Outcome(part=part, verdict=verdict, seconds=seconds, note=note)


def table(outcomes: Sequence[Outcome]) -> str:
    """The summary: each part, its time and its outcome."""
    rows = [f"{o.part.name:<44} {o.verdict:<9} {o.seconds:6.1f} s  {o.note}".rstrip() for o in outcomes]
    return "\n".join([*rows, f"{'together':<54} {sum(o.seconds for o in outcomes):6.1f} s"])


def slug(name: str) -> str:
    """A folder's name: ``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def measure(only: Sequence[str] = (), device: str = "cuda") -> list[Outcome]:
    """All parts, or some of them within the time of a call; without an environment those that need none."""
    end = time.monotonic() + (CALL - RESERVE if only else math.inf)
    gpu = ask_gpu("name")
    if not gpu:
        raise SystemExit("make gpu: nvidia-smi shows no GPU; make gpu DRY=1 compiles the kernels without one")
    chosen = choose(parts(gpu, ask_gpu("compute_cap"), device), only, built=PYTHON.exists() and BUILT.is_file())
    outcomes: list[Outcome] = []
    for part in chosen:
        print(f"=== {part.name}", flush=True)
        outcomes.append(run(part, limit=min(part.limit, end - time.monotonic()), logs=OUT))
        report(outcomes[-1], result_of(gpu))
        if part.name == "build":
            # Without an extension there are Triton and PyTorch; without the packages there is nothing.
            if not PYTHON.exists():
                break
            pack()
    pack()
    return outcomes


def report(outcome: Outcome, path: Path) -> None:
    """Say how a part ended, and what its reports hold; and write it to the rows."""
    name, started = outcome.part.name, outcome.verdict != "left out"
    if name == "tests" and started:
        keep_reports(OUT / "tests")
    for row in gpu_reports.rows_of(name, OUT) if started else []:
        add(row, path)
        print(gpu_reports.line(row), flush=True)
    print(table([outcome]), flush=True)
    add({"part": name, "verdict": outcome.verdict, "seconds": outcome.seconds, "note": outcome.note}, path)


def choose(found: Sequence[Part], only: Sequence[str], *, built: bool) -> list[Part]:
    """The parts or groups that are asked for, all by default, in their order; and the build where they need one.

    Raises
    ------
    SystemExit
        If a name is neither.
    """
    unknown = set(only) - {name for part in found for name in (part.name, part.group)}
    if unknown:
        names = ", ".join(dict.fromkeys(name for part in found for name in (part.group, part.name)))
        raise SystemExit(f"make gpu: no part is called {', '.join(sorted(unknown))}; the parts are {names}")
    if not only:
        return list(found)
    # Sanitizers and the profiler run what the part before them compiles.
    needed = set(only) | ({"check"} if set(only) & {"memcheck", "racecheck", "ncu"} else set())
    asked = [part for part in found if {part.name, part.group} & needed]
    builds = not built and not all(part.bare for part in asked)
    return [part for part in found if part in asked or (part.name == "build" and builds)]


def main() -> int:
    """Command line; exit status 1 when a part failed or took too long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="show what would run, and compile every GPU kernel")
    parser.add_argument("--device", default="cuda", help="cpu: a rehearsal of the smoke and the measurements")
    parser.add_argument("--only", default="", metavar="PARTS", help="these groups or parts alone, comma-separated")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    if options.dry:
        print(listing(choose(parts(), only, built=False)), flush=True)
        outcomes = [run(part, limit=part.limit) for part in compilations()]
    else:
        outcomes = measure(only, options.device)
    print(table(outcomes))
    return int(any(outcome.verdict in ("failed", "too long") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
