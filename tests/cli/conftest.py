"""Commands run inside the test's process."""

import contextlib
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enma_fast.cli import main
from enma_fast.models.checkpoint import PRETRAINED


@dataclass(frozen=True)
class Run:
    """The status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one line of standard output under `--json`."""
        assert self.status == 0, self.err
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])

    def error(self) -> str:
        """The one line of an error in the input."""
        assert self.status == 2, (self.status, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def enma(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command line in this process."""

    def run(*arguments: Any) -> Run:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return run


@pytest.fixture
def files_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Inside it no file of this process grows beyond so many bytes."""

    @contextlib.contextmanager
    def limited(most: int) -> Iterator[None]:
        # A module that is compiled there would be cut off too.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All splits under their names; their contents are the shipped files'."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test-in"):
        shutil.copy(PRETRAINED / "combined-test-in.h5", folder / f"combined-{split}.h5")
    shutil.copy(PRETRAINED / "combined-test-out.h5", folder)
    return folder
