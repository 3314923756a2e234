"""The frame step of the sampler on static buffers, for one size; it can be captured in a CUDA graph.

`StaticStep` gives the frames of `reference.trajectory`. Weights are cast once, every buffer is allocated once, and all
values that change from frame to frame (seeds, members, frame number, lengths) are in device memory. So nothing waits
for the device, and a captured frame can be replayed for the next one. Repeated work of the reference is done once:

* members share the keys and values of history and context, and the first frame's context;
* a row of the masked transformer's first layer is computed when its token changes, not at every mask step;
* its last layer runs for the rows that are decided in this mask step, beyond their keys and values.

A layer is five launches on a GPU, and order and noise of a frame are one: a frame of few rows takes as long as its
launches do, which `tests/sampling/test_node_budget.py` counts.

How a frame is decided is the decoders' matter (`models.decoders`); the step is what they find there.

Legend: B rows (members sampled together), G groups that share history and context, N tokens per frame, L rows of the
masked transformer (2N: context and frame; N where they are added), M tokens of this mask step, C token channels,
D width, H heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import EnmaError
from ..models.decoders.decoder import first_past, next_past
from ..models.model import Dynamics
from ..ops.frame_attention import frame_attention
from ..ops.frame_layer import LayerWeights, attend, heads_, residual, swiglu
from ..ops.frame_rows import MaskSteps, frame_noise, rows_, shifted_
from ..ops.philox_normal import philox_normal
from . import static_plan
from .settings import Size
from .static_plan import StaticPlan, layer_weights, load_weights, prepared_weights, static_buffers


class FrameKind(NamedTuple):
    """Kind of a frame, known on the host; each kind is a CUDA graph of its own."""

    # Of the decoder that decides it.
    slot: str
    # The last frame of a trajectory is not fed back.
    last: bool


class StaticStep:
    """The frame step of one model for one number of rows.

    Parameters
    ----------
    size
        Rows and groups, of the same number of rows each: row b has the history and context of group b // (B // G).
    dtype
        Type of weights and activations, by default that of the weights; tokens and the flow's state are fp32.
    """

    def __init__(self, dynamics: Dynamics, size: Size, *, dtype: torch.dtype | None = None) -> None:
        if size.rows % size.groups:
            raise EnmaError(f"rows is {size.rows} and groups is {size.groups}; as many rows for each group are needed")
        self.config, self.num_tokens = dynamics.config, dynamics.config.num_tokens
        self.channels, self.size = dynamics.config.token_channels, size
        self.dtype = dtype or dynamics.context.embed.weight.dtype
        self.device = dynamics.context.embed.weight.device
        self.state = torch.promote_types(self.dtype, torch.float32)
        self._model = model = prepared_weights(dynamics, self.dtype)
        self._context, self._trunk = model.transformers
        self.norm = self._trunk.norm.weight, self._trunk.norm.eps
        self._fed: int | None = None
        self._index = 0
        parts = [self._context, self._trunk, *map(model.decoder, size.slots)]
        weights = [weight for part in parts for weight in part.parameters()]
        kv, buffers = static_buffers(self.config, size, past=model.past, dtype=self.dtype)
        self.plan = StaticPlan(weights=sum(weight.nbytes for weight in weights), kv=kv, buffers=buffers)
        allocated = {
            name: torch.zeros(shape, dtype=kind, device=self.device)
            for name, (shape, kind) in (self.plan.kv | self.plan.buffers).items()
        }
        self.tokens_BNC = allocated["tokens"]
        self._prefix, self._own = allocated["prefix"], allocated["own"]
        self._past_BPNC = allocated.get("past")
        self._seeds_B, self._members_B = allocated["seeds"], allocated["members"]
        self._context_BND, self._anchor_GND = allocated["context"], allocated["anchor"]
        # Rows of the masked transformer before its first layer, and their queries, keys and values in it.
        self._rows = allocated["rows"]
        split = (self.config.context.transformer.heads, -1)
        self._rows_q, self._rows_kv = (part.unflatten(-1, split) for part in (self._rows[1], self._rows[2:]))
        # Row of the first token.
        self._first = self._rows.shape[2] - self.num_tokens
        # Frame number in the trajectory, frames before it in all segments, and valid entries of the two caches.
        self._counters, self._increments = allocated["counters"], allocated["increments"]
        self._increments.copy_(torch.tensor([1, 1, self.num_tokens, 0]))
        self._frame, self._position, self._length, self._prefix_length = self._counters.unbind()
        self._zero = self._increments[3]
        self._places_N = allocated["places"].copy_(torch.arange(self.num_tokens))
        self._turns = None
        if self._context.rotary is not None:
            frames = torch.arange(size.prefix_frames + size.own_frames, device=self.device)
            self._turns = allocated["turns"].copy_(torch.stack(self._context.rotary.tables(frames)))
        self._context_layers = layer_weights(self._context.blocks)
        self._trunk_layers = layer_weights(self._trunk.blocks)
        self._decide = {
            slot: model.decoder(slot).static(self, dynamics.settings(slot, size.settings), dynamics.decoder(slot))
            for slot in size.slots
        }

    @torch.inference_mode()
    def load(self, dynamics: Dynamics) -> None:
        """Take the weights of a model of the same config and device, where the old ones are; drops the trajectory."""
        load_weights(self._model, dynamics)
        for slot, decision in self._decide.items():
            decision.load(dynamics.decoder(slot))
        self.reset()

    def reset(self) -> None:
        """Discard the trajectory; :meth:`begin` has to come next."""
        self._counters.zero_()
        self._fed = None

    def begin(self, segments: Sequence[Tensor], *, seeds: Tensor, members: Tensor, first: int) -> None:
        """Read history and context, and prepare the first frame.

        Parameters
        ----------
        segments
            Latent frames ``[G, T_i, N, C]``, a context first and the history last; T_i may be 0.
        seeds, members
            ``[B]`` int64, the key of the noise of each row.
        first
            Number of the first frame in its trajectory, which is the number of frames in the history.

        `EnmaError` names an argument that has another shape, type or device than expected.
        """
        self.check(segments, seeds, members, first)
        self.read_segments(segments, first=first)
        self.start(segments, seeds, members, first)

    @torch.inference_mode()
    def read_segments(self, segments: Sequence[Tensor], *, first: int) -> None:
        """The part of :meth:`begin` that can be captured: it writes static buffers only."""
        anchor, h = self._read_history(segments)
        self._anchor_GND.copy_(anchor)
        shared = self._context.scaled(h, anchor, first=first == 0)
        self._context_BND.view(self.size.groups, -1, *shared.shape[1:]).copy_(shared[:, None])
        if self._past_BPNC is not None:
            past = first_past(segments[-1].to(self.state), self._past_BPNC.shape[1])
            self._past_BPNC.unflatten(0, (self.size.groups, -1)).copy_(past[:, None])

    @torch.inference_mode()
    def start(self, segments: Sequence[Tensor], seeds: Tensor, members: Tensor, first: int) -> None:
        """The other part of :meth:`begin`: who the rows are, and where the first frame is."""
        self._seeds_B.copy_(seeds)
        self._members_B.copy_(members)
        position = sum(segment.shape[1] + 1 for segment in segments)
        self._counters.copy_(torch.tensor([first, position, 0, position * self.num_tokens]))
        self._fed, self._index = 0, first

    def frame(self, *, last: bool = False) -> Tensor:
        """Decide the next latent frame ``[B, N, C]``; the next call overwrites its buffer.

        Parameters
        ----------
        last
            True for the last frame of a trajectory, which is not fed back.

        Raises
        ------
        EnmaError
            If no trajectory has begun, or if the cache has no room for the frame.
        """
        return self.run(self.advance(last=last))

    def kinds(self) -> list[FrameKind]:
        """All kinds of frames that can occur; without room to feed a frame back, every frame is the last."""
        lasts = (False, True) if self.size.own_frames else (True,)
        return [FrameKind(slot, last) for slot in self._decide for last in lasts]

    def warm_up(self) -> None:
        """Run every kind of frame once, so that its kernels compile; a trajectory that has begun is discarded."""
        for kind in self.kinds():
            self.reset()
            self.run(kind)
        self.reset()

    def advance(self, *, last: bool) -> FrameKind:
        """The host's part of :meth:`frame`: check that there is a trajectory, and room to feed the frame back."""
        if self._fed is None:
            raise EnmaError("frame: no trajectory has begun; call begin first")
        kind = FrameKind(self.config.slot(self._index), last)
        if last:
            self._fed = None
            return kind
        if self._fed == self.size.own_frames:
            raise EnmaError(
                f"frame: own_frames is {self.size.own_frames} and as many frames were fed back; pass last=True or make"
                " a step with more"
            )
        self._fed, self._index = self._fed + 1, self._index + 1
        return kind

    @torch.inference_mode()
    def run(self, kind: FrameKind) -> Tensor:
        """The device's part of :meth:`frame`; it reads and writes static buffers only."""
        self._decide[kind.slot].run(self)
        if not kind.last:
            self._feed()
        return self.tokens_BNC

    def noise(self) -> Tensor:
        """Normals ``[B, N, C]`` of the frame."""
        return philox_normal(
            seed=self._seeds_B,
            members=self._members_B,
            frame=self._frame,
            mask_step=self._zero,
            tokens=self._places_N,
            channels=self.channels,
            dtype=self.state,
        )

    def ordered_noise(self, steps: MaskSteps, scale: float) -> tuple[Tensor, list[Tensor]]:
        """Order of the tokens ``[B, N]``, and the normals ``[B, M, C]`` of each mask step, times `scale`."""
        return frame_noise(
            seeds=self._seeds_B,
            members=self._members_B,
            frame=self._frame,
            steps=steps,
            channels=self.channels,
            dtype=self.state,
            scale=scale,
        )

    def past(self, count: int) -> Tensor:
        """The `count` frames ``[B, P, N, C]`` before this one."""
        assert self._past_BPNC is not None
        return self._past_BPNC[:, self._past_BPNC.shape[1] - count :]

    def begin_frame(self, noise_BNC: Tensor | None, weight_DC: Tensor | None, *, scale: float = 1.0) -> None:
        """Rows of an unknown frame, with embedded noise in them, and the first layer of all of them."""
        rows_(
            self._rows[0],
            base_D=self._trunk.mask,
            z_BMC=noise_BNC,
            weight_DC=weight_DC,
            scale=scale,
            places_ND=self._trunk.places,
            context_BND=self._context_BND,
            concat=self._trunk.concat,
        )
        heads_(self._rows[0], self._trunk_layers[0], q=self._rows_q, kv=self._rows_kv, turns=self._trunk.rotary)

    def put(self, z_BMC: Tensor, tokens_BM: Tensor, *, last: bool) -> None:
        """Tokens that have been decided: into the frame, and unless they are the last also into the rows."""
        if last:
            self.tokens_BNC.scatter_(1, tokens_BM[..., None].expand_as(z_BMC), z_BMC)
            return
        rows_(
            self._rows[0],
            base_D=self._trunk.embed.bias,
            z_BMC=z_BMC,
            weight_DC=self._trunk.embed.weight,
            places_ND=self._trunk.places,
            context_BND=None if self._trunk.concat else self._context_BND,
            tokens_BM=tokens_BM,
            first=self._first,
            frame_BNC=self.tokens_BNC,
        )
        # Rows of the first layer change where a token has been decided.
        heads_(
            self._rows[0],
            self._trunk_layers[0],
            q=self._rows_q,
            kv=self._rows_kv,
            turns=self._trunk.rotary,
            tokens=tokens_BM,
            first=self._first,
        )

    def conditions(self, tokens_BM: Tensor | None) -> Tensor:
        """Rows ``[B, M, D]`` of some tokens after the masked transformer, by default of all; without its last norm."""
        x, q, kv = self._rows[0], self._rows_q, self._rows_kv
        chosen = self._places_N.expand(self.size.rows, -1) if tokens_BM is None and self._first else tokens_BM
        *earlier, last = self._trunk_layers
        if not earlier and chosen is not None:
            # With a single layer all queries are there already.
            q = q.gather(1, (chosen + self._first)[..., None, None].expand(-1, -1, *q.shape[2:]))
        for layer, following in zip(earlier, self._trunk_layers[1:], strict=True):
            x = self._layer(x, attend(q, *kv), layer)
            queries = chosen if following is last else None
            q, kv = self._heads_of(x, x.shape[1] if queries is None else queries.shape[1], layer)
            heads_(
                x,
                following,
                q=q,
                kv=kv,
                turns=self._trunk.rotary,
                tokens=queries,
                first=self._first,
                only_queries=queries is not None,
            )
        return self._layer(x, attend(q, *kv), last, tokens=chosen)

    def _layer(self, x_BLD: Tensor, a_BMD: Tensor, layer: LayerWeights, *, tokens: Tensor | None = None) -> Tensor:
        """The rest of a layer after its attention, of the rows of some tokens."""
        h_BMD = residual(x_BLD, a_BMD, layer.out, tokens=tokens, first=self._first)
        return residual(h_BMD, swiglu(h_BMD, layer), layer.down)

    def _heads_of(self, x_BLD: Tensor, queries: int, layer: LayerWeights) -> tuple[Tensor, Tensor]:
        """Room for so many queries of each row of the batch, and for the keys and values of all rows."""
        B, L, D = x_BLD.shape
        heads = (layer.heads, D // layer.heads)
        return x_BLD.new_empty(B, queries, *heads), x_BLD.new_empty(2, B, L, *heads)

    def _feed(self) -> None:
        """Feed the decided frame back, which gives the context of the next frame."""
        if self._past_BPNC is not None:
            self._past_BPNC.copy_(next_past(self._past_BPNC, self.tokens_BNC))
        x = self._embedded(self.tokens_BNC)
        position = None if self._turns is None else self._position
        for number, layer in enumerate(self._context_layers):
            q, kv = self._heads_of(x, x.shape[1], layer)
            own, shared = self._own[number], self._prefix[number]
            heads_(x, layer, q=q, kv=kv, turns=self._turns, position=position, store=own, length=self._length)
            queries, keys, values = (part.transpose(1, 2) for part in (q, *kv))
            a = frame_attention(
                queries,
                keys,
                values,
                cache=own.transpose(2, 3),
                length=self._length,
                prefix=shared.transpose(2, 3),
                prefix_length=self._prefix_length,
            )
            x = self._layer(x, a.transpose(1, 2).flatten(2), layer)
        self._next_context(x)
        self._counters.add_(self._increments)

    def _next_context(self, h_BND: Tensor) -> None:
        """Context of the next frame, from the raw output of this one; the anchor of a group serves all its members."""
        scale_shift = self._context.scale_shift
        if scale_shift is None:
            self._context_BND.copy_(h_BND)
        else:
            down, up = scale_shift.down.weight, scale_shift.up
            shifted_(self._context_BND, h_BND, self._anchor_GND, down, up.weight, up.bias)

    def _read_history(self, segments: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Read all frames that a group shares in one pass; raw outputs of the last start and of the last frame."""
        N, temporal = self.num_tokens, self._context
        parts: list[Tensor] = []
        start = 0
        for number, segment in enumerate(segments):
            start = sum(part.shape[1] for part in parts)
            first_ND = temporal.start[min(number, 1)].expand(N, -1)
            first_ND = first_ND if temporal.places is None else first_ND + temporal.places
            parts.append(first_ND.expand(self.size.groups, -1, -1))
            if segment.shape[1]:
                frames = self._embedded(segment.to(self.state).flatten(0, 1))
                parts.append(frames.view(self.size.groups, -1, frames.shape[-1]))
        x = torch.cat(parts, dim=1)
        for number, layer in enumerate(self._context_layers):
            # Keys and values are written where they stay.
            both = self._prefix[number, :, :, : x.shape[1]]
            q = self._heads_of(x, x.shape[1], layer)[0]
            heads_(x, layer, q=q, kv=both, turns=self._turns)
            x = self._layer(x, attend(q, *both, frame=N), layer)
        return x[:, start : start + N], x[:, -N:]

    def _embedded(self, z_BNC: Tensor) -> Tensor:
        embed = self._context.embed
        x = embed.weight.new_empty(*z_BNC.shape[:2], embed.weight.shape[0])
        rows_(x, base_D=embed.bias, z_BMC=z_BNC, weight_DC=embed.weight, places_ND=self._context.places)
        return x

    def check(self, segments: Sequence[Tensor], seeds: Tensor, members: Tensor, first: int) -> None:
        """Refuse arguments of :meth:`begin` that do not fit."""
        static_plan.check_segments(self.config, segments, self.size, self.device)
        static_plan.check_words({"seeds": seeds, "members": members}, rows=self.size.rows, device=self.device)
        if first < 0:
            raise EnmaError(f"first is {first}; frames are counted from 0")
        if (slot := self.config.slot(first)) not in self._decide:
            raise EnmaError(f"first is {first}; frame {first} is decided by {slot!r}, so make the step with that slot")
