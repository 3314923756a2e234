"""Layers of the paper's codec: convolutions over space and time, causal in time.

Legend: B batch, T frames, c channels; `*x` space.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...config import ConvConfig
from ...config_codecs import KERNEL
from ..layers import pad_space


class CausalConv(nn.Module):
    """Convolution over time and space: zeros before the first frame, nothing from later ones, "same" in space."""

    def __init__(
        self,
        inward: int,
        outward: int,
        config: ConvConfig,
        *,
        kernel: int,
        kernel_time: int = 1,
        stride: int = 1,
        stride_time: int = 1,
    ) -> None:
        super().__init__()
        conv = {1: nn.Conv2d, 2: nn.Conv3d}[config.dims]
        self.periodic = config.periodic
        self.pad_space, self.pad_time = kernel // 2, kernel_time - 1
        self.conv: nn.Module = conv(
            inward,
            outward,
            kernel_size=(kernel_time, *(kernel,) * config.dims),  # type: ignore[arg-type]
            stride=(stride_time, *(stride,) * config.dims),  # type: ignore[arg-type]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = pad_space(x, self.pad_space, self.periodic)
        if self.pad_time:
            x = F.pad(x, [0, 0] * len(self.periodic) + [self.pad_time, 0])
        return self.conv(x)


class Residual(nn.Module):
    """x + gate(y) * y with y = linear(elu(conv(x))); the gate is a global-context squeeze over each frame.

    Structure as in magvit2-pytorch and GCNet; the gate starts at 1/2 where magvit2's starts at 5e-5, which takes
    thousands of steps to open.
    """

    def __init__(self, inward: int, outward: int, config: ConvConfig) -> None:
        super().__init__()
        self.conv = CausalConv(inward, outward, config, kernel=KERNEL, kernel_time=KERNEL)
        self.linear = nn.Linear(outward, outward)
        self.attend = nn.Linear(outward, 1)
        hidden = max(16, outward // 2)
        last = nn.Linear(hidden, outward)
        self.squeeze = nn.Sequential(nn.Linear(outward, hidden), nn.LeakyReLU(0.1), last)
        self.skip = nn.Linear(inward, outward) if inward != outward else nn.Identity()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.conv(x)).movedim(1, -1)
        y = F.elu(self.linear(y))
        flat = y.flatten(2, -2)
        pooled = (self.attend(flat).softmax(2) * flat).sum(2)
        gate = self.squeeze(pooled).sigmoid()
        y = y * gate.view(*gate.shape[:2], *(1,) * (y.ndim - 3), -1)
        return (y + self.skip(x.movedim(1, -1))).movedim(-1, 1)


class ExpandSpace(nn.Module):
    """Multiplies every space dimension by f: convolution to f^d times the channels, then depth to space."""

    def __init__(
        self, inward: int, outward: int, config: ConvConfig, *, kernel: int, kernel_time: int = 1, factor: int = 2
    ) -> None:
        super().__init__()
        self.dims, self.factor = config.dims, factor
        outward *= factor**config.dims
        self.conv = CausalConv(inward, outward, config, kernel=kernel, kernel_time=kernel_time)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        B, _, T, *grid = y.shape
        y = y.view(B, -1, *(self.factor,) * self.dims, T, *grid)
        order = [0, 1, 2 + self.dims]
        for i in range(self.dims):
            order += [3 + self.dims + i, 2 + i]
        return y.permute(order).reshape(B, -1, T, *(self.factor * n for n in grid))


class ExpandTime(nn.Module):
    """Doubles the frames and drops the first: 2T - 1 frames from T, frames 2j-1 and 2j from latent j."""

    def __init__(self, inward: int, outward: int, config: ConvConfig) -> None:
        super().__init__()
        self.conv = CausalConv(inward, 2 * outward, config, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        B, _, T, *grid = y.shape
        y = y.view(B, 2, -1, T, *grid).movedim(1, 3)
        return y.reshape(B, -1, 2 * T, *grid)[:, :, 1:]
