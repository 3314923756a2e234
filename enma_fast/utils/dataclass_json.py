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
from .kinds import Slot

if TYPE_CHECKING:
    import pydantic

_T = TypeVar("_T")


def to_json(config: Any) -> str:
    """Write a dataclass as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=False) + "\n"


def from_json(cls: type[_T], text: str, *, source: str = "config") -> _T:
    """Read a dataclass; an unknown key or a wrong type is refused in one line that names `source` and the field.

    A missing key has its default. :func:`to_json` writes all keys, so only keys that are newer than the file are
    missing: the default of a new key has to reproduce the behaviour before it existed.
    """
    import pydantic

    try:
        config: _T = _adapter(cls).validate_json(text, strict=True)
        return config
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(_without_tags(problem["loc"], _tags_by_field(cls)))
        # Messages of pydantic begin with a capital; those of this package begin with the name of the model.
        message = problem["msg"][0].lower() + problem["msg"][1:]
        if problem["type"] == "unexpected_keyword_argument":
            message = "unknown key; take it out, or use the version of enma_fast that wrote it"
        where = f"{source}: {place}" if place else source
        raise EnmaError(f"{where}: {message.removeprefix('value error, ')}") from None


def _without_tags(loc: tuple[int | str, ...], tags: Mapping[Any, Any]) -> Iterator[str]:
    """A place in a document; the tag of a kind follows the name of its slot, or the number in it, and is no key."""
    field: int | str = ""
    for part in loc:
        if part in tags.get(field, ()):
            continue
        field = part if isinstance(part, str) else field
        yield str(part)


def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    """The validator of a dataclass: no unknown keys, in it and in the dataclasses that it holds."""
    members = tuple(dict.fromkeys(_dataclasses_in(cls)))
    return _adapter_of(cls, members)


@functools.cache
def _adapter_of(cls: Any, members: tuple[Any, ...]) -> pydantic.TypeAdapter[Any]:
    """The same; `members` are all dataclasses in it, kinds that are there now among them."""
    import pydantic

    for member in members:
        member.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return pydantic.TypeAdapter(cls)


def _dataclasses_in(kind: Any) -> Iterator[Any]:
    """A dataclass, and all those among the types of its fields; of a slot those of its kinds."""
    if isinstance(kind, type) and Slot in kind.__bases__:
        for one in kind.kinds.values():  # type: ignore[attr-defined]
            yield from _dataclasses_in(one)
    elif dataclasses.is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from _dataclasses_in(hint)
    for part in get_args(kind):
        yield from _dataclasses_in(part)


def _tags_by_field(cls: Any) -> dict[Any, Any]:
    """Tags of the kinds that a field may hold, of all fields of a dataclass and of those in it that are slots."""
    return {
        name: part.kinds  # type: ignore[attr-defined]
        for member in _dataclasses_in(cls)
        for name, hint in get_type_hints(member).items()
        for part in (hint, *get_args(hint))
        if isinstance(part, type) and Slot in part.__bases__
    }


def replace(config: _T, changes: Mapping[str, Any], *, source: str | None = None) -> _T:
    """Copy ``config`` with dotted keys changed, such as ``{"flow.width": 256}``.

    All changes are made together and then checked as in :func:`from_json`, so a 1-D config can become a 2-D one. For an
    unknown key or a refused value an `EnmaError` names the key, and the known keys; it begins with ``source``, by
    default the name of the type.
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
