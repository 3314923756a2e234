"""The network of a field model without gradients on a CPU, packed for the extension.

A few rows pass through all layers by one thread and stay in the cache. Their bits depend neither on other rows nor on
the number of threads. Convolutions are products of tiles (`csrc/core/cpu/tile_convolution.h`), in fp32.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..ops._backend import native
from ..utils.bounds import most_threads
from ..utils.dataclass_json import to_json
from .field_step import FieldNetwork

M = TypeVar("M", bound=nn.Module)


class NativeNetwork(nn.Module):
    """A network packed for the CPU, on one or two axes; pack again after its weights have changed."""

    def __init__(self, network: FieldNetwork) -> None:
        super().__init__()
        self.noise_shape = network.noise_shape
        self._packed = native().FieldNetwork(
            to_json(network.config),
            grid=list(network.grid),
            edges=[str(edge) for edge in network.edges],
            channels=network.channels,
            parameters={name: p.detach().float().contiguous() for name, p in network.named_parameters()},
        )

    @property
    def bytes(self) -> int:
        """Bytes of the packed weights."""
        return int(self._packed.bytes)

    def forward(self, x: Tensor, condition_BZ: Tensor | None, noise: Tensor | None = None, *, isa: str = "") -> Tensor:
        """What `FieldNetwork.forward` gives, up to rounding."""
        made: Tensor = self._packed.run(
            *(None if part is None else part.float().contiguous() for part in (x, condition_BZ, noise)),
            threads=min(torch.get_num_threads(), most_threads()),
            isa=isa,
        )
        return made


def with_part(module: M, name: str, part: nn.Module) -> M:
    """A copy that has `part` in the place `name`, such as ``model.network``, and shares all else with a module."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    first, _, rest = name.partition(".")
    made._modules[first] = with_part(module.get_submodule(first), rest, part) if rest else part
    return made
