"""Wheel and sdist hold what they should and nothing else, and the wheel works installed alone."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from enma_fast.data.shipped import IN_MODELS

# The models that the package holds.
IN_PACKAGE = {"advection", "combined", "combined-fast", "gray-scott", "vorticity", "wave"}

# The smallest of each kind of file that the build looks for; pybind11's headers take longer than all of them.
CSRC = {
    "csrc/core/cpu/six.cpp": '#include "core/six.h"\nint six() { return SIX; }\n',
    "csrc/core/six.h": "#pragma once\n#define SIX 6\nint six();\n",
    "csrc/runtime/six.cpp": """
        #include "core/six.h"
        extern "C" __attribute__((visibility("default"))) int enma_six() { return six(); }
    """,
    "csrc/python/module.cpp": """
        #include <Python.h>
        #include "core/six.h"
        static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
        PyMODINIT_FUNC PyInit__C() {
            PyObject* module = PyModule_Create(&definition);
            PyModule_AddIntConstant(module, "answer", 7 * six());
            return module;
        }
    """,
}
# And of this project's own.
BUILD_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "kernels/__init__.py", "csrc/CMakeLists.txt")
BUILD_FILES += (
    "csrc/enma.pc.in",
    "csrc/libenma.map",
    "csrc/python/module.map",
    "csrc/include/enma/enma.h",
    "csrc/include/enma/enma.hpp",
)
BUILD_FILES += ("csrc/fortran/enma.f90",)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command; its standard error is the message of a failure."""
    # An empty PYTHONPATH: the checkout must not help.
    variables = os.environ | {"PYTHONPATH": "", "PIP_NO_INPUT": "1"} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build_sdist(project: Path, folder: Path, **environment: str) -> Path:
    """Builds the source distribution through the hook that every front end calls."""
    folder.mkdir()
    hook = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", hook, folder, cwd=project, **environment)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    """Builds a wheel from a source tree or a source distribution."""
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder.parent, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_checkout(root: Path, source_files: list[Path], target: Path) -> Path:
    """Copies the checkout without ignored files: a build in place would read stale folders."""
    for path in source_files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, target / path)
    return target


@pytest.fixture(scope="module")
def sdist(root: Path, source_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return build_sdist(copy_checkout(root, source_files, folder / "project"), folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that what that one lacks is missed here."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel") / "dist", ENMA_FAST_NO_EXT="1")


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def in_models(path: Path) -> bool:
    """True for a file that the other distribution has."""
    return path.parts[:2] == ("enma_fast", "pretrained") and path.parts[2] in IN_MODELS


def shipped(source_files: list[Path]) -> set[str]:
    """Where each file of enma_fast/ and kernels/ is expected in an installation."""
    prefix = {"enma_fast": "", "kernels": "enma_fast/"}
    kept = [path for path in source_files if path.parts[0] in prefix and not in_models(path)]
    return {prefix[path.parts[0]] + path.as_posix() for path in kept}


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(source_files: list[Path], wheel: Path, wheel_names: set[str]) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    found = {name for name in wheel_names if ".dist-info/" not in name}
    missing, surplus = shipped(source_files) - found, found - shipped(source_files)
    assert not missing, f"needs an __init__.py or a line in package-data: {sorted(missing)}"
    assert not surplus, sorted(surplus)
    assert "enma_fast/kernels/__init__.py" in found


@pytest.mark.slow
def test_wheel_holds_the_small_models_and_the_licence(wheel: Path, wheel_names: set[str]) -> None:
    models = {name.split("/")[2] for name in wheel_names if name.endswith("/manifest.json")}
    assert models == IN_PACKAGE
    fields = {Path(name).name for name in wheel_names if name.endswith(".h5")}
    assert fields == {"combined-test-in.h5", "combined-test-out.h5"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)
    assert wheel.stat().st_size < 35_000_000, "the compiled half comes on top, and 40 MB are the limit"


def test_two_distributions_hold_all_that_is_shipped(root: Path, source_files: list[Path]) -> None:
    """Each file or folder of the shipped ones is in one of them, and in no more."""
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["enma_fast"]
    folder = root / "enma_fast/pretrained"
    found = {path for pattern in patterns for path in (root / "enma_fast").glob(pattern) if folder in path.parents}
    packed = {path.relative_to(folder).parts[0] for path in found}
    all_files = [path for path in source_files if path.parts[:2] == ("enma_fast", "pretrained")]
    assert len(IN_MODELS) == len(set(IN_MODELS))
    assert set(IN_MODELS) == {path.parts[2] for path in all_files} - packed


def test_sdist_holds_what_a_build_needs(source_files: list[Path], sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("enma_fast", "kernels", "csrc")
    needed = {path.as_posix() for path in source_files if path.parts[0] in folders and not in_models(path)}
    needed |= {"setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md"}
    assert needed <= found, sorted(needed - found)
    assert not [name for name in found if name.split("/")[0] in ("tests", "benchmarks", ".ci")]


def install(wheel: Path, target: Path) -> Path:
    """Installs a wheel alone into a folder."""
    options = ("--quiet", "--no-deps", "--no-index", "--target", target)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=wheel.parent)
    return target


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("installed") / "site")


@pytest.mark.slow
def test_installed_wheel_imports_alone(site: Path) -> None:
    probe = """
        import enma_fast, enma_fast.kernels
        names = [getattr(enma_fast, name) for name in enma_fast.__all__]
        print(enma_fast.__file__, enma_fast.kernels.__file__, len(names))
    """
    package, kernels, names = run(
        sys.executable, "-c", textwrap.dedent(probe), cwd=site.parent, PYTHONPATH=str(site)
    ).split()
    assert Path(package) == site / "enma_fast" / "__init__.py"
    assert Path(kernels) == site / "enma_fast" / "kernels" / "__init__.py"
    assert int(names) > 0
    assert (site / "bin" / "enma-fast").is_file()
    assert not (site / "kernels").exists()


@pytest.mark.slow
def test_models_of_the_other_distribution_are_found_where_it_is_installed(
    site: Path, root: Path, tmp_path: Path
) -> None:
    probe = """
        import enma_fast
        from enma_fast.data.shipped import shipped_file
        from enma_fast.models.checkpoint import available
        print(*available())
        for read in (lambda: enma_fast.load_model("wave-fast"), lambda: shipped_file("wave", "test-in")):
            try:
                print(type(read()).__name__)
            except enma_fast.EnmaError as error:
                print(error)
    """
    command = (sys.executable, "-c", textwrap.dedent(probe))
    own, *refusals = run(*command, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()
    assert set(own.split()) == IN_PACKAGE
    assert len(refusals) == 2
    assert all(line.endswith("pip install enma-fast-models") for line in refusals), refusals
    # Built as `make wheel` does, from some of its files.
    project = tmp_path / "models"
    made = project / "enma_fast_models"
    shutil.copytree(root / "enma_fast/pretrained/wave-fast", made / "wave-fast")
    for source, folder in (("packaging/models/pyproject.toml", project), ("packaging/models/__init__.py", made)):
        shutil.copy(root / source, folder)
    shutil.copy(root / "enma_fast/pretrained/wave-test-in.h5", made)
    wheel = build_wheel(project, tmp_path / "dist")
    assert wheel.name.startswith("enma_fast_models-")
    assert wheel.name.endswith("-py3-none-any.whl")
    found = f"{site}{os.pathsep}{install(wheel, tmp_path / 'site')}"
    *names, model, path = run(*command, cwd=tmp_path, PYTHONPATH=found).split()
    assert (set(names), model, path) == (IN_PACKAGE | {"wave-fast"}, "Model", "PosixPath")


@pytest.fixture(scope="module")
def project_with_extension(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal project under this project's own build files, with C++ sources."""
    project = tmp_path_factory.mktemp("extension") / "project"
    copy_checkout(root, [Path(name) for name in BUILD_FILES], project)
    for name, text in {**CSRC, "enma_fast/__init__.py": "", "README.md": ""}.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(textwrap.dedent(text))
    return project


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which neither Torch nor NumPy can be imported, as in an isolated build."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in ("torch", "numpy"):
        (folder / f"{name}.py").write_text("raise ImportError('not here')")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_extension_is_built_from_what_lies_in_csrc(
    project_with_extension: Path, without_torch: dict[str, str], tmp_path: Path
) -> None:
    # Packed without the extension: headers and sources must travel by MANIFEST.in alone.
    sdist = build_sdist(project_with_extension, tmp_path / "sdist", ENMA_FAST_NO_EXT="1")
    with tarfile.open(sdist) as archive:
        assert set(CSRC) <= {name.partition("/")[2] for name in archive.getnames()}
    wheel = build_wheel(sdist, tmp_path / "dist", ENMA_FAST_NO_EXT="0", **without_torch)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    made = {path.name.split(".")[0] for path in (tmp_path / "site").glob("enma_fast/**/lib*")}
    assert made == {"lib", "libenma"}
    assert not list((tmp_path / "site").glob("**/*.a"))
    probe = "import enma_fast._C; print(enma_fast._C.answer)"
    assert run(sys.executable, "-c", probe, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).strip() == "42"


@pytest.mark.slow
def test_an_editable_install_compiles_what_has_changed(project_with_extension: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(project_with_extension, tmp_path / "project"))
    hook = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    objects, files = project / "build/editable/CMakeFiles/engine.dir", []

    def install(number: int) -> tuple[int, float]:
        """What libenma then returns, and when the file that does not change was compiled."""
        (project / "csrc/core/cpu/six.cpp").write_text(f"int six() {{ return {number}; }}\n")
        folder = tmp_path / f"wheel-{number}"
        folder.mkdir()
        run(sys.executable, "-c", hook, folder, cwd=project, ENMA_FAST_NO_EXT="", CXXFLAGS="")
        (library,) = (project / "enma_fast/embed/lib").glob("libenma.so.*")
        files.append(library.open("rb"))
        probe = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).enma_six())"
        said = run(sys.executable, "-c", probe, library, cwd=tmp_path)
        return int(said), (objects / "runtime/six.cpp.o").stat().st_mtime

    (first, when), (second, again) = install(6), install(8)
    assert (first, second) == (6, 8)
    assert when == again
    assert len({os.fstat(file.fileno()).st_ino for file in files}) == 2, "a program may have the old one mapped"
    for file in files:
        file.close()
    assert len(list((project / "enma_fast").glob("_C*.so"))) == 1
    # The linker looks for this name with -lenma.
    assert (project / "enma_fast/embed/lib/libenma.so").read_text() == f"INPUT({Path(files[0].name).name})\n"


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["compiler", "nvcc"])
def test_a_build_that_fails_says_why(project_with_extension: Path, tmp_path: Path, broken: str) -> None:
    """And leaves no pure-Python install behind the user's back."""
    project, variables = Path(shutil.copytree(project_with_extension, tmp_path / "project")), {"ENMA_FAST_NO_EXT": ""}
    if broken == "compiler":
        (project / "csrc/core/cpu/six.cpp").write_text("#error six is not there\n")
        expected = "six is not there"
    else:
        expected = str(tmp_path / "no-nvcc")
        variables |= {"ENMA_FAST_CUDA": "1", "CUDACXX": expected}
    with pytest.raises(AssertionError) as failure:
        build_wheel(project, tmp_path / "dist", **variables)
    assert expected in str(failure.value)
    assert not list((tmp_path / "dist").glob("*.whl"))


def test_no_extension_on_request(project_with_extension: Path, without_torch: dict[str, str], tmp_path: Path) -> None:
    wheel = build_wheel(project_with_extension, tmp_path / "dist", ENMA_FAST_NO_EXT="1", **without_torch)
    assert wheel.name.endswith("-py3-none-any.whl")


def test_a_build_asks_for_what_pyproject_lists(root: Path, without_torch: dict[str, str]) -> None:
    """Front ends install that into an empty environment; and `make install` and the extra `test` have it all."""
    text = (root / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    requires = project["build-system"]["requires"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in requires}
    assert names == {"setuptools", "cmake", "ninja", "pybind11"}
    hooks = """
        from setuptools import build_meta
        print(build_meta.get_requires_for_build_wheel() + build_meta.get_requires_for_build_editable())
    """
    variables = without_torch | {"ENMA_FAST_NO_EXT": ""}
    assert run(sys.executable, "-c", textwrap.dedent(hooks), cwd=root, **variables).splitlines()[-1] == "[]"
    (line,) = re.findall(r"PIP\) (\"setuptools.*)", (root / "Makefile").read_text())
    assert {requirement for requirement in requires if requirement not in shlex.split(line)} == set()
    tested = {re.match(r"[\w-]+", name)[0] for name in project["project"]["optional-dependencies"]["test"]}
    assert names - {"setuptools"} <= tested


# Runs setup.py up to the first program that it calls, and prints that command.
FIRST_COMMAND = """
    import json, pathlib, runpy, shutil, subprocess, sys
    exists = pathlib.Path.exists
    pathlib.Path.exists = lambda path: {driver} if "nvidia" in path.parts else exists(path)

    def called(command, **options):
        print(json.dumps([command, options["env"].get("CXXFLAGS")]))
        raise SystemExit

    subprocess.run, which = called, shutil.which
    shutil.which = lambda name, **where: None if name in {missing} else which(name, **where)
    sys.argv = ["setup.py", "--quiet", "build_ext"]
    runpy.run_path("setup.py", run_name="__main__")
"""


def configured(project: Path, *, driver: bool = False, missing: Sequence[str] = (), **environment: str) -> list[Any]:
    """How setup.py calls CMake first, and CXXFLAGS in the environment of that."""
    text = textwrap.dedent(FIRST_COMMAND).format(driver=driver, missing=list(missing))
    said = run(sys.executable, "-c", text, cwd=project, **{"ENMA_FAST_NO_EXT": "", "CXXFLAGS": ""} | environment)
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize(
    ("asked", "driver", "nvcc", "expected"),
    [
        ("1", False, False, "ON"),
        ("0", True, True, "OFF"),
        ("", True, True, "ON"),
        ("", True, False, "OFF"),
        ("", False, True, "OFF"),
    ],
)
def test_kernels_for_gpus_are_built_where_asked_or_where_a_driver_and_nvcc_are(
    project_with_extension: Path, tmp_path: Path, asked: str, driver: bool, nvcc: bool, expected: str
) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "nvcc").chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    missing = () if nvcc else ("nvcc",)
    command, _ = configured(project_with_extension, driver=driver, missing=missing, ENMA_FAST_CUDA=asked, **path)
    assert [word for word in command if word.startswith("-DENMA_CUDA=")] == [f"-DENMA_CUDA={expected}"]


def test_flags_of_the_user_come_last(project_with_extension: Path) -> None:
    command, inherited = configured(project_with_extension, CXXFLAGS="-O1 -g")
    (flags,) = [word.partition("=")[2] for word in command if word.startswith("-DCMAKE_CXX_FLAGS_RELEASE=")]
    assert flags.endswith(" -O1 -g")
    # There CMake puts them first.
    assert inherited is None


@pytest.mark.parametrize("missing", ["cmake", "ninja"])
def test_a_missing_tool_is_named_with_the_mend(project_with_extension: Path, missing: str) -> None:
    with pytest.raises(AssertionError) as failure:
        configured(project_with_extension, missing=[missing])
    last = str(failure.value).partition("\nassert")[0].strip().splitlines()[-1]
    assert last.startswith(missing)
    assert f"pip install {missing}" in last
    assert "ENMA_FAST_NO_EXT=1" in last
