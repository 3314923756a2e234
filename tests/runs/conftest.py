"""Fields that are forecast, by the tiny model where a test names no other."""

from pathlib import Path

import pytest

from enma_fast.data import FieldFile, read
from enma_fast.runs import run


@pytest.fixture(scope="module")
def data(test_in: Path) -> FieldFile:
    return read(test_in)


@pytest.fixture(autouse=True)
def tiny_by_default(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = run.prepare
    monkeypatch.setattr(run, "prepare", lambda *a, **k: original(*a, **{"checkpoint": tiny, **k}))
