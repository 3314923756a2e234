"""Ways to compute on a GPU that are tried where ENMA_GPU_TRY names them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from enma_fast.errors import EnmaError
from enma_fast.models import field_step
from enma_fast.ops import _backend, _flow_head_cuda, frame_layer
from enma_fast.ops._flow_head_triton import run
from enma_fast.ops.recordings import Recordings
from tests._static import TapeRecorder
from tests._tiny_field import field_model
from tests.ops._cubin import ROOT
from tests.ops.test_flow_head_triton import MIDPOINT, check, inputs, make_plan

pytest.importorskip("triton")


def test_ways_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.WAYS == _backend.WAYS
    monkeypatch.delenv(_backend.TRY, raising=False)
    assert not any(map(_backend.tried, _backend.WAYS))
    monkeypatch.setenv(_backend.TRY, ",".join(_backend.WAYS))
    assert all(map(_backend.tried, _backend.WAYS))
    monkeypatch.setenv(_backend.TRY, "products,graphs")
    with pytest.raises(EnmaError, match=_backend.TRY):
        _backend.tried("products")


def test_products_of_many_rows_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, many = torch.device("cpu"), _backend.LIBRARY_ROWS

    def best(rows: int) -> str:
        return next(iter(frame_layer.candidates(cpu, torch.float32, rows=rows)))

    monkeypatch.delenv(_backend.TRY, raising=False)
    assert best(many) == "triton"
    monkeypatch.setenv(_backend.TRY, "products")
    assert (best(many - 1), best(many), best(0)) == ("triton", "reference", "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modulations_by_the_library(dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(**MIDPOINT, dtype=dtype).to(device)
    c, noise = inputs(plan, 5)
    products: list[int] = []

    def counted(bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        products.append(len(rows))
        return torch.matmul(rows, weight, out=out).add_(bias)

    monkeypatch.setattr(torch, "addmm", counted)
    monkeypatch.setattr(_backend, "LIBRARY_ROWS", 15)
    monkeypatch.setenv(_backend.TRY, "products")
    ours = run(c, noise, plan)
    # All three evaluations of five rows at once.
    assert products == [15]
    check(plan, c, noise, ours)


@pytest.mark.parametrize(
    ("way", "lacks", "group"), [("", None, "best"), ("remote", None, "remote"), ("remote", "no", "best")]
)
def test_the_head_exchanges_as_is_tried(
    way: str, lacks: str | None, group: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def head(
        c: torch.Tensor, noise: torch.Tensor, packed: list[torch.Tensor], sizes: list[int], by: str
    ) -> torch.Tensor:
        asked.append(by)
        return noise

    plan = make_plan(**MIDPOINT, dtype=torch.bfloat16).to(device)
    monkeypatch.setattr(_flow_head_cuda, "problem", lambda device, dtype: None)
    monkeypatch.setattr(_flow_head_cuda, "group_problem", lambda device, plan, group: lacks)
    monkeypatch.setattr(_flow_head_cuda, "native", lambda: SimpleNamespace(flow_head_cuda=head))
    monkeypatch.setenv(_backend.TRY, way)
    c, noise = inputs(plan, 5)
    _flow_head_cuda.run(c, noise, plan)
    _flow_head_cuda.run(c, noise, plan, group="cluster")
    assert asked == [group, "cluster"]


def test_networks_of_fields_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    step = field_model(grid=(8, 6), periodic=(True, False), width=16, layers=2).dynamics.decoder("step").model
    torch.nn.init.normal_(step.network.head.weight)
    x = [torch.randn(3, 8, 6, step.network.channels[0]) for _ in range(4)]
    condition = torch.randn(3, step.network.channels[2])
    recorder = TapeRecorder(monkeypatch)
    recordings = Recordings(recorder)
    # As if it were on a GPU.
    monkeypatch.setattr(field_step, "recordings_of", lambda network, device: recordings)
    with torch.inference_mode():
        expected = [step.network(each, condition) for each in x]
        monkeypatch.delenv(_backend.TRY, raising=False)
        assert torch.equal(field_step.answer(step.network, x[0], condition, None), expected[0])
        monkeypatch.setenv(_backend.TRY, "fields")
        made = [field_step.answer(step.network, each, condition, None) for each in x]
    # All but the first of a shape.
    assert recorder.replays == 3
    for ours, wide in zip(made, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert 0 < float((ours - wide).norm() / wide.norm()) < 2e-2


def early_cases() -> None:
    """Every kernel of a frame, at one size."""
    from tests.ops.test_frame_attention import arguments
    from tests.ops.test_frame_layer import _layer_cases

    frame_layer.triton_problem = lambda device: None
    _layer_cases(1, 16, 4, 32, 256, torch.bfloat16)
    plan = make_plan(**MIDPOINT, dtype=torch.bfloat16)
    run(*inputs(plan, 3), plan)
    own, given = arguments(2, 1, 16, 32, 16, 32, device=torch.device("cpu"), dtype=torch.bfloat16)
    _backend.kernel("frame_attention").launch_frame_attention(*own, **given, out=torch.empty_like(own[0]))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "launches"])
def test_kernels_wait_for_those_before(way: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {_backend.TRY: way}
    command = [sys.executable, "-m", "tests.ops._cubin", "tests.ops.test_gpu_ways:early_cases", "90"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    cubins = json.loads(done.stdout.splitlines()[-1])
    assert len({cubin["kernel"] for cubin in cubins}) == 14
    for cubin in cubins:
        assert cubin["early"] == [bool(way)] * 3, cubin
