"""The C++ core without Torch: sanitizers, races of threads, no allocation in a frame."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .._extension import ISAS
from ._sanitizers import QUICK_SANITIZERS, SANITIZERS, run_core

PARALLEL = "_ZN4enma6detail8parallelEiPFvPviiES1_"

# Without optimisation every access is watched as well, and kernels compile in a third of the time; but the widest ones
# of this machine, which run most, would then run for longer than that. What cannot run here is not watched.
UNOPTIMISED = [*SANITIZERS, "-O0"]
WIDE: dict[str, list[str] | None] = (
    {"vector_kernels_avx512": None, "vector_kernels_avx2": SANITIZERS}
    if "avx2" in ISAS and "avx512" not in ISAS
    else {"vector_kernels_avx512": SANITIZERS}
)
VECTOR_KERNELS = {**WIDE, "vector_kernels": UNOPTIMISED}
FLAGS = ["-DENMA_SMALL"]
# Beside the flow head, which has a program of its own.
SAMPLER_PARTS = ("decoder*", "fourier", "sampler_weights", "../fields", "../json")

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For objects that two tests share."""
    return tmp_path_factory.mktemp("core")


def test_operators_over_lanes_under_sanitizers(folder: Path) -> None:
    """Every instruction set of this machine."""
    run_core(
        ["frame_attention", "point_attention", "rms_norm", "self_attention", "swiglu"],
        folder,
        parts=["vector_kernels*"],
        others=VECTOR_KERNELS,
        flags=FLAGS,
    )


def test_core_under_sanitizers(folder: Path) -> None:
    """Every instruction set of this machine; bits, and allocations over 100 frames.

    Watched are the plain and the AVX2 kernels: each line of their templates, in fp32 and over bf16 weights. Those of
    AVX-512, which take minutes to compile so, run beside them. Memory is handed out as NaN. Allocations are counted
    with the products of `make install`, by the widest vectors.
    """
    needs(QUICK_SANITIZERS, folder)
    environment = {"ASAN_OPTIONS": f"max_malloc_fill_size={1 << 30}:malloc_fill_byte=255"}
    parts = ["gemm_*", "gemm", *SAMPLER_PARTS, "vector_kernels*"]
    unoptimised = [*QUICK_SANITIZERS, "-O0"]

    def run(ops: list[str], parts: list[str], part: str, **products: list[str] | None) -> None:
        others = {"gemm_avx512": None, **products, **VECTOR_KERNELS}
        made = {"sanitizers": QUICK_SANITIZERS, "flags": FLAGS, "environment": environment}
        run_core(ops, folder, parts=parts, others=others, arguments=[part], **made)

    run(["sampler", "flow_head"], parts, "frames", gemm_avx2=unoptimised)
    run(["sampler"], [*parts, "flow_head"], "allocations", gemm_avx2=None)


def test_threads_do_not_race(tmp_path: Path) -> None:
    """With the kernels that every machine has; the others do not run."""
    sanitizers = ["-fsanitize=thread"]
    needs(sanitizers, tmp_path)
    run_core(
        ["sampler"],
        tmp_path,
        parts=["gemm_scalar", "gemm", "flow_head", *SAMPLER_PARTS, "vector_kernels*"],
        sanitizers=sanitizers,
        others={"vector_kernels_avx": None},
        flags=["-DENMA_SMALL", "-DENMA_TEST_THREADS"],
        link=[f"-Wl,--wrap={PARALLEL}"],
    )
