"""Text for messages: counted nouns, and long text shortened."""

_LONGEST = 60
_PLURALS = {"trajectory": "trajectories"}


def counted(count: int, thing: str) -> str:
    """A number and its noun, such as ``1 member`` or ``64 members``."""
    return f"{count} {thing if count == 1 else _PLURALS.get(thing, thing + 's')}"


def shortened(text: str) -> str:
    """The text, or its beginning and dots if it is longer than 60 characters."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def shown(value: object) -> str:
    """A value from a file, as short ASCII text that is safe for a terminal."""
    return shortened(ascii(value))
