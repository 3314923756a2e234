"""Counts of the source, each with a limit in counts.json that a change may only lower.

``python -m tests.packaging._counts`` prints the table; with ``-v`` the places that are counted, with ``--lower`` it
writes today's numbers where they are below the limits. The text of a count in `COUNTS` is its definition.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ._expectations import pinned_messages, private_names
from ._kinds import cpp_branches, names_of_tensors, python_branches
from ._syntax import Places, Tree, name_of, strings_in

LIMITS = Path(__file__).with_name("counts.json")
ROOT = LIMITS.parents[2]

STAGES = {"tokenizer", "dynamics", "head", "forecasts", "first-frame"}
MOST_PARAMETERS = 8
CONFIGS = ("enma_fast.training.recipes:Recipe",)
TORCH = re.compile(r"^(?:torch|ATen|c10|caffe2|TH|THC)/")


def stage_comparisons(tree: Tree) -> Places:
    """Names of training stages compared, as keys of a table of stages, or as a key into one."""
    found = []
    for path, module in tree.parsed("enma_fast"):
        for node in ast.walk(module):
            words: list[str] = []
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                words = [word for side in sides for word in strings_in(side) if word in STAGES][:1]
            elif isinstance(node, ast.Dict):
                keys = [word for key in node.keys if key is not None for word in strings_in(key)]
                # A table of stages has no other keys; the sections of a config are "tokenizer", "dynamics" and others.
                words = keys if len(keys) > 1 and set(keys) <= STAGES else []
            elif isinstance(node, ast.Subscript):
                table = name_of(node.value)
                words = [
                    word
                    for word in strings_in(node.slice)
                    if word in STAGES
                    and (word in ("forecasts", "first-frame") or (table.isupper() and table != "FAST"))
                ]
            elif isinstance(node, ast.MatchValue):
                words = [word for word in strings_in(node.value) if word in STAGES]
            found += [f"{path}:{node.lineno}: {word}" for word in words]  # type: ignore[attr-defined]
    return found


def wide_functions(tree: Tree) -> Places:
    """Functions and methods of the package with more than 8 parameters, ``self`` and ``cls`` apart."""
    found = []
    for path, module in tree.parsed("enma_fast"):
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in given if name not in ("self", "cls")])
                if count > MOST_PARAMETERS:
                    found.append(f"{path}:{node.lineno}: {node.name} has {count}")
    return found


def configs(tree: Tree) -> list[type]:
    """The dataclasses that configs of models and of training consist of, the roots first."""
    assert tree.root == ROOT, "configs are imported"
    found: list[type] = []

    def add(kind: Any) -> None:
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind not in found:
            found.append(kind)
            for hint in get_type_hints(kind).values():
                add(hint)
            # The kinds of a slot, without those that another test has registered.
            for each in getattr(kind, "kinds", {}).values():
                if each.__module__.startswith("enma_fast."):
                    add(each)
        for each in get_args(kind) if not isinstance(kind, type) or isinstance(kind, types.GenericAlias) else ():
            add(each)

    for place in CONFIGS:
        module, _, name = place.partition(":")
        add(getattr(importlib.import_module(module), name))
    return found


def config_fields(tree: Tree) -> Places:
    """Fields of the config of a model, of training, and of the dataclasses in them."""
    return [f"{kind.__name__}.{field.name}" for kind in configs(tree) for field in _own_fields(kind)]


def _own_fields(kind: Any) -> list[dataclasses.Field[Any]]:
    """Those that none of its bases has; the tag of a kind is none."""
    inherited = {name for base in kind.__mro__[1:] for name in getattr(base, "__dataclass_fields__", {})}
    return [field for field in dataclasses.fields(kind) if field.name not in inherited and field.name != "kind"]


def unset_fields(tree: Tree) -> Places:
    """Those of them that have the default in every preset, shipped model and recipe."""
    from enma_fast.models.checkpoint import PRETRAINED
    from enma_fast.training.recipes import RECIPES

    known = set(configs(tree))
    fields = [(kind, field) for kind in configs(tree) for field in _own_fields(kind)]
    changed: set[tuple[type, str]] = set()

    def look(value: Any) -> None:
        if type(value) in known:
            for field in dataclasses.fields(value):
                own, default = getattr(value, field.name), field.default
                if field.default_factory is not dataclasses.MISSING:
                    default = field.default_factory()
                if own != default:
                    changed.add((type(value), field.name))
                look(own)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                look(getattr(value, field.name))
        elif isinstance(value, tuple | list):
            for each in value:
                look(each)
        elif isinstance(value, dict):
            for key, each in value.items():
                # A document: by the name of the field, whichever class has it.
                for kind, field in fields:
                    if field.name == key and each != _plain(field):
                        changed.add((kind, field.name))
                look(each)

    look(list(RECIPES.values()))
    documents = [*PRETRAINED.glob("*/config.json"), *PRETRAINED.glob("*/metrics.json")]
    assert documents
    look([json.loads(path.read_text(encoding="utf-8")) for path in documents])
    look(
        [
            tomllib.loads(path.read_text(encoding="utf-8"))
            for path in sorted((tree.root / "enma_fast" / "recipes").glob("*.toml"))
        ]
    )
    return [f"{kind.__name__}.{field.name}" for kind, field in fields if (kind, field.name) not in changed]


def _plain(field: dataclasses.Field[Any]) -> Any:
    """The default of a field as JSON has it."""
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value)) if value is not dataclasses.MISSING else None


def python_lines(tree: Tree) -> int:
    """Lines of enma_fast, with comments."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tree.files("enma_fast", ".py"))


def csrc_lines(tree: Tree) -> int:
    """Lines of csrc, all files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tree.files("csrc"))


def torch_headers(tree: Tree) -> Places:
    """Files of csrc that include a header of Torch."""
    included = re.compile(r"^\s*#\s*include\s*[<\"]([^>\"]+)", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8") for path in tree.files("csrc")}
    return [str(path) for path, text in texts.items() if any(map(TORCH.match, included.findall(text)))]


# Name in counts.json, and what is counted: the docstring of the function is the definition.
COUNTS: dict[str, Callable[[Tree], int | Places]] = {
    "branches on a kind, Python": python_branches,
    "branches on a kind, C++": cpp_branches,
    "names of a kind's tensors and fields": names_of_tensors,
    "comparisons of stage names": stage_comparisons,
    "functions with more than 8 parameters": wide_functions,
    "config fields": config_fields,
    "config fields that nothing sets": unset_fields,
    "Python lines of the package": python_lines,
    "lines of csrc": csrc_lines,
    "files of csrc with a Torch header": torch_headers,
    "sentences expected of errors": pinned_messages,
    "private names in tests": private_names,
}


def limits() -> dict[str, int]:
    """The most that each count may be."""
    found: dict[str, int] = json.loads(LIMITS.read_text(encoding="utf-8"))
    return found


def number(found: int | Places) -> int:
    """A count that is given as a number, or as its places."""
    return found if isinstance(found, int) else len(found)


def main(*arguments: str) -> None:
    """Print the table, lower the limits."""
    tree = Tree(ROOT)
    counts = {name: count(tree) for name, count in COUNTS.items()}
    most = limits() if LIMITS.exists() else {}
    for name, found in counts.items():
        print(f"{name:<40} {number(found):>7,} {most.get(name, number(found)):>7,}")  # noqa: T201
        if "-v" in arguments and isinstance(found, list):
            print(*(f"    {place}" for place in found), sep="\n")  # noqa: T201
    if "--lower" in arguments:
        lower = {name: min(number(found), most.get(name, number(found))) for name, found in counts.items()}
        LIMITS.write_text(json.dumps(lower, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
