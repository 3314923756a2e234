"""Plan of the flow-matching head: its weights and a fixed schedule of evaluations.

Legend: C token channels, D width of the condition, W width of the head, R evaluations of the velocity (two per midpoint
step, one per Euler step).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockWeights:
    """One modulated block; rows of the modulation are shift, scale, gate."""

    modulation_weight: Tensor  # [3W, W]
    modulation_bias: Tensor  # [3W]
    up_weight: Tensor  # [W, W]
    up_bias: Tensor  # [W]
    down_weight: Tensor  # [W, W]
    down_bias: Tensor  # [W]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadWeights:
    """Weights of the velocity network, as stored (out, in), all of one dtype and device."""

    condition_weight: Tensor  # [W, D]
    condition_bias: Tensor  # [W]
    inward_weight: Tensor  # [W, C]
    inward_bias: Tensor  # [W]
    blocks: tuple[BlockWeights, ...]
    modulation_weight: Tensor  # [2W, W], rows are shift, scale
    modulation_bias: Tensor  # [2W]
    outward_weight: Tensor  # [C, W]
    outward_bias: Tensor  # [C]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowPlan:
    """Weights and a fixed schedule of evaluations; `packed` keeps the weights as each implementation packed them.

    Packed weights are a copy: make a new plan after the weights have changed, or `flow_head.load_` them.
    """

    weights: HeadWeights
    time_RW: Tensor  # time embedding at each evaluation
    moves: tuple[float, ...]  # step h_k of each evaluation, from where its step started
    moves_per_step: int  # 1 Euler, 2 midpoint
    packed: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)

    def tensors(self) -> Iterator[Tensor]:
        """The weights and the time embedding."""
        yield from tensors_of(self.weights)
        yield self.time_RW

    def to(self, to: torch.dtype | torch.device) -> FlowPlan:
        """The same plan with all weights in another dtype or on another device; nothing is packed."""
        return dataclasses.replace(self, weights=_converted(self.weights, to), time_RW=self.time_RW.to(to))


def tensors_of(weights: Any) -> Iterator[Tensor]:
    """The tensors of dataclasses, tuples and lists of them."""
    if isinstance(weights, Tensor):
        yield weights
        return
    listed = isinstance(weights, tuple | list)
    for part in weights if listed else [getattr(weights, f.name) for f in dataclasses.fields(weights)]:
        yield from tensors_of(part)


def _converted(weights: Any, to: torch.dtype | torch.device) -> Any:
    if isinstance(weights, Tensor):
        return weights.to(to)
    if isinstance(weights, tuple):
        return tuple(_converted(part, to) for part in weights)
    fields = dataclasses.fields(weights)
    return type(weights)(**{f.name: _converted(getattr(weights, f.name), to) for f in fields})
