"""Notes on what was tried: one question a page, short sentences, one table, the commit and its date.

Tables, code and the closing line are no sentences. Words are counted over the whole page.
"""

import re
import statistics
from pathlib import Path

import pytest

NOTES = Path(__file__).resolve().parents[2] / "docs" / "notes"
INDEX = NOTES / "index.md"
PAGES = sorted(set(NOTES.glob("*.md")) - {INDEX})
MOST_WORDS = 500
MEAN_SENTENCE, LONG_SENTENCE, LONG_SHARE = 18, 30, 0.05
# Words that hide what is meant.
BANNED = re.compile(
    r"\b(?:mends?|taken for|leaves? open|behind|beside|of those|which also|made again)\b", re.IGNORECASE
)
CLOSING = re.compile(r"^Measured: (?:(?:`[0-9a-f]{7}`, )+\d{4}-\d{2}-\d{2}(?:; )?)+\n\Z", re.MULTILINE)


def words(text: str) -> int:
    """Words and numbers of a page; signs that only draw it do not count."""
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def sentences(text: str) -> list[str]:
    """Sentences of the prose of a page."""
    prose = re.sub(r"^```.*?^```$", "", CLOSING.sub("", text), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", re.sub(r"^[|#].*$", "", prose, flags=re.MULTILINE))
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=\* )", prose)]
    return [sentence for part in paragraphs for sentence in re.split(r"(?<=[.!?:])\s+", part) if sentence]


def faults(text: str) -> list[str]:
    """What a note has to change."""
    lengths = sorted(words(sentence) for sentence in sentences(text)) or [0]
    long = sum(length > LONG_SENTENCE for length in lengths) / len(lengths)
    tables = len(re.findall(r"^\|(?:-+\|)+$", text, re.MULTILINE))
    checks = {
        "the first line is no question": bool(re.match(r"# .+\?\n\n", text)),
        f"{words(text)} words": words(text) <= MOST_WORDS,
        f"sentences of {statistics.mean(lengths):.1f} words": statistics.mean(lengths) <= MEAN_SENTENCE,
        f"{long:.0%} long sentences": long <= LONG_SHARE,
        f"{tables} tables": tables == 1,
        f"banned words: {BANNED.findall(text)}": not BANNED.search(text),
        "no commit and date at the end": bool(CLOSING.search(text)),
    }
    return [fault for fault, good in checks.items() if not good]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_note_has_one_question_and_few_words(page: Path) -> None:
    assert not faults(page.read_text(encoding="utf-8"))


def test_the_index_has_every_note_once_under_its_question() -> None:
    entries = re.findall(r"^\* \[(.+)\]\((.+)\)$", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    titles = {page.name: page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in PAGES}
    assert len(entries) == len(PAGES) > 0
    assert {name: title for title, name in entries} == titles


def test_links_between_pages_and_names_of_notes_lead_somewhere(root: Path, source_files: list[Path]) -> None:
    pages = [root / path for path in source_files if path.suffix == ".md"]
    dead = [
        f"{page.relative_to(root)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    named = [
        f"{path}: {name}"
        for path in source_files
        if path.suffix in {".py", ".h", ".cpp"}
        for name in re.findall(r"\bdocs/notes/[\w-]+\.md", (root / path).read_text(encoding="utf-8"))
        if not (root / name).is_file()
    ]
    assert not dead + named


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
