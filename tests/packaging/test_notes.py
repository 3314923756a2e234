"""Notes on what was tried: one question a page, short sentences, one table, the commit and its date.

Tables, code and the closing line are no sentences. Words are counted over the whole page.
"""

import re
from pathlib import Path

import pytest

from ._prose import prose_faults, words

NOTES = Path(__file__).resolve().parents[2] / "docs" / "notes"
INDEX = NOTES / "index.md"
PAGES = sorted(set(NOTES.glob("*.md")) - {INDEX})
MOST_WORDS = 500
CLOSING = re.compile(r"^Measured: (?:(?:`[0-9a-f]{7}`, )+\d{4}-\d{2}-\d{2}(?:; )?)+\n\Z", re.MULTILINE)


def faults(text: str) -> list[str]:
    """What a note has to change."""
    tables = len(re.findall(r"^\|(?:-+\|)+$", text, re.MULTILINE))
    checks = {
        "the first line is no question": bool(re.match(r"# .+\?\n\n", text)),
        f"{words(text)} words": words(text) <= MOST_WORDS,
        f"{tables} tables": tables == 1,
        "no commit and date at the end": bool(CLOSING.search(text)),
    }
    return [fault for fault, good in checks.items() if not good] + prose_faults(CLOSING.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_note_has_one_question_and_few_words(page: Path) -> None:
    assert not faults(page.read_text(encoding="utf-8"))


def test_the_index_has_every_note_once_under_its_question() -> None:
    entries = re.findall(r"^\* \[(.+)\]\((.+)\)$", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    titles = {page.name: page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in PAGES}
    assert len(entries) == len(PAGES) > 0
    assert {name: title for title, name in entries} == titles


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("Why so?", "Why so", "the first line is no question"),
        ("It is.", "word " * 501, "510 words"),
        ("It is.", "word " * 19, "sentences of 19.0 words"),
        ("It is.", "It is beside it.", "banned words: ['beside']"),
        ("|---|---|", "", "0 tables"),
        ("2026-11-30", "", "no commit and date at the end"),
    ],
)
def test_faults_are_found(old: str, new: str, fault: str) -> None:
    note = "# Why so?\n\nIt is.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nMeasured: `0123abc`, 2026-11-30\n"
    assert not faults(note)
    assert fault in " ".join(faults(note.replace(old, new)))
