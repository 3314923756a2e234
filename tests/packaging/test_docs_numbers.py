"""Numbers on the pages that name a setting of a shipped model, or of a recipe, are those of its configuration.

A sentence is read where it names one of them, as `combined-fast` or as the text of a link, and says a setting.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from enma_fast.data import PRETRAINED
from enma_fast.models.checkpoint import available, load_config
from enma_fast.training.recipes import RECIPES

from ._prose import page_text

ROOT = Path(__file__).parents[2]
# What was tried, and pages that a program writes.
OTHERS = ("own-data-compared.md", "performance.md", "tables.md")
FILES = [path for pattern in ("*.md", "tutorials/*.ipynb") for path in sorted((ROOT / "docs").glob(pattern))]
PAGES = [ROOT / "README.md", *(path for path in FILES if path.name not in OTHERS)]
NUMBER = r"(\d+(?:\.\d+)?)"
SETTINGS = {
    "temperature": rf"temperature (?:of )?{NUMBER}",
    "shifts": rf"{NUMBER} shifts?\b",
    "mask_steps": rf"{NUMBER} mask steps?\b",
    "flow_steps": rf"{NUMBER} (?:\w+ )?flow steps?\b",
    "millions": rf"{NUMBER} million parameters",
}


class Said(NamedTuple):
    """A number of a page, as it stands there."""

    name: str
    recipe: bool
    setting: str
    number: str


def said(text: str) -> Iterator[Said]:
    """Numbers that the sentences of a page say of a model or a recipe that they name alone."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for sentence in re.split(r"(?<=[.;:])\s+", re.sub(r"\]\([^)]*\)", "]", prose)):
        known = {name for name in re.findall(r"[`\[]([\w-]+)[`\]]", sentence) if name in RECIPES or name in available()}
        for setting, pattern in SETTINGS.items():
            for number in re.findall(pattern, " ".join(sentence.split())) if len(known) == 1 else ():
                yield Said(*known, bool(re.search(r"\brecipe\b", sentence)), setting, number)


def real(one: Said) -> str:
    """What the configuration, or the card, has, in as many digits."""
    if one.setting == "millions":
        value = json.loads((PRETRAINED / one.name / "metrics.json").read_text())["num_parameters"] / 1e6
    else:
        config = RECIPES[one.name].model if one.recipe else load_config(one.name)
        value = getattr(config.sampling, one.setting)
    return "none" if value is None else f"{value:.{len(one.number.partition('.')[2])}f}"


def wrong(text: str) -> list[str]:
    """A line for each number that is not the real one to its last digit."""
    return [
        f"{one.number} of {one.setting} of {one.name}{' (recipe)' * one.recipe}: {real(one)}"
        for one in said(text)
        if real(one) != one.number
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_of_models_are_those_of_their_configurations(page: Path) -> None:
    assert not wrong(page_text(page))


def test_the_pages_that_say_settings_are_read() -> None:
    found = {(page.name, one.setting) for page in PAGES for one in said(page_text(page))}
    assert {("train-a-model.md", "temperature"), ("train-a-model.md", "shifts"), ("equations.md", "millions")} <= found


def test_wrong_numbers_are_found() -> None:
    text = (
        "The recipe `combined-fast` has temperature 0.4. It has 3. The model `combined-fast` has a\ntemperature of "
        "0.65 "
        "and 16 shifts. [wave-fast](a.md) has 9.9 million parameters. "
        "`advection-fast` beside `wave-fast` has 3 shifts.\n"
        "```\n`combined-fast` at temperature 3\n```\n"
    )
    assert [line.partition(":")[0] for line in wrong(text)] == [
        "0.65 of temperature of combined-fast",
        "9.9 of millions of wave-fast",
    ]
    assert len(list(said(text))) == 4
