"""The tokenizer without gradients on a CPU: each row by one thread of the extension, in the code that libenma runs.

Every layer is causal, so a row goes through all layers a frame at a time and stays in the cache. Its bits depend
neither on other rows, nor on the number of threads, nor on frames that come later.

Legend: B rows, T frames, N places of a latent frame, C latent channels, c physical channels.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from ..ops._backend import extension, native_problem
from ..utils.bounds import most_threads
from ..utils.dataclass_json import to_json
from .layers import prepared
from .tokenizer import Tokenizer


class NativeTokenizer:
    """A tokenizer packed for the CPU; pack again after its weights have changed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        module = extension()
        assert module is not None
        # The tokenizer keeps this, so this does not keep the tokenizer.
        self._tokenizer = weakref.ref(tokenizer)
        parameters = {f"tokenizer.{name}": p.detach().contiguous() for name, p in tokenizer.named_parameters()}
        self._packed = module.Codec(to_json(tokenizer.config), parameters)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that was packed."""
        found = self._tokenizer()
        assert found is not None
        return found

    @property
    def folded(self) -> bool:
        """True if the linear end of the decoder is one convolution."""
        return bool(self._packed.folded)

    def encode(self, u_BTXc: Tensor, points: Tensor | None = None, *, isa: str = "") -> Tensor:
        """Latent frames ``[B, T', N, C]``, as `Tokenizer.encode` up to rounding.

        Of fields ``[B, T, *grid, c]``, or of values ``[B, T, P, c]`` at points ``[P, d]`` or ``[.., T, P, d]``, NaN
        where a frame has fewer; the values there are not read.
        """
        fields = self.tokenizer.standardised(u_BTXc).contiguous()
        if points is not None:
            points = points.expand(*fields.shape[:-1], -1).contiguous()
        made: Tensor = self._packed.encode(fields, points, threads=_threads(), isa=isa)
        return made

    def decode(self, z_BTNC: Tensor, num_frames: int, *, isa: str = "") -> Tensor:
        """The first fields ``[B, num_frames, *grid, c]`` of latent frames, as `Tokenizer.decode` up to rounding."""
        made: Tensor = self._packed.decode(z_BTNC.contiguous(), num_frames, threads=_threads(), isa=isa)
        return self.tokenizer.in_units(made)


def native_tokenizer(tokenizer: Tokenizer) -> NativeTokenizer | None:
    """The tokenizer packed, on first use and again after its weights have changed; None where the extension cannot."""
    if native_problem(next(tokenizer.parameters()).device) is not None:
        return None
    return prepared(tokenizer, "native", lambda: NativeTokenizer(tokenizer) if _served(tokenizer) else None)


def _served(tokenizer: Tokenizer) -> bool:
    """True for fp32 weights that are what the layers multiply with, and not parametrizations of it."""
    plain = not any(is_parametrized(part) for part in tokenizer.modules())
    return plain and all(p.dtype == torch.float32 for p in tokenizer.parameters())


def _threads() -> int:
    return min(torch.get_num_threads(), most_threads())
