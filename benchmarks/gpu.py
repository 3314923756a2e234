"""All that a GPU has to answer, in one command and under eight minutes, on a machine without a network.

    make gpu-wheels     first, where there is a network: wheels that a bare machine lacks, into out/gpu-wheels
    make gpu            builds, runs the GPU tests, the sanitizers and the benchmarks; results/<gpu>/*.json
    make gpu DRY=1      without a GPU: shows what would run, and compiles every GPU kernel

Each part has a time limit, and one that fails does not keep the next from running; only without a build nothing runs.
This file imports the standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.gpu_bootstrap import PYTHON, ROOT, ask_gpu

TOTAL = 480  # seconds
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "out" / "gpu-dry"
OPERATORS = ("flow_head", "frame_attention", "point_attention", "rms_norm")
TESTS = ("tests/gpu", "tests/ops", "tests/sampling")
# Small heads, and both ways in which thread blocks meet.
SANITIZED = tuple(
    f"tests/ops/test_flow_head_cuda.py::test_widths_on_gpu[{group}-64]" for group in ("cluster", "counter")
)

CAPABILITIES = (80, 90, 100)
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
CUBINS = (
    "tests.ops.test_flow_head_triton_cubins:cases_bfloat16",
    "tests.ops.test_flow_head_triton_cubins:cases_float32",
    "tests.ops.test_frame_attention:cubin_cases",
    "tests.ops.test_philox_normal:cubin_cases",
    "tests.ops.test_point_attention_cubins:cubin_cases",
    "tests.ops.test_rms_norm_cubins:cubin_cases",
    "tests.ops.test_token_update:cubin_cases",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command with a time limit."""

    name: str
    command: tuple[str, ...]
    limit: int  # seconds
    # The last line of its output, JSON, goes to this file of the GPU's results.
    result: str | None = None
    # Without this program the part is left out.
    tool: str | None = None
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a part."""

    part: Part
    verdict: str  # ok, failed, too long, left out
    seconds: float
    note: str = ""


def parts() -> list[Part]:
    """The parts that `make gpu` runs, in this order."""
    python = str(PYTHON)
    found = [
        Part(name="build", command=(sys.executable, "-m", "benchmarks.gpu_bootstrap"), limit=140),
        Part(name="tests", command=(python, "-m", "pytest", "-q", "-m", "gpu", *TESTS), limit=110),
    ]
    for tool in ("memcheck", "racecheck"):
        sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        found.append(
            Part(
                name=tool,
                command=(*sanitizer, python, "-m", "pytest", "-q", "-m", "gpu", *SANITIZED),
                limit=30,
                tool="compute-sanitizer",
                # Each tensor is an allocation of its own, so that a step over its end is seen.
                variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        )
    compare = (python, "-m", "benchmarks.compare")
    for name in OPERATORS:
        command = (*compare, name, "--device", "cuda", "--no-compile", "--json")
        found.append(Part(name=name, command=command, limit=20, result=f"{name}.json"))
    trajectory = (*compare, "trajectory", "--preset", "combined-paper", "--members", "1,64,1024", "--json")
    found.append(Part(name="trajectory", command=trajectory, limit=90, result="trajectory.json"))
    return found


def compilations(python: str = sys.executable) -> list[Part]:
    """Every GPU kernel for every generation of GPU, without one."""
    found = [
        Part(
            name=f"{cases.removeprefix('tests.ops.test_')} sm_{capability}",
            command=(python, "-m", "tests.ops._cubin", cases, str(capability)),
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
    return found


def listing(chosen: Sequence[Part]) -> str:
    """One line for each part: limit and command, as a shell takes it."""
    rows = []
    for part in chosen:
        words = [word.removeprefix(f"{ROOT}{os.sep}") for word in part.command]
        settings = "".join(f"{name}={value} " for name, value in part.variables.items())
        kept = f"  > {part.result}" if part.result else ""
        rows.append(f"{part.name:<18} {part.limit:>4} s  {settings}{shlex.join(words)}{kept}")
    return "\n".join(rows)


def run(part: Part, *, limit: float, results: Path | None = None) -> Outcome:
    """Run one part, showing what it says; its whole process group ends with its time."""
    if part.tool is not None and shutil.which(part.tool) is None:
        return Outcome(part=part, verdict="left out", seconds=0.0, note=f"there is no {part.tool}")
    limit = min(limit, part.limit)
    if limit <= 0:
        return Outcome(part=part, verdict="left out", seconds=0.0, note="no time is left")
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | part.variables
    begin = time.monotonic()
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit)
        verdict = "ok" if process.returncode == 0 else "failed"
        note = "" if process.returncode == 0 else f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        verdict, note = "too long", f"stopped after {limit:.0f} s"
    seconds = time.monotonic() - begin
    if part.result and results is not None and verdict == "ok":
        verdict, note = keep(output, results / part.result)
    elif results is not None or verdict != "ok":
        print(output[-6000:], flush=True)
    return Outcome(part=part, verdict=verdict, seconds=seconds, note=note)


def keep(output: str, path: Path) -> tuple[str, str]:
    """Write the last line of a benchmark, if it is JSON, to its file."""
    last = output.splitlines()[-1] if output.strip() else ""
    try:
        json.loads(last)
    except json.JSONDecodeError:
        return "failed", "its last line is not JSON"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(last + "\n")
    return "ok", str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def table(outcomes: Sequence[Outcome]) -> str:
    """The summary: each part, its time and its outcome."""
    rows = [f"{o.part.name:<44} {o.verdict:<9} {o.seconds:6.1f} s  {o.note}".rstrip() for o in outcomes]
    return "\n".join([*rows, f"{'together':<54} {sum(o.seconds for o in outcomes):6.1f} s"])


def slug(name: str) -> str:
    """A folder's name: ``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def measure() -> list[Outcome]:
    """All parts within `TOTAL` seconds; without a build there is nothing to run."""
    gpu = ask_gpu("name")
    if not gpu:
        raise SystemExit("make gpu: nvidia-smi shows no GPU; make gpu DRY=1 compiles the kernels without one")
    end = time.monotonic() + TOTAL
    outcomes: list[Outcome] = []
    for part in parts():
        print(f"=== {part.name}", flush=True)
        outcomes.append(run(part, limit=end - time.monotonic(), results=RESULTS / slug(gpu)))
        if part.name == "build" and outcomes[-1].verdict != "ok":
            break
    return outcomes


def main() -> int:
    """Command line; exit status 1 when a part failed or took too long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="show what would run, and compile every GPU kernel")
    if parser.parse_args().dry:
        print(listing(parts()), flush=True)
        SCRATCH.mkdir(parents=True, exist_ok=True)
        outcomes = [run(part, limit=part.limit) for part in compilations()]
    else:
        outcomes = measure()
    print(table(outcomes))
    return int(any(outcome.verdict in ("failed", "too long") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
