"""A small field file, and a forecast store of some of its trajectories."""

from pathlib import Path

import pytest

from enma_fast.data import FieldFile

from ._stores import fields_file, store_of


@pytest.fixture
def data(tmp_path: Path) -> FieldFile:
    return fields_file(tmp_path / "fields.h5")


@pytest.fixture
def run(tmp_path: Path, data: FieldFile) -> Path:
    """A store of `data`."""
    store_of(tmp_path / "run.zarr", data)
    return tmp_path / "run.zarr"
