"""What tests expect of errors in whole sentences, and the private names that they use."""

import ast
import re
from collections.abc import Iterator

from ._syntax import Places, Tree, name_of, strings_in

LONGEST, MOST_WORDS = 30, 2


def is_sentence(text: str) -> bool:
    """Whether text that a test expects is more than the name of an argument, a field or a file."""
    words = [word for word in re.split(r"\s+|\.\*", text) if re.search("[A-Za-z]{2}", word)]
    return len(text) > LONGEST or len(words) > MOST_WORDS


def _texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings of an expression, those of an f-string joined."""
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.lineno, node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def _is_message(node: ast.AST) -> bool:
    """Whether an expression is the text of an error: ``str(error.value)``, or a call such as ``refusal(...)``."""
    if not isinstance(node, ast.Call):
        return False
    name = name_of(node.func)
    return name in ("refusal", "refused", "message_of") or (
        name == "str" and len(node.args) == 1 and name_of(node.args[0]) in ("value", "error", "caught", "refused")
    )


def _expected(node: ast.AST, messages: set[str]) -> list[ast.expr]:
    """What a node expects of the text of an error, which also the names in `messages` hold."""
    if isinstance(node, ast.keyword):
        return [node.value] if node.arg == "match" else []
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return sides if any(_is_message(side) or name_of(side) in messages for side in sides) else []
    called = node.func if isinstance(node, ast.Call) else None
    if isinstance(called, ast.Attribute) and called.attr in ("startswith", "endswith") and _is_message(called.value):
        return node.args  # type: ignore[attr-defined]
    return []


def pinned_messages(tree: Tree) -> Places:
    """Sentences that tests expect of an error: in ``match=``, beside ``str(error.value)``, or in rows of such a test.

    A sentence has more than 30 characters or more than two words.
    """
    found = set()
    for path, module in tree.parsed("tests"):
        for function in ast.walk(module):
            if not isinstance(function, ast.FunctionDef):
                continue
            nodes = list(ast.walk(function))
            messages = {name_of(n.targets[0]) for n in nodes if isinstance(n, ast.Assign) and _is_message(n.value)}
            expected = [each for node in nodes for each in _expected(node, messages)]
            names = {name_of(n) for each in expected for n in ast.walk(each) if isinstance(n, ast.Name)} - messages
            for call in function.decorator_list:
                if isinstance(call, ast.Call) and name_of(call.func) == "parametrize" and len(call.args) > 1:
                    expected += _columns(call, names)
            found |= {(path, *text) for each in expected for text in _texts(each) if is_sentence(text[1])}
    return [f"{path}:{line}: {text}" for path, line, text in sorted(found)]


def _columns(call: ast.Call, names: set[str]) -> list[ast.expr]:
    """The values that a parametrisation gives to some of its arguments."""
    first, rows = call.args[:2]
    given = [word.strip() for text in strings_in(first) for word in text.split(",")]
    wanted = [i for i, name in enumerate(given) if name in names]
    if not wanted:
        return []
    if isinstance(rows, ast.Call) and isinstance(rows.func, ast.Attribute):
        rows = rows.func.value
    if isinstance(rows, ast.Dict):
        return [value for value in rows.values if value is not None] if len(given) == 1 else []
    values = [
        row.args if isinstance(row, ast.Call) and name_of(row.func) == "param" else [row]
        for row in getattr(rows, "elts", [])
    ]
    found: list[ast.expr] = []
    for row in values:
        parts = row[0].elts if len(row) == 1 and isinstance(row[0], ast.Tuple) and len(given) > 1 else row
        found += [parts[i] for i in wanted if i < len(parts)]
    return found


def private_names(tree: Tree) -> Places:
    """Names with a leading underscore that tests import from the package, or set in it."""
    found, private = [], re.compile(r"enma_fast(\.\w+)*\._(?!C\b|_)\w+(\.\w+)*")
    for path, module in tree.parsed("tests"):
        modules = set()
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "enma_fast":
                own = [alias for alias in node.names if alias.name.startswith("_") and alias.name != "_C"]
                found += [f"{path}:{node.lineno}: {node.module}.{alias.name}" for alias in own]
                modules |= {alias.asname or alias.name for alias in node.names if alias.name[0].islower()}
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                if node.attr.startswith("_") and not node.attr.startswith("__") and node.attr != "_C":
                    found.append(f"{path}:{node.lineno}: {node.value.id}.{node.attr}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and private.fullmatch(node.value):
                found.append(f"{path}:{node.lineno}: {node.value}")
    return found
