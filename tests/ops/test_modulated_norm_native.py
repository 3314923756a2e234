"""The plain C++ core of modulated_norm under AddressSanitizer and UBSan, without Torch."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_core_under_sanitizers(tmp_path: Path) -> None:
    """Every instruction set of this machine, and AVX-512's code on vectors that the compiler emulates."""
    core = ROOT / "csrc/core/cpu"
    sources = [*sorted(core.glob("modulated_norm*.cpp")), core / "dispatch.cpp", core / "parallel.cpp"]
    sources.append(ROOT / "tests/ops/native_modulated_norm_main.cpp")
    program = tmp_path / "main"
    flags = ["-std=c++20", "-O1", "-g", "-fopenmp", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        ["g++", *flags, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.startswith("ok")
