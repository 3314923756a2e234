"""A fork server for all tests, and a folder in memory: its file system settles at once."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ._harness import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path, test_in: Path) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.warm(test_in, tiny)
    yield made
    made.close()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in memory; on disks that others write to, waiting for the disk takes long."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(prefix="enma_fast-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made, ignore_errors=True)
