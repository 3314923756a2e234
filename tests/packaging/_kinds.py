"""Where the source depends on a kind of codec, context or decoder that is not the file's own."""

import ast
import fnmatch
import itertools
import re
from collections.abc import Iterator

from ._syntax import Places, Tree, name_of, strings_in

# Where each kind of codec, context and decoder may be known: its own files. A loader of old checkpoints knows them all.
LOADERS = ("enma_fast/models/format_1.py", "csrc/runtime/format_1.*")
OWN = {
    # What fills the slots: it asks whether there is a decoder of frame 0; and decoders, which ask for a trunk.
    "slots": (
        *("enma_fast/config.py", "enma_fast/config_decoders.py", "enma_fast/models/model.py", "csrc/runtime/model.*"),
        *("enma_fast/models/decoders/*", "csrc/*/decoder_*"),
    ),
    "flow": ("*/flow_head*", "*/decoders/flow*", "csrc/*/decoder_flow*"),
    "local": ("*/local_head*", "*/decoders/local*", "csrc/*/decoder_local*"),
    "linear": ("*/decoders/linear*", "csrc/*/decoder_linear*"),
    "gaussian": ("*/decoders/gaussian*", "csrc/*/decoder_gaussian*"),
    "field": ("*/decoders/field*", "csrc/*/decoder_field*"),
    "conv": ("enma_fast/config_codecs.py", "*/codecs/conv*", "*/codecs/folding*", "csrc/*/codec_conv*"),
    "points": ("enma_fast/config_codecs.py", "*/interpolation.*", "*/codecs/points*", "csrc/*/codec_points*"),
    "blocks": ("enma_fast/config_codecs.py", "*/codecs/blocks*", "csrc/*/codec_blocks*"),
    "causal-transformer": ("*/causal_transformer*", "*/contexts/*", "csrc/*/context_*"),
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


def owns(path: str, kind: str) -> bool:
    """Whether a file may know a kind."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in (*LOADERS, *OWN.get(kind, ())))


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
        kinds = [
            kind
            for kind, patterns in OWN.items()
            if kind != "slots" and any(fnmatch.fnmatch(path, each) for each in patterns)
        ]
        if len(kinds) == 1 and not path.endswith("codec.py"):
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
                words = re.findall(r"[a-z]+(?:[-_][a-z]+)*", text.lower())
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
