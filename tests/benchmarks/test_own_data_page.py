"""The page of the comparison on own data is made of its committed results."""

from pathlib import Path

from benchmarks.own_results import FIELD, METHODS, QUICK_SECONDS, RESULTS, learned, load, merged, page

PAGE = Path(__file__).parents[2] / "docs" / "own-data-compared.md"


def test_the_page_is_that_of_the_results():
    rows = load(RESULTS)
    assert PAGE.read_text() == page(rows)
    assert {row["method"] for row in rows} == set(METHODS)


def test_the_page_says_who_is_best():
    rows = [row for row in load(RESULTS) if row["set"] == "ks" and row["seconds"] != QUICK_SECONDS]
    worse = [{**row, "rel_l2": 0.5 if row["method"] == FIELD else 0.25 * (1 + i)} for i, row in enumerate(rows)]
    assert "the field model is 2 times" in learned(worse)
    assert "| **0.2500** |" in page(worse)
    assert "not measured yet" not in page(rows).lower()
    assert "Not measured yet: persistence." in page(rows[1:])
    again = merged(rows, {**rows[0], "rel_l2": 7.0})
    assert [row["rel_l2"] for row in again] == [7.0, *(row["rel_l2"] for row in rows[1:])]
