"""The CUDA kernels of the flow head without a GPU: plans, the shim's programs, and cubins by nvcc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from enma_fast.ops._flow_head_cuda import pack, sizes
from enma_fast.ops.flow_head import flow_head_ref
from enma_fast.ops.flow_plan import BlockWeights, FlowPlan, HeadWeights

from ._cubin import tool

Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "cuda_shim" / "flow_head.cpp"
# Shared memory that a block may use on an H100, in bytes.
SHARED_LIMIT = 232448
# A few ulps of bf16 products, where the plain code happens to be exact.
FLOOR = 1e-4
BUILDS = {
    "plain": ["-O1"],
    "race": ["-O1", "-g", "-fsanitize=thread", "-DENMA_TEST_SKIP_BARRIER"],
    "address": ["-O1", "-fsanitize=address"],
}


def compiler() -> str | None:
    """A C++20 compiler."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build(name: str, folder: Path) -> Path:
    """One of `BUILDS` of the shim's program."""
    program = folder / f"flow_head_{name}"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    # The kernels read shared memory as the type that suits them, as CUDA allows.
    options = ["-std=c++20", *warnings, "-fno-strict-aliasing", "-pthread", *BUILDS[name]]
    include = ["-I", ROOT / "csrc", "-I", ROOT / "tests"]
    command = [compiler() or "g++", *options, *include, SOURCE, "-o", program]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return program


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How the shim cuts a problem, in blocks of 32 `warps` threads.

    `cluster`: groups meet at a counter (0), are clusters that exchange through L2 (1), or by remote stores (2).
    """

    warps: int = 2
    shared_limit: int = SHARED_LIMIT
    groups: int = 1
    cluster: int = 0
    modulation_bytes: int = 1 << 25
    chunks: int = 0
    skipped_site: int = 0


def start(
    program: Path, sizes: Sequence[int], arrays: Sequence[Tensor], folder: Path, cut: Cut, out: Path | str
) -> Done:
    """One run of the program on sizes (M, C, D, W, L, R, moves per step) and the arrays that go with them."""
    with (folder / "in").open("wb") as file:
        np.array(sizes, dtype=np.int64).tofile(file)
        for array in arrays:
            data = array.contiguous().flatten().view(torch.uint8).numpy()
            np.array([data.size], dtype=np.int64).tofile(file)
            data.tofile(file)
    numbers = [str(int(getattr(cut, field.name))) for field in fields(cut)]
    variables = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = list(map(str, [program, folder / "in", out, *numbers]))
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)


def run(program: Path, plan: FlowPlan, c: Tensor, noise: Tensor, folder: Path, cut: Cut) -> tuple[Tensor, Done]:
    """Carry `noise` by the kernels on CPU threads; NaN if the program failed."""
    arrays = [*pack(plan), c, noise]
    done = start(program, [len(noise), *sizes(plan)], arrays, folder, cut, folder / "out")
    if done.returncode != 0:
        return torch.full_like(noise, float("nan")), done
    return torch.from_numpy(np.fromfile(folder / "out", dtype=np.float32).reshape(noise.shape)), done


def geometry(done: Done) -> dict[str, int]:
    """How the program cut the problem."""
    assert done.returncode == 0, done.stderr[-4000:]
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", done.stdout)}


def make_plan(
    *, channels: int, condition: int, width: int, blocks: int, evaluations: int, moves_per_step: int, seed: int = 0
) -> FlowPlan:
    """A head of bf16 weights of the size that layers have at the start of training, all biases alive."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(torch.bfloat16)

    def linear(prefix: str, n: int, k: int) -> dict[str, Tensor]:
        return {f"{prefix}_weight": draw(n, k, scale=k**-0.5), f"{prefix}_bias": draw(n, scale=0.3)}

    def block() -> BlockWeights:
        parts = linear("modulation", 3 * width, width) | linear("up", width, width) | linear("down", width, width)
        return BlockWeights(**parts)

    weights = HeadWeights(
        **linear("condition", width, condition),
        **linear("inward", width, channels),
        blocks=tuple(block() for _ in range(blocks)),
        **linear("modulation", 2 * width, width),
        **linear("outward", channels, width),
    )
    step = moves_per_step / evaluations
    moves = tuple(step * (1 + k % moves_per_step) / moves_per_step for k in range(evaluations))
    time = draw(evaluations, width, scale=1.0)
    return FlowPlan(weights=weights, time_RW=time, moves=moves, moves_per_step=moves_per_step)


def inputs(plan: FlowPlan, rows: int, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Conditions in the dtype of the weights and noise in fp32."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(rows, plan.weights.condition_weight.shape[1], generator=generator)
    return c.to(torch.bfloat16), torch.randn(rows, plan.weights.inward_weight.shape[1], generator=generator)


def cubins(architecture: str, folder: Path) -> dict[str, dict[str, int]]:
    """Resources of every kernel of flow_head.cu, by name."""
    cubin = folder / f"flow_head_{architecture}.cubin"
    source = ROOT / "csrc" / "core" / "cuda" / "flow_head.cu"
    options = ["-std=c++20", "-O3", f"-arch={architecture}", "-cubin", "-I", ROOT / "csrc"]
    done = subprocess.run(list(map(str, ["nvcc", *options, source, "-o", cubin])), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]

    def said(option: str) -> str:
        return subprocess.run([tool("cuobjdump"), option, cubin], capture_output=True, text=True, check=True).stdout

    found: dict[str, dict[str, int]] = {}
    for name, usage in re.findall(r"Function (\w+):\s*\n(.*)", said("-res-usage")):
        found[name] = {key.lower(): int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    for code in said("--dump-sass").split("Function : ")[1:]:
        name = code.split(None, 1)[0]
        found[name]["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", code))
        found[name]["tensor_core"] = len(re.findall(r"\bHMMA\b", code))
        found[name]["cluster_barriers"] = len(re.findall(r"\bUCGABAR_WAIT\b", code))
        # Fences of the whole GPU, L1 thrown away, stores into another block's shared memory.
        found[name]["fences"] = len(re.findall(r"\b(?:MEMBAR|ERRBAR)\b", code))
        found[name]["flushes"] = len(re.findall(r"\bCCTL\b", code))
        found[name]["remote_stores"] = len(re.findall(r"\bSTAS\b", code))
    return found


def reference(plan: FlowPlan, c: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The plain code in bf16, and in float64 on the same numbers."""
    exact = plan.to(torch.float64)
    return flow_head_ref(c, noise, plan=plan), flow_head_ref(c.double(), noise.double(), plan=exact)
