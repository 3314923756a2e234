"""What is installed of the library: by CMake, by pkg-config, in the wheel, and with which flags it is built."""

import os
import platform
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from .._objects import compiler
from .._objects import installed as installed_objects
from ._libenma import CC, CSRC, CXX, ROOT, run
from ._programs import CHECKPOINT, needs


@pytest.mark.slow
def test_cmake_installs_what_cmake_and_pkg_config_find(frames: Path, tmp_path: Path) -> None:
    needs("cmake", "pkg-config", CC, CXX)
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    # A third of the time to compile, or hardly any after `make install`. Where this library is measured against others
    # it is built as `make libenma` does.
    quick = ["-DCMAKE_CXX_FLAGS=-DENMA_SMALL", "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG"]
    made = installed_objects()
    if made is not None:
        quick = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={compiler(tmp_path / 'launcher', made, ROOT)}"]
    places = [f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib"]
    run(["cmake", "-S", str(CSRC), "-B", str(build), *places, *quick])
    run(["cmake", "--build", str(build)])
    run(["cmake", "--install", str(build)])
    # It can be moved.
    moved = tmp_path / "moved"
    prefix.rename(moved)
    user = tmp_path / "user"
    user.mkdir()
    shutil.copy(CSRC / "examples/forecast.c", user)
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(user C)\nfind_package(enma REQUIRED)\n"
        "add_executable(forecast forecast.c)\ntarget_link_libraries(forecast PRIVATE enma::enma m)\n"
    )
    run(["cmake", "-S", str(user), "-B", str(user / "build"), f"-DCMAKE_PREFIX_PATH={moved}"])
    run(["cmake", "--build", str(user / "build")])
    run([str(user / "build/forecast"), str(CHECKPOINT), str(frames), "2", str(tmp_path / "out")])
    assert len(np.fromfile(tmp_path / "out", np.float32)) == 2 * 17 * 128
    environ = os.environ | {"PKG_CONFIG_PATH": str(moved / "lib/pkgconfig")}
    found = subprocess.run(["pkg-config", "--cflags", "--libs", "enma"], env=environ, capture_output=True, text=True)
    program = tmp_path / "by-pkg-config"
    flags = [*found.stdout.split(), "-lm", f"-Wl,-rpath,{moved / 'lib'}"]
    run([CC, str(user / "forecast.c"), *flags, "-o", str(program)])
    run([str(program), str(CHECKPOINT), str(frames), "2", str(tmp_path / "again")])
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("version", ["0.2.0", "1.9.3"])
def test_the_wheel_and_cmake_serve_the_same_versions(tmp_path: Path, version: str) -> None:
    """Of programs that ask for one, for it alone, and for a range."""
    needs("cmake")
    text = (CSRC / "embed/enma-config-version.cmake.in").read_text().replace("@VERSION@", version)
    for folder in ("wheel", "cmake"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "enma-config.cmake").write_text("")
    (tmp_path / "wheel/enma-config-version.cmake").write_text(text)
    numbers = ["0.1.9", "0.2", "0.2.9", "0.3", "1", "1.9", "1.9.2", "1.9.3", "1.9.4", "1.10", "2"]
    asked = [*numbers, "0.2.0", "0.2.0 EXACT", "1.9.3 EXACT", "1.9 EXACT"]
    asked += [f"{least}...{end}{most}" for least, most in combinations(numbers, 2) for end in ("", "<")]
    lines = ["cmake_minimum_required(VERSION 3.20)", "include(CMakePackageConfigHelpers)"]
    made = f"{tmp_path}/cmake/enma-config-version.cmake VERSION {version}"
    lines += [f"write_basic_package_version_file({made} COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)"]
    for wanted in asked:
        for folder in ("wheel", "cmake"):
            lines += ["unset(enma_DIR CACHE)"]
            lines += [f"find_package(enma {wanted} CONFIG QUIET NO_DEFAULT_PATH PATHS {tmp_path / folder})"]
            lines += ['message("${enma_FOUND}")']
    (tmp_path / "ask.cmake").write_text("\n".join(lines))
    done = subprocess.run(["cmake", "-P", str(tmp_path / "ask.cmake")], capture_output=True, text=True, check=True)
    found = done.stderr.split()
    wheel, by_cmake = (dict(zip(asked, found[i::2], strict=True)) for i in range(2))
    assert wheel == by_cmake
    assert wheel[f"{version} EXACT"] == "1"
    assert set(wheel.values()) == {"0", "1"}


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
    builds = [(ROOT / name).read_text() for name in ("setup.py", "csrc/CMakeLists.txt")]
    (flag,) = {found for text in builds for found in re.findall(r"-ffp-contract=\w+", text)}
    assert all(flag in text for text in builds)
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
