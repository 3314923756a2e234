"""The flow head's CUDA kernels on a GPU: values beside the plain code, bits, graphs and streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enma_fast.ops import _flow_head_cuda
from enma_fast.ops.flow_plan import FlowPlan

from ._flow_head_shim import FLOOR, inputs, make_plan, reference
from ._oracle import assert_close_as_reference

pytestmark = pytest.mark.gpu
PAPER = {"channels": 4, "condition": 512, "width": 512, "blocks": 3, "evaluations": 20, "moves_per_step": 2}


@pytest.fixture
def cuda() -> torch.device:
    """The GPU, if the extension has the kernels."""
    device = torch.device("cuda", torch.cuda.current_device())
    reason = _flow_head_cuda.problem(device, torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)
    return device


def on(device: torch.device, plan: FlowPlan, rows: int) -> tuple[FlowPlan, Tensor, Tensor]:
    """Plan, conditions and noise on `device`."""
    c, noise = inputs(plan, rows)
    return plan.to(device), c.to(device), noise.to(device)


def can_run(device: torch.device, plan: FlowPlan, group: str) -> None:
    """Skip where the GPU has no such group."""
    if reason := _flow_head_cuda.group_problem(device, plan, group):
        pytest.skip(reason)


@pytest.mark.parametrize("group", _flow_head_cuda.GROUPS)
@pytest.mark.parametrize("rows", [0, 1, 7, 17, 129, 1025])
@pytest.mark.parametrize("channels", [4, 64])
def test_values(rows: int, channels: int, group: str, cuda: torch.device) -> None:
    plan, c, noise = on(cuda, make_plan(**PAPER | {"channels": channels}), rows)
    can_run(cuda, plan, group)
    out = _flow_head_cuda.run(c, noise, plan, group=group)
    same_dtype, exact = reference(plan, c, noise)
    assert_close_as_reference(out, same_dtype, exact, floor=FLOOR)


@pytest.mark.parametrize("width", [64, 192, 512, 640, 1024])
@pytest.mark.parametrize("group", _flow_head_cuda.GROUPS)
def test_widths(width: int, group: str, cuda: torch.device) -> None:
    head = PAPER | {"width": width, "blocks": 2, "condition": 264, "evaluations": 4}
    plan, c, noise = on(cuda, make_plan(**head), 33)
    can_run(cuda, plan, group)
    out = _flow_head_cuda.run(c, noise, plan, group=group)
    same_dtype, exact = reference(plan, c, noise)
    assert_close_as_reference(out, same_dtype, exact, floor=FLOOR)


def test_clusters_are_there(cuda: torch.device) -> None:
    if torch.cuda.get_device_properties(cuda).multi_processor_count < 114:
        pytest.skip("a part of a GPU, or one without clusters of 16 blocks")
    plan = make_plan(**PAPER).to(cuda)
    assert [_flow_head_cuda.group_problem(cuda, plan, group) for group in _flow_head_cuda.GROUPS] == [None] * 3


def test_bits(cuda: torch.device) -> None:
    plan, c, noise = on(cuda, make_plan(**PAPER), 200)
    first = _flow_head_cuda.run(c, noise, plan)
    groups = [group for group in _flow_head_cuda.GROUPS if not _flow_head_cuda.group_problem(cuda, plan, group)]
    for group in groups:
        for _ in range(3):
            assert torch.equal(_flow_head_cuda.run(c, noise, plan, group=group), first), group
        for rows in (slice(0, 1), slice(3, 20), slice(199, 200)):
            some = _flow_head_cuda.run(c[rows], noise[rows], plan, group=group)
            assert torch.equal(some, first[rows]), (group, rows)


@pytest.mark.parametrize("group", _flow_head_cuda.GROUPS)
@pytest.mark.parametrize("rows", [5, 700])
def test_graph_replays(rows: int, group: str, cuda: torch.device) -> None:
    plan, c, noise = on(cuda, make_plan(**PAPER), rows)
    can_run(cuda, plan, group)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _flow_head_cuda.run(c, noise, plan, group=group)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = _flow_head_cuda.run(c, noise, plan, group=group)
    for seed in (5, 6, 7):
        other_c, other_noise = inputs(plan, rows, seed=seed)
        c.copy_(other_c)
        noise.copy_(other_noise)
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, _flow_head_cuda.run(c, noise, plan, group=group))


@pytest.mark.parametrize("group", _flow_head_cuda.GROUPS)
def test_streams_at_once(group: str, cuda: torch.device) -> None:
    plan, c, noise = on(cuda, make_plan(**PAPER), 64)
    can_run(cuda, plan, group)
    expected = _flow_head_cuda.run(c, noise, plan, group=group)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    outs = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                outs.append(_flow_head_cuda.run(c, noise, plan, group=group))
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected) for out in outs)
