"""Finds the packages and builds the C++ half by CMake; all else is in pyproject.toml.

``csrc/CMakeLists.txt`` is the one build: the extension ``enma_fast._C``, and libenma for C, C++ and Fortran programs,
which goes into ``enma_fast/embed`` with its headers and what CMake and pkg-config need. Neither sees a header of Torch,
so one wheel serves every Torch. With ``ENMA_FAST_NO_EXT=1`` the install is pure Python.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULE = "enma_fast._C"


def packages() -> list[str]:
    """Every folder of enma_fast with an ``__init__.py``, and kernels/, which pyproject.toml maps in."""
    return ["enma_fast", *(f"enma_fast.{name}" for name in find_packages("enma_fast")), "enma_fast.kernels"]


def asked(variable: str) -> bool | None:
    """True or False as an environment variable says; None where it is not set."""
    value = os.environ.get(variable, "")
    return None if value == "" else value != "0"


def program(name: str) -> str:
    """Path of a build tool, beside this interpreter or on the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise needed(name)
    return found


def needed(name: str) -> SystemExit:
    return SystemExit(f"{name} is needed to build the extension: pip install {name}, or set ENMA_FAST_NO_EXT=1")


def with_cuda() -> bool:
    """Kernels for GPUs are compiled where ENMA_FAST_CUDA=1 asks, or where a driver and nvcc are."""
    wanted = asked("ENMA_FAST_CUDA")
    here = Path("/proc/driver/nvidia/version").exists() and shutil.which("nvcc") is not None
    return here if wanted is None else wanted


class CMakeBuild(build_ext):
    """Configures, builds and installs ``csrc`` into the package."""

    def build_extension(self, ext: Extension) -> None:
        if not find_spec("pybind11"):
            raise needed("pybind11")
        import pybind11

        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Objects of an editable install stay, so that the next one compiles what has changed.
        work = ROOT / "build/editable" if self.editable_mode else Path(self.build_temp).resolve()
        # Flags of the user's come last, so they win.
        flags = f"-O3 -DNDEBUG {os.environ.get('CXXFLAGS', '')}".strip()
        options = {
            "ENMA_PYTHON": "ON",
            "ENMA_CUDA": "ON" if with_cuda() else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "CMAKE_CXX_FLAGS_RELEASE": flags,
            "CMAKE_INSTALL_LIBDIR": "lib",
        }
        cmake = program("cmake")
        configure = [cmake, "-S", ROOT / "csrc", "-B", work, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())]
        self.call(*configure)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        self.call(cmake, "--build", work, "--parallel", jobs)
        embed = package / "embed"
        shutil.rmtree(embed, ignore_errors=True)
        for component, prefix in (("python", package), ("library", embed)):
            self.call(cmake, "--install", work, "--strip", "--component", component, "--prefix", prefix)
        # The linker looks for this name with -lenma; a wheel has no links.
        link = embed / "lib/libenma.so"
        library = os.readlink(link)
        link.unlink()
        link.write_text(f"INPUT({library})\n")

    def call(self, *command: Any) -> None:
        # In the environment variable of that name flags would come first.
        environment = {name: value for name, value in os.environ.items() if name != "CXXFLAGS"}
        quiet = subprocess.PIPE if not self.verbose else None
        done = subprocess.run(list(map(str, command)), env=environment, stdout=quiet, text=True)
        if done.returncode != 0:
            # Ninja prints what a compiler said on standard output.
            sys.stderr.write(done.stdout or "")
            raise SystemExit(f"{Path(command[0]).name} failed with status {done.returncode}")

    def copy_extensions_to_source(self) -> None:
        # In an editable install programs may have mapped what lies there, so it is removed and not written over.
        made = Path(self.build_lib, "enma_fast")
        for name in (*(path.name for path in made.glob("_C*.so")), "embed"):
            place = ROOT / "enma_fast" / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            shutil.copytree(made / name, place) if (made / name).is_dir() else shutil.copy2(made / name, place)


def extension_arguments() -> dict[str, Any]:
    """The arguments of ``setup`` that build the C++ half; none for a pure-Python install."""
    if asked("ENMA_FAST_NO_EXT") or not (ROOT / "csrc").is_dir():
        return {}
    return {"ext_modules": [Extension(MODULE, sources=[])], "cmdclass": {"build_ext": CMakeBuild}}


setup(packages=packages(), **extension_arguments())
