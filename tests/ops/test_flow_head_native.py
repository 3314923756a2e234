"""The flow head on the CPU: values by the two-reference rule, and bits that depend on nothing but the row."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from enma_fast.config import FlowConfig
from enma_fast.errors import EnmaError
from enma_fast.models.decoders.flow_head import VelocityHead
from enma_fast.ops import _flow_head_native as native
from enma_fast.ops.flow_head import flow_head, flow_head_ref
from enma_fast.ops.flow_plan import FlowPlan, HeadWeights

from .._extension import ISAS, NATIVE, needs_native
from ._oracle import assert_close_as_reference

CORE = Path(__file__).resolve().parents[2] / "csrc" / "core" / "cpu"
CPU = torch.device("cpu")

DTYPES = [torch.float32, torch.bfloat16]

# C, D, W, L
SIZES = {"smallest": (1, 1, 1, 1), "even": (4, 24, 32, 2), "prime": (3, 17, 37, 3), "past-power": (17, 33, 129, 1)}


def make_plan(channels: int, depth: int, width: int, layers: int, *, dtype: torch.dtype, steps: int = 2) -> FlowPlan:
    """A head with weights that let every part of it matter."""
    head = VelocityHead(FlowConfig(width=width, layers=layers, time_features=8), channels, depth)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.7 / width**0.5)
    return head.to(dtype).plan(steps=steps)


def arguments(plan: FlowPlan, rows: int) -> tuple[Tensor, Tensor]:
    weights = plan.weights
    c = torch.randn(rows, weights.condition_weight.shape[1]).to(weights.condition_weight.dtype)
    return c, torch.randn(rows, weights.outward_weight.shape[0])


@needs_native
@pytest.mark.each_value("isa")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_values_by_the_two_reference_rule(isa: str, dtype: torch.dtype, size: str) -> None:
    with torch.inference_mode():
        plan = make_plan(*SIZES[size], dtype=dtype)
        exact_plan = plan.to(torch.float64)
        for rows in (1, 2, 13, 51):
            c, noise = arguments(plan, rows)
            exact = flow_head_ref(c.double(), noise.double(), plan=exact_plan)
            same_dtype = flow_head_ref(c, noise, plan=plan)
            # Threads that share the rows of the call, or its columns.
            for threads in (1, 8):
                ours = native.run(c, noise, plan, isa=isa, threads=threads)
                assert ours.dtype == torch.float32
                assert_close_as_reference(ours, same_dtype, exact, floor=1e-6)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_a_row_depend_on_nothing_else(isa: str, dtype: torch.dtype) -> None:
    rows = 2048
    with torch.inference_mode():
        plan = make_plan(4, 24, 41, 1, dtype=dtype)
        c, noise = arguments(plan, rows)
        whole = native.run(c, noise, plan, isa=isa, threads=1)
        assert torch.equal(whole, native.run(c, noise, plan, isa=isa, threads=1))
        assert torch.equal(whole, native.run(c, noise, plan, isa=isa, threads=2))
        for first, count in ((0, 1), (rows - 1, 1), (7, 2), (5, 3), (90, 17), (100, 31), (3, 49), (1, 129)):
            part = slice(first, first + count)
            # Threads share the columns where they have fewer than about ten rows each.
            for threads in (1, 2, 5, 16):
                ours = native.run(c[part].contiguous(), noise[part].contiguous(), plan, isa=isa, threads=threads)
                assert torch.equal(ours, whole[part]), (first, count, threads)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_a_bad_row_spoils_no_other(isa: str) -> None:
    with torch.inference_mode():
        plan = make_plan(4, 16, 32, 2, dtype=torch.float32)
        c, noise = arguments(plan, 20)
        clean = native.run(c, noise, plan, isa=isa)
        c[7], noise[11, 0] = float("nan"), float("inf")
        ours = native.run(c, noise, plan, isa=isa)
        bad = torch.tensor([7, 11])
        assert not torch.isfinite(ours[bad]).all(dim=1).any()
        good = torch.ones(20, dtype=torch.bool).index_fill(0, bad, False)
        assert torch.equal(ours[good], clean[good])


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_silu_within_two_ulp(isa: str) -> None:
    # A head of width 1 without blocks normalises to 0 and returns its shift, here silu of the condition.
    one, zero = torch.ones(1, 1), torch.zeros(1)
    weights = HeadWeights(
        condition_weight=one,
        condition_bias=zero,
        inward_weight=one,
        inward_bias=zero,
        blocks=(),
        modulation_weight=torch.tensor([[1.0], [0.0]]),
        modulation_bias=torch.zeros(2),
        outward_weight=one,
        outward_bias=zero,
    )
    plan = FlowPlan(weights=weights, time_RW=torch.zeros(1, 1), moves=(1.0,), moves_per_step=1)
    x = torch.cat([torch.linspace(-87, 87, 200_001), torch.randn(50_000), torch.tensor([0.0, -0.0, 1e-30, -1e-30])])
    ours = native.run(x[:, None].contiguous(), torch.zeros(len(x), 1), plan, isa=isa)[:, 0].double()
    exact = torch.nn.functional.silu(x.double())
    ulp = torch.finfo(torch.float32).eps * exact.abs().clamp_min(torch.finfo(torch.float32).tiny)
    assert ((ours - exact).abs() / ulp).max() <= 2
    far = torch.tensor([-1e30, -200.0, -88.5, 89.0, 200.0, 1e30, float("nan")])[:, None]
    y = native.run(far, torch.zeros(len(far), 1), plan, isa=isa)[:, 0]
    assert y[0].isfinite()
    assert y[1:3].abs().max() < 1e-34
    assert torch.equal(y[3:6], far[3:6, 0])
    assert y[6].isnan()


@needs_native
def test_schedules_and_block_counts() -> None:
    with torch.inference_mode():
        for layers, steps in ((0, 1), (1, 3), (4, 5)):
            plan = make_plan(2, 8, 24, layers, dtype=torch.float32, steps=steps)
            for rows in (7, 13):
                c, noise = arguments(plan, rows)
                exact = flow_head_ref(c.double(), noise.double(), plan=plan.to(torch.float64))
                ours = native.run(c, noise, plan, threads=1)
                assert_close_as_reference(ours, flow_head_ref(c, noise, plan=plan), exact, floor=1e-6)


@needs_native
def test_empty_and_packed_once() -> None:
    with torch.inference_mode():
        plan = make_plan(3, 5, 16, 1, dtype=torch.bfloat16)
        assert native.run(*arguments(plan, 0), plan).shape == (0, 3)
        first = plan.packed["native"]
        c, noise = arguments(plan, 2)
        before = native.run(c, noise, plan)
        assert plan.packed["native"] is first
        # Another schedule is another plan.
        other = replace(plan, moves=tuple(2 * move for move in plan.moves))
        assert not torch.equal(native.run(c, noise, other), before)


@needs_native
def test_bad_arguments_are_named() -> None:
    with torch.inference_mode():
        plan = make_plan(3, 5, 16, 1, dtype=torch.float32)
        c, noise = arguments(plan, 4)
        for bad_c, bad_noise, name in (
            (c[:, :4].contiguous(), noise, "c has shape"),
            (c, noise[:3], "noise has shape"),
            (c.double(), noise, "c is"),
            (c, noise.double(), "noise is"),
            (c.T.contiguous().T, noise, "contiguous"),
        ):
            with pytest.raises(ValueError, match=name):
                native.run(bad_c, bad_noise, plan)
        with pytest.raises(ValueError, match="isa 'avx1024'"):
            native.run(c, noise, plan, isa="avx1024")
        with pytest.raises(ValueError, match="threads"):
            native.run(c, noise, plan, threads=-1)
        for isa in {"avx2", "avx512", "avx512_bf16"} - set(ISAS):
            with pytest.raises(ValueError, match=rf"{isa}.*not"):
                native.run(c, noise, plan, isa=isa)


@needs_native
def test_best_isa_is_one_that_runs_here() -> None:
    assert NATIVE.cpu_isa() in ISAS
    assert set(ISAS) <= {"scalar", "avx2", "avx512", "avx512_bf16"}


def test_problems_are_said() -> None:
    assert "float32 and bfloat16" in str(native.problem(CPU, torch.float64))
    assert native.problem(torch.device("cuda"), torch.float32) is not None


def test_gradients_of_the_weights_are_refused_as_those_of_the_inputs():
    head = VelocityHead(FlowConfig(width=32, layers=1, time_features=16), 4, 16)
    plan, c, noise = head.plan(steps=2), torch.randn(3, 16), torch.randn(3, 4)
    with pytest.raises(EnmaError, match="backend 'native'"):
        flow_head(c, noise, plan=plan, backend="native")
    assert flow_head(c, noise, plan=plan, backend="reference").requires_grad
    with torch.no_grad():
        assert flow_head(c, noise, plan=plan, backend="native").shape == noise.shape


def test_the_gradient_of_a_single_weight_is_refused_too():
    head = VelocityHead(FlowConfig(width=32, layers=1, time_features=16), 4, 16).requires_grad_(False)
    c, noise = torch.randn(3, 16), torch.randn(3, 4)
    names = [name for name, _ in head.named_parameters()]
    assert len(names) > 10
    for name in names:
        head.get_parameter(name).requires_grad_(True)
        with pytest.raises(EnmaError, match="backend 'native'"):
            flow_head(c, noise, plan=head.plan(steps=2), backend="native")
        head.get_parameter(name).requires_grad_(False)
    plan = head.plan(steps=2)
    assert flow_head(c, noise, plan=plan, backend="native").shape == noise.shape
