"""The plain C++ core of an operator, with a main of its own, under AddressSanitizer and UBSan, without Torch."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "csrc/core/cpu"
FLAGS = ["-std=c++20", "-O1", "-g", "-fopenmp", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run_core(op: str, folder: Path) -> None:
    """Compile ``<op>*.cpp``, what they share and ``native_<op>_main.cpp``; run it, which prints ok."""
    sources = [*sorted(CORE.glob(f"{op}*.cpp")), CORE / "dispatch.cpp", CORE / "parallel.cpp"]
    sources.append(ROOT / f"tests/ops/native_{op}_main.cpp")
    program = folder / "main"
    command = ["g++", *FLAGS, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.startswith("ok")
