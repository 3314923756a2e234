"""A fingerprint of the arithmetic that samples members: settings, libraries and processor of this process, by a probe.

Bits of a member depend on more than versions: on the instructions that PyTorch, oneDNN and MKL choose by processor and
environment, on the precision of fp32 products, on autocast. So a made-up member is encoded, sampled and decoded, and
its bits are hashed. A process that would write other bits into a store has another fingerprint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig
from ..forecasting.members import sample_fields
from ..models.model import Model

# Observed frames, of which two latents come; and the variables that libraries read.
_HISTORY = 3
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")

_KNOWN: dict[Hashable, str] = {}


def fingerprint(model: Model, name: str, *, settings: SamplingConfig | None, dtype: torch.dtype | str | None) -> str:
    """The fingerprint of sampling with a model in this process, as it is set now.

    `name` is that of the weights and config, such as their hashes: what is known of it is not probed again. `settings`
    and `dtype` are those of the sampler, the model's own by default.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        # The GPU's name is recorded beside it.
        return ", ".join(settings_here(device.type))
    key = (name, settings, dtype, tuple(settings_here("cpu")), torch.get_num_threads())
    if key not in _KNOWN:
        member = made_up_member(model, settings=settings, dtype=dtype)
        _KNOWN[key] = hashlib.sha256(member.numpy().tobytes()).hexdigest()[:16]
    return _KNOWN[key]


def made_up_member(model: Model, *, settings: SamplingConfig | None, dtype: torch.dtype | str | None) -> Tensor:
    """A frame ``[1, 1, *grid, c]`` after a made-up history, the same on every machine but for rounding."""
    return sample_fields(
        model,
        _history(model),
        num_frames=1,
        num_members=1,
        seed=0,
        trajectories=[0],
        chunk=1,
        settings=settings,
        dtype=dtype,
        warn=False,
        known=_known(model),
    )


def settings_here(device: str) -> list[str]:
    """Settings of the arithmetic that a user can change, as they are in this process."""
    settings = [
        f"float32_matmul_precision {torch.get_float32_matmul_precision()}",
        f"autocast {torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else 'off'}",
        *([] if device != "cpu" or torch.backends.mkldnn.enabled else ["oneDNN off"]),
    ]
    return [*settings, *(f"{name}={os.environ[name]}" for name in _VARIABLES if device == "cpu" and name in os.environ)]


def _known(model: Model) -> dict[str, np.ndarray]:
    """Made-up drivers of all frames of the probe."""
    frames, places = _HISTORY + 1, (1,) * model.config.codec.dims
    return {driver.name: np.full((1, frames if driver.in_time else 1, *places), 0.5) for driver in model.config.known}


def _history(model: Model) -> np.ndarray:
    """Made-up observed frames `[1, L, *x, c]`, the same on every machine."""
    tok = model.config.codec
    shape = (1, _HISTORY, *tok.grid, tok.field_channels)
    # Plain numbers, since libraries round functions differently.
    values = np.arange(int(np.prod(shape))) * 7919 % 1009 / 1009 - 0.5
    return values.astype(np.float32).reshape(shape)
