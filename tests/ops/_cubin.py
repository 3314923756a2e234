"""Compile what a Triton launcher would launch, for a GPU that is not there, and read the resources of each cubin.

Run in a process of its own without TRITON_INTERPRET, since the decorator decides once::

    python -m tests.ops._cubin tests.ops.test_flow_head:cubin_cases 90

`cubin_cases()` calls the launchers of `kernels/` on CPU tensors, at the sizes that matter; nothing is launched. One
JSON list comes out: kernel, num_warps, registers, spill bytes, shared memory, tensor-core instructions.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
ROOT = Path(__file__).resolve().parents[2]


class _Driver:
    """The part of a CUDA driver that compiling needs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self.capability], "multiprocessor_count": 132}


def compiled(launch: Callable[[], object], capability: int) -> list[dict[str, Any]]:
    """Resources of every kernel that `launch` would start on a GPU of this compute capability."""
    import triton
    from triton.runtime.driver import driver

    assert not triton.knobs.runtime.interpret, "unset TRITON_INTERPRET"
    driver.set_active(_Driver(capability))
    found: list[Any] = []
    run = triton.JITFunction.run

    def warm_up(self: Any, *arguments: Any, **options: Any) -> Any:
        kernel = run(self, *arguments, **options | {"warmup": True})
        found.append(kernel)
        return kernel

    triton.JITFunction.run = warm_up
    try:
        launch()
    finally:
        triton.JITFunction.run = run
    # Launches of one kernel over and over are read once: to disassemble takes as long as to compile.
    read: dict[bytes, dict[str, Any]] = {}
    for kernel in found:
        cubin = kernel.asm["cubin"]
        if cubin not in read:
            read[cubin] = resources(kernel.name, cubin, kernel.metadata)
    return [read[kernel.asm["cubin"]] for kernel in found]


def tool(name: str) -> str:
    """A binary utility that the triton package carries."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def resources(name: str, cubin: bytes, metadata: Any) -> dict[str, Any]:
    """Output of `cuobjdump` for one cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True)
        sass = subprocess.run([tool("cuobjdump"), "--dump-sass", file.name], capture_output=True, text=True, check=True)
    text = usage.stdout + usage.stderr
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    code = sass.stdout
    return {
        "kernel": name,
        "num_warps": metadata.num_warps,
        "registers": numbers["REG"],
        "stack": numbers["STACK"],
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        # Shared memory is asked for at launch, so the cubin itself does not know it.
        "shared": max(metadata.shared, numbers["SHARED"]),
        # Warp-level products, warp-group products of Hopper, and those of Blackwell.
        "tensor_core": len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA|DMMA)\b", code)),
    }


def report(cases: str, capability: int) -> list[dict[str, Any]]:
    """`compiled` in a fresh process; `cases` is ``module:function``."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops._cubin", cases, str(capability)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    found = compiled(getattr(importlib.import_module(module), function), int(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
