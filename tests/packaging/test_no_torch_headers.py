"""The C++ half is built without Torch: no file includes one of its headers, and no library of it is linked."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import enma_fast

from .._extension import NATIVE
from .test_core_headers import includes

SUFFIXES = {".h", ".hpp", ".cpp", ".c", ".cu", ".cuh"}
TORCH = re.compile(r"^(?:torch|ATen|c10|caffe2|TH|THC)/")
LINKED = re.compile(r"\(NEEDED\).*\[(.+)\]")
# Of Torch; and of Python, which the interpreter that loads a module has in it.
FOREIGN = re.compile(r"^lib(?:torch|c10|caffe2|shm|python)")


def needed(library: Path) -> list[str]:
    """Libraries that a library asks the loader for."""
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    listing = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    return LINKED.findall(listing)


def test_no_file_includes_a_header_of_torch(root: Path, source_files: list[Path]) -> None:
    sources = [path for path in source_files if path.parts[0] == "csrc" and path.suffix in SUFFIXES]
    assert len(sources) > 50
    found = [f"{path}: {name}" for path in sources for name in includes((root / path).read_text()) if TORCH.match(name)]
    assert not found, "\n".join(found)


def test_the_engine_knows_no_python(root: Path, source_files: list[Path]) -> None:
    """libenma is made of `core` and `runtime`; `python` is for the extension alone."""
    sources = [path for path in source_files if path.parts[:2] == ("csrc", "runtime") and path.suffix in SUFFIXES]
    assert sources
    foreign = re.compile(r"^(?:pybind11|python|numpy)/|^(?:Python|pyconfig)\.h$")
    found = [
        f"{path}: {name}" for path in sources for name in includes((root / path).read_text()) if foreign.match(name)
    ]
    assert not found, "\n".join(found)


@pytest.mark.skipif(NATIVE is None, reason="needs the extension")
def test_the_extension_asks_for_no_library_of_torch() -> None:
    libraries = needed(Path(NATIVE.__file__))
    assert any(name.startswith("libstdc++") for name in libraries), libraries
    assert not [name for name in libraries if FOREIGN.match(name)], libraries


def test_libenma_asks_for_no_library_of_torch() -> None:
    # Not the script for the linker.
    found = sorted((Path(enma_fast.__file__).parent / "embed/lib").glob("libenma.so.*"))
    if not found:
        pytest.skip("libenma is not installed")
    for library in found:
        assert not [name for name in needed(library) if FOREIGN.match(name)]


def test_libraries_of_torch_are_recognised() -> None:
    """In Torch's own module."""
    import torch

    assert [name for name in needed(Path(torch._C.__file__)) if FOREIGN.match(name)]
