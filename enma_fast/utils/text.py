"""Text for messages and pages: counted nouns, sizes and boundaries of grids, shortened text, tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 60
_PLURALS = {"trajectory": "trajectories"}


def counted(count: int, thing: str) -> str:
    """A number and its noun, such as ``1 member`` or ``64 members``."""
    return f"{count} {thing if count == 1 else _PLURALS.get(thing, thing + 's')}"


def times(sizes: Iterable[float]) -> str:
    """Sizes along the axes of a grid, such as ``64 x 64``."""
    return " x ".join(f"{size:.6g}" if isinstance(size, float) else str(size) for size in sizes)


def boundaries(periodic: Iterable[bool]) -> str:
    """Boundaries along the axes of a grid, such as ``periodic, open``."""
    return ", ".join("periodic" if wraps else "open" for wraps in periodic)


def shortened(text: str) -> str:
    """The text, or its beginning and dots if it is longer than 60 characters."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def shown(value: object) -> str:
    """A value from a file, as short ASCII text that is safe for a terminal."""
    return shortened(ascii(value))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, without a line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def short(value: float | None) -> str:
    """A score in three digits; a dash where there is none."""
    if not value:
        return "-" if value is None else "0"
    return f"{value:.3g}" if 0.0995 <= abs(value) < 1000 else f"{value:.2e}"
