"""Names of the axes of space, and the check of names that become files or folders: of channels, parameters and columns.

Names that are checked come from files that others wrote. A name is text of 1 to 128 bytes in UTF-8, contains no
separator (`/`, `\\`) and no control character, and begins with neither a dot nor two underscores (which Zarr
reserves). So it is never a path or a hidden file.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import EnmaError
from .text import shown

# Axes of space, in their order.
SPACE = ("x", "y", "z")
MOST_BYTES = 128
# A channel of a forecast store has arrays of its name with these ends.
ENDS = ("", "_observed", "_truth", "_mean", "_spread", "_quantile", "_exceedance")
# Unicode categories: control and format characters, and surrogates, which cannot be encoded.
_CONTROL = ("Cc", "Cf", "Cs")


def name_problem(name: object) -> str | None:
    """Describe why a name cannot be the name of a file; None if it can."""
    if not isinstance(name, str):
        return "is not text"
    if not name:
        return "is empty"
    if any(unicodedata.category(character) in _CONTROL for character in name):
        return "contains a control character"
    if "/" in name or "\\" in name:
        return "contains a separator"
    if name.startswith((".", "__")):
        return "begins with a dot or two underscores"
    size = len(name.encode())
    return f"has {size} bytes; at most {MOST_BYTES} are allowed" if size > MOST_BYTES else None


def check_names(names: Iterable[object], *, kind: str, where: str | Path | None = None) -> None:
    """Raise `EnmaError` unless each name from a file can be the name of a file.

    `kind` is what they name, such as "field", and `where` the file, for the message.
    """
    for name in names:
        wrong = name_problem(name)
        if wrong is not None:
            # Control characters and very long names must not reach a terminal.
            place = "" if where is None else f"{where}: "
            raise EnmaError(
                f"{place}{kind} {shown(name)} cannot name an array of a store (it {wrong}); rename the {kind}"
            )


def name_twice(channels: Iterable[str], columns: Iterable[str], others: Iterable[str]) -> str | None:
    """The first name that two arrays of a forecast store would have, of channels, columns and others; None without."""
    names = [*others, *columns, *(f"{channel}{end}" for channel in channels for end in ENDS)]
    return next((name for name, count in Counter(names).items() if count > 1), None)
