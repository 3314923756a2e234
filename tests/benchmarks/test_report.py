"""The page of results: it is what the committed files give, and every row of a file is somewhere on it."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import PAGE, RESULTS, page
from enma_fast.errors import EnmaError

MACHINE = {"cpu": "Abacus 9", "cores": 4, "simd": ["beads"], "gpu": None, "system": "Wood oak", "threads": 2}
MACHINE |= {"torch": "2.99", "python": "3.12.0", "commit": "abc1234"}


def ratio(middle: float, least: float, greatest: float) -> dict[str, float]:
    return {"seconds": 1.0, "ratio": middle, "ratio_min": least, "ratio_max": greatest}


def row(rows: int, **changes: object) -> dict[str, object]:
    """A row of `benchmarks.compare`."""
    return {
        "case": "flow_head",
        "rows": rows,
        "dtype": "bfloat16",
        "threads": 2,
        "ours_s": 0.0123,
        "against": {"eager-bf16": ratio(6.51, 6.25, 7.0)},
        "gemm_rate": 930e9,
        "fraction_of_gemm_rate": 0.871,
        "error": 0.0031,
        "allowed_error": 0.0052,
        "wrong": {},
        "left_out": {},
        "width": 512,
        "rounds": 11,
        "machine": MACHINE,
        **changes,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results" / "abacus").mkdir(parents=True)
    return tmp_path / "results"


def written(results: Path, **files: object) -> str:
    for name, content in files.items():
        (results / "abacus" / f"{name}.json").write_text(json.dumps(content))
    return page(results)


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every Markdown table of the machines, the head first."""
    found: list[list[list[str]]] = [[]]
    for line in text.partition("\n## ")[2].splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def test_the_page_is_what_the_committed_files_give() -> None:
    assert PAGE.read_text() == page(RESULTS), "write it again: python -m benchmarks.report > docs/performance.md"


def test_every_committed_file_is_on_the_page() -> None:
    text = PAGE.read_text()
    files = list(RESULTS.glob("*/*.json"))
    assert files
    assert [file.name for file in files if f"`{file.name}`" not in text] == []


def test_a_row_of_a_comparison(results: Path) -> None:
    text = written(
        results,
        flow_head=[row(3), row(64, ours_s=1.5, against={"eager-bf16": ratio(1.5, 1.0, 2.0), "x": ratio(9, 8, 10)})],
    )
    assert "## abacus\n\nAbacus 9; 4 cores; beads; Wood oak\n\n### flow_head\n" in text
    assert "`flow_head.json`, commit abc1234, torch 2.99, Python 3.12.0, 2 threads; width 512, rounds 11." in text
    rate, error = "87 % of 930 GFLOP/s", "0.0031 (0.0052 allowed)"
    assert tables(text) == [
        [
            ["rows", "dtype", "ours", "of the rate", "eager-bf16", "x", "error"],
            ["3", "bfloat16", "12.3 ms", rate, "6.51 (6.25 to 7.00)", "-", error],
            ["64", "bfloat16", "1.5 s", rate, "1.50 (1.00 to 2.00)", "9.00 (8.00 to 10.00)", error],
        ]
    ]


def test_what_was_wrong_or_left_out_is_said(results: Path) -> None:
    wrong = row(3, ours_s=None, against={}, gemm_rate=None, fraction_of_gemm_rate=None, wrong={"ours": 0.5}, error=0.5)
    text = written(results, a=[wrong, row(64, left_out={"compile-bf16": "about 40 s a call"})])
    first, second = tables(text)[0][1:]
    assert first == ["3", "bfloat16", "wrong", "-", "-", "-", "0.5 (0.0052 allowed)"]
    assert second[4:6] == ["6.51 (6.25 to 7.00)", "-"]
    assert "* ours, rows 3, dtype bfloat16: WRONG by 0.5, so without a time\n" in text
    assert "* compile-bf16, rows 64, dtype bfloat16: about 40 s a call\n" in text


def test_an_entry_of_later_rows_alone_may_be_none(results: Path) -> None:
    text = written(results, a=[row(3), row(64, shape=None)])
    assert "rounds 11." in text
    assert "shape" not in text


def test_wrong_contenders_that_were_timed_have_no_time_on_the_page(results: Path) -> None:
    timed = row(3, wrong={"eager-bf16": "nan"})
    ours = row(64, wrong={"ours": 0.5}, error=0.5)
    first, second = tables(written(results, a=[timed, ours]))[0][1:]
    assert first[2:5] == ["12.3 ms", "87 % of 930 GFLOP/s", "wrong"]
    assert second[2:5] == ["wrong", "-", "-"]


def test_other_cases_with_times_have_tables_too(results: Path) -> None:
    step = {"case": "train_step", "preset": "p", "batch": 64, "ours_s": 2e-4, "error": 1e-7, **MACHINE}
    step |= {"gemm_rate": 1e9, "fraction_of_gemm_rate": 0.5, "against": {"naive": ratio(1.0, 0.5, 2.0)}}
    path = {"case": "trajectory", "preset": "combined-paper", "per": "member", "machine": MACHINE}
    path |= {"against": {}, "gemm_rate": 2e12, "fraction_of_gemm_rate": 0.8, "error": None}
    text = written(
        results,
        step=step,
        path=[path | {"members": 1, "ours_s": 0.17}, path | {"members": 64, "ours_s": 0.1}],
    )
    assert tables(text) == [
        [
            ["preset", "ours", "of the rate", "naive", "error"],
            ["p", "200 us", "50 % of 1 GFLOP/s", "1.00 (0.50 to 2.00)", "1e-07"],
        ],
        [
            ["preset", "members", "ours", "of the rate", "error"],
            ["combined-paper", "1", "170 ms a member", "80 % of 2,000 GFLOP/s", "-"],
            ["combined-paper", "64", "100 ms a member", "80 % of 2,000 GFLOP/s", "-"],
        ],
    ]
    assert text.index("### train_step") < text.index("`step.json`, commit abc1234") < text.index("### trajectory")
    assert "2 threads; batch 64.\n" in text


def test_rows_of_other_commits_or_threads_stand_apart(results: Path) -> None:
    later = MACHINE | {"commit": "def5678"}
    text = written(results, a=[row(3), row(64)], b=[row(3, machine=later), row(3, threads=1)])
    assert [len(table) - 1 for table in tables(text)] == [2, 1, 1]
    assert text.count("### flow_head") == 1
    heads = [line for line in text.partition("\n## ")[2].splitlines() if line.startswith("`")]
    assert ["abc1234" in line for line in heads] == [True, False, True]
    assert [line.partition("; ")[0].rpartition(", ")[2] for line in heads] == ["2 threads", "2 threads", "1 thread"]


def test_the_pareto_set_is_bold(results: Path) -> None:
    def setting(name: str, seconds: float, rel_l2: float, crps: float) -> dict[str, object]:
        times = {"seconds_per_member": seconds, "speedup": 2.0, "speedup_min": 1.5, "speedup_max": 2.5}
        return {"name": name, **times, "rel_l2": rel_l2, "crps": crps, "spread_skill": None}

    found = {
        "case": "pareto",
        "model": "m",
        "data": "d",
        "num_trajectories": 30,
        "timed_trajectories": 16,
        "members": 16,
        "num_frames": 17,
        "history": 3,
        "seed": 0,
        "rounds": 5,
        "rows": [setting("own", 0.02, 0.06, 0.008), setting("mask 1", 0.01, 0.07, 0.007)],
        "pareto": {"rel_l2": ["own", "mask 1"], "crps": ["mask 1"]},
        "machine": MACHINE,
    }
    text = written(results, pareto=found)
    assert "m on d: 30 trajectories, 16 members, 17 frames from 3, noise seed 0" in text
    assert tables(text)[0][1:] == [
        ["own", "20 ms", "2.00 (1.50 to 2.50)", "**0.06**", "0.008", "-"],
        ["mask 1", "10 ms", "2.00 (1.50 to 2.50)", "**0.07**", "**0.007**", "-"],
    ]
    assert "![" not in text
    solver = setting("fitted solver", 0.5, 1e-4, 1e-5) | {"spread_skill": 0.9}
    assert tables(written(results, pareto=found | {"solver": solver}))[0][3:] == [
        ["fitted solver", "500 ms", "-", "0.0001", "1e-05", "0.9"]
    ]
    # What was measured with settings that are gone is left out.
    gone = [setting("old", 0.01, 0.1, 0.1) | {"sampling": old} for old in ({"method": "euler"}, {"last_flow_steps": 1})]
    kept = setting("new", 0.01, 0.1, 0.1) | {"sampling": {"method": "midpoint", "last_flow_steps": None}}
    shown = tables(written(results, pareto=found | {"rows": [*gone, kept]}))[0][1:]
    assert [cells[0] for cells in shown] == ["new"]
    (results / "abacus" / "pareto.png").write_bytes(b"")
    assert "(../benchmarks/results/abacus/pareto.png)" in page(results)


def test_what_has_no_table_is_listed(results: Path) -> None:
    text = written(results, a={"case": "tea", "cups": 3}, b={"benchmarks": []}, c=[4], d=row(3))
    assert "* `a.json`: case tea, keys case, cups\n* `b.json`: keys benchmarks\n* `c.json`: keys value\n" in text
    assert len(tables(text)) == 1


def test_a_broken_file_is_named(results: Path) -> None:
    (results / "abacus" / "torn.json").write_text('{"case": "flow')
    with pytest.raises(EnmaError, match=r"torn\.json: .*JSON"):
        page(results)


def test_check_says_whether_page_and_files_belong_together(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.md"

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["report", "--results", str(results), "--page", str(target), *arguments])
        return report.main(), capsys.readouterr().out

    written(results, a=[row(3)])
    status, said = run("--check")
    assert (status, "write it again" in said) == (1, True)
    status, text = run()
    target.write_text(text)
    assert (status, text) == (0, page(results))
    assert run("--check") == (0, "")
    written(results, a=[row(3, ours_s=0.0124)])
    assert run("--check")[0] == 1
