"""flow_head by Triton: values by the two-reference rule, rows that do not see each other, chunks, slices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from enma_fast.errors import EnmaError
from enma_fast.ops import _flow_head_triton
from enma_fast.ops._backend import kernel
from enma_fast.ops._flow_head_triton import REGIMES, problem, regime_of, run
from enma_fast.ops.flow_head import flow_head_ref
from enma_fast.ops.flow_plan import BlockWeights, FlowPlan, HeadWeights
from tests.ops._backends import check_load
from tests.ops._oracle import assert_close_as_reference

pytest.importorskip("triton")

DTYPES = (torch.float32, torch.bfloat16)
# Multiples of the tiles, and not: odd C, D no multiple of 16, W of 16 only.
MIDPOINT = {"C": 4, "D": 32, "W": 32, "L": 1, "moves": (0.25, 0.5, 0.5), "moves_per_step": 2}
EULER = {"C": 5, "D": 29, "W": 48, "L": 2, "moves": (0.4, 0.6), "moves_per_step": 1}
WIDE = {"C": 17, "D": 40, "W": 144, "L": 1, "moves": (0.5, 1.0), "moves_per_step": 2}
NO_BLOCK = {"C": 1, "D": 16, "W": 16, "L": 0, "moves": (1.0,), "moves_per_step": 1}


def make_plan(
    *, C: int, D: int, W: int, L: int, moves: tuple[float, ...], moves_per_step: int, dtype: torch.dtype, seed: int = 0
) -> FlowPlan:
    """Weights of a trained network's size, every bias alive."""
    generator = torch.Generator().manual_seed(C + W + seed)

    def draw(*shape: int) -> Tensor:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def linear(name: str, n: int, k: int) -> dict[str, Tensor]:
        return {f"{name}_weight": draw(n, k), f"{name}_bias": draw(n)}

    blocks = [
        BlockWeights(**linear("modulation", 3 * W, W), **linear("up", W, W), **linear("down", W, W)) for _ in range(L)
    ]
    weights = HeadWeights(
        **linear("condition", W, D),
        **linear("inward", W, C),
        blocks=tuple(blocks),
        **linear("modulation", 2 * W, W),
        **linear("outward", C, W),
    )
    return FlowPlan(weights=weights, time_RW=draw(len(moves), W), moves=moves, moves_per_step=moves_per_step)


def inputs(plan: FlowPlan, rows: int) -> tuple[Tensor, Tensor]:
    """Conditions and noise."""
    generator = torch.Generator().manual_seed(rows)
    like = plan.weights.condition_weight
    c = torch.randn(rows, like.shape[1], generator=generator).to(like)
    return c, torch.randn(rows, plan.weights.inward_weight.shape[1], generator=generator).to(like.device)


def check(plan: FlowPlan, c: Tensor, noise: Tensor, ours: Tensor) -> None:
    """The two-reference rule."""
    exact = flow_head_ref(c.double(), noise.double(), plan=plan.to(torch.float64))
    # A few ulps of the state: where few rows and channels happen to be exact.
    floor = 8 * torch.finfo(c.dtype).eps * max(noise.abs().max().item(), 1.0) / 4
    assert_close_as_reference(ours, flow_head_ref(c, noise, plan=plan), exact, floor=floor)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("head", [MIDPOINT, EULER], ids=["midpoint", "euler"])
def test_values_and_rows(head: dict, regime: str, dtype: torch.dtype, device: torch.device) -> None:
    """Close to the reference; 1, 2 or 17 rows of a batch alone, elsewhere in a tile, have the bits they have in it."""
    plan = make_plan(**head, dtype=dtype).to(device)
    c, noise = inputs(plan, 65)
    ours = run(c, noise, plan, regime=regime)
    check(plan, c, noise, ours)
    for rows in (slice(64, 65), slice(0, 0), slice(13, 30)) if head is MIDPOINT else (slice(40, 42),):
        alone = run(c[rows], noise[rows], plan, regime=regime)
        assert torch.equal(alone, ours[rows]), rows


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("head", [WIDE, NO_BLOCK], ids=["wide", "no block"])
def test_odd_heads(head: dict, regime: str, dtype: torch.dtype, device: torch.device) -> None:
    """More than one column block of statistics with a partial one, more channels than a tile's least; no block."""
    plan = make_plan(**head, dtype=dtype).to(device)
    c, noise = inputs(plan, 2)
    check(plan, c, noise, run(c, noise, plan, regime=regime))


@pytest.mark.parametrize("regime", REGIMES)
def test_repeats(regime: str, device: torch.device) -> None:
    """The same bits again, in memory that is NaN at first; the arguments are left alone."""
    plan = make_plan(**EULER, dtype=torch.bfloat16).to(device)
    c, noise = inputs(plan, 3)
    kept = c.clone(), noise.clone()
    ours = run(c, noise, plan, regime=regime)
    assert torch.equal(run(c, noise, plan, regime=regime), ours)
    assert torch.equal(c, kept[0])
    assert torch.equal(noise, kept[1])


def test_chunks_and_slices(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modulations of few evaluations at a time, rows in slices: the same bits, and as many launches as promised."""
    plan = make_plan(**MIDPOINT, dtype=torch.bfloat16).to(device)
    c, noise = inputs(plan, 7)
    expected = run(c, noise, plan, regime="small")
    head, launches = kernel("flow_head"), []
    for name in ("launch_linear", "launch_inputs", "launch_up", "launch_down_", "launch_move_"):
        launch = getattr(head, name)
        monkeypatch.setattr(head, name, lambda *a, _f=launch, **k: launches.append(0) or _f(*a, **k))
    bytes_per_row = 5 * 32 * 2
    # Chunks of 2 and 1 evaluations; slices of 3, 3 and 1 rows.
    for chunk, rows, chunks, slices in [(2, 7, 2, 1), (1, 3, 3, 3)]:
        monkeypatch.setattr(_flow_head_triton, "CHUNK_BYTES", chunk * rows * bytes_per_row)
        monkeypatch.setattr(_flow_head_triton, "MODULATION_BYTES", rows * bytes_per_row)
        launches.clear()
        assert torch.equal(run(c, noise, plan, regime="small"), expected)
        assert len(launches) == slices * (3 * (2 * 1 + 1) + 2 + 2 * chunks)


def test_regime(device: torch.device) -> None:
    plan = make_plan(**NO_BLOCK, dtype=torch.float32).to(device)
    assert [regime_of(rows) for rows in (1, 512, 513)] == ["small", "small", "medium"]
    c, noise = inputs(plan, 3)
    assert torch.equal(run(c, noise, plan), run(c, noise, plan, regime="small"))
    with pytest.raises(EnmaError, match="regime 'huge'"):
        run(c, noise, plan, regime="huge")


def test_shared_dictionary(device: torch.device) -> None:
    """Weights packed for one dtype are not taken for another, though both plans keep them in one dictionary."""
    plan = make_plan(**NO_BLOCK, dtype=torch.float32).to(device)
    c, noise = inputs(plan, 2)
    run(c, noise, plan)
    other = plan.to(torch.bfloat16)
    other.packed.update(plan.packed)
    check(other, c.bfloat16(), noise, run(c.bfloat16(), noise, other))


def test_weights_are_loaded_where_they_are_packed() -> None:
    plan, other = (make_plan(**EULER, dtype=torch.bfloat16, seed=seed) for seed in range(2))
    check_load("triton", _flow_head_triton.pack, plan, other)


def test_problem(device: torch.device) -> None:
    assert problem(device, torch.bfloat16) is None
    assert "these are float64" in str(problem(device, torch.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("regime", REGIMES)
def test_captured(regime: str) -> None:
    """A CUDA graph of the call gives the same bits for other inputs."""
    device = torch.device("cuda")
    plan = make_plan(**MIDPOINT, dtype=torch.bfloat16).to(device)
    c, noise = inputs(plan, 65)
    other_c, other_noise = inputs(plan, 130)
    expected = run(other_c[:65].contiguous(), other_noise[:65].contiguous(), plan, regime=regime)
    run(c, noise, plan, regime=regime)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(c, noise, plan, regime=regime)
    c.copy_(other_c[:65])
    noise.copy_(other_noise[:65])
    graph.replay()
    assert torch.equal(out, expected)
