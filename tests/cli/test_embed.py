"""`enma-fast embed`; that what it names works is tested with a wheel, in tests/packaging/test_extension.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from enma_fast.commands import embed
from enma_fast.models.checkpoint import PRETRAINED


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(embed, "PREFIX", tmp_path)
    return tmp_path


def test_folders(enma: Callable, prefix: Path) -> None:
    (prefix / "lib/cmake/enma").mkdir(parents=True)
    folders = {"cmake_dir": "lib/cmake/enma", "include_dir": "include", "library_dir": "lib"}
    assert enma("embed", "--json").json == {name: str(prefix / path) for name, path in folders.items()}
    for name, path in folders.items():
        # Alone on a line, for the shell.
        assert enma("embed", f"--{name.replace('_', '-')}").out == f"{prefix / path}\n"
        assert f"{name:12} {prefix / path}\n" in enma("embed").out
        assert enma("embed", f"--{name.replace('_', '-')}", "--json").json == {name: str(prefix / path)}
    assert "give one of" in enma("embed", "--cmake-dir", "--include-dir").error()
    assert "give one of" in enma("embed", "--checkpoint", "combined-fast", "--include-dir").error()


def test_shipped_models(enma: Callable) -> None:
    assert enma("embed", "--checkpoint", "combined-fast").out == f"{PRETRAINED / 'combined-fast'}\n"
    found = enma("embed", "--checkpoint", "combined-fast", "--json").json
    assert found == {"checkpoint": str(PRETRAINED / "combined-fast")}
    assert "use one of" in enma("embed", "--checkpoint", "nothing").error()


def test_an_installation_without_it(enma: Callable, prefix: Path) -> None:
    assert "no libenma" in enma("embed", "--include-dir").error()
