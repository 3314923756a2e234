"""Text for messages: counted nouns."""

_PLURALS = {"trajectory": "trajectories"}


def counted(count: int, thing: str) -> str:
    """A number and its noun, such as ``1 member`` or ``64 members``."""
    return f"{count} {thing if count == 1 else _PLURALS.get(thing, thing + 's')}"
