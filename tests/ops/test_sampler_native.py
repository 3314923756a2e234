"""The C++ cores of sampler and flow head without Torch: sanitizers, races of threads, no allocation in a frame."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ._sanitizers import QUICK_SANITIZERS, run_core

PARALLEL = "_ZN4enma6detail8parallelEiPFvPviiES1_"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def needs(sanitizers: list[str], folder: Path) -> None:
    """Skip where the compiler has no such sanitizer, or its programs do not run."""
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text("int main() {}")
    built = subprocess.run(["g++", *sanitizers, str(source), "-o", str(program)], capture_output=True)
    if built.returncode or subprocess.run([str(program)], capture_output=True).returncode:
        pytest.skip(f"programs with {' '.join(sanitizers)} do not run here")


def test_core_under_sanitizers(tmp_path: Path) -> None:
    """Every instruction set of this machine; bits, and allocations over 100 frames.

    Watched are the plain and the AVX2 kernels, and the AVX-512 code on emulated vectors: each line of the kernels'
    templates, in fp32, over bf16 weights and over bf16 inputs. Memory is handed out as NaN.
    """
    needs(QUICK_SANITIZERS, tmp_path)
    run_core(
        ["sampler", "flow_head"],
        tmp_path,
        parts=["gemm_emulated", "gemm_[!e]*", "gemm", "local_head", "vector_kernels*"],
        unwatched=["gemm_avx512", "gemm_avx512_bf16"],
        sanitizers=QUICK_SANITIZERS,
        flags=["-DENMA_SMALL"],
        environment={"ASAN_OPTIONS": f"max_malloc_fill_size={1 << 30}:malloc_fill_byte=255"},
    )


def test_threads_do_not_race(tmp_path: Path) -> None:
    sanitizers = ["-fsanitize=thread"]
    needs(sanitizers, tmp_path)
    run_core(
        ["sampler"],
        tmp_path,
        parts=["gemm_scalar", "gemm", "flow_head", "local_head", "vector_kernels*"],
        sanitizers=sanitizers,
        flags=["-DENMA_SMALL", "-DENMA_TEST_THREADS"],
        link=[f"-Wl,--wrap={PARALLEL}"],
    )
