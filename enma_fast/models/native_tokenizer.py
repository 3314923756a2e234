"""The tokenizer without gradients on a CPU: each row by one thread of the extension, in the code that libenma runs.

Every layer is causal, so a row goes through all layers a frame at a time and stays in the cache. Its bits depend
neither on other rows, nor on the number of threads, nor on frames that come later.

Legend: B rows, T frames, N places of a latent frame, C latent channels, c physical channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._backend import extension, native_problem
from ..utils.bounds import most_threads
from .layers import own_dtype, prepared
from .tokenizer import Tokenizer


class NativeTokenizer:
    """A tokenizer packed for the CPU; pack again after its weights have changed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        config, module = tokenizer.config, extension()
        assert module is not None
        self.tokenizer = tokenizer
        self._packed = module.Tokenizer(
            {name: p.detach() for name, p in tokenizer.named_parameters()},
            list(config.grid),
            list(config.periodic),
            config.field_channels,
            config.latent_channels,
            config.width,
            config.max_width,
            list(config.layers),
            config.kernel,
            config.kernel_time,
            config.kernel_ends,
            config.stride_ends,
            config.variational,
        )

    def encode(self, u_BTXc: Tensor, *, isa: str = "") -> Tensor:
        """Latent frames ``[B, T', N, C]`` of fields ``[B, T, *grid, c]``, as `Tokenizer.encode` up to rounding."""
        fields = self.tokenizer.standardised(u_BTXc).contiguous()
        made: Tensor = self._packed.encode(fields, threads=_threads(), isa=isa)
        return made

    def decode(self, z_BTNC: Tensor, num_frames: int, *, isa: str = "") -> Tensor:
        """The first fields ``[B, num_frames, *grid, c]`` of latent frames, as `Tokenizer.decode` up to rounding."""
        made: Tensor = self._packed.decode(z_BTNC.contiguous(), num_frames, threads=_threads(), isa=isa)
        return self.tokenizer.in_units(made)


def native_tokenizer(tokenizer: Tokenizer) -> NativeTokenizer | None:
    """The tokenizer packed, on first use and again after its weights have changed; None where the extension cannot."""
    weight = tokenizer.from_latent.weight
    served = own_dtype(tokenizer) == torch.float32 and tokenizer.interpolation is None
    if not served or native_problem(weight.device) is not None:
        return None
    return prepared(tokenizer, "native", lambda: NativeTokenizer(tokenizer))


def _threads() -> int:
    return min(torch.get_num_threads(), most_threads())
