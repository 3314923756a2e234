"""Latent frames of an ensemble on the CPU, each in one call of the extension: mask steps, flow head and causal step.

`sampling/reference.py` is the reference; `sampling/native.py` puts a model into it. Products are those of `flow_head`,
so a row's bits depend neither on the other rows nor on the threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _flow_head_native
from ._backend import native
from .flow_plan import FlowPlan

MAX_HEAD_DIM = 128


def problem(device: torch.device, dtype: torch.dtype, *, head_dim: int) -> str | None:
    """Why the extension cannot sample with weights of this device, dtype and size of heads."""
    if head_dim > MAX_HEAD_DIM:
        return f"head dim is {head_dim}, the attention kernels take up to {MAX_HEAD_DIM}"
    return _flow_head_native.problem(device, dtype)


def pack(parameters: Mapping[str, Tensor], **options: Any) -> Any:
    """Pack the weights of the transformers, once.

    Parameters
    ----------
    parameters
        Parameters of `models.model.Dynamics` by name, of one dtype, contiguous, without those of the flow heads,
        which the plans hold. An unknown one is refused.
    tokens, heads
        Tokens per frame N, and attention heads.
    concat
        True if the masked transformer reads context and frame as 2N tokens, False if it reads their sum.
    epsilon
        Epsilon of all norms.
    places
        ``[N, D]`` fp32 or None.
    rotary
        Cosines and sines ``[2, frames * N, K/2]`` fp32 for frames 0, 1, ..., or None.
    masked_rotary
        ``[2, R, K/2]`` fp32 for the rows of the masked transformer, or None.
    grid, patch, periodic
        Latent grid, places of a token in each dimension, and which dimensions are periodic: for a local head.
    """
    return native().Sampler(dict(parameters), **options)


def session(packed: Any, plans: Sequence[FlowPlan], **options: Any) -> Any:
    """Memory for one chunk of packed weights: `rows` members of `groups` trajectories; later calls allocate nothing.

    ``start_segment``, ``read`` and ``begin`` prepare it, ``frame`` makes the next latent frame; see
    csrc/core/cpu/sampler.h. `plans` and `counts` have one entry for each mask step, and are empty if a one-pass
    model has no frame 0 to decide. The other options are `prefix_frames`, `own_frames`, `temperature`, `threads`, `isa`
    and `teams`, which is how threads divide a frame: ``one`` team of all, ``each`` its own members, or by size.
    """
    return native().SamplerSession(packed, heads=tuple(map(_flow_head_native.packed, plans)), **options)
