"""Error against cost: the solver of the data is exact, coarser settings err more, and the page shows them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import costs, report
from enma_fast.data import read
from enma_fast.data.shipped import shipped_file


@pytest.mark.parametrize("equation", ["advection", "combined", "gray_scott", "vorticity", "wave"])
def test_the_first_setting_is_that_of_the_data(equation: str) -> None:
    data = read(shipped_file(equation, "test-in"), select=slice(1))
    parameters = {name: values.astype(float) for name, values in data.parameters.items()}
    with np.errstate(all="ignore"):
        solved = [solve(data.u[:, 0], parameters) for solve in costs.solvers()[equation].values()]
        errors = [costs.error_of(u, data.u) for u in solved]
    # Files hold fp32.
    assert errors[0] < 1e-4
    assert all(not error < errors[0] for error in errors)


@pytest.mark.slow
def test_models_and_settings_are_rows_of_the_page(tmp_path: Path) -> None:
    out = tmp_path / "results/machine/costs.json"
    command = [sys.executable, "-m", "benchmarks.costs", "--equations", "combined", "--rounds", "1", "--limit", "2"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    rows = json.loads(out.read_text())[0]["rows"]
    assert {row["kind"] for row in rows} == {"equation", "network", "solver"}
    assert all(row["seconds_per_member"] > 0 for row in rows)
    coarse = [row["rel_l2"] for row in rows if row["name"].startswith("128 points")]
    assert coarse[-1] > 10 * coarse[0]
    text = report.page(tmp_path / "results")
    assert "### costs" in text
    assert all(f"| {row['name']} |" in text for row in rows)
    assert out.with_suffix(".png").is_file()
