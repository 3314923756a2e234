"""What a command shows: tables for people on standard output, or one line of JSON; progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_WIDE = 200
# Paths and names are shown as they are, whatever brackets and colons they hold.
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


class Terminal:
    """Standard output and standard error of one command."""

    def __init__(self, as_json: bool, *, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        # In a file or a pipe a table is as wide as it needs to be.
        self.out = Console(**_PLAIN, width=None if sys.stdout.isatty() else _WIDE)
        self.err = Console(stderr=True, **_PLAIN, width=None if sys.stderr.isatty() else _WIDE)

    def show(self, *parts: RenderableType) -> None:
        """Show something to people; nothing with `--json` or `--quiet`."""
        if not (self.as_json or self.quiet):
            for part in parts:
                self.out.print(printable(part) if isinstance(part, str) else part)

    def note(self, *parts: RenderableType) -> None:
        """Show something to people on standard error, before the work; nothing with `--json` or `--quiet`."""
        if not (self.as_json or self.quiet):
            for part in parts:
                self.err.print(printable(part) if isinstance(part, str) else part)

    def result(self, value: Any) -> None:
        """With `--json`, write the result as the last line of standard output."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, description: str, note: str = "") -> Iterator[Callable[..., None]]:
        """A bar with time left, on a terminal only; yields `update(done, total, note="")`."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        bar = Progress(*columns, console=self.err, disable=not sys.stderr.isatty(), transient=True)
        task = bar.add_task(description, total=None, note=note)

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        with bar:
            yield update

    @contextmanager
    def ensemble_progress(self, members: int) -> Iterator[Callable[[int, int], None]]:
        """Bars of trajectories and of the members of one, with members a second and time left; on a terminal only.

        Yields `update(done, total)`, in members of all trajectories.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        hidden = self.quiet or not sys.stderr.isatty()
        bars = Progress(*columns, console=self.err, disable=hidden, transient=True)
        outer = bars.add_task("trajectories", total=None, rate="")
        inner = bars.add_task("members", total=None, rate="")
        begun: list[tuple[float, int]] = []

        def update(done: int, total: int) -> None:
            # Members that were there before tell nothing about the speed.
            begun.append((time.perf_counter(), done))
            del begun[1:-1]
            (start, before), (now, _) = begun[0], begun[-1]
            rate = f"{(done - before) / (now - start):.1f}/s" if done > before else ""
            bars.update(outer, completed=done // members, total=total // members)
            bars.update(inner, completed=done, total=total, rate=rate)

        with bars:
            yield update


def printable(text: str) -> str:
    """A text without control characters, which names in files may hold to deceive who reads a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def table(title: str, columns: list[str], rows: list[list[str]], *, caption: str | None = None) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(
        title=printable(title),
        caption=caption and printable(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    made.pad_edge = False
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0, overflow="fold")
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A score in a table; a dash where there is none."""
    if value is None:
        return "-"
    if 0.01 <= abs(value) < 100 or value == 0:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
