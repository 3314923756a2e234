"""Finds the packages and builds the optional extension ``enma_fast._C``; all else is in pyproject.toml.

Sources are found, not listed: ``csrc/core/cpu`` (plain C++, no Torch header) and ``csrc/torch`` (bindings), and
``csrc/core/cuda`` where the installed torch has CUDA and there is an nvcc.
Without sources, or with ``ENMA_FAST_NO_EXT=1``, the install is pure Python and Torch is never imported.
"""

import os
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
SOURCE_FOLDERS = ("csrc/core/cpu", "csrc/torch")
CUDA_FOLDER = "csrc/core/cuda"
FLAGS = ["-std=c++20", "-O3"]
# PTX of the oldest serves GPUs that are not listed; TORCH_CUDA_ARCH_LIST replaces the list.
CUDA_ARCHITECTURES = "8.0+PTX;9.0a"
CUDA_ARCHITECTURES_FROM_12_8 = "10.0a"


def packages() -> list[str]:
    """Every folder of enma_fast with an ``__init__.py``, and kernels/, which pyproject.toml maps in."""
    return ["enma_fast", *(f"enma_fast.{name}" for name in find_packages("enma_fast")), "enma_fast.kernels"]


def extension_sources() -> list[str]:
    """C++ files of the extension, relative to the root; none asks for a pure-Python install."""
    if os.environ.get("ENMA_FAST_NO_EXT", "0") not in ("", "0"):
        return []
    paths = (path for folder in SOURCE_FOLDERS for path in sorted((ROOT / folder).glob("*.cpp")))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def cuda_sources(torch_cuda: str | None, cuda_home: str | None) -> list[str]:
    """CUDA files of the extension; none where torch has no CUDA or there is no compiler."""
    if torch_cuda is None or cuda_home is None or not (Path(cuda_home) / "bin" / "nvcc").exists():
        return []
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / CUDA_FOLDER).glob("*.cu"))]


def cuda_architectures(torch_cuda: str) -> str:
    """Compute capabilities to compile for."""
    newer = tuple(map(int, torch_cuda.split(".")[:2])) >= (12, 8)
    return CUDA_ARCHITECTURES + (f";{CUDA_ARCHITECTURES_FROM_12_8}" if newer else "")


def extension_arguments(sources: list[str]) -> dict[str, Any]:
    """The arguments of ``setup`` that build ``enma_fast._C`` from `sources`."""
    if not sources:
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        raise SystemExit(
            "enma_fast._C is compiled against the installed torch, and none can be imported: "
            "install torch>=2.11 and pass --no-build-isolation, "
            "or set ENMA_FAST_NO_EXT=1 for a pure-Python install"
        ) from error
    cuda = cuda_sources(torch.version.cuda, CUDA_HOME)
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", cuda_architectures(torch.version.cuda))
    extension = (CUDAExtension if cuda else CppExtension)(
        "enma_fast._C",
        sources + cuda,
        define_macros=[("ENMA_WITH_CUDA", None)] if cuda else [],
        # Absolute: ninja compiles from its own build folder.
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc/include")],
        extra_compile_args={"cxx": [*FLAGS, "-fopenmp", "-fvisibility=hidden", "-g0"], "nvcc": FLAGS},
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


setup(packages=packages(), **extension_arguments(extension_sources()))
