"""A training of a field model that was stopped goes on on another machine, with other threads and instruction sets.

The plan, the splits, the floor, the number format and the numbers drawn in each step stay the same to the bit. Weights
are the same to the bit on the same machine only, and within rounding on another one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.models.checkpoint import load_model
from enma_fast.training import own_model, run
from enma_fast.training.own_model import prepare_own, train_own
from enma_fast.training.own_plan import Request
from enma_fast.training.state import STATE

from .._own import save, steepened
from ._run import assert_same_run, options, read_log, stepped

ROOT = Path(__file__).resolve().parents[2]
# An older processor: PyTorch without vectors, and the extension with half as wide ones.
ELSEWHERE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "ENMA_ISA": "avx2"}
STEPS = 24


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "waves.h5", steepened(40), environment=np.arange(20).repeat(2).tolist())


def elsewhere(*arguments: object) -> str:
    """Standard output of a command on the other machine."""
    command = [sys.executable, "-m", "enma_fast", *map(str, arguments), "--threads", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ELSEWHERE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.slow
def test_as_many_steps_give_the_same_weights_elsewhere_up_to_rounding(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    recipe = stepped(source, data, steps=STEPS)
    settings = {"validate_every": None}
    whole = run.train(recipe, options=options(tmp_path / "whole", **settings), data_dir=data)
    # Members are trained from step 17 on.
    assert run.train(recipe, options=options(tmp_path / "parts", stop_after=18, **settings), data_dir=data) is None
    shutil.copytree(tmp_path / "parts", tmp_path / "moved")
    assert run.train(recipe, options=options(tmp_path / "parts", **settings), data_dir=data) is not None
    assert_same_run(tmp_path / "parts" / "field", tmp_path / "whole" / "field")
    elsewhere("train", tmp_path / "steps.toml", "--data", data, "--out", tmp_path / "moved", "--precision", "fp32")
    assert whole is not None
    found = load_model(tmp_path / "moved").state_dict()
    differ = []
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        differ.append(not torch.equal(found[name], value))
    assert any(differ), "the other machine rounds as this one does, so nothing was tested"


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_elsewhere_with_a_model(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, out = Request(minutes=0.4), tmp_path / "run"
    plan = prepare_own(source, out, request)
    before = contents(out / "data") | contents(out / "field") | {"plan": (out / "plan.json").read_bytes()}

    def stop(done: float, total: float, note: str) -> None:
        if (out / "field" / STATE).is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(own_model, "_SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_own(plan, out, command="enma-fast train", progress=stop)
    begun = read_log(out / "field")
    precision = json.loads((out / "run.json").read_text())["precision"]
    result = json.loads(elsewhere("train", source, "--out", out, "--minutes", request.minutes))
    steps = [entry["step"] for entry in read_log(out / "field")]
    assert steps == sorted(steps)
    assert steps[-1] > max(entry["step"] for entry in begun)
    assert read_log(out / "field")[: len(begun) - 1] == begun[:-1]
    after = contents(out / "data") | contents(out / "field") | {"plan": (out / "plan.json").read_bytes()}
    assert all(after[name] == content for name, content in before.items())
    assert result["training"]["precision"] == precision
    for row in result["rows"]:
        assert row["rel_l2"] < row["methods"]["damped persistence"]["rel_l2"]
    assert load_model(out).config.context.floor == result["floor"]
