"""Words for people."""

_PLURALS = {"trajectory": "trajectories"}


def counted(count: int, thing: str) -> str:
    """``1 member``, ``64 members``."""
    return f"{count} {thing if count == 1 else _PLURALS.get(thing, thing + 's')}"
