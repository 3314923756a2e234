"""Rows of what the programs of other people report: failed tests, what sanitizers find, counters of the profiler.

Only the standard library is imported.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Row = dict[str, Any]
# Rows of one sanitizer, and characters of a message or of the name of a kernel.
MOST, LENGTH = 20, 300


def rows_of(name: str, out: Path) -> list[Row]:
    """The rows of a part that has run with its log, and reports if it has some, in this folder."""
    read: dict[str, Callable[[], Iterable[Row]]] = {
        "tests": lambda: failed_tests(out / "tests"),
        "memcheck": lambda: [findings(_text(out / "memcheck.log"))],
        "racecheck": lambda: [findings(_text(out / "racecheck.log"))],
        "ncu": lambda: counters(_text(out / "ncu.log")),
    }
    if name not in read:
        return []
    try:
        return [{"part": name, **row} for row in read[name]()]
    # A report of another form does not cost the parts that come after it.
    except Exception as error:
        return [{"part": name, "failed": f"its report cannot be read: {type(error).__name__}: {_short(str(error))}"}]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _short(text: str) -> str:
    """The first line of a message."""
    return next(iter(text.strip().splitlines()), "")[:LENGTH]


def failed_tests(folder: Path) -> list[Row]:
    """How many tests ended how, then a row for each that failed and for each process that left no report."""
    totals = {"tests": 0, "selected": 0, "failed": 0, "skipped": 0}
    failures: list[Row] = []
    for log in sorted(folder.glob("tests-*.log")):
        text = _text(log)
        selected = re.search(r"/ (\d+) selected", text) or re.search(r"\bcollected (\d+) item", text)
        totals["selected"] += int(selected.group(1)) if selected else 0
        try:
            cases = list(ElementTree.parse(log.with_suffix(".xml")).iter("testcase"))
        except (OSError, ElementTree.ParseError):
            # A process that crashed: its log ends with the test that it was at.
            lines = text.strip().splitlines()
            failures.append(
                {"process": log.stem, "failed": "no report", "last_lines": [s[:LENGTH] for s in lines[-3:]]}
            )
            continue
        totals["tests"] += len(cases)
        totals["skipped"] += sum(case.find("skipped") is not None for case in cases)
        failures += [row for case in cases if (row := _failure(case))]
    totals["failed"] = len(failures)
    return [totals, *failures]


def _failure(case: ElementTree.Element) -> Row | None:
    """The name of a failed test, and the first line of the failure."""
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            message = _short(found.get("message") or found.text or "")
            return {"test": f"{case.get('classname')}::{case.get('name')}", "failed": message or kind}
    return None


def findings(text: str) -> Row:
    """The summary of a sanitizer, and each kind of error that it found, with the place of the first."""
    lines = text.splitlines()
    found: dict[str, None] = {}
    summary = "none: the sanitizer did not end"
    for line, after in zip(lines, [*lines[1:], ""], strict=False):
        head = re.fullmatch(r"========= (\S.*)", line)
        if head is None or head.group(1) == "COMPUTE-SANITIZER":
            continue
        if " SUMMARY: " in head.group(1):
            summary = head.group(1)
            continue
        place = re.fullmatch(r"=========  +(\S.*)", after)
        found[" ".join([head.group(1), *([place.group(1)] if place else [])])[:LENGTH]] = None
    return {"summary": summary, "found": list(found)[:MOST]}


def counters(text: str) -> list[Row]:
    """A row for each kernel and grid: the median of each counter over its launches; or why there are none."""
    lines = text.splitlines()
    table = list(csv.DictReader(line for line in lines if line.startswith('"')))
    launches: dict[tuple[str, ...], dict[str, list[float]]] = {}
    units: dict[str, str] = {}
    for row in table:
        value = (row.get("Metric Value") or "").replace(",", "")
        if not re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", value):
            continue
        key = (row["Kernel Name"][:LENGTH], row["Grid Size"], row["Block Size"])
        launches.setdefault(key, {}).setdefault(row["Metric Name"], []).append(float(value))
        units[row["Metric Name"]] = row["Metric Unit"]
    if not launches:
        problems = [line for line in lines if "ERR" in line] or lines[-1:]
        return [{"failed": _short(problems[0]) if problems else "ncu said nothing"}]
    return [
        {
            "kernel": kernel,
            "grid": grid,
            "block": block,
            "launches": max(map(len, values.values())),
            "counters": {f"{name} ({units[name]})": statistics.median(each) for name, each in values.items()},
        }
        for (kernel, grid, block), values in launches.items()
    ]


def line(row: Row) -> str:
    """A row for people."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )
