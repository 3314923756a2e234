"""A checkout's files and their syntax, for counts of the source."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

Places = list[str]


class Tree:
    """Files of a checkout, with what is read of them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, folder: str, *suffixes: str) -> list[Path]:
        """Files below a folder, all or those of some suffixes."""
        found = sorted(path for path in (self.root / folder).rglob("*") if path.is_file())
        return [path for path in found if (not suffixes or path.suffix in suffixes) and "__pycache__" not in path.parts]

    @functools.cache  # noqa: B019 (a tree lives as long as the process)
    def parsed(self, folder: str) -> list[tuple[str, ast.Module]]:
        """Names and syntax of the Python files below a folder."""
        files = self.files(folder, ".py")
        return [(str(path.relative_to(self.root)), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def name_of(node: ast.AST) -> str:
    """The last name of an expression such as ``model.dynamics.local``, without leading underscores."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_")


def strings_in(node: ast.AST) -> Iterator[str]:
    """The strings of a constant, or of the tuple, list or set of them."""
    for part in node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
