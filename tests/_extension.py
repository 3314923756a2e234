"""The compiled extension under test: its instruction sets, and the skips where it or one of them is missing."""

from __future__ import annotations

import pytest

from enma_fast.ops._backend import extension, extension_problem

NATIVE = extension()
# Those that this machine runs.
ISAS: tuple[str, ...] = () if NATIVE is None else tuple(NATIVE.cpu_isas())

needs_native = pytest.mark.skipif(NATIVE is None, reason=str(extension_problem()))


def _needs(isa: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(NATIVE is not None and isa not in ISAS, reason=f"this processor has no {isa}")


# Vector code has one body, compiled for each of these.
each_isa = pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=_needs(isa)) for isa in ("scalar", "avx2", "avx512")]
)
