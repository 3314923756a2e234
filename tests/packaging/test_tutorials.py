"""Tutorials in docs/tutorials run from top to bottom, and are stored with what they print and draw."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "own-data.ipynb"
MOST_BYTES = 300_000
# Training of the notebook, and of its test: there in seconds of the processor, whatever else runs.
MINUTES, FEW = "minutes=2,", "minutes=0.75,"
CLOCK = "import time; time.monotonic = time.perf_counter = time.process_time"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def gains(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^gain over (.+): (-?\d+) %$", printed, re.MULTILINE)}


def printed() -> str:
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    return "".join(line for output in outputs for line in output.get("text", []))


def test_it_is_stored_with_a_figure_and_a_gain() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert [cell["execution_count"] for cell in cells("code")] == list(range(1, len(cells("code")) + 1))
    assert any("image/png" in output.get("data", {}) for output in cells("code")[-1]["outputs"])
    found = gains(printed())
    assert found["damped persistence"] > 50
    assert found["linear"] > 10


def test_its_links_lead_somewhere() -> None:
    text = "".join(line for cell in cells("markdown") for line in cell["source"])
    targets = re.findall(r"\]\((?!https:)([^)#]+)", text)
    assert targets
    for target in targets:
        assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs_and_gains(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [plots] extra")
    script = "\n".join([CLOCK, *("".join(cell["source"]) for cell in cells("code"))])
    assert script.count(MINUTES) == 1
    environ = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script.replace(MINUTES, FEW)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = gains(done.stdout)
    assert found["damped persistence"] > 50, done.stdout
    assert found["linear"] > 0, done.stdout
