"""Configs of the kinds of decoders, which `enma_fast.config` has too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .config_checks import require
from .config_codecs import CodecConfig
from .errors import EnmaError
from .utils.kinds import Slot
from .utils.text import times


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Slot):
    """Decoder: context and noise -> the tokens of a latent frame.

    Attributes
    ----------
    settings : the entries of `SamplingConfig` that a frame of this kind depends on
    needs_trunk : whether it reads the masked transformer
    native, static : whether the engine in C++, and the static step of a GPU, have it
    """

    kind: str

    settings: ClassVar[tuple[str, ...]] = ("temperature",)
    needs_trunk: ClassVar[bool] = False
    native: ClassVar[bool] = False
    static: ClassVar[bool] = False

    def check(self, name: str, slot: str, codec: CodecConfig) -> None:
        """Raise `EnmaError` for a config of the model `name` that no decoder in `slot` can have after `codec`."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(DecoderConfig):
    """Mask steps and a flow-matching head for each token (the paper, 3.1.2).

    Attributes
    ----------
    width : channels of the head
    layers : blocks of the head
    time_features : sines and cosines of the flow time
    target : what the flow generates: ``data`` is the token (the paper), ``residual`` is (token - mean) / scale. Mean
        and scale are linear in the condition and trained by a Gaussian likelihood (Seitzer et al., 2022). The target
        then has unit variance also for nearly deterministic physics.
    """

    kind: str = "flow"
    width: int = 512
    layers: int = 3
    time_features: int = 256
    target: Literal["data", "residual"] = "data"

    settings: ClassVar[tuple[str, ...]] = ("mask_steps", "flow_steps", "temperature")
    needs_trunk: ClassVar[bool] = True
    native: ClassVar[bool] = True
    static: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.decoders.flow:FlowDecoder"

    def check(self, name: str, slot: str, codec: CodecConfig) -> None:
        even = "an even number is needed"
        require(self, ("time_features",), lambda n: n >= 2 and n % 2 == 0, even, f"{name}: {slot}.")


@dataclass(frozen=True, kw_only=True)
class LinearConfig(DecoderConfig):
    """One pass of the masked transformer, with noise beside the mask token, and a linear layer that reads tokens."""

    kind: str = "linear"

    needs_trunk: ClassVar[bool] = True
    native: ClassVar[bool] = True
    static: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.decoders.linear:LinearDecoder"


@dataclass(frozen=True, kw_only=True)
class LocalConfig(DecoderConfig):
    """One pass, and convolutions over the latent grid that see the last latent frames.

    Attributes
    ----------
    width : channels of the convolutions, a multiple of 16
    layers : blocks of convolutions
    modes : periods along each dimension below which a Fourier block filters waves. Every third block is one, and the
        domain has to be periodic. None: no such block.
    """

    kind: str = "local"
    width: int = 64
    layers: int = 4
    modes: int | None = None

    needs_trunk: ClassVar[bool] = True
    native: ClassVar[bool] = True
    static: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.decoders.local:LocalDecoder"

    def check(self, name: str, slot: str, codec: CodecConfig) -> None:
        place = f"{name}: {slot}"
        if self.width % 16:
            raise EnmaError(f"{place}.width is {self.width}; a multiple of 16 is needed")
        if self.modes is None:
            return
        if not all(codec.periodic):
            raise EnmaError(f"{place}.modes is {self.modes} and the domain has walls; Fourier blocks need a ring")
        most = (min(codec.token_grid) + 1) // 2
        if not 1 <= self.modes <= most:
            raise EnmaError(
                f"{place}.modes is {self.modes}; 1 to {most} are possible on {times(codec.token_grid)} latent places"
            )


@dataclass(frozen=True, kw_only=True)
class FieldConfig(DecoderConfig):
    """A floor's forecast, and what gated convolutions add to it; for context `physics`.

    Attributes
    ----------
    block : grid points along an axis of what the convolutions see as one place
    width : channels of the convolutions
    layers : blocks of convolutions, half of them before and half after the level of half the points
    middle_layers : blocks on the level of half the points; 0: no such level
    middle_width : channels of these
    noise : channels of noise that are drawn at each step
    member : random numbers of each member
    """

    kind: str = "field"
    block: int = 2
    width: int = 64
    layers: int = 6
    middle_layers: int = 0
    middle_width: int = 96
    noise: int = 2
    member: int = 16

    native: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.decoders.field:FieldDecoder"

    def check(self, name: str, slot: str, codec: CodecConfig) -> None:
        if slot != "step":
            raise EnmaError(f"{name}: {slot} is of kind 'field', which continues known frames; use another kind")


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(DecoderConfig):
    """Frame 0 as a Gaussian random field, with the covariance of the training data and the spectrum of the context's.

    For the slot `initial` alone.
    """

    kind: str = "gaussian"

    settings: ClassVar[tuple[str, ...]] = ()
    native: ClassVar[bool] = True
    static: ClassVar[bool] = True
    module: ClassVar[str] = "enma_fast.models.decoders.gaussian:GaussianDecoder"

    def check(self, name: str, slot: str, codec: CodecConfig) -> None:
        if slot != "initial":
            raise EnmaError(f"{name}: {slot} is of kind 'gaussian', which draws frame 0 alone; use another kind")
