"""What a command shows: tables for people on standard output, or one line of JSON; progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_WIDE = 200


class Terminal:
    """Standard output and standard error of one command."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # In a file or a pipe a table is as wide as it needs to be.
        self.out = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
        self.err = Console(stderr=True, highlight=False)

    def show(self, *parts: RenderableType) -> None:
        """Show something to people; nothing with `--json`."""
        if not self.as_json:
            for part in parts:
                self.out.print(part)

    def result(self, value: Any) -> None:
        """With `--json`, write the result as the last line of standard output."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, description: str, note: str = "") -> Iterator[Callable[..., None]]:
        """A bar with time left, on a terminal only; yields `update(done, total, note="")`."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        bar = Progress(*columns, console=self.err, disable=not sys.stderr.isatty(), transient=True)
        task = bar.add_task(description, total=None, note=note)

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        with bar:
            yield update


def table(title: str, columns: list[str], rows: list[list[str]], *, caption: str | None = None) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    made.pad_edge = False
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A score in a table; a dash where there is none."""
    if value is None:
        return "-"
    if 0.01 <= abs(value) < 100 or value == 0:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
