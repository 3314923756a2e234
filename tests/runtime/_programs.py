"""Programs in C, C++ and Fortran that tests compile against the library."""

import shutil
from pathlib import Path

import pytest

from enma_fast.models.checkpoint import PRETRAINED

from ._libenma import CSRC, CXX, FC, Library, run

# The model that they run.
CHECKPOINT = PRETRAINED / "combined-fast"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# Flang has no groups of warnings, and one for what Fortran 2018 allows.
FORTRAN = [FC, "-std=f2018", *([] if "flang" in FC else WARNINGS)]
# What warns of a program in C++, as strictly as a user may.
STRICT = ["-pedantic", *WARNINGS, "-Wshadow", "-Wconversion", "-Wno-sign-conversion", f"-I{CSRC / 'include'}"]


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def linked(library: Library) -> list[str]:
    folder = library.path.parent
    return [f"-L{folder}", "-lenma", f"-Wl,-rpath,{folder}"]


def compiled(name: str, language: str, library: Library, folder: Path) -> str:
    """Path of a program beside the tests, `name.cpp` by its standard or `name.f90`."""
    program, source = str(folder / "program"), Path(__file__).with_name(name)
    if language == "f2018":
        needs(FC)
        files = [str(CSRC / "fortran/enma.f90"), f"{source}.f90"]
        run([*FORTRAN, f"-J{folder}", *files, *linked(library), "-o", program])
    else:
        needs(CXX)
        run([CXX, f"-std={language}", *STRICT, f"{source}.cpp", *linked(library), "-o", program])
    return program
