"""Pages are short and plain: few words for the kind of page, short sentences, no words that hide what is meant.

Words in tables count for the budget of a page, code does not. `test_notes` has the rules of notes.
"""

import re
from pathlib import Path

import pytest

from ._prose import FENCE, page_text, prose_faults, sentences, words

ROOT = Path(__file__).resolve().parents[2]
# Most words of a page of each kind, and the pages. A page that looks something up may be as long as what it lists.
KINDS: dict[str, tuple[int | None, set[str]]] = {
    "front page": (900, {"README.md"}),
    "start": (300, {"docs/index.md"}),
    "tutorial": (
        800,
        {
            "docs/tutorials/first-forecast.ipynb",
            "docs/tutorials/own-data.ipynb",
            "docs/tutorials/real-data.ipynb",
            "docs/your-own-data.md",
        },
    ),
    "how-to": (
        400,
        {
            "docs/embed-in-cpp.md",
            "docs/embed-in-fortran.md",
            "docs/embedding.md",
            "docs/errors-and-threads.md",
            "docs/examples.md",
            "docs/install.md",
            "docs/mpi-and-restarts.md",
            "docs/results-in-xarray.md",
            "docs/run-a-thousand-members.md",
            "docs/run-on-a-cluster.md",
            "docs/scattered-points.md",
            "docs/score-and-calibrate.md",
            "docs/stop-members-early.md",
            "docs/forecast-again.md",
            "docs/train-a-model.md",
        },
    ),
    "explanation": (
        1200,
        {
            "CONTRIBUTING.md",
            "SECURITY.md",
            "docs/design.md",
            "docs/how-field-models-work.md",
            "docs/method.md",
            "docs/numerics.md",
            "docs/points-to-fields.md",
        },
    ),
    "results": (1500, {"docs/equations.md", "docs/own-data-compared.md", "docs/own-data-results.md"}),
    "reference": (
        None,
        {
            "docs/performance.md",
            "docs/reference/api.md",
            "docs/reference/c.md",
            "docs/reference/changes.md",
            "docs/reference/commands.md",
            "docs/reference/config.md",
            "docs/reference/cpp.md",
            "docs/reference/fortran.md",
            "docs/reference/operators.md",
            "docs/reference/own-data.md",
            "docs/reference/recipes.md",
            "docs/reference/stores.md",
            "docs/scores.md",
            "docs/tables.md",
        },
    ),
}
BUDGETS = {name: most for most, names in KINDS.values() for name in names}


def faults(text: str, most: int | None) -> list[str]:
    """What a page has to change."""
    count = words(FENCE.sub("", text))
    return [f"{count} words, at most {most}"] * (most is not None and count > most) + prose_faults(text)


@pytest.mark.parametrize("name", sorted(BUDGETS))
def test_a_page_is_short_and_plain(name: str) -> None:
    assert not faults(page_text(ROOT / name), BUDGETS[name])


def test_every_page_has_a_kind() -> None:
    docs = ROOT / "docs"
    found = [path for pattern in ("*.md", "reference/*.md", "tutorials/*.ipynb") for path in docs.glob(pattern)]
    pages = {path.relative_to(ROOT).as_posix() for path in found}
    listed = [name for _, names in KINDS.values() for name in names]
    assert sorted(listed) == sorted(pages | {"README.md", "CONTRIBUTING.md", "SECURITY.md"})


def anchors(text: str) -> set[str]:
    """Places of a page that a link may name: its headings, by the rule of the site."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "]", title)).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def dead_links(page: Path) -> list[str]:
    """Links of a page to files and headings that are not there."""
    dead = []
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)", page_text(page)):
        file = page.parent / target if target else page
        there = file.exists() and (not anchor or anchor in anchors(page_text(file)))
        dead += [] if there else [f"{target}#{anchor}" if anchor else target]
    return dead


def test_links_and_names_of_pages_lead_somewhere(source_files: list[Path]) -> None:
    pages = [path for path in source_files if path.suffix in (".md", ".ipynb")]
    dead = [f"{path}: {link}" for path in pages for link in dead_links(ROOT / path)]
    named = [
        f"{path}: {name}"
        for path in source_files
        if path.suffix in {".py", ".h", ".cpp"} and path.parent.name != "packaging"
        for name in re.findall(r"\bdocs/(?:[\w-]+/)*[\w-]+\.md", (ROOT / path).read_text(encoding="utf-8"))
        if not (ROOT / name).is_file()
    ]
    assert not dead + named


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("word " * 41, "41 words, at most 40"),
        ("One two. " + "word " * 36, "sentences of 19.0 words"),
        ("Yes. " + "word " * 31, "50% long sentences"),
        ("It is\nbeside it.", "banned words: ['beside']"),
    ],
)
def test_faults_are_found(text: str, fault: str) -> None:
    assert fault in faults(text, 40)
    assert not faults("```sh\n" + text + "\n```\n", 40)


def test_sentences_are_those_that_a_reader_reads() -> None:
    page = (
        "# A title. Of two\n\nIt runs `a. b c` in\n$x. y$ steps: see\n[a page](page.md). So\n\n"
        "* first\n* second one\n\n| a. | b. |\n|---|---|\n\n```\nno. sentence\n```\n<!-- none.\nhere -->\n"
    )
    assert sentences(page) == ["It runs code in code steps:", "see [a page].", "So", "first", "second one"]


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Two words, `and` more\n\n```sh\n# none\n```\n")
    page = tmp_path / "a.md"
    page.write_text("[1](b.md) [2](b.md#two-words-and-more) [3](b.md#none) [4](c.md) [5](#here) [6](https://c.md#d)\n")
    assert dead_links(page) == ["b.md#none", "c.md", "#here"]
