"""Configuration: frozen dataclasses of models and sampling, checked when they are made.

The ``*-paper`` presets have the sizes of the paper (arXiv 2506.06158, tables 7, 11 and 12). Every deviation of the
small presets is a switch in the config, and therefore in every checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from .config_checks import check_choices, check_model, check_numbers, require
from .config_codecs import BlocksConfig as BlocksConfig
from .config_codecs import CodecConfig as CodecConfig
from .config_codecs import ConvConfig as ConvConfig
from .config_codecs import InterpolationConfig as InterpolationConfig
from .config_codecs import PointsConfig as PointsConfig
from .config_decoders import DecoderConfig as DecoderConfig
from .config_decoders import FieldConfig as FieldConfig
from .config_decoders import FlowConfig as FlowConfig
from .config_decoders import GaussianConfig as GaussianConfig
from .config_decoders import LinearConfig as LinearConfig
from .config_decoders import LocalConfig as LocalConfig
from .errors import EnmaError
from .utils.kinds import Slot
from .utils.text import counted

# The most channels of a head of attention that the kernels of the extension take.
MAX_HEAD_DIM = 128


@dataclass(frozen=True, kw_only=True)
class ContextConfig(Slot):
    """Context: what is known of the past of a frame, and of another trajectory of the same physics.

    Attributes
    ----------
    patch : latent places of a token along each dimension
    """

    kind: str
    patch: tuple[int, ...] = (1,)

    # Types of weights that the engine in C++ computes with.
    formats: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    # Whether the engine in C++, and the static step of a GPU, have it; and whether decoders share a trunk after it.
    native: ClassVar[bool] = False
    static: ClassVar[bool] = False
    leads_to_trunk: ClassVar[bool] = True
    # Whether it takes known inputs.
    takes_known: ClassVar[bool] = False

    @property
    def transformer(self) -> CausalTransformerConfig:
        """The sizes that the masked transformer after it shares; `EnmaError` if there can be none."""
        raise EnmaError(f"context {self.kind!r}: no masked transformer reads it; use decoders without one")

    def values_kept(self, num_tokens: int) -> int:
        """Numbers that each latent frame of so many tokens leaves in memory."""
        return 0

    def native_problem(self, codec: CodecConfig, dtype: str) -> str | None:
        """Why the engine in C++, which has its kind, cannot read it after `codec` with weights of this type."""
        return None if dtype in self.formats else f"takes {' and '.join(self.formats)} weights, these are {dtype}"

    def check(self, name: str, codec: CodecConfig) -> None:
        """Raise `EnmaError` for a config of the model `name` that no context can have after `codec`."""


@dataclass(frozen=True, kw_only=True)
class CausalTransformerConfig(ContextConfig):
    """The paper's causal transformer on latent frames (paper 3.1.1, table 7).

    Attributes
    ----------
    width : channels of a token
    heads : heads of attention
    layers : blocks of attention and feed-forward
    positions : ``sincos`` adds fixed embeddings of a token's position (the paper). ``rotary`` rotates queries and keys
        by the token's position, with the harmonics of the domain, and by the frame number. A periodic model is then
        equivariant to shifts by whole tokens.
    scale_shift_rank : rank of the layer that scales and shifts the result; 0: no such layer
    """

    kind: str = "causal-transformer"
    width: int = 512
    heads: int = 8
    layers: int = 6
    positions: Literal["sincos", "rotary"] = "sincos"
    scale_shift_rank: int = 24

    native: ClassVar[bool] = True
    static: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.contexts.causal_transformer:CausalTransformer"

    @property
    def transformer(self) -> CausalTransformerConfig:
        return self

    def values_kept(self, num_tokens: int) -> int:
        # Keys and values.
        return 2 * self.layers * num_tokens * self.width

    def native_problem(self, codec: CodecConfig, dtype: str) -> str | None:
        if (head_dim := self.width // self.heads) > MAX_HEAD_DIM:
            return f"head dim is {head_dim}, the attention kernels take up to {MAX_HEAD_DIM}"
        return super().native_problem(codec, dtype)

    def check(self, name: str, codec: CodecConfig) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise EnmaError(f"{name}: context.width {self.width} must be a multiple of 4 * heads ({self.heads})")
        # With fewer channels the rotary table has no angle for one of the dimensions, or for the frame.
        if self.positions == "rotary" and self.width // self.heads < 8 * codec.dims:
            raise EnmaError(
                f"{name}: context.width {self.width} over {self.heads} heads is {self.width // self.heads} channels a"
                f" head; rotary positions in {counted(codec.dims, 'dimension')} need {8 * codec.dims}"
            )


@dataclass(frozen=True, kw_only=True)
class PhysicsConfig(ContextConfig):
    """The physics of a trajectory as a few numbers, from windows of three frames.

    Attributes
    ----------
    floor : forecast in closed form, one of the kinds of :mod:`enma_fast.models.floors`
    block : grid points along an axis of what the convolutions see as one place
    width : channels of the convolutions
    layers : blocks of convolutions
    hidden : channels of the layers after the mean over space
    """

    kind: str = "physics"
    floor: str = "persistence"
    block: int = 2
    width: int = 32
    layers: int = 2
    hidden: int = 96

    formats: ClassVar[tuple[str, ...]] = ("float32",)
    native: ClassVar[bool] = True
    leads_to_trunk: ClassVar[bool] = False
    takes_known: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.contexts.physics:PhysicsContext"

    def native_problem(self, codec: CodecConfig, dtype: str) -> str | None:
        if codec.dims > 2:
            return "has convolutions of lines and planes, and this grid has three axes"
        return super().native_problem(codec, dtype)

    def check(self, name: str, codec: CodecConfig) -> None:
        if codec.time_factor != 1:
            raise EnmaError(f"{name}: context 'physics' reads single frames; give codec.frames 1, or another context")
        if any(p != 1 for p in self.patch):
            raise EnmaError(f"{name}: context.patch is {self.patch}; context 'physics' needs patches of 1")


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """The masked transformer that decoders share (paper 3.1.2); its width, heads and positions are the context's.

    Attributes
    ----------
    layers : blocks of attention and feed-forward
    condition : ``concat`` gives it context and frame as 2N tokens (the paper), ``add`` their sum as N tokens
    """

    layers: int = 6
    condition: Literal["concat", "add"] = "concat"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of the sampler.

    Attributes
    ----------
    mask_steps : steps in which the tokens of a frame are decided, of decoder `flow`
    flow_steps : steps of the flow, of two velocity evaluations each (midpoint rule)
    temperature : factor of the noise, except that of the decoder of frame 0
    shifts : places from which members see a periodic field. Between walls they see it mirrored, where the physics is
        the same in a mirror (:mod:`enma_fast.sampling.shifts`). None or 1: all see it as it is.
    """

    mask_steps: int = 6
    flow_steps: int = 10
    temperature: float = 1.0
    shifts: int | None = None


@dataclass(frozen=True, kw_only=True)
class KnownInput:
    """A known input of a model: a parameter, a series in time, a map in space, or a forcing in both.

    Attributes
    ----------
    name : by which it is given
    in_time : it has a value for each frame
    in_space : it has a value for each grid point
    """

    name: str
    in_time: bool = False
    in_space: bool = False

    @property
    def kind(self) -> str:
        """In words."""
        if self.in_time:
            return "forcing" if self.in_space else "series"
        return "map" if self.in_space else "parameter"

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Definition of a model; stored as ``config.json`` in a checkpoint.

    Attributes
    ----------
    name : of the model
    dataset : of the data that it is trained on: `dataset`-train.h5 and so on
    num_frames : frames of a trajectory in training, observed and forecast
    shortest_context : frames of the shortest context of the training; None: all had `num_frames`. Shorter ones end with
        a whole latent frame.
    frame_interval : time between two frames, in the unit of the data
    codec : fields to latent frames and back
    context : what is known of the past
    trunk : transformer that decoders share; None where no decoder reads one
    initial : decoder of frame 0 of a generated trajectory; None: `step` decides it too
    step : decoder of all other frames
    sampling : settings of the sampler
    known : inputs that it is given, apart from the fields
    """

    name: str
    dataset: str
    num_frames: int = 20
    shortest_context: int | None = None
    frame_interval: float = 0.05
    codec: CodecConfig = field(default_factory=ConvConfig)
    context: ContextConfig = field(default_factory=CausalTransformerConfig)
    trunk: TrunkConfig | None = field(default_factory=TrunkConfig)
    initial: DecoderConfig | None = None
    step: DecoderConfig = field(default_factory=FlowConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    known: tuple[KnownInput, ...] = ()

    def __post_init__(self) -> None:
        if not self.context.leads_to_trunk:
            object.__setattr__(self, "trunk", None)
        check_sampling(self.name, self.sampling)
        check_model(self)
        if any(decoder.needs_trunk for decoder in self.decoders.values()):
            _ = self.transformers

    @property
    def decoders(self) -> dict[str, DecoderConfig]:
        """The decoders by the slots that they fill."""
        return {"step": self.step} | ({} if self.initial is None else {"initial": self.initial})

    @property
    def parts(self) -> dict[str, CodecConfig | ContextConfig | DecoderConfig]:
        """What fills the slots, by their names."""
        return {"codec": self.codec, "context": self.context, **self.decoders}

    def slot(self, frame: int) -> str:
        """The slot whose decoder decides a latent frame of this number."""
        return "step" if frame or self.initial is None else "initial"

    def slots(self, first: int) -> tuple[str, ...]:
        """The slots whose decoders decide the latent frames from number `first` on."""
        return tuple(dict.fromkeys((self.slot(1), self.slot(first))))

    @property
    def is_told(self) -> bool:
        """Whether it is told more than fields: drivers, or where these have no values."""
        return bool(self.known) or self.codec.masked

    @property
    def transformers(self) -> tuple[CausalTransformerConfig, TrunkConfig]:
        """The causal and the masked transformer; `EnmaError` if the model lacks one."""
        if self.trunk is None:
            raise EnmaError(f"{self.name}: trunk is null, and its decoders read one; give its layers")
        return self.context.transformer, self.trunk

    @cached_property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each dimension that the transformers see, which are patches of the codec's latent places."""
        return tuple(n // p for n, p in zip(self.codec.token_grid, self.context.patch, strict=True))

    @property
    def num_tokens(self) -> int:
        """Tokens per frame N that the transformers see."""
        return math.prod(self.token_grid)

    @property
    def token_channels(self) -> int:
        """Channels per token C that the transformers see."""
        return self.codec.latent_channels * math.prod(self.context.patch)

    def context_frames(self, given: int) -> int:
        """How many of the frames of a context are used: as many as training shows, or those of whole latent frames."""
        return self.num_frames if given >= self.num_frames else self.codec.whole_frames(given)


def check_sampling(name: str, sampling: SamplingConfig) -> None:
    """Raise `EnmaError` for settings that the sampler cannot have; `name` is that of the model, or "settings"."""
    if not isinstance(sampling, SamplingConfig):
        raise EnmaError(f"{name}: sampling is a {type(sampling).__name__}; a SamplingConfig is expected")

    def above(least: int, value: Any, kind: Any) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and bool(least <= value < math.inf)

    needed, place = "at least 1 is needed, a whole number", f"{name}: sampling."
    require(sampling, ("mask_steps", "flow_steps"), lambda n: above(1, n, Integral), needed, place)
    require(sampling, ("shifts",), lambda n: n is None or above(1, n, Integral), needed, place)
    require(sampling, ("temperature",), lambda x: above(0, x, Real), "0 or more is needed, a number", place)
    check_choices(name, sampling, "sampling")
    check_numbers(name, sampling, "sampling")
