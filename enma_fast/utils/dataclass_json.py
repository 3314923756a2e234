"""Dataclasses as JSON: a strict round trip, and copies with dotted keys changed.

A dataclass may hold numbers, text, tuples and dataclasses of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from ..errors import EnmaError

if TYPE_CHECKING:
    import pydantic

_T = TypeVar("_T")


def to_json(config: Any) -> str:
    """Any dataclass as readable JSON."""
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=False) + "\n"


def from_json(cls: type[_T], text: str, *, source: str = "config") -> _T:
    """Read a dataclass back; an unknown key or a wrong type is one line that names the field.

    A key that is left out has its default. :func:`to_json` leaves none out, so only a key that is newer than the
    file is ever filled in: its default has to be what was done before there was the key.

    Raises
    ------
    EnmaError
        Names ``source`` and the field.
    """
    import pydantic

    try:
        config: _T = _adapter(cls).validate_json(text, strict=True)  # type: ignore[arg-type]  # mypy: not hashable
        return config
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        # pydantic's own sentences begin with a capital; a message of this package begins with the model's name.
        message = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "unexpected_keyword_argument":
            message = "unknown key; take it out, or use the version of enma_fast that wrote it"
        where = f"{source}: {place}" if place else source
        raise EnmaError(f"{where}: {message.removeprefix('value error, ')}") from None


@functools.cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    """The validator of a dataclass: no unknown keys, in it and in the dataclasses that it holds."""
    import pydantic

    for member in _dataclasses_in(cls):
        member.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return pydantic.TypeAdapter(cls)


def _dataclasses_in(kind: Any) -> Iterator[Any]:
    """A dataclass, and all those among the types of its fields."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from _dataclasses_in(hint)
    for part in get_args(kind):
        yield from _dataclasses_in(part)


def replace(config: _T, changes: Mapping[str, Any], *, source: str | None = None) -> _T:
    """Copy ``config`` with dotted keys changed: ``{"flow.width": 256}``.

    All changes are made at once and then checked as :func:`from_json` does, so a 1-D config can become a 2-D one.
    Errors name ``source``, by default the type.

    Raises
    ------
    EnmaError
        Names the key, and the known ones if it is unknown.
    """
    name = source or type(config).__name__
    document = dataclasses.asdict(config)  # type: ignore[call-overload]
    for key, value in changes.items():
        node, parts = document, key.split(".")
        for i, part in enumerate(parts):
            if not isinstance(node, dict):
                raise EnmaError(f"{name}: unknown key {key!r}; {'.'.join(parts[:i])} is {node!r}, without parts")
            if part not in node:
                raise EnmaError(f"{name}: unknown key {key!r}; known are {', '.join(node)}")
            if i + 1 < len(parts):
                node = node[part]
        node[parts[-1]] = value
    return from_json(type(config), json.dumps(document, default=dataclasses.asdict), source=name)
