"""Finds the packages and builds the optional extension ``enma_fast._C``; all else is in pyproject.toml.

Sources are found, not listed: ``csrc/core/cpu`` (plain C++, no Torch header), the bindings, which
``csrc/torch/module.cpp`` includes, and ``csrc/core/cuda`` where the installed torch has CUDA and there is an nvcc.
Without sources, or with ``ENMA_FAST_NO_EXT=1``, the install is pure Python and Torch is never imported.

The objects of ``csrc/core/cpu`` are linked a second time, with ``csrc/runtime``: libenma for C, C++ and Fortran
programs, in ``enma_fast/embed`` with its headers and what CMake and pkg-config need.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# The longest first, so that no core waits for it at the end.
SOURCES = ("csrc/torch/module.cpp", "csrc/torch/cuda_*.cpp", "csrc/core/cpu/*.cpp")
CUDA_FOLDER = "csrc/core/cuda"
RUNTIME_FOLDER = "csrc/runtime"
FLAGS = ["-std=c++20", "-O3"]
# The same bits where a flag names a processor with FMA, such as those that Spack adds. Kernels for FMA ask for it.
ROUNDING = ["-ffp-contract=off"] if platform.machine() == "x86_64" else []
# Flags of the user's come last, so they win.
CXX_FLAGS = [*FLAGS, *ROUNDING, *shlex.split(os.environ.get("CXXFLAGS", ""))]
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
    paths = (path for pattern in SOURCES for path in sorted(ROOT.glob(pattern)))
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


def install_libenma(objects: list[str], made_folder: Path, prefix: Path, version: str) -> None:
    """Links libenma from compiled files of the core and from its own, and lays out a prefix of it."""
    csrc = ROOT / "csrc"
    abi = re.search(r"ENMA_ABI_VERSION (\d+)", (csrc / "include/enma/enma.h").read_text())[1]
    for folder in ("lib/cmake/enma", "lib/pkgconfig", "include/enma"):
        (prefix / folder).mkdir(parents=True, exist_ok=True)
    library = prefix / f"lib/libenma.so.{abi}"
    flags = [*CXX_FLAGS, "-fPIC", "-fopenmp", "-fvisibility=hidden", f"-I{csrc}", f"-I{csrc / 'include'}"]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    made_folder.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / RUNTIME_FOLDER).glob("*.cpp"))
    own = [str(made_folder / f"{source.stem}.o") for source in sources]
    commands = [[*compiler, *flags, "-c", str(source), "-o", made] for source, made in zip(sources, own, strict=True)]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(pool.map(partial(subprocess.run, check=True), commands))
    script = f"-Wl,--version-script={csrc / 'libenma.map'}"
    link = ["-shared", "-s", "-Wl,-z,defs", "-Wl,-z,nodelete", f"-Wl,-soname,{library.name}", script]
    # A new file and a rename: programs may have the old one mapped.
    made = str(library.with_suffix(".new"))
    subprocess.run([*compiler, *flags, *link, *own, *objects, "-o", made], check=True)
    os.replace(made, library)
    values = {"@VERSION@": version, "@PROJECT_VERSION@": version, "@ABI@": abi, "@to_prefix@": "../.."}
    values |= {"@to_libdir@": "lib", "@to_includedir@": "include"}
    files = {path: f"lib/cmake/enma/{path.stem}" for path in (csrc / "embed").glob("*.in")}
    for path, name in (files | {csrc / "enma.pc.in": "lib/pkgconfig/enma.pc"}).items():
        (prefix / name).write_text(re.sub(r"@\w+@", lambda found: values[found[0]], path.read_text()))
    for path in (*csrc.glob("include/enma/*"), csrc / "fortran/enma.f90"):
        shutil.copy2(path, prefix / "include/enma")
    # The linker looks for this name with -lenma; a wheel has no links.
    (prefix / "lib/libenma.so").write_text(f"INPUT(libenma.so.{abi})\n")


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
        extra_compile_args={"cxx": [*CXX_FLAGS, "-fopenmp", "-fvisibility=hidden", "-g0"], "nvcc": FLAGS},
        extra_link_args=["-fopenmp"],
    )

    class BuildBoth(BuildExtension):
        def run(self) -> None:
            if self.editable_mode:
                # Objects stay, so that the next `make install` compiles what has changed.
                self.build_temp = str(ROOT / "build" / f"editable-torch-{torch.__version__}")
            super().run()

        def build_extensions(self) -> None:
            super().build_extensions()
            if (ROOT / RUNTIME_FOLDER).is_dir():
                core = [Path(self.build_temp, source).with_suffix(".o") for source in sources if "/cpu/" in source]
                prefix = Path(self.get_ext_fullpath("enma_fast._C")).parent / "embed"
                made = Path(self.build_temp, RUNTIME_FOLDER)
                install_libenma(list(map(str, core)), made, prefix, self.distribution.get_version())

        def copy_extensions_to_source(self) -> None:
            # In an editable install programs may have mapped what lies there, so it is removed and not written over.
            super().copy_extensions_to_source()
            made, place = Path(self.build_lib, "enma_fast/embed"), ROOT / "enma_fast/embed"
            shutil.rmtree(place, ignore_errors=True)
            if made.is_dir():
                shutil.copytree(made, place)

    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildBoth}}


setup(packages=packages(), **extension_arguments(extension_sources()))
