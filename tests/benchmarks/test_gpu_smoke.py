"""The first minute of a GPU, rehearsed on the CPU: every check gives a row, at once, whatever fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cases, gpu_fields, gpu_smoke
from benchmarks.gpu_smoke import Rungs
from enma_fast.ops import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def rows_of(path: Path) -> dict[str, dict]:
    return {row.pop("what"): row for row in json.loads(path.read_text())}


def test_every_operator_has_a_check() -> None:
    assert set(gpu_smoke.operators()) == set(OPERATORS)


@pytest.mark.parametrize("name", ["rms_norm", "frame_layer", "philox_normal", "frame_rows", "self_attention", "swiglu"])
def test_a_check_compares_with_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_smoke, "CALLS", 1)
    if name in cases.CASES:
        monkeypatch.setitem(cases.CASES, name, (cases.CASES[name][0], (2,)))
    with torch.no_grad():
        row = gpu_smoke.operators()[name](CPU)
    assert row["ok"]
    assert 0 <= row["error"] <= row["allowed_error"]
    assert row["ms"] > 0
    assert not gpu_smoke.agreement(torch.ones(2), torch.zeros(2).double(), row["allowed_error"])["ok"]


def test_a_member_by_each_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_smoke, "CALLS", 1)
    rungs = Rungs("combined-fast")
    with torch.no_grad():
        first, *others = (rungs.check(rung)(CPU) for rung in ("eager", None, "graph"))
    # On a CPU there is one way.
    for other in others:
        assert other["backend"] == first["backend"]
        assert other["distance"] < 1e-6
    assert "ENMA_GPU" not in os.environ
    assert first["ok"]
    assert first["ms_per_frame"] > 0
    rungs.expected = -rungs.expected
    with torch.no_grad():
        assert not rungs.check("static")(CPU)["ok"]


def test_a_row_for_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def fails(device: torch.device) -> dict:
        seen.append(len(json.loads((tmp_path / "results.json").read_text())))
        raise ImportError("No module named 'pydantic'\nlong")

    found = {"good": lambda device: {"ok": True, "error": 0.5}, "bad": fails, "late": lambda device: {"ok": True}}
    monkeypatch.setattr(gpu_smoke, "checks", lambda: iter(found.items()))
    monkeypatch.setattr(gpu_smoke, "unpack_wheels", lambda: None)
    clock = iter((0.0, 1.0, 2.0, 60.0))
    monkeypatch.setattr(gpu_smoke.time, "monotonic", lambda: next(clock))
    assert gpu_smoke.run(tmp_path / "results.json", device="cpu", seconds=50.0) == 1
    rows = rows_of(tmp_path / "results.json")
    # What is missing comes before anything else, and each row is there before the next check.
    assert list(rows) == ["packages", "machine", "good", "bad", "late"]
    assert seen == [3]
    assert rows["bad"] == {"part": "smoke", "ok": False, "failed": "ImportError: No module named 'pydantic'"}
    assert "left_out" in rows["late"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(rows)


def test_missing_packages_are_named_without_them(tmp_path: Path) -> None:
    """As on a bare machine: no package but the standard library, and no wheels."""
    out = tmp_path / "results.json"
    code = (
        "import sys; from pathlib import Path; from benchmarks import gpu_smoke; "
        f"gpu_smoke.WHEELS = gpu_smoke.SITE = Path({str(tmp_path / 'wheels')!r}); sys.exit(gpu_smoke.main())"
    )
    command = [sys.executable, "-S", "-c", code, "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    rows = rows_of(out)
    assert {"torch", "pydantic", "numpy"} <= set(rows["packages"]["missing"])
    assert "torch" in rows["imports"]["failed"]
    assert done.stdout.startswith("packages")


def test_a_field_model_is_timed_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_fields, "FRAMES", 3)
    sizes = {"grid": (16, 16), "periodic": (True, True), "width": 8, "layers": 2}
    row = gpu_fields.measure(2, CPU, rounds=1, sizes=sizes)
    assert row["ok"]
    assert (row["members"], row["frames"], len(row["seconds"])) == (2, 3, 1)
    assert row["member_s"] == row["seconds"][0] / 2
