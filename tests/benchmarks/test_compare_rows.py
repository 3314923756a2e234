"""Rows of `benchmarks.compare` for people."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import compare
from benchmarks.cases import Case
from benchmarks.ensemble import overhead
from benchmarks.rows import save


def row(low: float, high: float) -> dict:
    against = {"eager": {"ratio": 1.0, "ratio_min": low, "ratio_max": high}}
    return {
        "case": "flow_head",
        "rows": 3,
        "dtype": "float32",
        "ours_s": 1e-3,
        "fraction_of_gemm_rate": None,
        "against": against,
        "busy": compare.too_busy(against),
    }


def test_ratios_that_say_nothing_are_called_so() -> None:
    said = "the machine is too busy to compare: ratios lie more than 3x apart"
    assert said in compare.line(row(0.33, 11.22))
    assert said not in compare.line(row(0.86, 1.12))


def test_a_comparison_says_whether_the_machine_was_too_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"ours": [1.0, 1.0, 1.0], "eager": [0.5, 1.0, 4.0]}
    monkeypatch.setattr(compare, "interleave", lambda *_, **__: times)
    monkeypatch.setattr(compare, "gemm_rate", lambda *_, **__: 1.0)
    exact = torch.zeros(2, dtype=torch.float64)
    case = Case(
        name="a",
        rows=1,
        dtype=torch.float32,
        device=torch.device("cpu"),
        flops=0,
        exact=exact,
        allowance=1.0,
        contenders={name: lambda: torch.zeros(2) for name in times},
    )
    assert compare.compare(case, rounds=3)["busy"]
    times["eager"] = [0.9, 1.0, 1.1]
    assert not compare.compare(case, rounds=3)["busy"]


def test_a_machine_that_changes_within_a_run_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"ours": [1.0, 1.0, 1.1, 1.0]}
    rates = [10.0, 11.0]
    monkeypatch.setattr(compare, "interleave", lambda *_, **__: times)
    monkeypatch.setattr(compare, "gemm_rate", lambda *_, **__: rates.pop(0))
    found = compare.compare(case_of(ours=lambda: torch.zeros(2)), rounds=4)
    assert not found["drifted"]
    assert "the machine changed" not in compare.line(found)
    assert (found["gemm_rate"], found["seconds"]) == (11.0, times)
    rates += [10.0, 16.0]
    assert compare.compare(case_of(ours=lambda: torch.zeros(2)), rounds=4)["drifted"]
    # Both rounds of the later half took twice as long; one round among them that is slow says nothing.
    rates += [10.0] * 4
    times["ours"] = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    found = compare.compare(case_of(ours=lambda: torch.zeros(2)), rounds=6)
    assert found["drifted"]
    assert "the machine changed: times of ours, or rates of products, drifted by more than 1.5x" in compare.line(found)
    times["ours"] = [1.0, 1.0, 1.0, 1.0, 1.0, 9.0]
    assert not compare.compare(case_of(ours=lambda: torch.zeros(2)), rounds=6)["drifted"]


def test_both_overheads_are_medians_of_ratios_within_rounds() -> None:
    seconds = {"ours": [2.0, 4.0, 9.0, 4.0], "memory": [1.5, 1.5, 3.0, 2.0], "engine": [1.0, 1.0, 3.0, 2.0]}
    found = overhead({"ours_s": 4.0, "seconds": seconds})
    assert found["overhead"] == pytest.approx(1.5)
    assert found["overhead_in_memory"] == pytest.approx(0.25)
    del seconds["memory"]
    assert overhead({"ours_s": 4.0, "seconds": seconds})["overhead_in_memory"] is None


def case_of(**contenders: Any) -> Case:
    return Case(
        name="a",
        rows=1,
        dtype=torch.float32,
        device=torch.device("cpu"),
        flops=0,
        exact=torch.zeros(2, dtype=torch.float64),
        allowance=1.0,
        contenders=contenders,
    )


def fails() -> torch.Tensor:
    raise RuntimeError("out of resource\nmore of it")


def test_a_contender_that_fails_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare, "gemm_rate", lambda *_, **__: 1.0)
    made = case_of(ours=lambda: torch.zeros(2), broken=fails, wrong=lambda: torch.full((2,), float("nan")))
    for flag in (False, True):
        found = compare.compare(made, rounds=2, flag=flag)
        assert found["left_out"] == {"broken": "failed: RuntimeError: out of resource"}
        assert list(found["against"]) == ["wrong"] * flag
        assert found["ours_s"] > 0
    with pytest.raises(RuntimeError, match="resource"):
        compare.compare(case_of(ours=fails), rounds=2)
    # JSON has no NaN.
    save([found], tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)[0]["wrong"] == {"wrong": "nan"}
