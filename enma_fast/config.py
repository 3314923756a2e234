"""Configuration: frozen dataclasses of models and sampling, checked when they are made.

The ``*-paper`` presets have the sizes of the paper (arXiv 2506.06158, tables 7, 11 and 12). Every deviation of the
small presets is a switch in the config, and therefore in every checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

from .config_checks import check_choices, check_model, check_numbers, require
from .errors import EnmaError


@dataclass(frozen=True, kw_only=True)
class InterpolationConfig:
    """Cross-attention between scattered points and the regular grid (paper D.1.1, table 12)."""

    features: int = 64
    hidden: int = 16
    heads: int = 4
    head_dim: int = 4
    frequencies: int = 12
    max_log2_frequency: float = 4.0
    slopes: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    learned_slopes: bool = True
    distance_power: Literal[1, 2] = 1
    refine_depth: int = 2
    refine_heads: int = 4
    refine_head_dim: int = 4
    slices: int = 16


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Tokenizer: field frames <-> latent frames (paper 2, D.1).

    ``layers`` is the encoder's list of ``residual``, ``space`` (halves every space dimension) and ``time`` (halves
    the frames); the decoder mirrors it. ``max_width`` limits the channels, which double at each ``space``.
    The first convolution steps over ``stride_ends`` grid points and the last one gives as many, so that nothing is
    computed at full resolution.
    ``field_mean`` and ``field_scale`` standardise each channel of the fields, ``(u - mean) / scale``; None leaves them.
    """

    grid: tuple[int, ...] = (128,)
    lengths: tuple[float, ...] = (1.0,)
    periodic: tuple[bool, ...] = (True,)
    field_channels: int = 1
    latent_channels: int = 4
    width: int = 16
    max_width: int = 128
    layers: tuple[str, ...] = (*("residual", "space") * 3, "residual", "time", "residual")
    kernel: int = 3
    kernel_time: int = 3
    kernel_ends: int = 7
    stride_ends: int = 1
    variational: bool = True
    kl_weight: float = 1e-4
    interpolation: InterpolationConfig | None = None
    field_mean: tuple[float, ...] | None = None
    field_scale: tuple[float, ...] | None = None

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
    def space_factor(self) -> int:
        """Grid points per token along each dimension."""
        return self.stride_ends * 2 ** self.layers.count("space")

    @cached_property
    def time_factor(self) -> int:
        """Frames per latent frame, after the first one."""
        return 2 ** self.layers.count("time")

    @property
    def lossless(self) -> bool:
        """Whether latent frames are the values of blocks of points and frames in another order, and nothing is trained.

        So with no layer but one that halves the frames, no VAE, and as many channels everywhere as a block has values.
        """
        values = self.field_channels * self.stride_ends**self.dims * 2
        return (
            self.layers == ("time",)
            and not self.variational
            and self.interpolation is None
            and self.latent_channels == self.width == values
            and self.kernel_time >= 2
            and self.kernel_ends - self.kernel_ends // 2 >= self.stride_ends
        )

    @cached_property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each dimension, before they are grouped into patches."""
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


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Flow-matching head (paper 3.1.2).

    ``target`` is the quantity that the flow generates for a token:

    * ``data``: the token itself (the paper);
    * ``residual``: (token - mean) / scale, where mean and scale are linear in the condition and trained by a Gaussian
      likelihood, weighted with ``likelihood_power`` (Seitzer et al., 2022). For nearly deterministic physics the flow
      then has a target of unit variance, instead of one that is much narrower than the noise.
    """

    width: int = 512
    layers: int = 3
    time_features: int = 256
    target: Literal["data", "residual"] = "data"
    likelihood_power: float = 0.5
    draws: int = 4
    time_law: Literal["uniform", "logit-normal"] = "uniform"


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Local head of a one-pass model: its width, blocks, and past latent frames that it sees.

    Blocks are convolutions; with ``modes`` every third one, the first among them, is a Fourier block, whose filter has
    the waves of fewer than so many periods along each dimension of the domain, which has to be periodic.
    """

    width: int = 64
    layers: int = 4
    past: int = 3
    modes: int | None = None


@dataclass(frozen=True, kw_only=True)
class FirstConfig:
    """Local head of a one-pass model that makes frame 0 of a generated trajectory from noise; as `LocalConfig`.

    Its first block is a Fourier block, so that it can begin as a random field with the spectrum of the training data.
    """

    width: int = 32
    layers: int = 3
    modes: int = 8


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """Dynamics on standardised latent frames: causal transformer, masked transformer and head (paper 3.1, table 7).

    ``positions``: ``sincos`` adds fixed embeddings of a token's position (the paper); ``rotary`` rotates queries and
    keys by the token's position, with the harmonics of the domain, and by the frame number, so that a periodic model is
    equivariant to shifts by whole tokens. ``condition``: ``concat`` gives context and frame to the masked transformer
    as 2N tokens (the paper); ``add`` gives their sum as N tokens.

    ``decoder``: ``masked-flow`` decides a frame in mask steps, each token by the flow-matching head (the paper);
    ``one-pass`` decides it in one pass of the masked transformer, with noise in place of the mask token and a linear
    layer that reads the tokens, or with ``local`` the convolutions of a local head
    (:mod:`enma_fast.models.local_head`). Frame 0 of a generated trajectory has a distribution over initial states, and
    is decided by ``masked-flow`` in either case, unless a local head of its own makes it: ``first``, which is for
    tokens of so many channels that a flow learns little of them; the model has no flow then.
    """

    width: int = 512
    heads: int = 8
    temporal_layers: int = 6
    spatial_layers: int = 6
    mlp_ratio: float = 2.0
    patch: tuple[int, ...] = (1,)
    positions: Literal["sincos", "rotary"] = "sincos"
    condition: Literal["concat", "add"] = "concat"
    decoder: Literal["masked-flow", "one-pass"] = "masked-flow"
    scale_shift_rank: int = 24
    local: LocalConfig | None = None
    first: FirstConfig | None = None
    flow: FlowConfig = field(default_factory=FlowConfig)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of the sampler. Each of the ``flow_steps`` costs two velocity evaluations with ``midpoint``, else one.

    With ``last_flow_steps`` the number of flow steps changes linearly, from ``flow_steps`` at the first mask step of a
    frame to ``last_flow_steps`` at the last (:func:`enma_fast.models.schedule.flow_schedule`). ``temperature`` scales
    the noise, except that of frame 0 of a one-pass model. With ``shifts`` members see a periodic field from that many
    places, and one between walls mirrored, for physics that is the same in a mirror
    (:mod:`enma_fast.sampling.shifts`).
    """

    mask_steps: int = 6
    flow_steps: int = 10
    last_flow_steps: int | None = None
    method: Literal["midpoint", "euler"] = "midpoint"
    temperature: float = 1.0
    shifts: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Definition of a model; stored as ``config.json`` in a checkpoint.

    Its training has shown contexts of ``num_frames`` frames, or of ``shortest_context`` to ``num_frames``; the shorter
    ones end with a whole latent frame.
    """

    name: str
    dataset: str
    num_frames: int = 20
    shortest_context: int | None = None
    frame_interval: float = 0.05
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_sampling(self.name, self.sampling)
        check_model(self)

    @cached_property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each dimension that the transformers see, which are patches of the tokenizer's tokens."""
        return tuple(n // p for n, p in zip(self.tokenizer.token_grid, self.dynamics.patch, strict=True))

    @property
    def num_tokens(self) -> int:
        """Tokens per frame N that the transformers see."""
        return math.prod(self.token_grid)

    @property
    def token_channels(self) -> int:
        """Channels per token C that the transformers see."""
        return self.tokenizer.latent_channels * math.prod(self.dynamics.patch)

    def context_frames(self, given: int) -> int:
        """How many of the frames of a context are used: as many as training shows, or those of whole latent frames."""
        return self.num_frames if given >= self.num_frames else self.tokenizer.whole_frames(given)


def check_sampling(name: str, sampling: SamplingConfig) -> None:
    """Raise `EnmaError` for settings that the sampler cannot have; `name` is that of the model, or "settings"."""
    if not isinstance(sampling, SamplingConfig):
        raise EnmaError(f"{name}: sampling is a {type(sampling).__name__}; a SamplingConfig is expected")

    def above(least: int, value: Any, kind: Any) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and bool(least <= value < math.inf)

    needed, place = "at least 1 is needed, a whole number", f"{name}: sampling."
    require(sampling, ("mask_steps", "flow_steps"), lambda n: above(1, n, Integral), needed, place)
    require(sampling, ("last_flow_steps", "shifts"), lambda n: n is None or above(1, n, Integral), needed, place)
    require(sampling, ("temperature",), lambda x: above(0, x, Real), "0 or more is needed, a number", place)
    check_choices(name, sampling, "sampling")
    check_numbers(name, sampling, "sampling")
