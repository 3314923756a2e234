"""Scores of the shipped models in the tables of pages are those of their cards, or of the score files of the tables."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.paper.score_files import model_name, read_score_files
from enma_fast.data import PRETRAINED
from enma_fast.models.checkpoint import available

ROOT = Path(__file__).parents[2]
README, EQUATIONS = ROOT / "README.md", ROOT / "docs" / "equations.md"
LINK = re.compile(r"\[([^]]*)\]\([^)]*/pretrained/([\w-]+)/README\.md\)")
# What begins a row of a page, and the task and the number of members that it is of.
TASKS = {"from 3 frames": "temporal", "one frame and a context": "initial-value"}
CALIBRATION = {"RMSCE (64 members from 3 frames)": "rmsce", "CRPS (64 members from 3 frames)": "crps"}
GENERATED = "generated trajectory, from the solver's own"
# Those of whole grids and of the whole test files, or of the first trajectories of them.
PROTOCOLS, SCORE_FILES = ("whole", "calibration"), read_score_files()
# Columns of the table of spread/skill.
SPREADS = (
    ("temporal", "test-in"),
    ("initial-value", "test-in"),
    ("temporal", "test-out"),
    ("initial-value", "test-out"),
)


class Said(NamedTuple):
    """A number of a page, and the score that it is."""

    model: str
    task: str
    split: str
    members: int | None
    score: str
    number: str


def tables(text: str) -> Iterator[list[list[str]]]:
    """Cells of each table of a page; the first row is the head, and the line below it is left out."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield [rows[0], *rows[2:]]


def plain(cell: str) -> str:
    """A cell without what makes it bold or a link."""
    return LINK.sub(r"\1", cell).replace("**", "")


def errors(head: list[str], row: list[str]) -> Iterator[Said]:
    """Scores in a row of a table with a column for each model."""
    label, out, _ = row[0].partition(", out of distribution")
    split = "out" if out else "in"
    for model, cell in zip(head[1:], map(plain, row[1:]), strict=True):
        if model not in available() or cell == "-":
            continue
        if label in TASKS:
            for score, number in zip(("rel_l2", "rel_l2_median"), cell.split(", "), strict=True):
                yield Said(model, TASKS[label], f"test-{split}", 16, score, number)
        elif label in CALIBRATION:
            yield Said(model, "temporal", "test-in", 64, CALIBRATION[label], cell)
        elif label == GENERATED:
            yield Said(model, "generation", "test-in", None, "solver_fidelity", cell)


def spreads(row: list[str]) -> Iterator[Said]:
    """Scores in a row of the table of spread/skill."""
    for (task, split), number in zip(SPREADS, row[1:], strict=False):
        yield Said(row[0], task, split, 16, "spread_skill", number)
    yield Said(row[0], "temporal", "test-out", 16, "num_outside", row[5].partition(" of ")[0])


def shown(row: list[str]) -> Iterator[Said]:
    """Scores in a row of the table of README, whose first cells are links to the cards of two models."""
    models = [name for _, name in LINK.findall(" ".join(row))]
    for task, cells in zip(("temporal", "initial-value"), (row[1:3], row[4:6]), strict=True):
        for model, cell in zip(models, cells, strict=True):
            yield Said(model, task, "test-in", 16, "rel_l2", plain(cell))


def said() -> Iterator[Said]:
    """All scores of the pages."""
    for head, *rows in tables(EQUATIONS.read_text(encoding="utf-8")):
        for row in rows:
            if head[-1] == "warned of, out":
                yield from spreads(row)
            elif head[-1] in available():
                yield from errors(head, row)
    for head, *rows in tables(README.read_text(encoding="utf-8")):
        if any("ENMA, paper" in column for column in head):
            for row in rows:
                yield from shown(row)


def measured(one: Said) -> list[float]:
    """The score on the card, and in the score file if there is one."""
    rows: list[dict[str, Any]] = json.loads((PRETRAINED / one.model / "metrics.json").read_text())["rows"]
    rows = [row | {"members": row["num_members"]} for row in rows if not row["packed"]]
    files = [file for file in SCORE_FILES if file["kind"] == "model" and model_name(file) == one.model]
    rows += [row for file in files for row in file["rows"] if row["protocol"] in PROTOCOLS]
    return [
        row[one.score]
        for row in rows
        if (row["task"], row["split"]) == (one.task, one.split)
        and one.members in (None, row["members"])
        and row.get(one.score) is not None
    ]


def agrees(number: str, value: float) -> bool:
    """True if the value is this number when it is rounded to its last digit."""
    exponent = Decimal(number).as_tuple().exponent
    assert isinstance(exponent, int)
    return abs(value - float(number)) <= 0.5001 * 10.0**exponent


SAID = list(said())


def test_the_tables_of_the_pages_are_read() -> None:
    assert len({one.model for one in SAID}) == len(available())
    assert {one.score for one in SAID} >= {"rel_l2", "rel_l2_median", "rmsce", "crps", "solver_fidelity", "num_outside"}
    assert len(SAID) > 150


@pytest.mark.parametrize("model", sorted({one.model for one in SAID}))
def test_scores_of_pages_are_measured(model: str) -> None:
    wrong = [one for one in SAID if one.model == model and not any(agrees(one.number, v) for v in measured(one))]
    assert not wrong, "\n".join(f"{one}: {measured(one)}" for one in wrong)


def test_a_wrong_number_is_found() -> None:
    assert agrees("3.27e-6", 3.2651e-6)
    assert not agrees("3.27e-6", 3.276e-6)
    assert agrees("118", 118)
    assert not agrees("0.243", 0.2436)
