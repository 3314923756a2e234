"""The example in C in a root folder with nothing else: the library, what it is linked with, and a checkpoint."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from enma_fast.data import example
from enma_fast.models.checkpoint import PRETRAINED

from ._libenma import CC, CSRC, SONAME, Library, run
from ._programs import WARNINGS, needs


def needs_chroot() -> None:
    needs("chroot", "ldd")
    if os.geteuid() != 0 or subprocess.run(["chroot", "/", "true"], capture_output=True).returncode != 0:
        pytest.skip("only root may change the root folder")


def linked_files(program: Path) -> list[Path]:
    """The loader and the shared libraries of a program."""
    found = re.findall(r"(?:=> )?(/\S+) \(0x", run(["ldd", str(program)]))
    assert any(Path(name).name.startswith("libc.") for name in found)
    return [Path(name) for name in found]


@pytest.mark.slow
def test_the_example_runs_without_python(library: Library, tmp_path: Path) -> None:
    """With the output of the same program outside."""
    needs(CC)
    needs_chroot()
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(library.path, root / SONAME)
    program, source = root / "forecast", str(CSRC / "examples/forecast.c")
    flags = ["-std=c11", *WARNINGS, f"-I{CSRC / 'include'}", f"-L{library.path.parent}", "-Wl,-rpath,$ORIGIN"]
    run([CC, *flags, source, "-lenma", "-lm", "-o", str(program)])
    libraries = linked_files(program)
    assert root / SONAME in libraries
    assert not [path for path in libraries if re.search("python|torch", path.name)]
    for path in libraries:
        there = root / path.relative_to("/")
        if root not in path.parents:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)
    shutil.copytree(PRETRAINED / "combined-fast", root / "checkpoint")
    example().tofile(root / "frames")
    names = ("checkpoint", "frames", "4", "out")
    outside = run([str(program), *(name if name == "4" else str(root / name) for name in names)])
    expected = (root / "out").read_bytes()
    (root / "out").unlink()
    # The loader finds $ORIGIN by /proc, which is not there.
    environ = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/"}
    inside = subprocess.run(["chroot", str(root), "/forecast", *names], capture_output=True, text=True, env=environ)
    assert (inside.returncode, inside.stderr) == (0, "")
    assert inside.stdout == outside
    assert (root / "out").read_bytes() == expected
    assert outside.count("frame") == 17
