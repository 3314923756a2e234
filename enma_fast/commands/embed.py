"""`enma-fast embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnmaError
from .options import AsJson
from .terminal import Terminal

# Where setup.py puts libenma.
PREFIX = Path(__file__).resolve().parent.parent / "embed"


def embed(
    cmake_dir: Annotated[bool, typer.Option("--cmake-dir", help="Print enma_DIR for CMake and nothing else.")] = False,
    include_dir: Annotated[bool, typer.Option("--include-dir", help="Print the folder of the headers.")] = False,
    library_dir: Annotated[bool, typer.Option("--library-dir", help="Print the folder of libenma.so.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="NAME", help="Print the folder of a shipped model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where libenma, its headers and its CMake package are, to build C, C++ and Fortran programs with."""
    if sum((cmake_dir, include_dir, library_dir, checkpoint is not None)) > 1:
        raise EnmaError("give one of --cmake-dir, --include-dir, --library-dir and --checkpoint, or none of them")
    terminal = Terminal(as_json)
    if checkpoint is not None:
        from ..models.checkpoint import available, locate

        if checkpoint not in available():
            raise EnmaError(f"model {checkpoint!r} is not shipped; use one of {', '.join(available())}")
        _answer(terminal, "checkpoint", str(locate(checkpoint)))
        return
    folders: dict[str, Any] = {
        "cmake_dir": str(PREFIX / "lib/cmake/enma"),
        "include_dir": str(PREFIX / "include"),
        "library_dir": str(PREFIX / "lib"),
    }
    if not Path(folders["cmake_dir"]).is_dir():
        raise EnmaError(
            "this installation has no libenma: it was built without its sources, or with ENMA_FAST_NO_EXT=1; "
            "install it with a compiler, or run `make libenma` in a checkout"
        )
    for name, wanted in zip(folders, (cmake_dir, include_dir, library_dir), strict=True):
        if wanted:
            _answer(terminal, name, folders[name])
            return
    for name, folder in folders.items():
        terminal.show(f"{name:12} {folder}")
    terminal.result(folders)


def _answer(terminal: Terminal, name: str, folder: str) -> None:
    """One folder, as a shell or a build takes it: on a line of its own, however long."""
    if not terminal.as_json:
        typer.echo(folder)
    terminal.result({name: folder})
