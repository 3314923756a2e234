"""Configs of the kinds of codecs, which `enma_fast.config` has too."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from .config_checks import require
from .errors import EnmaError
from .utils.kinds import Slot
from .utils.text import counted

# Points along each dimension, and frames, that a convolution sees; the first and the last one see more points.
KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class CodecConfig(Slot):
    """Codec: field frames <-> latent frames (paper 2, D.1); what all kinds know of the fields.

    Attributes
    ----------
    grid : points along each dimension
    lengths : of the domain along each dimension, in the unit of the data
    periodic : whether the domain is a ring along each dimension
    field_channels : values of a point
    field_mean : of each channel, in its unit: the codec sees ``(u - mean) / scale``; None: 0
    field_scale : of each channel, in its unit; None: 1
    masked : fields have no values at some places, such as land; the weights say which
    """

    kind: str
    grid: tuple[int, ...] = (128,)
    lengths: tuple[float, ...] = (1.0,)
    periodic: tuple[bool, ...] = (True,)
    field_channels: int = 1
    field_mean: tuple[float, ...] | None = None
    field_scale: tuple[float, ...] | None = None
    masked: bool = False

    # Whether it encodes and decodes at any points, not on its grid alone; whether the engine in C++ has it, for fields
    # of 1 and 2 dimensions; and the most dimensions.
    at_points: ClassVar[bool] = False
    native: ClassVar[bool] = False
    most_dims: ClassVar[int] = 2

    @property
    def dims(self) -> int:
        """Number of space dimensions d."""
        return len(self.grid)

    @property
    def spacings(self) -> tuple[float, ...]:
        """Distance of neighbouring grid points along each dimension; a ring's last point is as far from its first."""
        sizes = zip(self.grid, self.lengths, self.periodic, strict=True)
        return tuple(length / (n if ring else max(n - 1, 1)) for n, length, ring in sizes)

    @property
    def zero(self) -> tuple[float, ...]:
        """What 0 is among standardised fields, for each channel."""
        if self.field_mean is None or self.field_scale is None:
            return (0.0,) * self.field_channels
        return tuple(-mean / scale for mean, scale in zip(self.field_mean, self.field_scale, strict=True))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent place."""
        raise NotImplementedError

    @property
    def space_factor(self) -> int:
        """Grid points per latent place along each dimension."""
        raise NotImplementedError

    @property
    def time_factor(self) -> int:
        """Frames per latent frame, after the first one."""
        raise NotImplementedError

    @property
    def reach(self) -> int:
        """Latent frames before the last one that its frames depend on; of the first of them only its last frame."""
        raise NotImplementedError

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Latent places along each dimension, before they are grouped into patches."""
        return tuple(n // self.space_factor for n in self.grid)

    def latent_frames(self, num_frames: int) -> int:
        """Number of latent frames that cover ``num_frames``: floor((T - 1 + k - 1) / k) + 1 for time factor k."""
        return -(-(num_frames - 1) // self.time_factor) + 1

    def whole_latents(self, num_frames: int) -> int:
        """Number of latent frames that cover only frames among the first ``num_frames``."""
        return (num_frames - 1) // self.time_factor + 1

    def whole_frames(self, num_frames: int) -> int:
        """Number of frames, among the first ``num_frames``, of whole latent frames."""
        return (self.whole_latents(num_frames) - 1) * self.time_factor + 1

    def check(self, name: str) -> None:
        """Raise `EnmaError` for a config of the model `name` that no codec can have."""
        if (self.field_mean is None) != (self.field_scale is None):
            raise EnmaError(f"{name}: give codec.field_mean and field_scale both, or neither")
        for entry, values in (("field_mean", self.field_mean), ("field_scale", self.field_scale)):
            if values is not None and len(values) != self.field_channels:
                raise EnmaError(
                    f"{name}: codec.{entry} has {len(values)} entries; one for each of "
                    f"{counted(self.field_channels, 'channel')} is needed"
                )
        if self.field_scale is not None and not min(self.field_scale) > 0:
            raise EnmaError(f"{name}: codec.field_scale is {self.field_scale}; every entry must be above 0")


@dataclass(frozen=True, kw_only=True)
class ConvConfig(CodecConfig):
    """The paper's variational auto-encoder: convolutions, causal in time.

    Attributes
    ----------
    latent_channels : values of a latent place
    width : channels of the first layer; they double at each ``space``
    max_width : most channels of a layer
    layers : of the encoder: ``residual``, ``space`` (halves every space dimension) and ``time`` (halves the frames).
        The decoder mirrors it.
    kernel_ends : grid points that the first and the last convolution see along a dimension, an odd number
    stride_ends : grid points over which the first convolution steps, and that the last one gives. With 2 or more
        nothing is computed at full resolution.
    variational : latents are drawn in training, and pulled towards a Gaussian
    kl_weight : weight of that pull in the loss
    """

    kind: str = "conv"
    latent_channels: int = 4
    width: int = 16
    max_width: int = 128
    layers: tuple[str, ...] = (*("residual", "space") * 3, "residual", "time", "residual")
    kernel_ends: int = 7
    stride_ends: int = 1
    variational: bool = True
    kl_weight: float = 1e-4

    native: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.codecs.conv:ConvCodec"

    @property
    def space_factor(self) -> int:
        return self.stride_ends * 2 ** self.layers.count("space")

    @cached_property
    def time_factor(self) -> int:
        return 2 ** self.layers.count("time")

    @property
    def reach(self) -> int:
        # The decoder is causal, and its kernels are short. From the frames back to the latents; `layers` is the order
        # of the encoder.
        reach = KERNEL - 1
        for layer in self.layers:
            if layer == "residual":
                reach += KERNEL - 1
            elif layer == "time":
                # The first latent frame of a window gives the last of its frames only.
                reach = (reach + 1) // 2 + 1
        return reach

    def check(self, name: str) -> None:
        super().check(name)
        require(self, ("kernel_ends",), lambda n: n % 2 == 1, "an odd number is needed", f"{name}: codec.")
        if unknown := sorted(set(self.layers) - {"residual", "space", "time"}):
            raise EnmaError(f"{name}: codec.layers holds {unknown}; known are residual, space and time")
        for n, ring in zip(self.grid, self.periodic, strict=True):
            if ring and self.kernel_ends // 2 > n // self.stride_ends:
                raise EnmaError(
                    f"{name}: codec.kernel_ends {self.kernel_ends} reaches more than once around a periodic dimension "
                    f"of {n} points; take a smaller one"
                )


@dataclass(frozen=True, kw_only=True)
class InterpolationConfig:
    """Cross-attention between scattered points and the regular grid (paper D.1.1, table 12).

    Attributes
    ----------
    features : channels, over all heads
    heads : heads of attention, which divide `features`
    slopes : first weights of the distance in the scores, one for each head; training changes them
    """

    features: int = 64
    heads: int = 4
    slopes: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class PointsConfig(ConvConfig):
    """The paper's codec for scattered points: cross-attention before and after the convolutions.

    Attributes
    ----------
    interpolation : between the points and the grid
    """

    kind: str = "points"
    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)

    at_points: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.codecs.points:PointsCodec"

    def check(self, name: str) -> None:
        super().check(name)
        if self.interpolation.features % self.interpolation.heads:
            raise EnmaError(
                f"{name}: codec.interpolation.features is {self.interpolation.features}; a multiple of its heads "
                f"({self.interpolation.heads}) is needed"
            )


@dataclass(frozen=True, kw_only=True)
class BlocksConfig(CodecConfig):
    """Lossless: a latent place holds the values of some points and frames.

    Attributes
    ----------
    block : grid points of a latent place along each dimension
    frames : frames of a latent frame
    """

    kind: str = "blocks"
    block: int = 2
    frames: int = 2

    native: ClassVar[bool] = True
    most_dims: ClassVar[int] = 3
    module: ClassVar[str] = "enma_fast.models.codecs.blocks:BlocksCodec"

    @property
    def latent_channels(self) -> int:
        return self.field_channels * self.block**self.dims * self.frames

    @property
    def space_factor(self) -> int:
        return self.block

    @property
    def time_factor(self) -> int:
        return self.frames

    @property
    def reach(self) -> int:
        return 1
