"""Imports run one way: a module imports only from layers below its own, and nothing runs in a circle."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

# Lowest first. A module may import from rows above its own in this table, never from its own row or below.
# Names are modules or sub-packages of enma_fast; files within one sub-package may import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("utils", "domain"),
    ("config_checks",),
    ("config_codecs",),
    ("config_decoders",),
    ("config", "pretrained"),
    ("data", "drawing", "store", "kernels", "_C"),
    ("ops",),
    ("models",),
    ("sampling",),
    ("forecasting",),
    ("runs", "evaluation"),
    ("training", "figures"),
    ("enma_fast",),  # the package's own __init__.py: public names
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}

# ops is the only door to fast code.
BEHIND_OPS = ("kernels", "_C")


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of all modules of the package, kernels/ included, with their files."""
    found = {}
    for folder, prefix in ((root / "enma_fast", "enma_fast"), (root / "kernels", "enma_fast.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((prefix, *parts))] = path
    return found


def imports(path: Path, name: str, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and module of each import from enma_fast in a file, those inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*above, base) if base else above)
            # `from enma_fast import config` names a module, `import forecast` from it a name of the package.
            members = [f"{base}.{alias.name}" for alias in node.names]
            targets = [member if member in known or member == "enma_fast._C" else base for member in members]
        else:
            continue
        yield from ((node.lineno, target) for target in targets if target.partition(".")[0] == "enma_fast")


def layer(name: str) -> str:
    """The row entry that a dotted module name belongs to."""
    return name.split(".")[1] if "." in name else name


def violations(root: Path) -> list[str]:
    """One line for each module without a layer, each import that does not run downward, and each circle."""
    known = modules(root)
    found = [
        f"{path.relative_to(root)}: '{layer(name)}' has no layer; add it to LAYERS in {Path(__file__).name}"
        for name, path in known.items()
        if layer(name) not in LEVEL
    ]
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        own = layer(name)
        for line, target in imports(path, name, known):
            if target in known and target != name:
                graph[name].add(target)
            other = layer(target)
            if own == other or own not in LEVEL:
                continue
            where = f"{path.relative_to(root)}:{line}: {own} imports {other}"
            if other not in LEVEL:
                found.append(f"{where}, which has no layer; add it to LAYERS in {Path(__file__).name}")
            elif LEVEL[other] >= LEVEL[own]:
                found.append(f"{where}, which is not below it")
            elif other in BEHIND_OPS and own != "ops":
                found.append(f"{where}; only ops may")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("imports run in a circle: " + " <- ".join(error.args[1]))
    return found


def test_nothing_imports_upward(root: Path) -> None:
    assert "enma_fast.errors" in modules(root)
    assert not violations(root), "\n" + "\n".join(violations(root))


def tree(root: Path, **files: str) -> Path:
    """A package with the given files; `__` in a name stands for a folder."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_downward_imports_pass(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        enma_fast__models__layers="from ..ops import linear\nfrom enma_fast import config",
        enma_fast__config="",
        enma_fast__ops__linear="from enma_fast.kernels import f\nfrom .._C import g\nfrom . import _backend",
        enma_fast__ops___backend="import torch",
        kernels__linear="import triton",
    )
    assert violations(root) == []


def test_upward_imports_are_found_wherever_they_hide(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        enma_fast__models__flow_head="def f():\n    from ..sampling.engine import Engine",
        enma_fast__sampling__engine="import enma_fast.cli",
        enma_fast__data__fields="from enma_fast.store import layout",
        enma_fast__store__layout="",
        enma_fast__config="from enma_fast import forecast",
        enma_fast__utils__text="from enma_fast.kernels import linear",
        kernels__linear="from ..ops import linear",
    )
    assert violations(root) == [
        "enma_fast/config.py:1: config imports enma_fast, which is not below it",
        "enma_fast/data/fields.py:1: data imports store, which is not below it",
        "enma_fast/models/flow_head.py:2: models imports sampling, which is not below it",
        "enma_fast/sampling/engine.py:1: sampling imports cli, which is not below it",
        "enma_fast/utils/text.py:1: utils imports kernels, which is not below it",
        "kernels/linear.py:1: kernels imports ops, which is not below it",
    ]


def test_only_ops_import_kernels(tmp_path: Path) -> None:
    root = tree(tmp_path, enma_fast__models__layers="from enma_fast.kernels import linear", kernels__linear="")
    assert violations(root) == ["enma_fast/models/layers.py:1: models imports kernels; only ops may"]


def test_unknown_modules_and_circles_are_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        enma_fast__helpers="",
        enma_fast__data__reader="from . import writer",
        enma_fast__data__writer="from .reader import read",
    )
    unknown, circle = violations(root)
    assert unknown == "enma_fast/helpers.py: 'helpers' has no layer; add it to LAYERS in test_import_direction.py"
    assert circle.startswith("imports run in a circle: ")
    assert "enma_fast.data.reader" in circle
