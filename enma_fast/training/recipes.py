"""Recipes: a model, the data that it is trained on, and the stages that train it, as one TOML file each.

    seed = 0                                         draws initial weights, batches and noise
    [data]                                           groups of 10 trajectories of each split (`enma-fast data generate`)
    [model]                                          as in `config.json` of a checkpoint
    [[stage]]                                        in their order, each with the settings of its kind alone

Those of the package are in `enma_fast/recipes/` and known by their names. Settings that a file leaves out have their
defaults.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..config import ModelConfig
from ..errors import EnmaError
from ..models.checkpoint import RECIPE_FILES
from ..utils.dataclass_json import from_json
from ..utils.untrusted import read_bytes

# Kinds of stages are known once their files are imported.
from . import dynamics, field_stage, first_frame, forecasts, head, tokenizer  # noqa: F401
from .stage import Stage

_Stage = TypeVar("_Stage", bound=Stage)

_MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and how it is trained.

    Attributes
    ----------
    model : as it is after the training
    stage : the stages in their order
    data : groups of trajectories of each split, where they are not the paper's
    seed : of initial weights, batches and noise
    """

    model: ModelConfig
    stage: tuple[Stage, ...]
    data: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stage:
            raise EnmaError("a recipe needs a [[stage]]")

    def first(self, kind: type[_Stage]) -> _Stage:
        """The first stage of a kind."""
        return next(stage for stage in self.stage if isinstance(stage, kind))

    def folders(self) -> dict[str, Stage]:
        """The stages by the names of their folders: that of the kind, numbered from its second on."""
        stages: dict[str, Stage] = {}
        for stage in self.stage:
            count = 1 + sum(other.kind == stage.kind for other in stages.values())
            stages[stage.kind if count == 1 else f"{stage.kind}-{count}"] = stage
        return stages


def read_recipe(path: Path) -> Recipe:
    """The recipe of a file; `EnmaError` names the file, and the entry that is wrong."""
    try:
        document = tomllib.loads(read_bytes(path, most=_MOST_BYTES).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EnmaError(f"{path}: is not TOML ({error}); correct it there") from None
    return from_json(Recipe, json.dumps(document, default=str), source=str(path))


class _Recipes(MutableMapping[str, Recipe]):
    """The recipes of a folder by their names; a file is read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Recipe | None] = dict.fromkeys(sorted(path.stem for path in folder.glob("*.toml")))

    def __getitem__(self, name: str) -> Recipe:
        recipe = self._read[name]
        if recipe is None:
            recipe = self._read[name] = read_recipe(self._folder / f"{name}.toml")
        return recipe

    def __setitem__(self, name: str, recipe: Recipe) -> None:
        self._read[name] = recipe

    def __delitem__(self, name: str) -> None:
        del self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read


# The recipes of the package by their names.
RECIPES = _Recipes(RECIPE_FILES)


def find_recipe(name: str) -> Recipe:
    """A recipe of the package by its name, or that of a TOML file; an unknown name lists the known ones."""
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith(".toml"):
        return read_recipe(Path(name))
    raise EnmaError(f"recipe {name!r} is unknown; use one of {', '.join(RECIPES)}, or name a TOML file")


def to_toml(recipe: Recipe) -> str:
    """The file of a recipe; `read_recipe` gives the same back. Settings with their defaults are left out."""
    document = _set(recipe)
    tables = {"model": document.pop("model"), "data": document.pop("data", {})}
    stages = document.pop("stage")
    lines = [f"{key} = {_inline(value)}" for key, value in document.items()]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_inline(value)}" for key, value in table.items() if not isinstance(value, dict)]
        for key, part in table.items():
            if isinstance(part, dict):
                lines += ["", f"[{name}.{key}]", *(f"{k} = {_inline(value)}" for k, value in part.items())]
    for stage in stages:
        # What is a table comes last.
        entries = sorted(stage.items(), key=lambda entry: _is_table(entry[1]))
        lines += ["", "[[stage]]", *(f"{key} = {_inline(value)}" for key, value in entries)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _set(config: Any) -> Any:
    """The entries of a config that differ from their defaults, and its kind."""
    if isinstance(config, tuple):
        return [_set(value) for value in config]
    if not dataclasses.is_dataclass(config):
        return config
    entries = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        # TOML has no null; what is none beside a kind of another part is so without being said.
        if entry.name == "kind" or (value != default and value is not None):
            entries[entry.name] = _set(value)
    return entries


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _inline(value: Any) -> str:
    if isinstance(value, list) and _is_table(value):
        return "[\n" + "".join(f"  {_inline(each)},\n" for each in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)
