"""Public docstrings, help of the command line and messages are plain: short sentences, no words that hide meaning."""

import ast
import inspect
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import enma_fast
from enma_fast.cli import app

from ._prose import line_faults, of_docstring

ROOT = Path(__file__).resolve().parents[2]
# What takes a message as its first argument.
SPEAKERS = {"EnmaError", "warning", "info"}


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """The public members of a class or a module that have docstrings of their own."""
    for name, value in vars(thing).items() if inspect.isclass(thing) or inspect.ismodule(thing) else ():
        function = next((found for key in ("fget", "func", "__func__") if (found := getattr(value, key, None))), value)
        if not name.startswith("_") and str(getattr(function, "__module__", "")).startswith("enma_fast"):
            yield name, function


def docstrings() -> dict[str, str]:
    """Docstrings of the names of the Python reference, and of their members."""
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    names = {name: pydoc.locate(name) for name in listed}
    inner = {f"{name}.{key}": value for name, thing in names.items() for key, value in members(thing)}
    texts = {name: inspect.getdoc(thing) for name, thing in (names | inner).items()}
    return {name: of_docstring(text) for name, text in texts.items() if text}


def helps(command: Any, context: Any) -> Iterator[tuple[str, str]]:
    """Help of a command, of those below it, and of their arguments and options."""
    yield context.command_path, command.help
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        inner = command.get_command(context, name)
        yield from helps(inner, typer.Context(inner, info_name=name, parent=context))
    for one in command.get_params(context):
        if getattr(one, "help", None):
            yield f"{context.command_path} {one.name}", one.help


def messages(text: str) -> dict[int, str]:
    """Messages of a module by their lines, without what is put into them."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in SPEAKERS:
            parts = [each for given in node.args[:1] for each in ast.walk(given) if isinstance(each, ast.Constant)]
            found[node.lineno] = "".join(each.value for each in parts if isinstance(each.value, str))
    return found


def faults(texts: dict[Any, str]) -> dict[Any, list[str]]:
    return {name: found for name, text in texts.items() if (found := line_faults(text))}


def test_public_docstrings_are_plain() -> None:
    texts = docstrings()
    assert {f"enma_fast.{name}" for name in enma_fast.__all__ if name != "__version__"} <= set(texts) | {
        "enma_fast.RECIPES"
    }
    assert len(texts) > 120
    assert not faults(texts)


def test_the_help_of_the_command_line_is_plain() -> None:
    group: Any = typer.main.get_command(app)
    texts = dict(helps(group, typer.Context(group, info_name="enma-fast")))
    assert len(texts) > 150
    assert not faults(texts)


def test_messages_are_plain() -> None:
    paths = sorted((ROOT / "enma_fast").rglob("*.py"))
    texts = {f"{path.name}:{line}": text for path in paths for line, text in messages(path.read_text()).items()}
    assert len(texts) > 500
    assert not faults(texts)


def test_faults_are_found() -> None:
    long = "word " * 31
    docstring = f"A noun.\n\nParameters\n----------\nx, y : {long}\n    beside it\n\nReturns\n-------\nint\n    Of x."
    assert faults({"f": of_docstring(docstring)})["f"][1:] == ["banned: beside"]
    assert not faults({"f": of_docstring("A noun.\n\nAttributes\n----------\n" + "x : one of five words\n" * 9)})
    module = f'def f(x):\n    raise EnmaError(f"{long}{{x}}; leave it behind")\nlog.warning("%s: is left open", x)\n'
    assert sorted(len(each) for each in faults(messages(module)).values()) == [1, 2]
