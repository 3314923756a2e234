"""Fields that are forecast, by the tiny model where a test names no other."""

from pathlib import Path

import pytest

from enma_fast.data import FieldFile, read
from enma_fast.runs import prepare as module


@pytest.fixture(scope="module")
def data(test_in: Path) -> FieldFile:
    return read(test_in)


@pytest.fixture(autouse=True)
def tiny_by_default(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.prepare
    monkeypatch.setattr(module, "prepare", lambda *a, **k: original(*a, **{"checkpoint": tiny, **k}))
