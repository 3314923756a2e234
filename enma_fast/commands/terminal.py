"""The output of a command: tables for people on standard output, or one line of JSON; progress on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..errors import EnmaError
from ..utils.files import write_atomic

# Columns of a file or a pipe; a terminal has its own.
PLAIN_WIDTH = 80
# Labels of rows that are no longer than this stay on one line.
_SHORT = 20
# Paths and names are shown as they are, whatever brackets and colons they hold.
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


class Terminal:
    """Standard output and standard error of one command."""

    def __init__(self, as_json: bool, *, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out = Console(**_PLAIN, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self.err = Console(stderr=True, **_PLAIN, width=None if sys.stderr.isatty() else PLAIN_WIDTH)

    def show(self, *parts: str | Table) -> None:
        """Show something to people; nothing with `--json` or `--quiet`."""
        if not (self.as_json or self.quiet):
            _print(self.out, parts)

    def note(self, *parts: str | Table) -> None:
        """Show something to people on standard error, before the work; nothing with `--json` or `--quiet`."""
        if not (self.as_json or self.quiet):
            _print(self.err, parts)

    def result(self, value: Any) -> None:
        """With `--json`, write the result as the last line of standard output."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, description: str) -> Iterator[Callable[..., None]]:
        """A bar with time left, on a terminal only and not with `--quiet`; yields `update(done, total, note="")`."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        hidden = self.quiet or not sys.stderr.isatty()
        bar = Progress(*columns, console=self.err, disable=hidden, transient=True)
        task = bar.add_task(description, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        with bar:
            yield update


def printable(text: str, *, kept: str = "\n") -> str:
    """A text without control characters but those `kept`: names in files may hold some to deceive a reader."""
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def _cell(text: str) -> str:
    """A text in a table, where a line break would look like a row more."""
    return printable(text, kept="")


def _print(console: Console, parts: Iterable[str | Table]) -> None:
    """Print to the width of a terminal; in a file or a pipe break no line of text, and no word in a table."""
    whole = not console.file.isatty()
    for part in parts:
        if isinstance(part, str):
            console.print(printable(part), soft_wrap=whole)
            continue
        if whole:
            for column in part.columns:
                column.min_width = max(len(word) for text in (column.header, *column.cells) for word in _words(text))
            with console.capture() as printed:
                console.print(part, crop=False)
            console.file.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))
        else:
            console.print(part)
        console.print()


def _words(text: object) -> list[str]:
    return str(text).split() or [""]


def table(
    title: str, columns: list[str], rows: list[list[str]], *, caption: str | None = None, text: Collection[int] = (0,)
) -> Table:
    """Table whose columns `text` hold words, at the left, and whose others hold numbers, at the right."""
    short = all(len(row[0]) <= _SHORT for row in rows)
    result = Table(
        title=printable(title),
        caption=caption and printable(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i in text else "right", overflow="fold", no_wrap=short and i == 0)
    for row in rows:
        result.add_row(*map(_cell, row))
    return result


def number(value: float | None, digits: int = 3) -> str:
    """A score in a table; a dash where there is none."""
    if value is None:
        return "-"
    if 0.01 <= abs(value) < 100 or value == 0:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def require_writable(out: Path) -> None:
    """Raise `EnmaError` where the file that `--out` names cannot be written, before any work is lost."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise EnmaError(f"--out {out}: cannot be written; choose another place")


def write_out(out: Path, text: str) -> None:
    """Write the file that `--out` names, whole or not at all, or say why it cannot be."""
    try:
        write_atomic(out, text.encode())
    except OSError as error:
        raise EnmaError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from error


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
