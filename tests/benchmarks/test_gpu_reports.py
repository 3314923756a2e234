"""Rows of what pytest, the sanitizers and the profiler report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_reports, gpu_tests

MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at move(float *)+0x70
=========     by thread (33,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= Invalid __global__ write of size 4 bytes
=========     at move(float *)+0x70
=========     by thread (34,0,0) in block (0,0,0)
=========
========= Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure"
=========     Saved host backtrace up to driver entry point at error
=========
========= ERROR SUMMARY: 3 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
all ways agree
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""
COLUMNS = '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"\n'
COUNTERS = f"""==PROF== Connected to process 7
all ways agree
{COLUMNS}"0","flow<(int)4>(Params)","(256, 1, 1)","(4, 1, 1)","gpu__time_duration.sum","ns","1,500"
"0","flow<(int)4>(Params)","(256, 1, 1)","(4, 1, 1)","sm__throughput.avg","%","12.5"
"1","flow<(int)4>(Params)","(256, 1, 1)","(4, 1, 1)","gpu__time_duration.sum","ns","1,700"
"1","flow<(int)4>(Params)","(256, 1, 1)","(4, 1, 1)","sm__throughput.avg","%","n/a"
"2","flow<(int)4>(Params)","(256, 1, 1)","(64, 1, 1)","gpu__time_duration.sum","ns","9,000"
"""


def test_failed_tests_have_their_names_and_the_first_line_of_the_failure(tmp_path: Path, monkeypatch) -> None:
    """By pytest itself."""
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--share')\n")
    (tmp_path / "test_a.py").write_text(
        "import pytest\n@pytest.fixture\ndef broken():\n    raise OSError('no device')\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_sum(n):\n    assert n + n == 2, f'wrong for {n}\\nmore'\n"
        "def test_device(broken):\n    pass\ndef test_skipped():\n    pytest.skip('not here')\n"
    )
    monkeypatch.setattr(gpu_tests, "MARK", "not gpu")
    folder = tmp_path / "out" / "tests"
    gpu_tests.run(folder, (f"--rootdir={tmp_path}", str(tmp_path)), count=1, seconds=100)
    totals, *failures = gpu_reports.failed_tests(folder)
    assert totals == {"tests": 4, "selected": 4, "failed": 2, "skipped": 1}
    found = {row["test"]: row["failed"] for row in failures}
    assert found["test_a::test_sum[2]"] == "AssertionError: wrong for 2"
    assert "no device" in found["test_a::test_device"]
    assert len(found) == 2


def test_a_process_that_crashed_is_named_with_the_test_that_it_was_at(tmp_path: Path) -> None:
    (tmp_path / "tests-0.log").write_text("collected 40 items / 35 deselected / 5 selected\na.py::b PASSED\na.py::c ")
    (tmp_path / "tests-1.log").write_text("collected 3 items\n")
    (tmp_path / "tests-1.xml").write_text("<testsuites><testsuite><testcase ")
    totals, crashed, torn = gpu_reports.failed_tests(tmp_path)
    assert totals == {"tests": 0, "selected": 8, "failed": 2, "skipped": 0}
    assert (crashed["process"], crashed["last_lines"][-1]) == ("tests-0", "a.py::c")
    assert torn["process"] == "tests-1"


def test_findings_of_a_sanitizer() -> None:
    assert gpu_reports.findings(MEMCHECK) == {
        "summary": "ERROR SUMMARY: 3 errors",
        "found": [
            "Invalid __global__ write of size 4 bytes at move(float *)+0x70",
            'Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure" '
            "Saved host backtrace up to driver entry point at error",
        ],
    }
    assert gpu_reports.findings(RACECHECK)["summary"].startswith("RACECHECK SUMMARY: 0 hazards")
    assert gpu_reports.findings(RACECHECK)["found"] == []
    assert gpu_reports.findings("")["summary"] == "none: the sanitizer did not end"


def test_counters_of_the_profiler_are_medians_over_launches() -> None:
    small, large = gpu_reports.counters(COUNTERS)
    assert (small["kernel"], small["grid"], small["launches"]) == ("flow<(int)4>(Params)", "(4, 1, 1)", 2)
    assert small["counters"] == {"gpu__time_duration.sum (ns)": 1600.0, "sm__throughput.avg (%)": 12.5}
    assert large["counters"] == {"gpu__time_duration.sum (ns)": 9000.0}
    (refused,) = gpu_reports.counters("==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    assert refused == {"failed": "==ERROR== ERR_NVGPUCTRPERM - no permission"}
    assert gpu_reports.counters("") == [{"failed": "ncu said nothing"}]


def test_a_report_that_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "ncu.log").write_text('"ID","Metric Value"\n"0","1"\n')
    (row,) = gpu_reports.rows_of("ncu", tmp_path)
    assert row["part"] == "ncu"
    assert "KeyError" in row["failed"]
    assert gpu_reports.rows_of("smoke", tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"), [("memcheck", MEMCHECK, "3 errors"), ("ncu", COUNTERS, "1600.0")]
)
def test_reports_of_a_part_are_rows_and_said(name, text, expected, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    part = gpu.Part(name=name, command=(sys.executable,), limit=10)
    (tmp_path / f"{name}.log").write_text(text)
    gpu.report(gpu.Outcome(part=part, verdict="failed", seconds=1.0, note="exit status 9"), tmp_path / "rows.json")
    *found, end = json.loads((tmp_path / "rows.json").read_text())
    assert {row["part"] for row in found} == {name}
    assert (end["part"], end["verdict"]) == (name, "failed")
    assert expected in capsys.readouterr().out
    # The log is of an earlier call where the part did not run.
    gpu.report(gpu.Outcome(part=part, verdict="left out", seconds=0.0), tmp_path / "again.json")
    assert len(json.loads((tmp_path / "again.json").read_text())) == 1
