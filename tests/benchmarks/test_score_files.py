"""Score files: the names of their methods, CPU seconds, and what agrees when they are checked."""

import pytest

from benchmarks.paper import score_files
from benchmarks.paper.protocols import CASES


def test_a_model_that_is_called_as_its_equation_is_the_method_equation():
    for equation, name, method in (
        ("gray_scott", "gray-scott", "equation"),
        ("gray_scott", "gray-scott-fast", "fast"),
        ("combined", "combined", "equation"),
    ):
        assert score_files._method_of(name, equation) == method
        assert score_files.model_name({"equation": equation, "method": method}) == name


def test_cpu_seconds_are_those_of_the_card():
    alone = {"seconds": 5.0, "steps": 1}
    where = {"ranks": 2, "machine": {"threads": 3}}
    assert score_files._cpu_seconds({"tokenizer": {**alone, **where}, "head": {**alone, **where}}) == 60
    assert score_files._cpu_seconds({**where, "data": {}, "stages": {"field": alone}}) == 30
    assert score_files._cpu_seconds({**where, "stages": {"field": {**alone, "cpu_seconds": 4.5}}}) == 4.5
    assert score_files._cpu_seconds({}) == 0


@pytest.mark.parametrize(("error", "agrees"), [(3e-7, True), (3e-3, False)])
def test_scores_below_rounding_agree(monkeypatch, error, agrees):
    case = next(case for case in CASES if case.protocol == "shipped")
    monkeypatch.setattr(score_files, "CASES", [case])
    (file,) = (f for f in score_files.read_score_files() if (f["equation"], f["method"]) == ("combined", "fast"))
    for row in file["rows"]:
        row.update(rel_l2=error, crps=error, spread_skill=0.1)
    found = dict.fromkeys(score_files._CHECKED, 2 * error)
    monkeypatch.setattr(score_files, "measure", lambda method, data, case, **_: found)
    monkeypatch.setattr(score_files, "SHARES", ())
    scores = {entry["what"].partition(": ")[2]: entry["agrees"] for entry in score_files.check([file])}
    assert scores["rel_l2"] == scores["spread_skill"] == agrees
