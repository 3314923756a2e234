"""The plain C++ core of modulated_norm under AddressSanitizer and UBSan, without Torch."""

import shutil
from pathlib import Path

import pytest

from ._sanitizers import run_core


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_core_under_sanitizers(tmp_path: Path) -> None:
    """Every instruction set of this machine, and AVX-512's code on vectors that the compiler emulates."""
    run_core("modulated_norm", tmp_path)
