"""Finds the packages and builds the optional extension ``enma_fast._C``; all else is in pyproject.toml.

Sources are found, not listed: ``csrc/core/cpu`` (plain C++, no Torch header) and ``csrc/torch`` (bindings).
Without sources, or with ``ENMA_FAST_NO_EXT=1``, the install is pure Python and Torch is never imported.
"""

import os
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
SOURCE_FOLDERS = ("csrc/core/cpu", "csrc/torch")


def packages() -> list[str]:
    """Every folder of enma_fast with an ``__init__.py``, and kernels/, which pyproject.toml maps in."""
    return ["enma_fast", *(f"enma_fast.{name}" for name in find_packages("enma_fast")), "enma_fast.kernels"]


def extension_sources() -> list[str]:
    """C++ files of the extension, relative to the root; none asks for a pure-Python install."""
    if os.environ.get("ENMA_FAST_NO_EXT", "0") not in ("", "0"):
        return []
    paths = (path for folder in SOURCE_FOLDERS for path in sorted((ROOT / folder).glob("*.cpp")))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def extension_arguments(sources: list[str]) -> dict[str, Any]:
    """The arguments of ``setup`` that build ``enma_fast._C`` from `sources`."""
    if not sources:
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise SystemExit(
            "enma_fast._C is compiled against the installed torch, and none can be imported: "
            "install torch>=2.11 and pass --no-build-isolation, "
            "or set ENMA_FAST_NO_EXT=1 for a pure-Python install"
        ) from error
    extension = CppExtension(
        "enma_fast._C",
        sources,
        # Absolute: ninja compiles from its own build folder.
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc/include")],
        extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden"],
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


setup(packages=packages(), **extension_arguments(extension_sources()))
