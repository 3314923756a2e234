"""The page of configs holds every entry, with its default, its unit and what sets it."""

import dataclasses
import re
from pathlib import Path

import pytest

from docs import config_reference as page
from enma_fast.config import ConvConfig

from . import _counts
from ._prose import prose_faults
from ._syntax import Tree

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [kind for part in page.PARTS for kind in page.classes(part)]
# Entries that are measured in units of the data.
MEASURED = {
    "ModelConfig.frame_interval",
    "CodecConfig.lengths",
    "CodecConfig.field_mean",
    "CodecConfig.field_scale",
    "Boost.deviation",
    "Damping.rates",
}


@pytest.fixture(scope="module")
def text() -> str:
    return page.reference()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_docstring_says_what_each_entry_is(kind: type) -> None:
    said = page.attributes(kind)
    assert not [one.name for one in page.entries(kind) if not said.get(one.name)]
    for one in page.entries(kind):
        if f"{kind.__name__}.{one.name}" in MEASURED:
            assert re.search(r"\bunits?\b", said[one.name]), one.name


def test_every_entry_of_a_config_is_on_the_page(text: str) -> None:
    listed = {f"{kind.__name__}.{one.name}" for kind in CLASSES for one in page.entries(kind)}
    assert set(_counts.config_fields(Tree(ROOT))) <= listed
    assert listed >= MEASURED
    assert text.count("\n| <span") == len(listed)
    assert (ROOT / "docs/reference/config.md").read_text().count(page.PLACE) == 1


def test_what_sets_an_entry_is_in_the_configs() -> None:
    by = {f"{kind.__name__}.{name}": shown for (kind, name), shown in page.setters().items()}
    configs = {path.parent.name: path.read_text() for path in ROOT.glob("enma_fast/pretrained/*/config.json")}
    found = {name: re.findall(r'"kl_weight": ([\d.e-]+)', text) for name, text in configs.items()}
    weights = {name: float(values[0]) for name, values in found.items() if values}
    assert [name for name, weight in weights.items() if weight != ConvConfig.kl_weight] == ["combined-fast"]
    assert by["ConvConfig.kl_weight"] == "`combined-fast`"
    assert by["PhysicsConfig.block"] == page.OWN_DATA
    assert by["ModelConfig.num_frames"].endswith(f"models and recipes, {page.OWN_DATA}")
    # What no shipped model and no recipe sets is set for your own data, or by nothing.
    unset = {name for name in _counts.unset_fields(Tree(ROOT)) if name.partition(".")[2] != "by_flow"}
    assert {name: by.get(name, page.OWN_DATA) for name in unset} == dict.fromkeys(unset, page.OWN_DATA)


def test_defaults_are_written_as_a_file_has_them(text: str) -> None:
    text = re.sub(r"</?span[^>]*>", "", text)
    assert "| `context_share` | `0.333333` |" in text
    assert "| `name` | needed |" in text
    assert "| `shortest_context` | `null` | frames of the shortest context of the training; `null`: all had" in text
    assert "### Optimizer\n" in text
    assert "### `conv`\n" in text


def test_a_class_without_a_text_is_found() -> None:
    @dataclasses.dataclass
    class Bare:
        """A place.

        Attributes
        ----------
        x : along the line,
            in metres
        """

        x: float
        y: float = 0.0

    assert page.attributes(Bare) == {"x": "along the line, in metres"}
    assert [one.name for one in page.entries(Bare)] == ["x", "y"]


def test_its_prose_is_plain(text: str) -> None:
    assert not prose_faults(text)
