"""The curves of a training: read from its log as it grows, and drawn again after each validation."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("matplotlib", reason="needs the [plots] extra")

from enma_fast.drawing.training import TrainingCurve
from enma_fast.errors import EnmaError

STEP = {"step": 10, "lr": 1e-3, "loss": 0.5}
HELD = {"step": 10, "validation": {"rel_l2": 0.4, "rel_l2_ivp": 0.6, "crps": 0.1}}


def write(log: Path, *entries: dict, torn: str = "") -> None:
    with log.open("a") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries) + torn)


def test_the_picture_is_drawn_after_each_validation(tmp_path: Path) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "curve.svg"
    curve = TrainingCurve(log, out)
    assert not curve.refresh()
    write(log, STEP)
    assert not curve.refresh()
    assert not out.exists()
    write(log, HELD, torn='{"step": 20, "loss"')
    assert curve.refresh()
    first = out.read_text()
    write(log, torn=": 0.3}\n")
    write(log, {"step": 20, "validation": {"rel_l2": 0.2, "rel_l2_ivp": 0.3}})
    assert curve.refresh()
    assert not curve.refresh()
    assert out.read_text() != first
    (axes,) = curve.figure().axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {
        "loss of the steps": [[10, 0.5], [20, 0.3]],
        "validation, from observed frames": [[10, 0.4], [20, 0.2]],
        "validation, from one frame and a context": [[10, 0.6], [20, 0.3]],
    }


def test_a_notebook_shows_one_picture_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    cell = SimpleNamespace(update=lambda picture: shown.append(picture.data))

    def display(picture, *, display_id):
        assert display_id
        shown.append(picture.data)
        return cell

    for name in ("IPython", "IPython.display"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(version_info=(9, 0), Image=lambda data: SimpleNamespace(data=data), display=display)
        monkeypatch.setitem(sys.modules, name, module)
    curve = TrainingCurve(tmp_path / "log.jsonl", None)
    for _ in range(2):
        write(curve.log, STEP, HELD)
        assert curve.refresh()
    assert [data[1:4] for data in shown] == [b"PNG", b"PNG"]


def test_another_kind_of_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnmaError, match="picture"):
        TrainingCurve(tmp_path / "log.jsonl", tmp_path / "curve.exe")
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(EnmaError, match=r"curve\.png"):
        TrainingCurve(tmp_path / "log.jsonl", None)
