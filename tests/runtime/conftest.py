import fcntl
import os
import shutil
from pathlib import Path

import pytest

from enma_fast.data import example
from enma_fast.models.checkpoint import save_model

from .._tiny import model as tiny_model
from ._libenma import CXX, SONAME, Library, Model, build, installed
from ._programs import CHECKPOINT


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library that was installed, or else compiled once for all processes of a run: as long as all these tests."""
    if (made := installed()) is not None:
        return Library(made)
    if shutil.which(CXX) is None:
        pytest.skip(f"needs {CXX}")
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "libenma"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "libenma.so"
        return Library(made if (folder / SONAME).is_symlink() else build(folder))


@pytest.fixture(scope="session")
def fast(library: Library) -> Model:
    """combined-fast."""
    return library.open(CHECKPOINT)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a one-pass model with random weights, 32 points, 8 frames."""
    made = tmp_path_factory.mktemp("small") / "checkpoint"
    save_model(tiny_model("relative-fast"), made)
    return made


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a model with random weights on a plane of 16 x 8 points with walls along one side, two channels."""
    made = tmp_path_factory.mktemp("plane") / "checkpoint"
    save_model(tiny_model("plane"), made)
    return made


@pytest.fixture(scope="session")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a model with random weights on such a plane that takes scattered points."""
    made = tmp_path_factory.mktemp("scattered") / "checkpoint"
    save_model(tiny_model("plane-paper"), made)
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of that checkpoint, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture
def small(library: Library, folder: Path) -> Model:
    """That model, opened."""
    return library.open(folder)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three observed frames as an example reads them."""
    path = tmp_path / "frames"
    example().tofile(path)
    return path
