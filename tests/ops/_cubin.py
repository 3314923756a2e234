"""Compile what a Triton launcher would launch, for a GPU that is not there, and read the resources of each cubin.

In a process of its own without TRITON_INTERPRET, since the decorator decides once; by hand::

    python -m tests.ops._cubin tests.ops.test_flow_head:cubin_cases 90

`cubin_cases()` calls the launchers of `kernels/` on CPU tensors, at the sizes that matter; nothing is launched. One
JSON list comes out: kernel, num_warps, registers, spill bytes, shared memory, tensor-core instructions.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Cases of tests: one architecture for each change, the others where they are asked for.
CAPABILITIES = [pytest.param(80, marks=pytest.mark.long), 90, pytest.param(100, marks=pytest.mark.long)]
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
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
    # Launches of one kernel over and over are read once.
    kernels = list({kernel.asm["cubin"]: kernel for kernel in found}.values())
    listings = disassembled([kernel.asm["cubin"] for kernel in kernels], capability)
    read = {
        kernel.asm["cubin"]: resources(kernel.name, kernel.asm["cubin"], kernel.metadata, listing)
        for kernel, listing in zip(kernels, listings, strict=True)
    }
    return [read[kernel.asm["cubin"]] for kernel in found]


def tool(name: str) -> str:
    """A binary utility that the triton package carries."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def instructions(cubin: bytes) -> bytes:
    """What the code sections of a cubin, an ELF file, hold."""
    (table,), (size, count, names) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<3H", cubin, 0x3A)
    # Name, type, flags, address, offset, size.
    sections = [struct.unpack_from("<2I4Q", cubin, table + i * size) for i in range(count)]
    start = sections[names][4]
    found = [cubin[at : at + n] for name, *_, at, n in sections if cubin.startswith(b".text.", start + name)]
    assert any(found)
    return b"".join(found)


def disassembled(cubins: list[bytes], capability: int) -> list[list[str]]:
    """The instructions of each cubin; all at once, since the disassembler needs longer to start than to read one."""
    codes = [instructions(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        target = f"SM{capability}" + "a" * (capability >= 90)
        command = [tool("nvdisasm"), "-b", target, file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s*/\*[0-9a-f]+\*/\s*(.+)$", text, re.MULTILINE)
    # Each has 16 bytes.
    assert 16 * len(lines) == sum(map(len, codes))
    rest = iter(lines)
    return [list(itertools.islice(rest, len(code) // 16)) for code in codes]


def resources(name: str, cubin: bytes, metadata: Any, listing: list[str]) -> dict[str, Any]:
    """Output of `cuobjdump` for one cubin, and what its instructions are."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True)
    text = usage.stdout + usage.stderr
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    code = "\n".join(listing)
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
        # Waits for the kernels before, lets the next one be launched, and is launched so itself.
        "early": ["ACQBULK" in code, "PREEXIT" in code, bool(metadata.launch_pdl)],
        # Of these, those that a warp alone does not issue.
        "warp_group": len(re.findall(r"\b(?:HGMMA|QGMMA|UTCHMMA|UTCQMMA)\b", code)),
    }


def report(cases: str, capability: int) -> list[dict[str, Any]]:
    """`compiled` in a fresh process; `cases` is ``module:function``."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(BrokenPipeError):
            server.stdin.write(json.dumps([cases, capability, folder]) + "\n")
        status = server.stdout.readline().strip()
        if not status:
            # The next test starts another; what this one had to say is on standard error.
            _server.cache_clear()
            raise AssertionError(f"the process that compiles has ended with status {server.wait()}")
        out, err = (Path(folder) / name for name in ("out", "err"))
        assert status == "0", err.read_text()[-4000:] if err.exists() else status
        return list(json.loads(out.read_text().splitlines()[-1]))


@cache
def _server() -> subprocess.Popen[str]:
    """A process that imports PyTorch and Triton once and forks for each request, which takes seconds less."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops._cubin"]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True, bufsize=1)
    # It ends with its input.
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    importlib.import_module("torch")
    importlib.import_module("triton")
    for line in sys.stdin:
        cases, capability, folder = json.loads(line)
        # The child tells what is wrong.
        with contextlib.suppress(Exception):
            importlib.import_module(cases.partition(":")[0])
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
            _print(cases, capability)
            return
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _print(cases: str, capability: int) -> None:
    module, _, function = cases.partition(":")
    found = compiled(getattr(importlib.import_module(module), function), capability)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _print(sys.argv[1], int(sys.argv[2]))
    else:
        _serve()
