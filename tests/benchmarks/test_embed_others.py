"""The parts of a model that are exported for other runtimes make the members of the reference."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import embed_others
from benchmarks.embed_others import exported, forecast, started, traced
from benchmarks.forecast import OBSERVED, plain, wave
from benchmarks.libtorch import Program, compiled
from enma_fast.errors import EnmaError

from .._tiny import CONFIGS, model, random_model

MEMBERS = 3


@torch.no_grad()
def test_parts_make_the_members_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_others, "ONNX", ("onnx_that_is_not_there",))
    network = random_model(CONFIGS["relative-fast"])
    observed = wave(network.config)
    expected = plain(network, observed, MEMBERS)
    start = started(network, observed, MEMBERS)
    parts, left_out = exported(network, start, tmp_path)
    assert list(parts) == ["eager", "torchscript"]
    assert left_out == {"onnxruntime": "not installed: pip install onnx_that_is_not_there"}
    for step, decoder in parts.values():
        found = torch.from_numpy(forecast(start, step, decoder, OBSERVED))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_parts_in_onnx(tmp_path: Path) -> None:
    for name in embed_others.ONNX:
        pytest.importorskip(name)
    network = random_model(CONFIGS["relative-fast"])
    observed = wave(network.config)
    start = started(network, observed, MEMBERS)
    parts, left_out = exported(network, start, tmp_path)
    assert not left_out
    found = torch.from_numpy(forecast(start, *parts["onnxruntime"], OBSERVED))
    expected = plain(network, observed, MEMBERS)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_trace_of_one_length_is_refused() -> None:
    class Baked(nn.Module):
        def forward(self, past: Tensor) -> Tensor:
            return past[..., : int(past.shape[4]), :].sum((0, 1, 3, 4, 5))

    past = torch.ones(1, 2, 1, 1, 3, 4)
    with pytest.raises(EnmaError, match="length"):
        traced(Baked(), (past,))


def test_models_of_other_decoders_have_no_such_step() -> None:
    network = model("relative")
    with pytest.raises(EnmaError, match="linear decoder"):
        started(network, wave(network.config), MEMBERS)


def test_a_trace_that_gives_nan_is_refused() -> None:
    class Undefined(nn.Module):
        def forward(self, past: Tensor) -> Tensor:
            return past.sum((0, 1, 3, 4, 5)) * float("nan")

    with pytest.raises(EnmaError, match="length"):
        traced(Undefined(), (torch.ones(1, 2, 1, 1, 3, 4),))


@pytest.mark.slow
@torch.no_grad()
def test_the_program_over_libtorch_makes_the_members_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setattr(embed_others, "ONNX", ("onnx_that_is_not_there",))
    network = random_model(CONFIGS["relative-fast"])
    observed = wave(network.config)
    expected = plain(network, observed, MEMBERS)
    start = started(network, observed, MEMBERS)
    parts, _ = exported(network, start, tmp_path)
    shape = (MEMBERS, network.config.num_frames, *expected.shape[2:])
    with Program(compiled(tmp_path), parts["torchscript"], start.tensors(), tmp_path, shape=shape) as program:
        assert program.forecast() > 0
        assert program.forecast() > 0
        found = torch.from_numpy(program.frames(OBSERVED))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
