"""The reference of configs: each entry of a model and of a recipe with its default, what it means and what sets it.

Texts are the Attributes of the docstrings. Defaults and what sets an entry are found by comparing the configs of the
shipped models, of the recipes, and of `train FILE` for a line, a plane and a cube.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from enma_fast.config import (
    BlocksConfig,
    CodecConfig,
    ContextConfig,
    DecoderConfig,
    InterpolationConfig,
    KnownInput,
    ModelConfig,
    SamplingConfig,
    TrunkConfig,
)
from enma_fast.models.checkpoint import available, load_config
from enma_fast.training.augment import Augmentation
from enma_fast.training.own_plan import with_kind
from enma_fast.training.own_recipe import derived_recipe
from enma_fast.training.recipes import RECIPES, Recipe
from enma_fast.training.stage import Optimizer, Stage
from enma_fast.utils.kinds import Slot

PLACE = "<!-- entries of configs -->"
OWN_DATA = "`train FILE`"
# A name that is not broken over two lines.
WHOLE = '<span style="white-space: nowrap">`{}`</span>'
# Title of a part, and its classes; of a slot, all kinds too.
PARTS: dict[str, tuple[type, ...]] = {
    "Model": (ModelConfig, SamplingConfig, TrunkConfig, KnownInput),
    "Codec": (CodecConfig, InterpolationConfig),
    "Context": (ContextConfig,),
    "Decoders": (DecoderConfig,),
    "Recipe": (Recipe, Optimizer),
    "Stages": (Stage,),
    "Augmentations": (Augmentation,),
}


def classes(part: str) -> list[type]:
    """The classes of a part, a slot before its kinds; those that have entries of their own."""
    found = [each for top in PARTS[part] for each in (top, *getattr(top, "kinds", {}).values())]
    # A base of several kinds has entries of its own.
    with_bases = [base for each in found for base in reversed(each.__mro__) if dataclasses.is_dataclass(base)]
    # Programs may add kinds of their own.
    own = [each for each in with_bases if each.__module__.startswith("enma_fast.")]
    return list(dict.fromkeys(each for each in own if entries(each)))


def entries(kind: type) -> list[dataclasses.Field[Any]]:
    """The entries that none of its bases has, without the tag of a kind."""
    inherited = {name for base in kind.__mro__[1:] for name in getattr(base, "__dataclass_fields__", {})}
    tag = "kind" in inherited or "kinds" in vars(kind)
    return [one for one in dataclasses.fields(kind) if one.name not in inherited and not (tag and one.name == "kind")]


def attributes(kind: type) -> dict[str, str]:
    """What the docstring of a class says of its entries."""
    _, _, listed = (inspect.getdoc(kind) or "").partition("Attributes\n----------\n")
    found: dict[str, str] = {}
    for line in listed.split("\n"):
        if named := re.match(r"(\w+(?:, \w+)*) : (.*)", line):
            name, found[named[1]] = named[1], named[2]
        elif line.startswith("    "):
            found[name] += " " + line.strip()
    return found


def _default(one: dataclasses.Field[Any]) -> Any:
    """The default of an entry; `dataclasses.MISSING` where it has none."""
    return one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default


def default(one: dataclasses.Field[Any]) -> str:
    """The default of an entry, as a config has it; "needed" where it has none."""
    value = _default(one)
    if value is dataclasses.MISSING:
        return "needed"
    if dataclasses.is_dataclass(value):
        return f"`{value.kind}`" if hasattr(value, "kind") else "its defaults"
    return f"`{json.dumps(round(value, 6) if isinstance(value, float) else value)}`"


def _different(config: Any, found: set[tuple[type, str]]) -> None:
    """Add the entries of a config, and of those in it, that differ from their defaults."""
    if isinstance(config, tuple | list):
        for each in config:
            _different(each, found)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if value != _default(one):
            owner = next(base for base in reversed(type(config).__mro__) if one.name in _own(base))
            found.add((owner, one.name))
        _different(value, found)


def _own(kind: type) -> set[str]:
    return {one.name for one in entries(kind)} if dataclasses.is_dataclass(kind) else set()


def _own_data() -> Iterator[Recipe]:
    """What `train FILE` plans for a line, a plane and a cube, with everything that data may have."""
    for grid in ((128,), (64, 64), (16, 16, 16)):
        codec = BlocksConfig(
            grid=grid,
            lengths=(2.0,) * len(grid),
            periodic=(False,) * (len(grid) - 1) + (True,),
            field_channels=2,
            field_mean=(0.0, 1.0),
            field_scale=(1.0, 2.0),
            masked=True,
            block=1,
            frames=1,
        )
        known = (KnownInput(name="wind", in_time=True, in_space=True),)
        recipe = derived_recipe("own", codec, num_frames=12, frame_interval=0.1, size="base", seed=1, known=known)
        yield with_kind(recipe, "waves")


def setters() -> dict[tuple[type, str], str]:
    """What sets each entry to another value than its default: shipped models and recipes by name, and `train FILE`."""
    configs: dict[str, list[Any]] = {name: [load_config(name)] for name in available()}
    for name in RECIPES:
        configs.setdefault(name, []).append(RECIPES[name])
    configs[OWN_DATA] = list(_own_data())
    names: dict[tuple[type, str], list[str]] = {}
    for name, each in configs.items():
        found: set[tuple[type, str]] = set()
        _different(each, found)
        for place in found:
            names.setdefault(place, []).append(name)
    shown = {}
    for place, by in names.items():
        models = [name for name in by if name != OWN_DATA]
        parts = [f"{len(models)} models and recipes"] if len(models) > 3 else [f"`{name}`" for name in models]
        shown[place] = ", ".join(parts + [OWN_DATA] * (OWN_DATA in by))
    return shown


def _type(kind: type) -> str:
    """How a config names a class: by the tag of a kind, where it is one of several."""
    return f"`{vars(kind)['kind']}`" if issubclass(kind, Slot) and "kind" in vars(kind) else kind.__name__


def reference() -> str:
    """Markdown of all entries, part by part."""
    by, parts = setters(), []
    for part in PARTS:
        parts.append(f"## {part}")
        for kind in classes(part):
            about = (inspect.getdoc(kind) or "").partition("Attributes\n---")[0].strip()
            said = attributes(kind)
            lines = []
            for one in entries(kind):
                cells = (
                    WHOLE.format(one.name),
                    default(one),
                    _cell(said.get(one.name, "")),
                    by.get((kind, one.name), ""),
                )
                lines.append(f"| {' | '.join(cells)} |")
            head = ["| entry | default | meaning | set by |", "|---|---|---|---|"]
            parts += [f"### {_type(kind)}", _plain(about), "\n".join(head + lines)]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """A docstring as Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    return "".join(
        part if at % 2 else html.escape(part, quote=False) for at, part in enumerate(re.split(r"(`[^`]*`)", text))
    )


def _cell(text: str) -> str:
    # In a file of a config None is null.
    return re.sub(r"\bNone\b", "`null`", _plain(text)).replace("|", "\\|")


def included(markdown: str) -> str:
    """A page with all entries at their place."""
    return markdown.replace(PLACE, reference()) if PLACE in markdown else markdown


if __name__ == "__main__":
    print(reference())
