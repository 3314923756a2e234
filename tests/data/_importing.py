"""Sizes, axes and steps of the fields that tests import, and what an import of a file gives or refuses."""

from pathlib import Path
from typing import Any

import pytest

from enma_fast.data import FieldFile, ImportOptions, import_fields, read
from enma_fast.errors import EnmaError

N, T, X, Y = 4, 6, 8, 5
LINE = ("trajectory", "time", "x")
STEPS = {"dt": 0.05, "spacing": (0.1,)}


def imported(source: Path, **options: Any) -> FieldFile:
    return read(import_fields(source, source.parent / "out.h5", ImportOptions(**options), force=True))


def refusal(source: Path, **options: Any) -> str:
    with pytest.raises(EnmaError) as caught:
        imported(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
