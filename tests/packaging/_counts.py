"""Counts of the source, each with a limit in counts.json that a change may only lower.

``python -m tests.packaging._counts`` prints the table; with ``-v`` the places that are counted, with ``--lower`` it
writes today's numbers where they are below the limits. The text of a count in `COUNTS` is its definition.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import functools
import importlib
import itertools
import json
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

LIMITS = Path(__file__).with_name("counts.json")
ROOT = LIMITS.parents[2]

# Where each kind of codec, context and decoder may be known: its own files. A loader of old checkpoints knows them all.
LOADERS = ("enma_fast/models/format_1.py", "csrc/runtime/format_1.*")
OWN = {
    # What fills the slots: it asks whether there is a decoder of frame 0, and a trunk.
    "slots": ("enma_fast/config.py", "enma_fast/models/config.py", "enma_fast/models/model.py", "csrc/runtime/model.*"),
    "flow": ("*/flow_head*", "*/decoders/flow*", "csrc/*/decoder_flow*"),
    "local": ("*/local_head*", "*/decoders/local*", "csrc/*/decoder_local*"),
    "linear": ("*/decoders/linear*", "csrc/*/decoder_linear*"),
    "gaussian": ("*/decoders/gaussian*", "csrc/*/decoder_gaussian*"),
    "field": ("*/decoders/field*", "csrc/*/decoder_field*"),
    "conv": ("enma_fast/models/tokenizer.py", "csrc/core/cpu/tokenizer*", "*/codecs/conv*", "csrc/*/codec_conv*"),
    "points": ("*/interpolation.*", "*/codecs/points*", "csrc/*/codec_points*"),
    "blocks": ("*/codecs/blocks*", "csrc/*/codec_blocks*"),
    "causal-transformer": ("*/causal_transformer*", "*/contexts/*"),
}
# Words that tell a kind, and the kind that may use them. "" is nobody's: two decoders in one word.
STRINGS = {
    "masked-flow": "",
    "one-pass": "",
    "causal-transformer": "causal-transformer",
    **dict.fromkeys(("residual", "space", "time"), "conv"),
    **{kind: kind for kind in ("flow", "local", "linear", "gaussian", "field", "conv", "points", "blocks")},
}
PARTS = {
    "decoder": "",
    **dict.fromkeys(("trunk", "initial"), "slots"),
    **dict.fromkeys(("local", "first"), "local"),
    **dict.fromkeys(("flow", "moments"), "flow"),
    "read": "linear",
    "interpolation": "points",
}
FLAGS = {"lossless": "blocks", "variational": "conv", **dict.fromkeys(("one_pass", "in_one_pass", "in_steps"), "")}
# Strings that are common words tell a kind beside one of these names; parts may be tested for truth on these.
SLOTS = {"kind", "decoder", "codec", "context", "initial", "step", "layer", "layers", "head", "target"}
MODELS = {"dynamics", "dyn", "model", "config", "codec", "tokenizer", "tok", "options"}
OWN_WORDS = {"masked-flow", "one-pass", "causal-transformer"}

STAGES = {"tokenizer", "dynamics", "head", "forecasts", "first-frame"}
MOST_PARAMETERS = 8
CONFIGS = ("enma_fast.config:ModelConfig", "enma_fast.config:TrainingConfig")
TORCH = re.compile(r"^(?:torch|ATen|c10|caffe2|TH|THC)/")
LONGEST, MOST_WORDS = 30, 2

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


def owns(path: str, kind: str) -> bool:
    """Whether a file may know a kind."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in (*LOADERS, *OWN.get(kind, ())))


def name_of(node: ast.AST) -> str:
    """The last name of an expression such as ``model.dynamics.local``, without leading underscores."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_")


def strings_in(node: ast.AST) -> Iterator[str]:
    """The strings of a constant, or of the tuple, list or set of them."""
    for part in node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def conditions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions that a node tests for truth."""
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        yield node.test
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.comprehension):
        yield from node.ifs


def aliases(tree: ast.AST) -> dict[str, str]:
    """Names that hold a part of a model, with that part: ``head = model.dynamics.first``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=False))
        elif isinstance(node, ast.NamedExpr):
            pairs = [(node.target, node.value)]
        else:
            continue
        for target, value in pairs:
            if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and name_of(value.value) in MODELS:
                found[target.id] = name_of(value)
    return found


def branches_of(path: str, tree: ast.AST, classes: dict[str, str]) -> Places:
    """Lines of a file that depend on a kind that is not the file's own."""
    found = []
    held: dict[ast.AST, dict[str, str]] = {}
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef):
            known = aliases(scope)
            held |= dict.fromkeys(ast.walk(scope), known)

    def part(node: ast.AST) -> str:
        return held.get(node, {}).get(node.id, "") if isinstance(node, ast.Name) else name_of(node)

    def add(node: ast.AST, word: str, kind: str) -> None:
        if not owns(path, kind):
            found.append(f"{path}:{node.lineno}: {word}")  # type: ignore[attr-defined]

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for word in itertools.chain.from_iterable(map(strings_in, sides)):
                if word in STRINGS and (word in OWN_WORDS or any(name_of(side) in SLOTS for side in sides)):
                    # "residual" is also what a flow generates.
                    add(node, word, "flow" if any(name_of(side) == "target" for side in sides) else STRINGS[word])
                    break
            if any(isinstance(side, ast.Constant) and side.value is None for side in sides):
                for side in sides:
                    if (word := part(side)) in PARTS and not isinstance(side, ast.Constant):
                        add(node, f"{word} and None", PARTS[word])
        for test in conditions(node):
            test = test.target if isinstance(test, ast.NamedExpr) else test
            if name_of(test) in FLAGS:
                add(test, name_of(test), FLAGS[name_of(test)])
            elif (isinstance(test, ast.Attribute) and part(test) in PARTS and name_of(test.value) in MODELS) or (
                isinstance(test, ast.Name) and part(test) in PARTS
            ):
                add(test, part(test), PARTS[part(test)])
        if isinstance(node, ast.Call) and name_of(node.func) in ("count", "isinstance", "issubclass"):
            for word in itertools.chain.from_iterable(map(strings_in, node.args)):
                if name_of(node.func) == "count" and word in STRINGS:
                    add(node, f"count({word})", STRINGS[word])
            if name_of(node.func) != "count" and len(node.args) == 2:
                for name in {name_of(each) for each in ast.walk(node.args[1])} & set(classes):
                    add(node, f"isinstance({name})", classes[name])
        elif isinstance(node, ast.Set) and len(words := [w for w in strings_in(node) if w in STRINGS]) > 1:
            add(node, f"set of {', '.join(words)}", STRINGS[words[0]])
        elif isinstance(node, ast.MatchValue):
            for word in strings_in(node.value):
                if word in STRINGS:
                    add(node, f"case {word}", STRINGS[word])
        elif isinstance(node, ast.MatchClass) and name_of(node.cls) in classes:
            add(node, f"case {name_of(node.cls)}()", classes[name_of(node.cls)])
    return found


def classes_of_kinds(tree: Tree) -> dict[str, str]:
    """Classes that are defined in the own file of one kind, and configs named after one."""
    found = {f"{kind.title().replace('-', '')}Config": kind for kind in OWN} | {"InterpolationConfig": "points"}
    for path, module in tree.parsed("enma_fast/models"):
        kinds = [kind for kind, patterns in OWN.items() if any(fnmatch.fnmatch(path, each) for each in patterns)]
        if len(kinds) == 1 and not path.endswith("tokenizer.py"):
            found |= {node.name: kinds[0] for node in module.body if isinstance(node, ast.ClassDef)}
    return found


def python_branches(tree: Tree) -> Places:
    """Python: comparisons, None tests, truth tests, ``isinstance`` and ``match`` on a kind, outside its own files."""
    classes = classes_of_kinds(tree)
    return [place for path, module in tree.parsed("enma_fast") for place in branches_of(path, module, classes)]


_CPP_ACCESS = r"(?:\w+(?:\(\))?(?:\.|->))"
_CPP_PART = (
    rf"(?:{_CPP_ACCESS}+(?:first|initial)|{_CPP_ACCESS}*(?:one_pass|local|interpolation|lossless|variational|trunk))"
    r"_?(?:\(\))?"
)
_CPP_TESTS = re.compile(
    rf"(?P<none>{_CPP_PART})\s*(?:==|!=)\s*nullptr"
    rf"|(?:\bif \(|&&\s*|\|\|\s*|[(=,!]\s*)(?P<truth>{_CPP_PART})\s*(?=\)\s*[{{\w]|&&|\|\||\?(?!:))"
    r"|(?P<kind>\b\w*(?:Kind|Decoder|Codec|Context)::(?:flow|linear|local|field|gaussian|conv|points|blocks|masked_flow"
    r"|one_pass|residual|space|time)\b)"
    r"|(?P<cast>\b(?:holds_alternative|get_if|dynamic_cast)<[^>]*(?:Flow|Linear|Local|Gaussian|Conv|Points|Blocks)\w*)"
    r'|(?P<string>"(?:masked-flow|one-pass|causal-transformer)")'
    r"|(?P<frame>\bframe_?\s*==\s*0\b)"
)
_CPP_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_CPP_KINDS = {
    "one_pass": "",
    "trunk": "slots",
    "initial": "slots",
    "first": "local",
    "interpolation": "points",
    "lossless": "blocks",
    **dict.fromkeys(("variational", "residual", "space", "time"), "conv"),
    **{kind: kind for kind in OWN},
}


def cpp_branches(tree: Tree) -> Places:
    """C++: the same, and tests for frame 0; by regular expressions on code without comments."""
    found = []
    for file in tree.files("csrc", ".cpp", ".h", ".cu", ".cuh"):
        path = str(file.relative_to(tree.root))
        for number, line in enumerate(_without_comments(file.read_text(encoding="utf-8")).splitlines(), 1):
            for match in _CPP_TESTS.finditer(line):
                text = match[match.lastgroup or 0]
                if (match.lastgroup == "kind" and any(owns(path, kind) for kind in OWN)) or text == "entry.first":
                    continue
                words = re.findall(r"[a-z]+(?:_[a-z]+)*", text.lower())
                kinds = [_CPP_KINDS[word] for word in words if word in _CPP_KINDS] or [""]
                if not owns(path, kinds[-1]):
                    found.append(f"{path}:{number}: {text}")
    return found


def _without_comments(text: str) -> str:
    """The text with empty lines in place of comments, so that lines keep their numbers."""
    return _CPP_COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)


def names_of_tensors(tree: Tree) -> Places:
    """Strings that begin with a kind's part of a config or checkpoint (``dynamics.local.``), outside its own files."""
    prefix = re.compile(
        r"^(?:tokenizer\.interpolation|codec\.interpolation"
        r"|dynamics\.(?:decoder|local|first|flow|read|step|initial|spatial\.noise))\b"
    )
    return [
        f"{path}:{node.lineno}: {node.value}"
        for path, module in tree.parsed("enma_fast")
        for node in ast.walk(module)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and prefix.match(node.value)
        and not any(fnmatch.fnmatch(path, each) for each in (*LOADERS, *itertools.chain(*OWN.values())))
    ]


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
        for each in get_args(kind) if not isinstance(kind, type) or isinstance(kind, types.GenericAlias) else ():
            add(each)

    for place in CONFIGS:
        module, _, name = place.partition(":")
        add(getattr(importlib.import_module(module), name))
    return found


def config_fields(tree: Tree) -> Places:
    """Fields of the config of a model, of training, and of the dataclasses in them."""
    return [f"{kind.__name__}.{field.name}" for kind in configs(tree) for field in dataclasses.fields(kind)]


def unset_fields(tree: Tree) -> Places:
    """Those of them that have the default in every preset, shipped model and recipe."""
    from enma_fast.models.checkpoint import PRETRAINED
    from enma_fast.presets import PRESETS

    known = set(configs(tree))
    fields = [(kind, field) for kind in configs(tree) for field in dataclasses.fields(kind)]
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

    look(list(PRESETS.values()))
    documents = [*PRETRAINED.glob("*/config.json"), *PRETRAINED.glob("*/metrics.json")]
    assert documents
    look([json.loads(path.read_text(encoding="utf-8")) for path in documents])
    look([tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((tree.root / "recipes").glob("*.toml"))])
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


def is_sentence(text: str) -> bool:
    """Whether text that a test expects is more than the name of an argument, a field or a file."""
    plain = re.sub(r"\\.|[^\w\s]", " ", text)
    return len(text) > LONGEST or len(re.findall(r"[A-Za-z_]\w+", plain)) > MOST_WORDS


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
