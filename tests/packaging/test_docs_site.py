"""The documentation says what the code does: pages and examples run, names exist, the site builds without a warning.

Blocks of the how-to pages marked `sh` and `python` are run in order, each page in one folder and one Python session.
"""

import ast
import pydoc
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import enma_fast
from docs.figures import slots
from enma_fast.cli import main
from enma_fast.data import shipped_file

from .test_docs_page import DOCS, FENCE, commands, run_shell
from .test_docs_page import PAGES as MANY_MEMBERS

ROOT = DOCS.parent
PAGES = (
    "install.md",
    "numerics.md",
    "results-in-xarray.md",
    "stop-members-early.md",
    "forecast-again.md",
    "score-and-calibrate.md",
    "scattered-points.md",
    "your-own-data.md",
    "reference/operators.md",
)
# Pages whose blocks another test runs.
RUN_ELSEWHERE = {
    "embedding.md",
    "embed-in-cpp.md",
    "embed-in-fortran.md",
    *(path.relative_to(DOCS).as_posix() for path in MANY_MEMBERS),
    "mpi-and-restarts.md",
    "errors-and-threads.md",
}
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
# They plan a training, and sample a thousand members.
LONGEST = ("your-own-data", "scattered-points", "thousand_members")
API = DOCS / "reference" / "api.md"
# A path of the tree between backquotes, such as `models/tokenizer` or `data/well.py`.
PATH = re.compile(r"`(\w+(?:/[\w.]+)+)`")


def slow_if_long(page: str | Path) -> Any:
    return pytest.param(page, marks=pytest.mark.slow if Path(page).stem in LONGEST else ())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field file and a forecast of it, as a reader has them who comes from the quickstart."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(shipped_file("combined", "test-in"), folder / "observed.h5")
    options = ("--checkpoint", "combined-fast", "--members", "8", "--select", "0:2", "--quiet")
    assert main(["forecast", str(folder / "observed.h5"), *options, "--out", str(folder / "run.zarr")]) == 0
    return folder


@pytest.fixture
def beside(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own with these files, as the current one."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


@pytest.mark.parametrize("name", [slow_if_long(page) for page in PAGES])
def test_pages_run_from_top_to_bottom(name: str, beside: Path) -> None:
    session: dict[str, Any] = {}
    ran = 0
    for kind, text in FENCE.findall((DOCS / name).read_text()):
        if kind == "sh":
            for line in commands(text):
                run_shell(line)
        elif kind == "python":
            exec(compile(text, name, "exec"), session)
        ran += kind in ("sh", "python")
    assert ran


@pytest.mark.slow
def test_the_scores_of_your_own_data_are_those_of_the_page(beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "your-own-data.md").read_text()
    blocks = FENCE.findall(text)
    exec(compile(next(code for kind, code in blocks if kind == "python"), "waves", "exec"), {})
    lines = [line for kind, code in blocks if kind in ("sh", "console") for line in commands(code)]
    chosen = [
        line for line in lines if re.match(r"enma-fast (data import|train) waves", line) and "--dry-run" not in line
    ]
    assert len(chosen) == 2
    for line in chosen:
        run_shell(line)
    shown, (promised,) = capsys.readouterr().out, [code for kind, code in blocks if kind == "text"]
    number = re.compile(r"(?<= )\d\S*")
    table = shown[shown.index(promised.split(chr(10))[0]) :]
    assert number.sub("#", table).split()[: len(promised.split())] == number.sub("#", promised).split()
    pairs = [[float(value) for value in number.findall(each) if value[-1] != ","] for each in (table, promised)]
    np.testing.assert_allclose(pairs[0][: len(pairs[1])], pairs[1], rtol=0.2)


def test_blocks_marked_as_run_are_run() -> None:
    pages = {path.relative_to(DOCS).as_posix(): path for path in (*DOCS.glob("*.md"), *DOCS.glob("reference/*.md"))}
    marked = {
        name for name, path in pages.items() if {"sh", "python"} & {kind for kind, _ in FENCE.findall(path.read_text())}
    }
    assert marked == RUN_ELSEWHERE | set(PAGES)


@pytest.mark.parametrize("example", [slow_if_long(example) for example in EXAMPLES], ids=lambda path: path.stem)
def test_examples_run(example: Path, beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if example.stem == "thousand_members":
        shutil.rmtree(beside / "run.zarr")
    runpy.run_path(str(example), run_name="__main__")
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) >= 3
    last = {
        "calibration": r"the truth lies outside all 16 members at (\d|[1-3]\d) % of the points",
        "forecast": r"u > 0.2 is likelier than not at \d+ of 128 points of the last frame",
        "stop_early": r"members end after (\d|1[0-6]) to \d+ of 17 frames, half of them by [\d.]+",
        "thousand_members": "member 7 alone has the bits of member 7 of a thousand",
    }
    assert re.match(last[example.stem], shown[-1]), shown[-1]
    assert f"examples/{example.name}" in (DOCS / "examples.md").read_text()


def test_names_of_the_reference_exist() -> None:
    names = re.findall(r"^::: (\S+)$", API.read_text(), re.MULTILINE)
    assert {f"enma_fast.{name}" for name in enma_fast.__all__ if name != "__version__"} <= set(names)
    missing = [name for name in names if pydoc.locate(name) is None]
    assert not missing, missing


@pytest.mark.parametrize(("page", "least"), [("design", 12), ("numerics", 10), ("reference/changes", 40)])
def test_paths_on_a_page_exist(page: str, least: int) -> None:
    found = [path for path in PATH.findall((DOCS / f"{page}.md").read_text()) if "<" not in path]
    assert len(found) >= least
    roots = (ROOT, ROOT / "enma_fast")
    missing = [p for p in found if not any((r / p).exists() or (r / f"{p}.py").exists() for r in roots)]
    assert not missing, missing


def test_every_room_is_on_the_design_page() -> None:
    text = (DOCS / "design.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "enma_fast").glob("*/__init__.py")}
    assert not [room for room in rooms if f"| `{room}/` |" not in text]
    for room in rooms:
        docstring = ast.get_docstring(ast.parse((ROOT / "enma_fast" / room / "__init__.py").read_text()))
        assert docstring, f"enma_fast/{room}/__init__.py says what is inside"


def test_the_decoder_of_the_contributing_page_is_the_toy() -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert "(Decoder):" in shown
    assert (ROOT / "tests/toys/decoder.py").read_text().endswith(shown)


def test_the_figure_of_the_slots_has_the_kinds_of_today() -> None:
    drawn = slots.drawing()
    assert (DOCS / "figures/slots.svg").read_text() == drawn
    for name in ("causal-transformer", "physics", "conv", "field"):
        assert f">{name}</text>" in drawn


def test_every_shipped_model_has_a_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    cards = (ROOT / "enma_fast/pretrained").glob("*/README.md")
    assert not [card.parent.name for card in cards if f"models/{card.parent.name}.md" not in text]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason="needs the [docs] extra")
    # With --quiet warnings would not be counted.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    cli = (tmp_path / "site" / "reference" / "cli.html").read_text()
    assert "enma-fast publish" in cli
    assert "--first-member" in cli
    examples = (tmp_path / "site" / "examples.html").read_text()
    for example in EXAMPLES:
        for name in re.findall(r"^def (\w+)|^(\w+) = ", example.read_text(), re.MULTILINE):
            assert "".join(name) in examples
    assert "8&lt;" not in examples.replace(" ", "")
    method = (tmp_path / "site" / "method.html").read_text()
    assert method.count("<math") > 20
    assert "arithmatex" not in method
    # The site asks no other server for anything.
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(
            r'(<script[^>]+src|<link rel="stylesheet" href|<img[^>]+src)="https?:', page.read_text()
        ), page
