"""Rules on the files themselves: nothing tied to one machine, nothing that runs on load, short files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_LINES = {".py": 450, ".cpp": 800, ".cu": 800, ".cuh": 800, ".h": 800}
MAX_LINES_OF_FILE = {"setup.py": 120, "Makefile": 80}
CODE_SUFFIXES = {".py", ".cpp", ".cu", ".cuh", ".h", ".c", ".f90", ".toml", ".cfg"}
MAX_ENVIRONMENT_VARIABLES = 5
# Pages that say what was.
HISTORY = {"CHANGELOG.md"}

# Joined from pieces so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:" + "|".join(("work", "tmp", "root", "home")) + r")/")
OPEN_TASK = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b(.*)")
ENDING_EVENT = re.compile(r"\b(?:when|once|until|after)\b", re.IGNORECASE)
ENVIRONMENT_VARIABLE = re.compile(r"\bENMA_FAST_[A-Z][A-Z0-9_]*\b")

UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {("torch", "load"), ("torch", "save"), ("torch.jit", "load"), ("pandas", "read_pickle")}


def machine_paths(text: str) -> list[str]:
    """Lines that name a folder of some machine."""
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line)]


def endless_tasks(text: str) -> list[str]:
    """Notes of open work that do not name the event that ends them."""
    marks = (OPEN_TASK.search(line) for line in text.splitlines())
    return [mark.group(0) for mark in marks if mark and not ENDING_EVENT.search(mark.group(1))]


def unsafe_loads(text: str) -> list[str]:
    """Uses of anything that can run code from a file it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{node.value.lineno}: allow_pickle")
            continue
        unsafe = {f"{module}.{call}" for module, call in UNSAFE_CALLS}
        line = getattr(node, "lineno", 0)
        found += [f"{line}: {name}" for name in names if name in unsafe or name.partition(".")[0] in UNSAFE_MODULES]
    return found


def environment_variables(text: str) -> set[str]:
    """Names of this project's environment variables."""
    return set(ENVIRONMENT_VARIABLE.findall(text))


@pytest.fixture(scope="module")
def texts(root: Path, source_files: list[Path]) -> dict[Path, str]:
    """All text files of the checkout; a file with a zero byte is binary."""
    contents = ((path, (root / path).read_bytes()) for path in source_files)
    return {path: data.decode("utf-8") for path, data in contents if b"\0" not in data}


@pytest.fixture(scope="module")
def code(texts: dict[Path, str]) -> dict[Path, str]:
    """The text files that are code or configuration."""
    named = {"Makefile", "run"}
    return {path: text for path, text in texts.items() if path.suffix in CODE_SUFFIXES or path.name in named}


def test_no_machine_paths(texts: dict[Path, str]) -> None:
    checked = {path: text for path, text in texts.items() if path.parts[0] != ".ci"}
    found = [f"{path}: {line}" for path, text in checked.items() for line in machine_paths(text)]
    assert not found, "\n".join(found)


def test_nothing_runs_on_load(code: dict[Path, str]) -> None:
    shipped = {
        path: text for path, text in code.items() if path.parts[0] in ("enma_fast", "kernels") and path.suffix == ".py"
    }
    assert shipped
    found = [f"{path}:{use}" for path, text in shipped.items() for use in unsafe_loads(text)]
    assert not found, "\n".join(found)


def test_files_are_readable_in_one_sitting(texts: dict[Path, str]) -> None:
    lengths = {path: len(text.splitlines()) for path, text in texts.items()}
    limits = {path: MAX_LINES_OF_FILE.get(str(path), MAX_LINES.get(path.suffix)) for path in texts}
    assert {Path(name) for name in MAX_LINES_OF_FILE} <= set(texts)
    found = [
        f"{path}: {lengths[path]} lines, at most {most}"
        for path, most in limits.items()
        if most and lengths[path] > most
    ]
    assert not found, "\n".join(found)


def test_open_tasks_name_the_event_that_ends_them(code: dict[Path, str]) -> None:
    found = [f"{path}: {line}" for path, text in code.items() for line in endless_tasks(text)]
    assert not found, "\n".join(found)


def test_environment_variables_are_few_and_in_the_reference(root: Path, code: dict[Path, str]) -> None:
    used = set().union(*(environment_variables(text) for text in code.values()))
    assert "ENMA_FAST_NO_EXT" in used
    assert len(used) <= MAX_ENVIRONMENT_VARIABLES, sorted(used)
    page = root / "docs" / "reference" / "commands.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("|")]
    listed = environment_variables("\n".join(rows))
    assert listed == used, f"only on the page: {sorted(listed - used)}; only in code: {sorted(used - listed)}"


def missing_files(root: Path, text: str) -> list[str]:
    """Files of the package that a text names and that are not there."""
    named = re.findall(r"\b(?:enma_fast|kernels)/[a-z_0-9/]+\.(?:py|toml)\b", text)
    return [name for name in named if not (root / name).is_file()]


def test_comments_and_pages_name_files_that_exist(root: Path, texts: dict[Path, str]) -> None:
    assert missing_files(root, "enma_fast/config.py, enma_fast/sampling/a.py") == ["enma_fast/sampling/a.py"]
    kept = {path: text for path, text in texts.items() if path.suffix != ".py" and path.name not in HISTORY}
    found = {str(path): names for path, text in kept.items() if (names := missing_files(root, text))}
    assert not found


def samples(*pieces: tuple[str, ...]) -> Iterator[str]:
    """Joins pieces: offending text must not stand in this file as such."""
    return ("".join(piece) for piece in pieces)


def test_machine_paths_are_recognised() -> None:
    bad = samples(("open('/", "tmp/x')"), ("see /", "work/notes"), ("cd /", "root/"), ("/", "home/me/file"))
    good = ("https://example.org/work/notes", "tests/tmp/x", "./root/x", "and/or", "tmp_path / 'x'")
    assert all(machine_paths(text) for text in bad)
    assert not [text for text in good if machine_paths(text)]


def test_endless_tasks_are_recognised() -> None:
    bad = samples(("# TO", "DO: tidy up"), ("// FIX", "ME slow"), ("# XX", "X"))
    good = samples(("# TO", "DO drop when torch >= 2.14"), ("todo lists", ""))
    assert all(endless_tasks(text) for text in bad)
    assert not [text for text in good if endless_tasks(text)]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path, weights_only=True)",
        "from torch import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "def f():\n    import joblib as j",
        "torch.jit.load(path)",
    ],
)
def test_unsafe_loads_are_recognised(text: str) -> None:
    assert unsafe_loads(text)


@pytest.mark.parametrize(
    "text", ["np.load(path, allow_pickle=False)", "module.load(path)", "import json", "from . import load"]
)
def test_safe_loads_pass(text: str) -> None:
    assert not unsafe_loads(text)
