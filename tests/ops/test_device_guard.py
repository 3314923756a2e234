"""Triton launches on the current device: every operator makes that of its tensors current, and so does the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from enma_fast.ops import _backend, implementations
from enma_fast.ops.flow_head import flow_head
from enma_fast.ops.frame_attention import frame_attention
from enma_fast.ops.frame_layer import attend, heads_, residual, swiglu
from enma_fast.ops.frame_rows import frame_noise, mask_steps, read, rows_, shifted_
from enma_fast.ops.philox_normal import philox_normal
from enma_fast.ops.point_attention import point_attention
from enma_fast.ops.rms_norm import rms_norm, sum_rms_norm
from enma_fast.sampling.engine import Engine
from enma_fast.sampling.static_step import StaticStep

from .._static import LATENTS, build, problem
from .test_frame_layer import layer_of

pytestmark = pytest.mark.skipif(not _backend.interpreted(), reason="the interpreter launches where the tensors are")


class Guard:
    """Stands in for `torch.cuda.device_of`, and counts kernels that were launched inside and outside of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import GridExecutor

        self.depth = self.inside = self.outside = 0
        launch = GridExecutor.__call__

        def counted(executor: Any, *arguments: Any, **options: Any) -> Any:
            self.inside += self.depth > 0
            self.outside += self.depth == 0
            return launch(executor, *arguments, **options)

        monkeypatch.setattr(GridExecutor, "__call__", counted)
        monkeypatch.setattr(torch.cuda, "device_of", self.of)

    @contextlib.contextmanager
    def of(self, tensor: torch.Tensor) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    return Guard(monkeypatch)


def _frame_attention() -> None:
    q = torch.randn(2, 2, 4, 16)
    own = {"cache": torch.randn(2, 2, 2, 8, 16), "prefix": torch.randn(2, 1, 2, 8, 16)}
    own |= dict.fromkeys(("length", "prefix_length"), torch.tensor(8))
    frame_attention(q, q, q, **own, backend="triton")


def _point_attention() -> None:
    q, k = torch.randn(1, 2, 5, 16, requires_grad=True), torch.randn(1, 2, 7, 16)
    places = {"query_points": torch.rand(5, 1), "points": torch.rand(7, 1), "slopes": torch.ones(2), "periods": (None,)}
    point_attention(q, k, k, **places, backend="triton").sum().backward()


def _rms_norm() -> None:
    x = torch.randn(3, 16, requires_grad=True)
    rms_norm(x, torch.ones(16), eps=1e-5, backend="triton").sum().backward()
    sum_rms_norm(x.detach(), x.detach(), torch.ones(16), eps=1e-5, backend="triton")


def _flow_head() -> None:
    plan = build("paper").step.velocity.plan(steps=1)
    flow_head(torch.randn(2, 32), torch.randn(2, 4), plan=plan, backend="triton")


def _philox_normal() -> None:
    words = {"seed": 1, "members": torch.arange(2), "frame": 0, "mask_step": 0}
    philox_normal(**words, tokens=torch.arange(3), channels=4, backend="triton")


def _frame_layer() -> None:
    layer, x = layer_of(2, 16, 8), torch.randn(1, 4, 32)
    q, kv = x.new_empty(1, 4, 2, 16), x.new_empty(2, 1, 4, 2, 16)
    heads_(x, layer, q=q, kv=kv, backend="triton")
    h = residual(x, attend(q, *kv, backend="triton"), layer.out, backend="triton")
    residual(h, swiglu(h, layer, backend="triton"), layer.down, backend="triton")


def _frame_rows() -> None:
    x, weight, words = torch.empty(1, 4, 32), torch.randn(32, 3), torch.arange(1)
    rows_(x, base_D=weight[:, 0], z_BMC=torch.randn(1, 4, 3), weight_DC=weight, backend="triton")
    read(x, weight.t().contiguous(), weight[0], backend="triton")
    shifted_(x, x.clone(), x, weight.t().contiguous(), torch.randn(64, 3), torch.randn(64), backend="triton")
    given = {"steps": mask_steps((4,), words.device), "channels": 3, "dtype": torch.float32}
    frame_noise(seeds=words, members=words, frame=words[0], **given, backend="triton")


CALLS: dict[str, Callable[[], None]] = {
    "frame_attention": _frame_attention,
    "point_attention": _point_attention,
    "rms_norm": _rms_norm,
    "flow_head": _flow_head,
    "philox_normal": _philox_normal,
    "frame_layer": _frame_layer,
    "frame_rows": _frame_rows,
}


def test_every_operator_with_kernels_of_triton_is_here() -> None:
    found = implementations(torch.device("cpu"), torch.float32)
    assert set(CALLS) == {name for name, candidates in found.items() if "triton" in candidates}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_launches_on_the_device_of_its_tensors(name: str, guard: Guard) -> None:
    CALLS[name]()
    assert guard.inside > 0
    assert guard.outside == 0


def test_the_guard_sees_a_launch_without_one(guard: Guard) -> None:
    q = torch.randn(1, 1, 4, 16)
    buffers = dict.fromkeys(("cache", "prefix"), torch.stack([q, q]))
    lengths = dict.fromkeys(("length", "prefix_length"), torch.tensor(4))
    _backend.kernel("frame_attention").launch_frame_attention(q, q, q, **buffers, **lengths, out=torch.empty_like(q))
    assert (guard.inside, guard.outside) == (0, 1)


def test_the_engine_holds_the_device_while_it_computes_and_never_between(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamics = build("paper")
    given = problem(dynamics, "temporal")
    held = []
    for name in ("__init__", "begin", "run"):
        run = getattr(StaticStep, name)

        def watched(*arguments: Any, _run: Any = run, _name: str = name, **options: Any) -> Any:
            held.append((_name, guard.depth > 0))
            return _run(*arguments, **options)

        monkeypatch.setattr(StaticStep, name, watched)
    frames = Engine(dynamics, backend="static").trajectory(
        given.segments,
        num_latents=LATENTS,
        seeds=given.seeds,
        members=given.members,
        groups=torch.arange(given.groups).repeat_interleave(2),
    )
    for _ in frames:
        assert guard.depth == 0
    # One run of every kind of frame compiles its kernels: a frame that is fed back, and the last one.
    compiled = [("run", True)] * 2
    assert held == [("__init__", True), *compiled, ("begin", True)] + [("run", True)] * (LATENTS - given.first)
    assert guard.outside == 0
