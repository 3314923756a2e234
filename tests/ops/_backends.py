"""Implementations of an operator that run here, and what they pack."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from enma_fast.ops.flow_head import load_
from enma_fast.ops.flow_plan import FlowPlan, tensors_of


def usable(name: str, candidates: Mapping[str, str | None]) -> str:
    """The implementation `name`; the test is skipped where the operator says why it cannot run."""
    if candidates[name] is not None:
        pytest.skip(f"{name}: {candidates[name]}")
    return name


def check_load(name: str, pack: Callable[[FlowPlan], Any], plan: FlowPlan, other: FlowPlan) -> None:
    """A plan has the weights of another one in place, also where `pack` has packed them."""
    packed = plan.packed[name] = pack(plan)
    plan.packed["native"] = "packed by the extension, which packs again"
    expected = list(tensors_of(pack(other)))
    there = [x.data_ptr() for x in tensors_of(packed)]
    assert not any(torch.equal(*pair) for pair in zip(plan.tensors(), other.tensors(), strict=True))
    load_(plan, other)
    assert set(plan.packed) == {name}
    assert all(torch.equal(*pair) for pair in zip(tensors_of(plan.packed[name]), expected, strict=True))
    assert [x.data_ptr() for x in tensors_of(plan.packed[name])] == there
    assert all(torch.equal(*pair) for pair in zip(plan.tensors(), other.tensors(), strict=True))
