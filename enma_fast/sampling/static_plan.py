"""The plan of a static step: its weights, and the size of every buffer.

What it reads is checked against these sizes.

Legend: B rows (members), G groups that share history and context, N tokens per frame, L rows of the masked transformer,
C token channels, D width, H heads, K head dim.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ContextConfig, DecoderConfig, ModelConfig
from ..errors import EnmaError
from ..models.layers import MLP_RATIO, Block, RMSNorm
from ..models.masked_transformer import MaskedTransformer
from ..models.model import Dynamics
from ..ops.frame_layer import LayerWeights
from .settings import Size

# Values in memory for each one of a field that is decoded: three activations of 32 channels.
_DECODED = 96

Buffer = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticPlan:
    """Every static buffer of a step, and the memory it takes, known before any of it is allocated.

    Memory that operators allocate while they run, or for packed weights, is not counted.
    """

    weights: int  # bytes
    kv: dict[str, Buffer]
    buffers: dict[str, Buffer]

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return self.weights + self.kv_bytes + self.buffer_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values: the shared prefix and the own frames of each row."""
        return _bytes(self.kv)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all other static buffers."""
        return _bytes(self.buffers)


def problem(config: ModelConfig) -> str | None:
    """Why a model has no static step."""
    parts: tuple[ContextConfig | DecoderConfig, ...] = (config.context, *config.decoders.values())
    for part in parts:
        if not part.static:
            return f"does not know the kind {part.kind!r}"
    return None


def static_buffers(
    config: ModelConfig, size: Size, *, past: int, dtype: torch.dtype
) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
    """Shape and type of each static buffer: of the keys and values, and of all others."""
    own, trunk = config.transformers
    state = torch.promote_types(dtype, torch.float32)
    B, G, N, C, D = size.rows, size.groups, config.num_tokens, config.token_channels, own.width
    H, K = own.heads, own.width // own.heads
    L = 2 * N if trunk.condition == "concat" else N
    kv: dict[str, Buffer] = {
        "prefix": ((own.layers, 2, G, size.prefix_frames * N, H, K), dtype),
        "own": ((own.layers, 2, B, size.own_frames * N, H, K), dtype),
    }
    buffers: dict[str, Buffer] = {
        "tokens": ((B, N, C), state),
        "context": ((B, N, D), dtype),
        "anchor": ((G, N, D), dtype),
        "rows": ((4, B, L, D), dtype),
        "seeds": ((B,), torch.int64),
        "members": ((B,), torch.int64),
        "counters": ((4,), torch.int64),
        "increments": ((4,), torch.int64),
        "places": ((N,), torch.int64),
    }
    if past:
        buffers["past"] = ((B, past, N, C), state)
    if own.positions == "rotary":
        buffers["turns"] = ((2, (size.prefix_frames + size.own_frames) * N, K // 2), state)
    return kv, buffers


def check_segments(config: ModelConfig, segments: Sequence[Tensor], size: Size, device: torch.device) -> None:
    """Refuse history and context of another shape, type or device than a step takes, or of more frames."""
    N, C = config.num_tokens, config.token_channels
    if not segments:
        raise EnmaError("segments is empty; expected a history, of no frames where there is a context")
    for number, segment in enumerate(segments):
        shape = list(segment.shape)
        if len(shape) != 4 or [shape[0], *shape[2:]] != [size.groups, N, C]:
            raise EnmaError(f"segments[{number}] has shape {shape}; expected [{size.groups}, T, {N}, {C}]")
        if not segment.is_floating_point() or segment.device != device:
            kind = f"{segment.dtype} on {segment.device}"
            raise EnmaError(f"segments[{number}] is {kind}; expected floating point on {device}")
    frames = sum(segment.shape[1] + 1 for segment in segments)
    if frames > size.prefix_frames:
        raise EnmaError(
            f"segments hold {frames} frames, start frames included; this step has prefix_frames {size.prefix_frames}"
        )


def check_words(words: Mapping[str, Tensor], *, rows: int, device: torch.device) -> None:
    """Refuse seeds or members of another shape, type or device than a step takes."""
    for name, each in words.items():
        if each.shape != (rows,) or each.dtype != torch.int64 or each.device != device:
            kind = f"{list(each.shape)} {each.dtype} on {each.device}"
            raise EnmaError(f"{name} is {kind}; expected [{rows}] torch.int64 on {device}")


def chunk_for(config: ModelConfig, *, num_frames: int, cache: int, free: int) -> int:
    """Rows of so many frames that a GPU samples at a time, with a level-2 cache and free memory of so many bytes.

    256 where their activations stay in the cache, or 128; half as many until they take half of the memory at most. A
    row of the masked transformer holds the sum, its queries, keys and values, and the hidden layer of its MLP, in two
    bytes each. A trajectory holds its keys and values, and its frames while they are decoded.
    """
    rows = 128
    if problem(config) is None:
        own, trunk = config.transformers
        length = config.num_tokens * (2 if trunk.condition == "concat" else 1)
        rows = 256 if 256 * 2 * length * own.width * (4 + MLP_RATIO) <= cache else 128
    codec = config.codec
    values = num_frames * math.prod(codec.grid) * codec.field_channels
    kept = 2 * codec.latent_frames(num_frames) * config.context.values_kept(config.num_tokens)
    while rows > 1 and rows * (4 * _DECODED * values + kept) > free // 2:
        rows //= 2
    return rows


def _bytes(buffers: dict[str, Buffer]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in buffers.values())


def layer_weights(blocks: nn.ModuleList) -> list[LayerWeights]:
    """Weights of the blocks of a transformer as the operators take them; no copy."""
    return [
        LayerWeights(
            norm=block.norm_1.weight,
            qkv=block.attention.qkv.weight,
            q_norm=block.attention.q_norm.weight,
            k_norm=block.attention.k_norm.weight,
            out=block.attention.out.weight,
            mlp_norm=block.norm_2.weight,
            gate_up=block.mlp.gate_up.weight,
            down=block.mlp.down.weight,
            eps=block.norm_1.eps,
            head_eps=block.attention.q_norm.eps,
        )
        for block in cast("list[Block]", blocks)
    ]


def prepared_weights(dynamics: Dynamics, dtype: torch.dtype) -> Dynamics:
    """Copy the model for sampling: weights of products in `dtype`; norms and rotary tables at least in fp32.

    `load_weights` gives it others.
    """
    model = copy.deepcopy(dynamics).eval().requires_grad_(False).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for ours, given in zip(model.modules(), dynamics.modules(), strict=True):
        if isinstance(ours, RMSNorm) and isinstance(given, RMSNorm):
            ours.weight.data = given.weight.detach().to(wide, copy=True)
        elif isinstance(ours, MaskedTransformer) and isinstance(given, MaskedTransformer):
            ours.rotary = None if given.rotary is None else given.rotary.to(wide)
    return model


def load_weights(model: Dynamics, dynamics: Dynamics) -> None:
    """Give what `prepared_weights` has made the weights that the model has now, in place."""
    for ours, given in zip(_weights(model), _weights(dynamics), strict=True):
        ours.copy_(given)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
