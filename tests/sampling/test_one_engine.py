"""Python and libenma read weights and configs in one place: each refuses what the other does, in the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from enma_fast.models.checkpoint import save_model, write_manifest
from enma_fast.ops._backend import native

from .._extension import needs_native
from .._tiny import model as tiny_model
from ..runtime._libenma import Failure, Library
from ..runtime.conftest import library as library

pytestmark = needs_native

Parameters = dict[str, Tensor]
QKV = "dynamics.context.blocks.0.attention.qkv.weight"
BIAS = "codec.conv_in.conv.bias"


def read_in_python(config: str, parameters: Parameters) -> None:
    """As `NativeSampler` and `NativeCodec` do."""
    parts = [{key: p for key, p in parameters.items() if key.startswith(part)} for part in ("codec.", "dynamics.")]
    native().Codec(json.dumps(json.loads(config)["codec"]), parts[0])
    native().Dynamics(config, parts[1], "fp32")


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole.pop(QKV),
        lambda whole: whole.pop(BIAS),
        lambda whole: whole.update({QKV: whole[QKV][:-1].contiguous()}),
        lambda whole: whole.update({BIAS: whole[BIAS][None].clone()}),
        lambda whole: whole.update({"dynamics.gain": torch.ones(2)}),
    ],
    ids=["lacks-qkv", "lacks-bias", "shape-of-qkv", "shape-of-bias", "unknown"],
)
def test_weights(library: Library, tmp_path: Path, change: Callable[[Parameters], None]) -> None:
    save_model(tiny_model("relative-fast"), tmp_path)
    file, config = tmp_path / "model.safetensors", (tmp_path / "config.json").read_text()
    whole = load_file(file)
    read_in_python(config, whole)
    library.open(tmp_path).close()
    change(whole)
    save_file(whole, file)
    write_manifest(tmp_path)
    with pytest.raises(Failure) as in_c:
        library.open(tmp_path)
    with pytest.raises(ValueError, match=r"^parameters: ") as in_python:
        read_in_python(config, whole)
    assert in_c.value.message == str(in_python.value).replace("parameters", str(file), 1)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("context", {"heads": 3}),
        ("step", {"kind": "two-pass"}),
        ("context", {"patch": [3]}),
        ("context", {"gain": 1}),
        ("codec", {"kernel": 4}),
        ("codec", {"grid": [32, 32, 32]}),
        ("sampling", {"flow_steps": 1001}),
    ],
    ids=str,
)
def test_configs(library: Library, tmp_path: Path, part: str, changes: dict[str, Any]) -> None:
    save_model(tiny_model("relative-fast"), tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    document[part] |= changes
    (tmp_path / "config.json").write_text(json.dumps(document))
    write_manifest(tmp_path)
    with pytest.raises(Failure) as in_c:
        library.open(tmp_path)
    whole = {key: p for key, p in load_file(tmp_path / "model.safetensors").items() if key.startswith("dynamics.")}
    with pytest.raises(ValueError, match=r"^config: ") as in_python:
        native().Dynamics(json.dumps(document), whole, "fp32")
    assert in_c.value.message == str(in_python.value).replace("config", str(tmp_path / "config.json"), 1)
