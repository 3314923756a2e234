"""GINO of the package `neuraloperator`: scattered points to the grid, frame by frame, and an FNO from frame to frame.

    v_t = s GINO(u_t / s at the points of frame t)  on the grid, for the three observed frames
    v_t = v_{t-1} + s FNO((v_{t-3}, v_{t-2}, v_{t-1}) / s)  for later ones,    s the RMS of the training data

Both are trained together: on what GINO makes of the observed frames, each seen at points of its own, and on the
forecast from them, which grows longer as that of the baseline `fno`. In a batch all trajectories have the same points,
as GINO asks for. A periodic dimension is a circle to it, so that neighbours are found around it.

Legend: B trajectories, L observed frames, P points, c channels; `*x` the grid, X its points in a row.
"""

from __future__ import annotations

import contextlib
import io
import math

import torch
from torch import Tensor, nn

from enma_fast.config import ModelConfig
from enma_fast.data import FieldFile
from enma_fast.data.selection import share_of
from enma_fast.evaluation.baselines import Method, Observations
from enma_fast.forecasting.request import HISTORY
from enma_fast.utils.extras import load_extra

from .fno import LAYERS, MOST_UNROLLED, WIDTHS, continued, modes, step_network
from .training import of_size, relative_error, schedule

# Shares of the points in training, as those of this library's models that read points.
_SHOWN = (0.2, 1.0)
# Neighbourhoods of the two integrals, in parts of the domain; of 0.05, 0.08 and 0.14 the first reconstructs best.
_RADIUS_IN, _RADIUS_OUT = 0.05, 0.03
# Frequencies of the embedding of a coordinate, up to 2^4 pi.
_FREQUENCIES = 5


class Gino:
    """See the module."""

    config = schedule(batch=8, learning_rate=4e-3, final_learning_rate=1e-5, warmup_steps=50)
    deterministic = True
    tasks = ("temporal",)
    # There are no Fourier transforms in bf16.
    mixed = False

    def __init__(self, reference: ModelConfig, data: FieldFile) -> None:
        neuralop = load_extra("neuralop.models", "baselines")
        # Its own reduction without torch-scatter goes through the points one by one.
        load_extra("neuralop.layers.integral_transform", "baselines").segment_csr = reduced
        self.grid, channels = tuple(data.u.shape[2:-1]), data.u.shape[-1]
        self.places = _coordinates(self.grid, data.periodic)

        def make(width: int) -> nn.Module:
            # It prints that coordinates of a circle are more than the dimensions of its grid.
            with contextlib.redirect_stdout(io.StringIO()):
                to_grid = neuralop.GINO(
                    in_channels=channels,
                    out_channels=channels,
                    gno_coord_dim=self.places.shape[-1],
                    in_gno_radius=_RADIUS_IN,
                    out_gno_radius=_RADIUS_OUT,
                    in_gno_pos_embed_type="nerf",
                    out_gno_pos_embed_type="nerf",
                    gno_embed_channels=_FREQUENCIES,
                    fno_in_channels=width,
                    fno_n_modes=modes(self.grid),
                    fno_hidden_channels=width,
                    fno_n_layers=LAYERS,
                    in_gno_channel_mlp_hidden_layers=[80, 80, 80],
                    out_gno_channel_mlp_hidden_layers=[80, 80],
                    gno_use_open3d=False,
                    gno_use_torch_scatter=False,
                )
            return nn.ModuleDict({"to_grid": to_grid, "step": step_network(data, width)})

        self.module = of_size(make, WIDTHS[len(self.grid)], reference)
        self.scale = float(data.u.std())

    def loss(self, u_BTxc: Tensor, context_BTxc: Tensor | None, share: float, generator: torch.Generator) -> Tensor:
        """Relative errors of the observed frames on the grid, and of a forecast from them, from a random frame on."""
        frames = min(1 + int(share * MOST_UNROLLED), u_BTxc.shape[1] - HISTORY)
        first = int(torch.randint(u_BTxc.shape[1] - HISTORY - frames + 1, (), generator=generator))
        seen, truth = u_BTxc[:, first : first + HISTORY + frames].split([HISTORY, frames], 1)
        low, high = _SHOWN
        made = []
        for u_BXc in seen.flatten(2, -2).unbind(1):
            count = share_of(u_BXc.shape[1], low + (high - low) * float(torch.rand((), generator=generator)))
            index = torch.randperm(u_BXc.shape[1], generator=generator)[:count]
            made.append(self.on_grid(u_BXc[:, index], index))
        history = torch.stack(made, 1)
        forecast = continued(self.module["step"], history, frames, scale=self.scale)
        return relative_error(history, seen) + relative_error(forecast, truth)

    def on_grid(self, u_BPc: Tensor, index_P: Tensor) -> Tensor:
        """Fields ``[B, *x, c]`` of which the points of these numbers are seen, the same of all of them."""
        whole = self.places.flatten(0, -2)
        made = self.module["to_grid"](
            input_geom=whole[index_P][None],
            latent_queries=self.places[None],
            output_queries=whole[None],
            x=u_BPc / self.scale,
        )
        return self.scale * made.unflatten(1, self.grid)

    def forecast(self) -> Method:
        """One member, the same for every seed, of frames that are seen at all points of the grid."""

        def method(given: Observations) -> Tensor:
            assert given.history is not None
            history = torch.from_numpy(given.history).flatten(2, -2)
            everywhere = torch.arange(history.shape[2]).expand(history.shape[1], -1)
            return self.from_points(history, everywhere, given.num_frames)[:, None]

        return method

    @torch.inference_mode()
    def from_points(self, u_BLPc: Tensor, index_LP: Tensor, num_frames: int) -> Tensor:
        """Frames ``[B, num_frames, *x, c]`` after those that are seen at these points."""
        seen = zip(u_BLPc.unbind(1), index_LP, strict=True)
        history = torch.stack([self.on_grid(u, index) for u, index in seen], 1)
        return continued(self.module["step"], history, num_frames, scale=self.scale)


def reduced(src: Tensor, indptr: Tensor, reduction: str, use_scatter: bool = False) -> Tensor:
    """Sums or means ``[(B,) n, c]`` of rows of ``src`` ``[(B,) N, c]``, of which group i begins at ``indptr[i]``.

    As `neuralop.layers.segment_csr`, whose ``indptr`` of a batch is that of its first element for all, at once.
    """
    begins = indptr[0] if indptr.ndim == 2 else indptr
    counts = begins.diff()
    group = torch.arange(len(counts), device=src.device).repeat_interleave(counts)
    out = src.new_zeros(*src.shape[:-2], len(counts), src.shape[-1]).index_add(-2, group, src)
    return out / counts.clamp(min=1)[:, None] if reduction == "mean" else out


def _coordinates(grid: tuple[int, ...], periodic: tuple[bool, ...]) -> Tensor:
    """Places ``[*x, k]``, in which neighbours are as far apart as parts of the domain: a circle has two coordinates."""
    axes: list[list[Tensor]] = []
    for n, ring in zip(grid, periodic, strict=True):
        if ring:
            angle = 2 * math.pi * torch.arange(n) / n
            axes.append([angle.cos() / (2 * math.pi), angle.sin() / (2 * math.pi)])
        else:
            axes.append([torch.linspace(0, 1, n)])
    columns = []
    for i, along in enumerate(axes):
        shape = [-1 if j == i else 1 for j in range(len(grid))]
        columns += [x.view(shape).expand(grid) for x in along]
    return torch.stack(columns, -1)
