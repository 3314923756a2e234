"""Programs in C, C++ and Fortran that tests compile against the library."""

import shutil

import pytest

from enma_fast.models.checkpoint import PRETRAINED

from ._libenma import FC, Library

# The model that they run.
CHECKPOINT = PRETRAINED / "combined-fast"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# Flang has no groups of warnings, and one for what Fortran 2018 allows.
FORTRAN = [FC, "-std=f2018", *([] if "flang" in FC else WARNINGS)]


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def linked(library: Library) -> list[str]:
    folder = library.path.parent
    return [f"-L{folder}", "-lenma", f"-Wl,-rpath,{folder}"]
