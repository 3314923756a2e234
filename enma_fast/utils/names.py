"""One rule for every name that becomes a file or a folder: of channels, parameters, columns and variables.

Such names come from files that others wrote. A name is text of 1 to 128 bytes in UTF-8, holds no separator (`/`, `\\`)
and no control character, and begins with neither a dot nor two underscores (which Zarr keeps
for itself); so it can be no path, and nothing hidden.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..errors import EnmaError

MOST_BYTES = 128
# Control and format characters, and halves of pairs, which no encoding has.
_CONTROL = ("Cc", "Cf", "Cs")


def name_problem(name: object) -> str | None:
    """Why a name cannot be that of a file, None if it can."""
    if not isinstance(name, str):
        return "is no text"
    if not name:
        return "is empty"
    if any(unicodedata.category(character) in _CONTROL for character in name):
        return "holds a control character"
    if "/" in name or "\\" in name:
        return "holds a separator"
    if name.startswith((".", "__")):
        return "begins with a dot or two underscores"
    size = len(name.encode())
    return f"has {size} bytes; {MOST_BYTES} are the most" if size > MOST_BYTES else None


def check_names(names: Iterable[object], *, kind: str, where: str | Path | None = None) -> None:
    """Raise `EnmaError` unless each name can be that of a file.

    Parameters
    ----------
    names
        As a file states them.
    kind
        Of thing that they name, such as "field".
    where
        The file.
    """
    for name in names:
        wrong = name_problem(name)
        if wrong is not None:
            # No control character, and no page of text, reaches a terminal.
            short = ascii(name) if len(str(name)) <= 60 else f"{str(name)[:57]!a}..."
            place = "" if where is None else f"{where}: "
            raise EnmaError(f"{place}{kind} {short} cannot name an array of a store (it {wrong}); rename the {kind}")
