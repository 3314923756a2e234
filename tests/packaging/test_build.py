"""Wheel and sdist hold what they should and nothing else, and the wheel works installed alone."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

# One source with and one without the Python header, and a header for the include path. Nothing here needs
# Torch's headers, which take half a minute to compile.
CSRC = {
    "csrc/core/cpu/six.cpp": '#include "core/six.h"\nint six() { return SIX; }\n',
    "csrc/core/six.h": "#pragma once\n#define SIX 6\nint six();\n",
    "csrc/torch/module.cpp": """
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


def shipped(source_files: list[Path]) -> set[str]:
    """Where each file of enma_fast/ and kernels/ is expected in an installation."""
    prefix = {"enma_fast": "", "kernels": "enma_fast/"}
    return {prefix[path.parts[0]] + path.as_posix() for path in source_files if path.parts[0] in prefix}


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(source_files: list[Path], wheel: Path, wheel_names: set[str]) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    found = {name for name in wheel_names if ".dist-info/" not in name}
    missing, surplus = shipped(source_files) - found, found - shipped(source_files)
    assert not missing, f"needs an __init__.py or a line in package-data: {sorted(missing)}"
    assert not surplus, sorted(surplus)
    assert "enma_fast/kernels/__init__.py" in found


@pytest.mark.slow
def test_wheel_holds_pretrained_models_and_the_licence(wheel_names: set[str]) -> None:
    suffixes = {Path(name).suffix for name in wheel_names if name.startswith("enma_fast/pretrained/")}
    assert {".safetensors", ".json", ".md"} <= suffixes
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)


def test_sdist_holds_what_a_build_needs(source_files: list[Path], sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("enma_fast", "kernels", "csrc")
    needed = {path.as_posix() for path in source_files if path.parts[0] in folders}
    needed |= {"setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md"}
    assert needed <= found, sorted(needed - found)
    assert not [name for name in found if name.split("/")[0] in ("tests", "benchmarks", ".ci")]


@pytest.mark.slow
def test_installed_wheel_imports_alone(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    options = ("--quiet", "--no-deps", "--no-index", "--target", target)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=tmp_path)
    probe = """
        import enma_fast, enma_fast.kernels
        names = [getattr(enma_fast, name) for name in enma_fast.__all__]
        print(enma_fast.__file__, enma_fast.kernels.__file__, len(names))
    """
    package, kernels, names = run(
        sys.executable, "-c", textwrap.dedent(probe), cwd=tmp_path, PYTHONPATH=str(target)
    ).split()
    assert Path(package) == target / "enma_fast" / "__init__.py"
    assert Path(kernels) == target / "enma_fast" / "kernels" / "__init__.py"
    assert int(names) > 0
    assert (target / "bin" / "enma-fast").is_file()
    assert not (target / "kernels").exists()


@pytest.fixture(scope="module")
def project_with_extension(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal project under this project's own build files, with C++ sources."""
    project = tmp_path_factory.mktemp("extension") / "project"
    build_files = [Path(name) for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE")]
    copy_checkout(root, [*build_files, Path("kernels/__init__.py")], project)
    for name, text in {**CSRC, "enma_fast/__init__.py": "", "README.md": ""}.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return project


@pytest.mark.slow
def test_extension_is_built_from_what_lies_in_csrc(project_with_extension: Path, tmp_path: Path) -> None:
    # Packed without the extension: headers and sources must travel by MANIFEST.in alone.
    sdist = build_sdist(project_with_extension, tmp_path / "sdist", ENMA_FAST_NO_EXT="1")
    with tarfile.open(sdist) as archive:
        assert set(CSRC) <= {name.partition("/")[2] for name in archive.getnames()}
    wheel = build_wheel(sdist, tmp_path / "dist", ENMA_FAST_NO_EXT="0")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    probe = "import torch, enma_fast._C; print(enma_fast._C.answer)"
    assert run(sys.executable, "-c", probe, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).strip() == "42"


@pytest.mark.slow
def test_an_editable_install_has_libenma_in_the_tree(
    project_with_extension: Path, root: Path, source_files: list[Path], tmp_path: Path
) -> None:
    project = Path(shutil.copytree(project_with_extension, tmp_path / "project"))
    folders = ("csrc/embed", "csrc/include", "csrc/fortran", "csrc/enma.pc.in", "csrc/libenma.map")
    copy_checkout(root, [path for path in source_files if path.as_posix().startswith(folders)], project)
    (project / "csrc/runtime").mkdir()
    export = '__attribute__((visibility("default")))'
    text = f'#include "core/six.h"\nextern "C" {export} int enma_six() {{ return six(); }}\n'
    (project / "csrc/runtime/six.cpp").write_text(text)
    library, made = project / "enma_fast/embed/lib/libenma.so.1", []
    variables = {"ENMA_FAST_NO_EXT": "", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _ in range(2):
        # An editable install does this with the extension.
        run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=project, **variables)
        made.append(library.open("rb"))
    assert ctypes.CDLL(str(library)).enma_six() == 6
    assert len({os.fstat(file.fileno()).st_ino for file in made}) == 2, "a program may have the old one mapped"
    for file in made:
        file.close()


def test_no_extension_on_request(project_with_extension: Path, tmp_path: Path) -> None:
    # A torch that cannot be imported: a pure-Python build must not need it.
    (tmp_path / "no_torch").mkdir()
    (tmp_path / "no_torch" / "torch.py").write_text("raise ImportError('not here')")
    without_torch = {"PYTHONPATH": str(tmp_path / "no_torch")}
    wheel = build_wheel(project_with_extension, tmp_path / "dist", ENMA_FAST_NO_EXT="1", **without_torch)
    assert wheel.name.endswith("-py3-none-any.whl")


def test_missing_torch_is_one_line_with_the_mend(project_with_extension: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    variables = os.environ | {"PYTHONPATH": str(tmp_path), "ENMA_FAST_NO_EXT": ""}
    command = [sys.executable, "setup.py", "--quiet", "--version"]
    done = subprocess.run(command, cwd=project_with_extension, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("or set ENMA_FAST_NO_EXT=1 for a pure-Python install")


# The parts of torch that setup.py uses: the sources it is told to build are printed, not built.
FAKE_TORCH = {
    "torch/__init__.py": "from . import version\n",
    "torch/version.py": "cuda = {cuda!r}\n",
    "torch/utils/__init__.py": "",
    "torch/utils/cpp_extension.py": """
        CUDA_HOME = {home!r}
        BuildExtension = object
        def CppExtension(name, sources, **options):
            return ["cpp", sources, options]
        def CUDAExtension(name, sources, **options):
            return ["cuda", sources, options]
    """,
}


@pytest.mark.parametrize(
    ("cuda", "nvcc", "given", "architectures"),
    [
        pytest.param(None, True, None, None, id="torch-without-cuda"),
        pytest.param("13.0", False, None, None, id="no-nvcc"),
        pytest.param("12.6", True, None, "8.0+PTX;9.0a", id="cuda-before-blackwell"),
        pytest.param("13.0", True, None, "8.0+PTX;9.0a;10.0a", id="cuda"),
        pytest.param("13.0", True, "9.0a", "9.0a", id="chosen-architectures"),
    ],
)
def test_cuda_sources_are_built_where_torch_and_nvcc_have_cuda(
    cuda: str | None, nvcc: bool, given: str | None, architectures: str | None, root: Path, tmp_path: Path
) -> None:
    project, home = tmp_path / "project", tmp_path / "cuda"
    texts = {name: textwrap.dedent(text).format(cuda=cuda, home=str(home)) for name, text in FAKE_TORCH.items()}
    texts |= {"setup.py": (root / "setup.py").read_text(), "enma_fast/__init__.py": ""}
    texts |= dict.fromkeys((*CSRC, "csrc/core/cuda/kernel.cu"), "")
    for name, text in texts.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    if nvcc:
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "nvcc").touch()
    probe = """
        import json, os, runpy, setuptools
        setuptools.setup = lambda **arguments: print(
            json.dumps([arguments["ext_modules"][0], os.environ.get("TORCH_CUDA_ARCH_LIST")])
        )
        runpy.run_path("setup.py")
    """
    variables = {"PYTHONPATH": str(project), "ENMA_FAST_NO_EXT": ""}
    if given is not None:
        variables["TORCH_CUDA_ARCH_LIST"] = given
    (kind, sources, options), found = json.loads(
        run(sys.executable, "-c", textwrap.dedent(probe), cwd=project, **variables)
    )
    plain = ["csrc/torch/module.cpp", "csrc/core/cpu/six.cpp"]
    assert found == architectures
    if architectures is None:
        assert (kind, sources, options["define_macros"]) == ("cpp", plain, [])
    else:
        assert (kind, sources) == ("cuda", [*plain, "csrc/core/cuda/kernel.cu"])
        assert options["define_macros"] == [["ENMA_WITH_CUDA", None]]
    for compiler in ("cxx", "nvcc"):
        assert {"-std=c++20", "-O3"} <= set(options["extra_compile_args"][compiler])
