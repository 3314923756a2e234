"""Tutorials in docs/tutorials run from top to bottom, and are stored with what they print and draw."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
OWN, FIRST, REAL = (TUTORIALS / f"{name}.ipynb" for name in ("own-data", "first-forecast", "real-data"))
MOST_BYTES = 300_000
# Each look at a clock takes as long, so that all machines take the same steps.
CLOCK = """import itertools, time
looks = itertools.count()
time.monotonic = time.perf_counter = time.process_time = lambda: 0.03 * next(looks)
"""


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells that are run."""
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def printed(notebook: Path) -> str:
    """What is stored of standard output, of which all text is."""
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    return "\n".join("".join(output["text"]) for output in outputs if "text" in output)


def ran(notebook: Path, folder: Path, *, slower: dict[str, str] | None = None, first: str = "") -> Path:
    """A copy of a notebook that was run, with less to do: `slower` has what is replaced, and by what."""
    document = json.loads(notebook.read_text())
    text = json.dumps(document)
    for old, new in (slower or {}).items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    document = json.loads(text)
    code = next(cell for cell in document["cells"] if cell["cell_type"] == "code")
    code["source"] = [f"{first}\n", *code["source"]]
    copy = folder / notebook.name
    copy.write_text(json.dumps(document))
    environ = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TUTORIALS / "run.py"), str(copy)]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return copy


def gains(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^gain over (.+): (-?\d+) %$", text, re.MULTILINE)}


def errors(text: str) -> dict[str, float]:
    """The last number of each row of the table of errors."""
    table = text.partition("RMS error (K)")[2]
    return {name: float(value) for name, value in re.findall(r"^(\w[\w ]+?) {2,}.* (\d\.\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_small_with_what_it_prints_and_draws(notebook: Path) -> None:
    assert notebook.stat().st_size < MOST_BYTES
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells(notebook) for output in cell["outputs"])
    assert printed(notebook)
    assert "\x1b" not in notebook.read_text()


def test_own_data_is_stored_with_a_gain() -> None:
    found = gains(printed(OWN))
    assert found["damped persistence"] > 50
    assert found["linear"] > 10


def test_real_data_is_stored_with_what_its_text_says() -> None:
    text = printed(REAL)
    rows = dict(re.findall(r"^temporal +([a-z ]+?) {2,}(.+)$", text.partition("RMS errors")[0], re.MULTILINE))
    crps = {name: float(row.split()[2]) for name, row in rows.items()}
    assert crps["model"] < 0.75 * crps["linear"]
    found = errors(text)
    model = found["mean of 16 members"]
    assert found["mean of training"] > found["the last year again"] > found["mean of 3 years"] > model
    assert 0.96 * model < found["linear fit"] < model
    assert "The linear forecast is of the kind 'observed mean'" in text


@pytest.mark.slow
def test_first_forecast_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [plots] extra")
    found, promised = printed(ran(FIRST, tmp_path)), printed(FIRST)
    # Times, and the last digits of another processor.
    number = re.compile(r"\d[\d.e-]*")
    assert number.sub("#", found).split() == number.sub("#", promised).split()


@pytest.mark.slow
def test_own_data_runs_and_gains(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [plots] extra")
    slower = {"shape=(32, 24)": "shape=(16, 12)", "minutes=2,": "minutes=0.2,"}
    text = printed(ran(OWN, tmp_path, slower=slower, first=CLOCK))
    found = gains(text)
    assert found["damped persistence"] > 50, text
    assert found["linear"] > 0, text


@pytest.mark.slow
def test_real_data_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the [plots] extra")
    pytest.importorskip("iris_sample_data", reason="needs the data set of the page: pip install iris-sample-data")
    text = printed(ran(REAL, tmp_path, slower={"--minutes 8": "--minutes 1.5"}))
    found = errors(text)
    assert len(found) == 5
    # These two do not depend on the training.
    for name in ("the last year again", "linear fit"):
        assert found[name] == pytest.approx(errors(printed(REAL))[name], abs=0.01)
    assert found["mean of 16 members"] < found["the last year again"], text
    assert "equator.h5: 43 trajectories" in text
