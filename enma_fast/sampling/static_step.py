"""The frame step of the sampler on static buffers, for one size; it can be captured in a CUDA graph.

`StaticStep` gives the frames of `reference.trajectory`. Weights are cast once, every buffer is allocated once, and all
values that change from frame to frame (seeds, members, frame number, lengths) are in device memory. So nothing waits
for the device, and a captured frame can be replayed for the next one. Repeated work of `reference.frame` is done once:

* members share the keys and values of history and context, and the first frame's context;
* a row of the masked transformer's first layer is computed when its token changes, not at every mask step;
* its last layer runs for the rows that are decided in this mask step, beyond their keys and values.

In a one-pass model all frames but frame 0 of a trajectory are one pass from noise to tokens.

Legend: B rows (members sampled together), G groups that share history and context, N tokens per frame, L rows of the
masked transformer (2N: context and frame; N where they are added), M tokens of this mask step, C token channels,
D width, H heads, K head dim, X what a row of the first layer holds (4D).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import SamplingConfig
from ..errors import EnmaError
from ..models.layers import Block
from ..models.model import Dynamics
from ..models.schedule import mask_schedule
from ..ops.flow_head import flow_head
from ..ops.frame_attention import frame_attention
from ..ops.philox_normal import philox_normal
from ..ops.token_update import update_tokens_
from .noise import token_order
from .reference import flow_temperature, in_one_pass
from .static_layers import Rotary, attend, gather, keys_values, norm_of, norm_of_sum, project, queries, rotary_of
from .static_plan import StaticPlan, flow_plans, prepared_weights, static_buffers


class FrameKind(NamedTuple):
    """Kind of a frame, known on the host; each kind is a CUDA graph of its own."""

    one_pass: bool
    # The last frame of a trajectory is not fed back.
    last: bool


class StaticStep:
    """The frame step of one model for one number of rows.

    Parameters
    ----------
    rows, groups
        Members B that are sampled together, and trajectories G that they belong to; row b has the history and context
        of group b // (B // G).
    prefix_frames
        Largest number of frames of context and history together, with a start frame for each.
    own_frames
        Largest number of generated frames that are fed back: one less than are generated.
    settings
        Sampling settings, fixed for this step.
    initial
        True if a one-pass model has to decide frame 0 of a trajectory too, which takes mask steps and the flow head.
    dtype
        Type of weights and activations, by default that of the weights; tokens and the flow's state are fp32.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        rows: int,
        groups: int,
        prefix_frames: int,
        own_frames: int,
        settings: SamplingConfig,
        initial: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if rows < 1 or groups < 1 or rows % groups:
            raise EnmaError(f"rows is {rows} and groups is {groups}; the same number of rows for each group is needed")
        if prefix_frames < 1 or own_frames < 0:
            raise EnmaError(
                f"prefix_frames is {prefix_frames} and own_frames is {own_frames}; at least 1 and 0 are needed"
            )
        self.config = dynamics.config
        self.settings = settings
        self.rows, self.groups = rows, groups
        self.prefix_frames, self.own_frames = prefix_frames, own_frames
        self.dtype = dtype or dynamics.temporal.embed.weight.dtype
        self.device = dynamics.temporal.embed.weight.device
        self._state = torch.promote_types(self.dtype, torch.float32)
        model = prepared_weights(dynamics, self.dtype)
        self._temporal, self._spatial, self._flow = model.temporal, model.spatial, model.flow
        # The linear layer that reads tokens in one pass; and True if any frame is decided in mask steps.
        self._tokens_of, self.in_steps = model.read, initial or model.read is None
        self._counts = mask_schedule(self._tokens, min(settings.mask_steps, self._tokens)) if self.in_steps else ()
        self._plans = flow_plans(dynamics, model, settings, len(self._counts))
        self._fed: int | None = None
        self._index = 0

        parts = [self._temporal, self._spatial, self._flow if self.in_steps else None, self._tokens_of]
        weights = [weight for part in parts if part is not None for weight in part.parameters()]
        kv, buffers = static_buffers(
            self.config,
            rows=rows,
            groups=groups,
            prefix_frames=prefix_frames,
            own_frames=own_frames,
            mask_steps=self.in_steps,
            dtype=self.dtype,
        )
        self.plan = StaticPlan(weights=sum(weight.nbytes for weight in weights), kv=kv, buffers=buffers)
        allocated = {
            name: torch.zeros(shape, dtype=kind, device=self.device)
            for name, (shape, kind) in (self.plan.kv | self.plan.buffers).items()
        }
        self.tokens_BNC = allocated["tokens"]
        self._prefix, self._own = allocated["prefix"], allocated["own"]
        self._seeds_B, self._members_B = allocated["seeds"], allocated["members"]
        self._context_BND, self._anchor_GND = allocated["context"], allocated["anchor"]
        self._rows_BLX, self._masked_LX = allocated["rows"], allocated["masked"]
        self._marks = allocated["marks"]
        # Frame number in the trajectory, frames before it in all segments, and valid entries of the two caches.
        self._counters, self._increments = allocated["counters"], allocated["increments"]
        self._increments.copy_(torch.tensor([1, 1, self._tokens, 0]))
        self._frame, self._position, self._length, self._prefix_length = self._counters.unbind()
        self._places_N = allocated["places"].copy_(torch.arange(self._tokens))
        self._turns = None
        if self._temporal.rotary is not None:
            frames = torch.arange(prefix_frames + own_frames, device=self.device)
            cos, sin = (table.view(len(frames), self._tokens, 1, -1) for table in self._temporal.rotary.tables(frames))
            self._turns = allocated["turns"].copy_(torch.stack([cos, sin]))
        if self.in_steps:
            self._fill_masked()

    @property
    def _tokens(self) -> int:
        return self.config.num_tokens

    def reset(self) -> None:
        """Discard the trajectory; :meth:`begin` has to come next."""
        self._counters.zero_()
        self._fed = None

    @torch.inference_mode()
    def begin(self, segments: Sequence[Tensor], *, seeds: Tensor, members: Tensor, first: int) -> None:
        """Read history and context, and prepare the first frame.

        ``segments`` are latent frames ``[G, T_i, N, C]``, a context first and the history last; T_i may be 0. ``seeds``
        and ``members`` are ``[B]`` int64, the key of the noise of each row, and ``first`` is the number of the first
        frame in its trajectory, that of the frames in the history. An `EnmaError` names an argument of another shape,
        type or device.
        """
        self._check(segments, seeds, members, first)
        N = self._tokens
        self._seeds_B.copy_(seeds)
        self._members_B.copy_(members)
        temporal = self._temporal
        anchor = h = self._context_BND
        position = 0
        for number, segment in enumerate(segments):
            start_ND = temporal.start[min(number, 1)].expand(N, -1)
            start_ND = start_ND if temporal.places is None else start_ND + temporal.places
            anchor = h = self._read(start_ND.expand(self.groups, -1, -1), position)
            for t in range(segment.shape[1]):
                position += 1
                h = self._read(self._embedded(segment[:, t]), position)
            position += 1
        self._anchor_GND.copy_(anchor)
        context = temporal.context(h, anchor, first=first == 0)
        self._by_group(self._context_BND).copy_(context[:, None])
        self._counters.copy_(torch.tensor([first, position, 0, position * N]))
        self._fed, self._index = 0, first

    def frame(self, *, last: bool = False) -> Tensor:
        """Decide the next latent frame ``[B, N, C]``; the next call overwrites its buffer.

        The ``last`` frame of a trajectory is not fed back. `EnmaError` if no trajectory has begun, or if the cache has
        no room for the frame.
        """
        return self.run(self.advance(last=last))

    def kinds(self) -> list[FrameKind]:
        """All kinds of frames that can occur; without room to feed a frame back, every frame is the last."""
        ways = [False] * self.in_steps + [True] * (self._tokens_of is not None)
        return [FrameKind(way, last) for way in ways for last in ((False, True) if self.own_frames else (True,))]

    def advance(self, *, last: bool) -> FrameKind:
        """The host's part of :meth:`frame`: check that there is a trajectory, and room to feed the frame back."""
        if self._fed is None:
            raise EnmaError("frame: no trajectory has begun; call begin first")
        kind = FrameKind(in_one_pass(self.config, self._index), last)
        if last:
            self._fed = None
            return kind
        if self._fed == self.own_frames:
            raise EnmaError(
                f"frame: own_frames is {self.own_frames} and as many frames were fed back; pass last=True or make a"
                " step with more"
            )
        self._fed, self._index = self._fed + 1, self._index + 1
        return kind

    @torch.inference_mode()
    def run(self, kind: FrameKind) -> Tensor:
        """The device's part of :meth:`frame`; it reads and writes static buffers only."""
        if kind.one_pass:
            self._decide_in_one_pass()
        else:
            self._decide_in_mask_steps()
        if not kind.last:
            self._feed()
        return self.tokens_BNC

    def _decide_in_mask_steps(self) -> None:
        """Decide a frame in mask steps, from the context to the tokens."""
        L = self._rows_BLX.shape[1]
        order_BN = token_order(seed=self._seeds_B, members=self._members_B, frame=self._frame, num_tokens=self._tokens)
        self._begin_rows()
        done = 0
        for step, count in enumerate(self._counts):
            tokens_BM = order_BN[:, done : done + count]
            # The rows of the frame are the last ones.
            rows_BM = tokens_BM + (L - self._tokens)
            c_BMD = self._conditions(self._rows_BLX, rows_BM)
            noise_BMC = self._noise(tokens_BM, step)
            z_BMC = flow_head(c_BMD, flow_temperature(self.config, self.settings) * noise_BMC, plan=self._plans[step])
            if self._flow.moments is not None:
                mean, scale = self._flow.mean_and_scale(c_BMD)
                z_BMC = mean + scale * z_BMC
            self._put(self.tokens_BNC, tokens_BM, z_BMC)
            done += count
            if done < self._tokens:
                self._put(self._rows_BLX, rows_BM, self._known_rows(z_BMC, tokens_BM, rows_BM))

    def _decide_in_one_pass(self) -> None:
        """Decide a frame in one pass, from context and noise to the tokens."""
        spatial, read = self._spatial, self._tokens_of
        assert spatial.noise is not None
        assert read is not None
        noise_BNC = self._noise(self._places_N, 0)
        x_BND = spatial.mask + spatial.noise((self.settings.temperature * noise_BNC).to(self.dtype))
        h_BND = self._context_BND
        if spatial.places is not None:
            x_BND = x_BND + spatial.places
        if spatial.concat:
            x_BLD = torch.cat([h_BND if spatial.places is None else h_BND + spatial.places, x_BND], dim=1)
        else:
            x_BLD = h_BND + x_BND
        rows_BLX = self._first_layer(x_BLD, rotary_of(spatial.rotary, slice(None)))
        self.tokens_BNC.copy_(read(self._conditions(rows_BLX, None)))

    def _noise(self, tokens: Tensor, mask_step: int) -> Tensor:
        """Noise ``[B, M, C]`` of tokens ``[M]`` or ``[B, M]`` of the frame at a mask step."""
        return philox_normal(
            seed=self._seeds_B,
            members=self._members_B,
            frame=self._frame,
            mask_step=mask_step,
            tokens=tokens,
            channels=self.config.token_channels,
            dtype=self._state,
        )

    def _feed(self) -> None:
        """Feed the decided frame back, which gives the context of the next frame."""
        rotary = None
        if self._turns is not None:
            cos, sin = self._turns.index_select(1, self._position[None])[:, 0]
            rotary = cos, sin
        past = {"length": self._length, "prefix_length": self._prefix_length}
        kv = {"cache": self._own, "prefix": self._prefix}
        places_N = self._places_N + self._length
        h = self._causal(self._embedded(self.tokens_BNC), rotary, kv, past, store=self._own, places_N=places_N)
        # The anchor of a group serves all of its members.
        context = self._temporal.context(self._by_group(h), self._anchor_GND[:, None], first=False)
        self._by_group(self._context_BND).copy_(context)
        self._counters.add_(self._increments)

    def _read(self, x_GND: Tensor, position: int) -> Tensor:
        """Read a frame that all members of a group share; returns its raw output ``[G, N, D]``."""
        rotary = None if self._turns is None else (self._turns[0, position], self._turns[1, position])
        N = self._tokens
        places_N = self._places_N + position * N
        past = {"length": position * N}
        return self._causal(x_GND, rotary, {"cache": self._prefix}, past, store=self._prefix, places_N=places_N)

    def _causal(
        self,
        x_BND: Tensor,
        rotary: Rotary | None,
        kv: dict[str, Tensor],
        lengths: dict[str, Any],
        *,
        store: Tensor,
        places_N: Tensor,
    ) -> Tensor:
        """Pass one frame through the causal transformer; its keys and values go to `places_N` of `store`."""
        blocks = cast("list[Block]", self._temporal.blocks)
        for layer, block in enumerate(blocks):
            y = norm_of(x_BND, block.norm_1)
            q, k, v = project(block.attention, y, rotary)
            past: dict[str, Any] = dict(lengths)
            for name, both in kv.items():
                past[f"{name}_k"], past[f"{name}_v"] = both[layer].transpose(2, 3)
            attended = frame_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **past)
            for i, part in enumerate((k, v)):
                self._put(store[layer, i].flatten(2), places_N.expand(len(part), -1), part.flatten(2))
            x_BND, y = norm_of_sum(x_BND, block.attention.merge(attended), block.norm_2)
            x_BND = x_BND + block.mlp(y)
        return x_BND

    def _begin_rows(self) -> None:
        """Compute the first layer of the masked transformer with all tokens unknown."""
        N, spatial = self._tokens, self._spatial
        h = self._context_BND if spatial.places is None else self._context_BND + spatial.places
        if spatial.concat:
            self._rows_BLX[:, :N] = self._first_layer(h, rotary_of(spatial.rotary, slice(None, N)))
            self._rows_BLX[:, N:] = self._masked_LX
        else:
            self._rows_BLX.copy_(self._first_layer(h + spatial.mask, rotary_of(spatial.rotary, slice(None))))

    @torch.inference_mode()
    def _fill_masked(self) -> None:
        """Compute the rows of unknown tokens, which are the same in all frames unless the context is added to them."""
        spatial = self._spatial
        if spatial.concat:
            x_ND = spatial.mask.expand(self._tokens, -1)
            x_ND = x_ND if spatial.places is None else x_ND + spatial.places
            self._masked_LX.copy_(
                self._first_layer(x_ND[None], rotary_of(spatial.rotary, slice(self._tokens, None)))[0]
            )

    def _known_rows(self, z_BMC: Tensor, tokens_BM: Tensor, rows_BM: Tensor) -> Tensor:
        """First layer of the masked transformer for tokens that have just been decided."""
        spatial = self._spatial
        x_BMD = spatial.embed(z_BMC.to(self.dtype))
        if spatial.places is not None:
            x_BMD = x_BMD + F.embedding(tokens_BM, spatial.places)
        if not spatial.concat:
            x_BMD = gather(self._context_BND, tokens_BM) + x_BMD
        return self._first_layer(x_BMD, rotary_of(spatial.rotary, rows_BM))

    def _first_layer(self, x_BLD: Tensor, rotary: Rotary | None) -> Tensor:
        """Rows of the first layer of the masked transformer ``[B, L, 4D]``: input, queries, keys, values."""
        block = cast(Block, self._spatial.blocks[0])
        q, k, v = project(block.attention, norm_of(x_BLD, block.norm_1), rotary)
        return torch.cat([x_BLD, q.flatten(2), k.flatten(2), v.flatten(2)], dim=-1)

    def _conditions(self, rows_BLX: Tensor, rows_BM: Tensor | None) -> Tensor:
        """Conditions ``[B, M, D]`` of some rows of the masked transformer, by default of all rows of the frame."""
        blocks, rotary = cast("list[Block]", self._spatial.blocks), rotary_of(self._spatial.rotary, slice(None))
        chosen = slice(-self._tokens, None) if rows_BM is None else rows_BM
        x, *qkv = rows_BLX.chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.config.dynamics.heads, -1)) for part in qkv)
        final = blocks[-1]
        for i, block in enumerate(blocks[:-1]):
            attended = block.attention.merge(attend(q, k, v))
            x, y = norm_of_sum(x, attended, block.norm_2)
            following = blocks[i + 1]
            x, y = norm_of_sum(x, block.mlp(y), following.norm_1)
            if following is final:
                k, v = keys_values(final.attention, y, rotary)
                q = queries(final.attention, gather(y, chosen), rotary_of(self._spatial.rotary, chosen))
            else:
                q, k, v = project(following.attention, y, rotary)
        if len(blocks) == 1:
            q = gather(q.flatten(2), chosen).unflatten(-1, q.shape[2:])
        x, y = norm_of_sum(gather(x, chosen), final.attention.merge(attend(q, k, v)), final.norm_2)
        return norm_of_sum(x, final.mlp(y), self._spatial.norm)[1]

    def _put(self, buffer_BLX: Tensor, rows_BM: Tensor, values_BMX: Tensor) -> None:
        """Write rows of a buffer; the scatter of torch waits for the device in deterministic mode."""
        # The operator marks the rows that it writes; the marks are not used, since the order of the tokens is known.
        update_tokens_(buffer_BLX, self._marks[: buffer_BLX.shape[0], : buffer_BLX.shape[1]], rows_BM, values_BMX)

    def _embedded(self, z_BNC: Tensor) -> Tensor:
        x = self._temporal.embed(z_BNC.to(self.dtype))
        return x if self._temporal.places is None else x + self._temporal.places

    def _by_group(self, x_BND: Tensor) -> Tensor:
        return x_BND.view(self.groups, -1, *x_BND.shape[1:])

    def _check(self, segments: Sequence[Tensor], seeds: Tensor, members: Tensor, first: int) -> None:
        N, C = self._tokens, self.config.token_channels
        if not segments:
            raise EnmaError("segments is empty; expected a history, of no frames where there is a context")
        for number, segment in enumerate(segments):
            shape = list(segment.shape)
            if len(shape) != 4 or [shape[0], *shape[2:]] != [self.groups, N, C]:
                raise EnmaError(f"segments[{number}] has shape {shape}; expected [{self.groups}, T, {N}, {C}]")
            if not segment.is_floating_point() or segment.device != self.device:
                kind = f"{segment.dtype} on {segment.device}"
                raise EnmaError(f"segments[{number}] is {kind}; expected floating point on {self.device}")
        frames = sum(segment.shape[1] + 1 for segment in segments)
        if frames > self.prefix_frames:
            raise EnmaError(
                f"segments hold {frames} frames, start frames included; this step has prefix_frames"
                f" {self.prefix_frames}"
            )
        for name, words in (("seeds", seeds), ("members", members)):
            if words.shape != (self.rows,) or words.dtype != torch.int64 or words.device != self.device:
                kind = f"{list(words.shape)} {words.dtype} on {words.device}"
                raise EnmaError(f"{name} is {kind}; expected [{self.rows}] torch.int64 on {self.device}")
        if first < 0:
            raise EnmaError(f"first is {first}; frames are counted from 0")
        if not (self.in_steps or first):
            raise EnmaError("first is 0; frame 0 takes mask steps, so make the step with initial=True")
