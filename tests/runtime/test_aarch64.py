"""The library for 64-bit Arm, by a cross compiler: it builds with the portable kernels, and gives the same forecast."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import example

from ._libenma import CSRC, TOLERANCE, Library, run
from ._programs import CHECKPOINT, needs


@pytest.mark.slow
def test_the_example_on_arm(library: Library, frames: Path, tmp_path: Path) -> None:
    needs("aarch64-linux-gnu-g++", "cmake", "ninja")
    build, out = tmp_path / "build", tmp_path / "out"
    tools = {"C": "gcc", "CXX": "g++"}
    compilers = [f"-DCMAKE_{language}_COMPILER=aarch64-linux-gnu-{name}" for language, name in tools.items()]
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DENMA_EXAMPLES=ON"]
    run(["cmake", "-S", str(CSRC), "-B", str(build), "-G", "Ninja", *compilers, *system])
    run(["cmake", "--build", str(build), "--target", "forecast"])
    needs("qemu-aarch64-static")
    program = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", str(build / "forecast")]
    subprocess.run([*program, str(CHECKPOINT), str(frames), "2", str(out)], check=True, env=os.environ)
    # Processors of another kind fuse other products and sums.
    expected = library.open(CHECKPOINT).forecast(example(), num_members=2)
    found = np.fromfile(out, np.float32).reshape(expected.shape)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
