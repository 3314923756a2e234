"""`enma-fast info` and `verify`."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import enma_fast
from enma_fast.cli import main
from enma_fast.models.checkpoint import available, load_model, sha256
from enma_fast.training.recipes import RECIPES

from .._extension import needs_native


@pytest.fixture(scope="module")
def information() -> tuple[dict[str, Any], str]:
    """What `info` gives as JSON, and shows."""
    outputs = []
    for options in (["--json"], []):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            assert main(["info", *options]) == 0
        outputs.append(stream.getvalue())
    return json.loads(outputs[0]), outputs[1]


def test_info(information: tuple[dict[str, Any], str]) -> None:
    result, shown = information
    assert enma_fast.__version__ == (result["versions"]["enma-fast"] or "0+unknown")
    assert result["versions"]["torch"] == torch.__version__
    assert result["machine"]["cores"] >= 1
    assert (result["machine"]["gpu"] is None) == (not torch.cuda.is_available())
    assert set(result["recipes"]) == set(RECIPES)
    models = {entry["name"]: entry for entry in result["checkpoints"]}
    shipped = sum(p.numel() for p in load_model("combined-small").parameters())
    assert models["combined-small"]["num_parameters"] == shipped
    assert models["combined-small"]["bytes"] < 12e6
    assert f"{shipped:,}" in shown
    assert torch.__version__ in shown
    assert "combined-small" in shown


@needs_native
def test_info_names_the_engine_of_field_models(information: tuple[dict[str, Any], str]) -> None:
    result, shown = information
    rows = {row["axes"]: row for row in result["field_models"]}
    assert {axes: row["engine"] for axes, row in rows.items()} == {1: "native", 2: "native", 3: "reference"}
    assert rows[1]["problem"] is rows[2]["problem"] is None
    assert "three axes" in rows[3]["problem"]
    assert "field models" in shown


def test_an_extra_is_named_with_its_brackets(enma: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"triton": "pip install 'enma-fast[triton]'", "reference": None}
    monkeypatch.setattr("enma_fast.ops.implementations", lambda device, dtype: {"a": missing})
    assert "enma-fast[triton]" in enma("info").out


def test_info_says_how_many_trajectories_and_members_a_score_has(information: tuple[dict[str, Any], str]) -> None:
    lines = information[1].splitlines()
    (head,) = [line for line in lines if "trajectories" in line]
    assert head.split()[-4:] == ["trajectories", "members", "rel.", "L2"]
    rows: dict[str, list[tuple[str, ...]]] = {}
    for line in lines[lines.index(head) : lines.index("recipes")]:
        # A model's name stands in its first row only.
        model = next((name for name in available() if line.split()[:1] == [name]), None)
        if model is not None:
            rows[model] = []
        if " temporal " in line:
            list(rows.values())[-1].append(tuple(line.split()[-5:-1]))
    assert list(rows) == available()
    assert all(len(set(found)) == len(found) > 1 for found in rows.values())


def test_verify_lists_every_file(enma: Callable, tiny: Path) -> None:
    result = enma("verify", tiny, "--json").json
    assert result["kind"] == "model"
    assert result["num_parameters"] == sum(p.numel() for p in load_model(tiny).parameters())
    assert set(result["files"]) == {"config.json", "model.safetensors", "README.md"}
    for name, entry in result["files"].items():
        assert entry == {"bytes": (tiny / name).stat().st_size, "sha256": sha256(tiny / name)}
        assert entry["sha256"] in enma("verify", tiny).out


def test_verify_the_shipped_model_by_name(enma: Callable) -> None:
    assert enma("verify", "combined-small", "--json").json["kind"] == "model"


def test_verify_finds_every_kind_of_damage(enma: Callable, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"

    def fresh() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(tiny, folder))

    for name in ("model.safetensors", "config.json", "README.md"):
        data = bytearray((fresh() / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        assert enma("verify", folder).error() == (
            f"{folder / name}: SHA-256 differs from manifest.json; copy the checkpoint again"
        )
        (fresh() / name).write_bytes(data[:-1])
        expected = f"{folder / name}: {len(data) - 1} bytes, {len(data)} expected; copy the checkpoint again"
        assert enma("verify", folder).error() == expected
        (fresh() / name).unlink()
        assert enma("verify", folder).error() == f"{folder / name}: missing; copy the checkpoint again"
    (fresh() / "manifest.json").write_text("{}")
    assert enma("verify", folder).error() == f"{folder / 'manifest.json'}: not a manifest; copy the checkpoint again"
    manifest = json.loads((fresh() / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert "format 99" in enma("verify", folder).error()


def test_version_and_short_help(enma: Callable) -> None:
    assert enma("--version").out == f"enma-fast {enma_fast.__version__}\n"
    assert "Usage: enma-fast forecast" in enma("forecast", "-h").out
