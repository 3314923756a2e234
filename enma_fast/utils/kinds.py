"""Slots of a config, each filled by one of several kinds: dataclasses that are told apart by a tag.

    class Decoder(Slot): ...                              a slot; its fields are those of all its kinds
    class Linear(Decoder): kind: str = "linear"           a kind, found by its tag from here on

In JSON the tag is the entry `kind`. So a new kind is a class, and no list names it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class Slot:
    """Base of the dataclasses of a slot. Each kind has a field `kind`, whose default is its tag.

    Attributes
    ----------
    kinds : the kinds of a slot by their tags
    module : what a kind makes, as ``package.module:Name``, or the class itself
    """

    kinds: ClassVar[dict[str, type[Slot]]] = {}
    module: ClassVar[str | type]

    def __init_subclass__(cls) -> None:
        if Slot in cls.__bases__:
            cls.kinds = {}
        elif "kind" in cls.__dict__:
            cls.kinds[cls.__dict__["kind"]] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if Slot not in cls.__bases__:
            return handler(source)
        from pydantic_core import core_schema

        choices = {tag: handler.generate_schema(kind) for tag, kind in cls.kinds.items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")

    @classmethod
    def made(cls) -> type[Any]:
        """The class that a config of this kind configures; it is imported only here."""
        if isinstance(cls.module, type):
            return cls.module
        module, name = cls.module.split(":")
        implementation: type[Any] = getattr(import_module(module), name)
        return implementation
