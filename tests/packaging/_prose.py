"""Words and sentences of a page in Markdown, of a docstring or a message, and what makes them hard to read.

Tables, headings, code, formulas and comments are no sentences. Code or a formula within a sentence is one word.
"""

import json
import re
import statistics
from pathlib import Path

MEAN_SENTENCE, LONG_SENTENCE, LONG_SHARE = 18, 30, 0.05
# Words that hide what is meant.
BANNED = re.compile(
    r"\b(?:mend(?:s|ed|ing)?|taken for|leaves? open|left open|behind|beside|of those|which also|made again|as it was"
    r"|next to nothing|tells)\b",
    re.IGNORECASE,
)
# Blocks and lines that no reader reads as sentences.
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
UNREAD = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^\$\$.*?\$\$$", re.DOTALL | re.MULTILINE),
    re.compile(r"^(?:[|#]|:::|!!!).*$", re.MULTILINE),
    re.compile(r"^ +options: \{.*$", re.MULTILINE),
)


def words(text: str) -> int:
    """Words and numbers of a text; signs that only draw it do not count."""
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def prose(text: str) -> str:
    """A page without what is no sentence, each link as its text."""
    text = FENCE.sub("", text)
    for pattern in UNREAD:
        text = pattern.sub("", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`]+`|\$[^$]+\$", "code", text)


def sentences(text: str) -> list[str]:
    """Sentences of a page; an entry of a list begins a new one."""
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", prose(text))
    lines = [re.sub(r"^(?:[*-]|\d+\.) ", "", " ".join(part.split())) for part in parts]
    return [sentence for line in lines for sentence in re.split(r"(?<=[.!?:])\s+", line) if words(sentence)]


def page_text(path: Path) -> str:
    """The Markdown of a page; of a notebook that of its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def of_docstring(text: str) -> str:
    """A docstring as a page: without the titles of its sections, what it says of each entry on lines of its own."""
    text = re.sub(r"^.*\n-{3,}$", "", text.replace("``", "`"), flags=re.MULTILINE)
    return re.sub(r"^[\w*]+(?:, [\w*]+)* : ", "\n", text, flags=re.MULTILINE)


def line_faults(text: str) -> list[str]:
    """What of a docstring or a message has to change: one long sentence is too many there."""
    long = [f"{words(one)} words: {one}" for one in sentences(text) if words(one) > LONG_SENTENCE]
    return long + [f"banned: {word}" for word in BANNED.findall(prose(text))]


def prose_faults(text: str) -> list[str]:
    """What of the prose of a page has to change."""
    lengths = [words(sentence) for sentence in sentences(text)] or [0]
    long = sum(length > LONG_SENTENCE for length in lengths) / len(lengths)
    banned = BANNED.findall(prose(text))
    checks = {
        f"sentences of {statistics.mean(lengths):.1f} words": statistics.mean(lengths) <= MEAN_SENTENCE,
        f"{long:.0%} long sentences": long <= LONG_SHARE,
        f"banned words: {banned}": not banned,
    }
    return [fault for fault, good in checks.items() if not good]
