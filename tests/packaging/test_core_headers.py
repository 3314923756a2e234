"""csrc/core is plain C++: no header of Torch or Python, and every header can be included alone, in any order."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CORE = Path("csrc/core")
SUFFIXES = {".h", ".hpp", ".cpp", ".c", ".cu", ".cuh"}
FLAGS = ("-std=c++20", "-fopenmp", "-fsyntax-only", "-Wall", "-Wextra", "-Werror")
# Vectors wider than the machine's are passed on the stack, between functions of one file.
PORTABLE_VECTORS = ("-Wno-psabi",)

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
FOREIGN = re.compile(r"^(?:torch|ATen|c10|caffe2|pybind11)/|^(?:Python\.h|pyconfig\.h|pybind11\.h|numpy/.*)$")
TARGET = re.compile(r"^\s*#\s*pragma\s+GCC\s+target\b", re.MULTILINE)
# CUDA's own headers and dialect need nvcc.
CUDA_ONLY = re.compile(r"\.cuh?$")


def includes(text: str) -> list[str]:
    """Headers that a file names."""
    return INCLUDE.findall(text)


def behind_a_target(text: str) -> list[str]:
    """Headers that a file names after it has turned on an instruction set."""
    mark = TARGET.search(text)
    return includes(text[mark.end() :]) if mark else []


@pytest.fixture(scope="module")
def texts(root: Path, source_files: list[Path]) -> dict[Path, str]:
    """The files of csrc/core."""
    chosen = (path for path in source_files if path.is_relative_to(CORE) and path.suffix in SUFFIXES)
    found = {path: (root / path).read_text(encoding="utf-8") for path in chosen}
    if not found:
        pytest.skip("no C++ sources in csrc/core")
    return found


def test_core_knows_neither_torch_nor_python(texts: dict[Path, str]) -> None:
    found = [f"{path}: {name}" for path, text in texts.items() for name in includes(text) if FOREIGN.match(name)]
    assert not found, "\n".join(found)


def test_core_includes_only_itself_and_the_system(root: Path, texts: dict[Path, str]) -> None:
    lines = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
    named = {(path, name) for path, text in texts.items() for name in lines.findall(text)}
    # Taken only under a macro that a test defines.
    named = {(path, name) for path, name in named if not name.startswith("cuda_shim/")}
    found = [f"{path}: {name}" for path, name in sorted(named) if not (root / "csrc" / name).is_file()]
    assert not found, "name headers from csrc/ on:\n" + "\n".join(found)


def fragments(texts: dict[Path, str]) -> set[str]:
    """Headers that some file includes behind a target pragma; they are part of that file, and need not stand alone.

    So are those that one of them includes, if they include nothing themselves.
    """
    found = {name for text in texts.values() for name in behind_a_target(text)}
    inner = {name for part in found for name in includes(texts.get(Path("csrc") / part, ""))}
    return found | {name for name in inner if not includes(texts.get(Path("csrc") / name, "#include <none>"))}


def needs_cuda(name: str, texts: dict[Path, str], seen: frozenset[str] = frozenset()) -> bool:
    """True if a header of csrc leads to one in CUDA's dialect."""
    if CUDA_ONLY.search(name) or name.startswith("cuda"):
        return True
    text = texts.get(Path("csrc") / name)
    if text is None or name in seen:
        return False
    return any(needs_cuda(other, texts, seen | {name}) for other in includes(text))


def units(texts: dict[Path, str]) -> Iterator[tuple[str, str]]:
    """Name and text of what is compiled: each source, and a file that includes one header twice."""
    parts = fragments(texts)
    for path in texts:
        name = path.relative_to("csrc").as_posix()
        if needs_cuda(name, texts):
            continue
        if path.suffix in (".cpp", ".c"):
            yield name, f'#include "{name}"\n'
        elif name not in parts:
            yield name, f'#include "{name}"\n' * 2


def complaint(root: Path, text: str) -> str:
    """The errors of the compiler about a text."""
    command = ["g++", *FLAGS, *PORTABLE_VECTORS, f"-I{root / 'csrc'}", "-x", "c++", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
# The library that the tests of the runtime build is compiled from most sources, and takes no warning either.
@pytest.mark.parametrize("kind", ["header", pytest.param("source", marks=pytest.mark.slow)])
def test_each_header_compiles_alone_and_each_source_without_a_warning(
    kind: str, root: Path, texts: dict[Path, str]
) -> None:
    chosen = {name: text for name, text in units(texts) if name.endswith((".cpp", ".c")) == (kind == "source")}
    assert chosen
    with ThreadPoolExecutor(2) as pool:
        said = {name: pool.submit(complaint, root, text) for name, text in chosen.items()}
    found = [f"{name}:\n{future.result()}" for name, future in said.items() if future.result()]
    assert not found, "\n".join(found)


def test_foreign_headers_are_recognised() -> None:
    text = '#include <torch/types.h>\n  # include "ATen/ATen.h"\n#include <Python.h>\n#include <pybind11/pybind11.h>'
    assert all(FOREIGN.match(name) for name in includes(text))
    assert len(includes(text)) == 4
    assert not [name for name in ("core/torch.h", "cmath", "core/cpu/python.h") if FOREIGN.match(name)]


def test_fragments_are_recognised() -> None:
    text = '#include <cmath>\n#pragma GCC target("avx2,fma")\n#include "core/cpu/lanes.h"\n'
    assert behind_a_target(text) == ["core/cpu/lanes.h"]
    assert behind_a_target("#include <cmath>\n") == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_compiler_sees_what_is_missing(root: Path) -> None:
    assert "float_t" in complaint(root, "std::float_t x;")
    assert "unused" in complaint(root, "int f() { int x; return 1; }")
    assert complaint(root, "int f();") == ""
