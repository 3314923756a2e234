"""The codec without gradients on a CPU: each row by one thread of the extension, in the code that libenma runs.

Every layer is causal, so a row goes through all layers a frame at a time and stays in the cache. Its bits depend
neither on other rows, nor on the number of threads, nor on frames that come later.

Legend: B rows, T frames, N places of a latent frame, C latent channels, c physical channels.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from ...ops._backend import extension, native_problem
from ...utils.bounds import most_threads
from ...utils.dataclass_json import to_json
from ..layers import prepared
from .codec import Codec


class NativeCodec:
    """A codec packed for the CPU; pack again after its weights have changed."""

    def __init__(self, codec: Codec) -> None:
        module = extension()
        assert module is not None
        # The codec keeps this, so this does not keep the codec.
        self._codec = weakref.ref(codec)
        parameters = {f"codec.{name}": p.detach().contiguous() for name, p in codec.named_parameters()}
        # Masks are applied where fields are standardised, before the extension and after it.
        self._packed = module.Codec(to_json(codec.config), parameters)

    @property
    def codec(self) -> Codec:
        """The codec that was packed."""
        codec = self._codec()
        assert codec is not None
        return codec

    @property
    def folded(self) -> bool:
        """True if the linear end of the decoder is one convolution."""
        return bool(self._packed.folded)

    def encode(self, u_BTXc: Tensor, points: Tensor | None = None, *, isa: str = "") -> Tensor:
        """Latent frames ``[B, T', N, C]``, as `Codec.encode` up to rounding.

        Of fields ``[B, T, *grid, c]``, or of values ``[B, T, P, c]`` at points ``[P, d]`` or ``[.., T, P, d]``, NaN
        where a frame has fewer; the values there are not read.
        """
        fields = self.codec.standardised(u_BTXc).contiguous()
        if points is not None:
            points = points.expand(*fields.shape[:-1], -1).contiguous()
        z_BTNC: Tensor = self._packed.encode(fields, points, threads=_threads(), isa=isa)
        return z_BTNC

    def decode(self, z_BTNC: Tensor, num_frames: int, *, isa: str = "") -> Tensor:
        """The first fields ``[B, num_frames, *grid, c]`` of latent frames, as `Codec.decode` up to rounding."""
        fields: Tensor = self._packed.decode(z_BTNC.contiguous(), num_frames, threads=_threads(), isa=isa)
        return self.codec.in_units(fields)


def native_codec(codec: Codec) -> NativeCodec | None:
    """The codec packed, on first use and again after its weights have changed; None where the extension cannot."""
    if native_problem(codec.device) is not None:
        return None
    return prepared(codec, "native", lambda: NativeCodec(codec) if _served(codec) else None)


def _served(codec: Codec) -> bool:
    """True for fp32 weights of a kind that it has, if they are what the layers multiply with, not parametrized."""
    plain = not any(is_parametrized(part) for part in codec.modules())
    return (
        codec.config.native
        and codec.config.dims < 3
        and plain
        and all(p.dtype == torch.float32 for p in codec.parameters())
    )


def _threads() -> int:
    return min(torch.get_num_threads(), most_threads())
