"""Fourier neural operator of the package `neuraloperator`: three frames to the next one, and so on.

    u_t = u_{t-1} + s FNO((u_{t-3}, u_{t-2}, u_{t-1}) / s),    s the RMS of the training data

It is trained on its own forecasts, of as many frames as the share of the training that is done, up to 6.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from enma_fast.config import ModelConfig
from enma_fast.data import FieldFile
from enma_fast.evaluation.baselines import Method, Observations
from enma_fast.forecasting.request import HISTORY
from enma_fast.utils.extras import load_extra

from .training import batched, of_size, relative_error, schedule

LAYERS = 4
MOST_UNROLLED = 6
WIDTHS = {1: range(24, 161, 4), 2: range(8, 97, 2)}
# Waves kept along a dimension, at most; the paper's FNO keeps 10.
_MODES = {1: 16, 2: 12}


class Fno:
    """See the module."""

    config = schedule(batch=32, learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=50)
    deterministic = True
    tasks = ("temporal",)
    # There are no Fourier transforms in bf16.
    mixed = False

    def __init__(self, reference: ModelConfig, data: FieldFile) -> None:
        self.config = batched(self.config, data, planes=8)
        self.module = of_size(partial(step_network, data), WIDTHS[len(data.u.shape[2:-1])], reference)
        self.scale = float(data.u.std())

    def loss(self, u_BTxc: Tensor, context_BTxc: Tensor | None, share: float, generator: torch.Generator) -> Tensor:
        """Relative error of a forecast from a random frame on."""
        frames = min(1 + int(share * MOST_UNROLLED), u_BTxc.shape[1] - HISTORY)
        first = int(torch.randint(u_BTxc.shape[1] - HISTORY - frames + 1, (), generator=generator))
        truth = u_BTxc[:, first + HISTORY : first + HISTORY + frames]
        made = continued(self.module, u_BTxc[:, first : first + HISTORY], frames, scale=self.scale)
        return relative_error(made, truth)

    def forecast(self) -> Method:
        """One member, the same for every seed."""

        def method(given: Observations) -> Tensor:
            assert given.history is not None
            with torch.inference_mode():
                history = torch.from_numpy(given.history)
                return continued(self.module, history, given.num_frames, scale=self.scale)[:, None]

        return method


def modes(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Waves that are kept along each dimension."""
    return tuple(min(_MODES[len(grid)], n // 2) for n in grid)


def step_network(data: FieldFile, width: int) -> nn.Module:
    """The operator from three frames to the change of the last."""
    channels = data.u.shape[-1]
    network: nn.Module = load_extra("neuralop.models", "baselines").FNO(
        n_modes=modes(data.u.shape[2:-1]),
        in_channels=HISTORY * channels,
        out_channels=channels,
        hidden_channels=width,
        n_layers=LAYERS,
        # A place of its own for each point breaks the symmetry that periodic equations have.
        positional_embedding=None if all(data.periodic) else "grid",
    )
    return network


def continued(module: nn.Module, history_BLxc: Tensor, num_frames: int, *, scale: float) -> Tensor:
    """Frames ``[B, num_frames, *x, c]`` after these, each by the module's change of the last of three before it."""
    frames = list(history_BLxc.unbind(1))
    for _ in range(num_frames):
        seen = torch.cat(frames[-HISTORY:], dim=-1).movedim(-1, 1)
        frames.append(frames[-1] + scale * module(seen / scale).movedim(1, -1))
    return torch.stack(frames[history_BLxc.shape[1] :], 1)
