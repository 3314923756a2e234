"""What is installed of the library, as CMake and pkg-config find it, and with which flags it is built."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import example

from .._objects import installed as installed_objects
from .._objects import launcher
from ._libenma import CC, CSRC, CXX, ROOT, Library, run
from ._programs import CHECKPOINT, needs


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make libenma` installs, moved from where it was."""
    needs("cmake", CC, CXX)
    folder = tmp_path_factory.mktemp("installed")
    # A third of the time to compile, or hardly any after `make install`. Where this library is measured against others
    # it is built as `make libenma` does.
    quick = ["-DCMAKE_CXX_FLAGS=-DENMA_SMALL", "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG"]
    made = installed_objects()
    if made is not None:
        quick = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher(folder / 'launcher', made)}"]
    build, first, moved = folder / "build", folder / "prefix", folder / "moved"
    places = [f"-DCMAKE_INSTALL_PREFIX={first}", "-DCMAKE_INSTALL_LIBDIR=lib"]
    run(["cmake", "-S", str(CSRC), "-B", str(build), *places, *quick])
    run(["cmake", "--build", str(build)])
    run(["cmake", "--install", str(build)])
    first.rename(moved)
    return moved


def by_pkg_config(prefix: Path, *options: str) -> list[str]:
    """Flags of compiler and linker for an installed library."""
    needs("pkg-config")
    environ = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    command = ["pkg-config", *options, "--cflags", "--libs", "enma"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()


def forecast(program: Path, frames: Path) -> np.ndarray:
    """What the example in C writes."""
    out = program.with_suffix(".out")
    run([str(program), str(CHECKPOINT), str(frames), "2", str(out)])
    return np.fromfile(out, np.float32)


@pytest.mark.slow
def test_cmake_and_pkg_config_find_what_is_installed(prefix: Path, frames: Path, tmp_path: Path) -> None:
    shutil.copy(CSRC / "examples/forecast.c", tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(user C)\nfind_package(enma REQUIRED)\n"
        "add_executable(forecast forecast.c)\ntarget_link_libraries(forecast PRIVATE enma::enma m)\n"
    )
    run(["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(["cmake", "--build", str(tmp_path / "build")])
    values = forecast(tmp_path / "build/forecast", frames)
    assert len(values) == 2 * 17 * 128
    program = tmp_path / "by-pkg-config"
    flags = [*by_pkg_config(prefix), "-lm", f"-Wl,-rpath,{prefix / 'lib'}"]
    run([CC, str(tmp_path / "forecast.c"), *flags, "-o", str(program)])
    assert np.array_equal(forecast(program, frames), values)


@pytest.mark.slow
def test_a_program_in_c_needs_no_shared_library(prefix: Path, frames: Path, library: Library, tmp_path: Path) -> None:
    """Linked to the static one, with what it needs in turn as pkg-config says; and it runs where nothing else is."""
    needs("readelf")
    if CC != "gcc":
        pytest.skip("OpenMP of Clang has no static library")
    program = tmp_path / "forecast"
    flags = by_pkg_config(prefix, "--static")
    assert flags[-3:] == ["-lstdc++", "-lgomp", "-lm"]
    run([CC, "-static", str(CSRC / "examples/forecast.c"), *flags, "-o", str(program)])
    assert "(NEEDED)" not in run(["readelf", "--dynamic", str(program)])
    expected = library.open(CHECKPOINT).forecast(example(), num_members=2)
    assert np.array_equal(forecast(program, frames).reshape(expected.shape), expected)
    # It takes no name from the program: all of the engine is in one namespace, and libstdc++'s templates are weak.
    symbols = run(["nm", "--demangle", "--defined-only", "--extern-only", str(prefix / "lib/libenma.a")])
    names = [line.split(maxsplit=2)[2] for line in symbols.splitlines() if re.match(r"[0-9a-f]+ [TDBR] ", line)]
    assert "enma_model_open" in names
    assert not [name for name in names if not name.startswith(("enma_", "enma::"))]


@pytest.mark.slow
def test_pkg_config_where_the_folder_of_libraries_is_absolute(tmp_path: Path) -> None:
    needs("cmake", "pkg-config", CC, CXX)
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    folders = {"libdir": tmp_path / "elsewhere/lib64", "includedir": prefix / "include"}
    places = [f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DCMAKE_INSTALL_LIBDIR={folders['libdir']}"]
    run(["cmake", "-S", str(CSRC), "-B", str(build), *places])
    installed = folders["libdir"] / "pkgconfig"
    installed.mkdir(parents=True)
    shutil.copy(build / "enma.pc", installed)
    environ = os.environ | {"PKG_CONFIG_PATH": str(installed)}
    for name, expected in folders.items():
        command = ["pkg-config", f"--variable={name}", "enma"]
        found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        assert Path(os.path.normpath(found.strip())) == expected


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag is for x86-64")
def test_a_flag_that_names_a_processor_changes_no_bit(tmp_path: Path) -> None:
    """As Spack adds one: products and sums are fused in vectors of AVX2 and AVX-512, and nowhere else."""
    needs("g++")
    (flag,) = re.findall(r"-ffp-contract=\w+", (CSRC / "CMakeLists.txt").read_text())
    kernels = [(CSRC / f"core/cpu/vector_kernels_{name}.cpp").read_text() for name in ("avx2", "avx512")]
    (pragma,) = {found for text in kernels for found in re.findall("#pragma GCC optimize.*", text)}
    assert all(pragma in text for text in kernels)
    source = tmp_path / "sums.cpp"
    body = "(float a, float b, float c) { return a * b + c; }"
    source.write_text(f'float one{body}\n#pragma GCC target("avx2,fma")\n{pragma}\nfloat other{body}\n')
    command = ["g++", "-O2", "-march=haswell", "-S", str(source), "-o", "-"]
    assert run(command).count("vfmadd") == 2
    assert run([*command, flag]).count("vfmadd") == 1


def test_sources_are_shipped_with_the_package() -> None:
    """The source distribution carries what the library is built from."""
    manifest = (ROOT / "MANIFEST.in").read_text()
    shipped = next(line for line in manifest.splitlines() if line.startswith("recursive-include csrc")).split()[2:]
    names = [path.name for path in CSRC.rglob("*") if path.is_file()]
    assert not [name for name in names if not any(Path(name).match(pattern) for pattern in shipped)]
