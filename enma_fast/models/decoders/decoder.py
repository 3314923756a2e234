"""What every decoder does: it decides a latent frame, and says how well it would have decided a known one.

Legend: B batch x members (x frames in training), P past frames, N tokens per frame, C token channels, D width of the
condition, K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...config import SamplingConfig
from ...ops.frame_rows import MaskSteps, order_of
from ...ops.philox_normal import philox_normal
from ..covariance import FieldCovariance


@dataclass(frozen=True)
class Noise:
    """The random numbers of a frame: a pure function of seed, member and frame (`ops.philox_normal`).

    ``seeds`` and ``members`` are ``[B]`` int64, the key of each row; ``frame`` is the number of the latent frame in its
    trajectory.
    """

    seeds: Tensor
    members: Tensor
    frame: int

    def normal(self, tokens: Tensor, channels: int, *, mask_step: int = 0) -> Tensor:
        """Standard normals ``[B, M, C]`` of tokens ``[M]`` or ``[B, M]``."""
        return philox_normal(
            seed=self.seeds,
            members=self.members,
            frame=self.frame,
            mask_step=mask_step,
            tokens=tokens,
            channels=channels,
        )

    def order(self, num_tokens: int) -> Tensor:
        """In which order each row decides its tokens, ``[B, N]`` int64."""
        return order_of(seed=self.seeds, members=self.members, frame=self.frame, num_tokens=num_tokens)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a training step, drawn outside so that the loss is a function of its arguments."""

    noise: Tensor  # [B, N, K, C] standard normal
    times: Tensor  # [B, N, K, 1] flow times in [0, 1]
    known: Tensor  # [B, N] True where the masked transformer sees the token
    masked: Tensor  # [] what the sum over masked tokens is divided by
    weight: Tensor  # [C] of the channels in scores (`training.sensitivity`)


class StaticDecision(NamedTuple):
    """How a decoder decides a frame on static buffers.

    Attributes
    ----------
    run : decides the frame; it is given the step, which holds it, so that no cycle keeps the step's memory
    load : takes what it has computed from weights from those of a decoder, in place; its own are loaded before
    """

    run: Callable[[StaticFrame], None]
    load: Callable[[Any], None] = lambda original: None


class StaticFrame(Protocol):
    """What a decoder finds on a GPU: static buffers, and the masked transformer on them (`sampling.static_step`)."""

    tokens_BNC: Tensor
    state: torch.dtype
    device: torch.device
    num_tokens: int
    channels: int

    @property
    def norm(self) -> tuple[Tensor, float]:
        """Weight and epsilon of the last norm."""

    def noise(self) -> Tensor:
        """Normals ``[B, N, C]`` of the frame."""

    def ordered_noise(self, steps: MaskSteps, scale: float) -> tuple[Tensor, list[Tensor]]:
        """Order of the tokens, and the normals of each mask step."""

    def begin_frame(self, noise_BNC: Tensor | None, weight_DC: Tensor | None, *, scale: float = 1.0) -> None:
        """Rows of an unknown frame, with embedded noise times `scale` in them."""

    def put(self, z_BMC: Tensor, tokens_BM: Tensor, *, last: bool) -> None:
        """Tokens that have been decided: into the frame, and unless they are the last also into its rows."""

    def conditions(self, tokens_BM: Tensor | None) -> Tensor:
        """Rows ``[B, M, D]`` of some tokens, by default of all, before the last norm."""

    def past(self, count: int) -> Tensor:
        """The `count` frames ``[B, P, N, C]`` before this one."""


class Decoder(nn.Module):
    """Base of the kinds of decoders.

    Attributes
    ----------
    past : past frames P that it sees
    draws_fields : whether it draws frame 0 as a field, by :meth:`fields`, and decides no tokens
    """

    past: int = 0
    draws_fields: bool = False

    @property
    def of_grid(self) -> str | None:
        """What it has that is of its grid alone; None if it serves any."""
        return f"a {type(self).__name__}"

    def decide(self, h: Any, past_BPNC: Tensor, noise: Noise, settings: SamplingConfig) -> Tensor:
        """All tokens ``[B, N, C]`` of the next frame, at least fp32.

        ``h`` is what the context says of it, and ``past_BPNC`` are the frames before it, zeros before the first.
        """
        raise NotImplementedError

    def loss(self, h: Any, past_BPNC: Tensor, z_BNC: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of known frames ``z``, and terms to log (detached)."""
        raise NotImplementedError

    def inherited(self, before: Sequence[Decoder]) -> dict[str, Tensor]:
        """Weights to begin with: those of the first decoder of its kind, or its own where others have none that fit."""
        own, states = self.state_dict(), {type(other): other.state_dict() for other in reversed(before)}
        if type(self) in states:
            return states[type(self)]
        others = {name: tensor for state in states.values() for name, tensor in state.items()}
        return own | {name: others[name] for name in own if name in others and others[name].shape == own[name].shape}

    def linear_mean(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the mean of its tokens, where that is linear in their conditions."""
        return None

    def last_weights(self) -> list[nn.Parameter]:
        """Weights behind its conditions, which can be trained with all others held; empty where none can."""
        return []

    def last_loss(self, h: Any, z_BNC: Tensor, draws: Draws) -> Tensor:
        """Mean loss of known frames ``z`` as a function of :meth:`last_weights`."""
        raise NotImplementedError

    def forget_condition_(self) -> list[nn.Parameter]:
        """Set to zero what reads the condition. Returns the weights of :meth:`from_past`; empty where it needs one."""
        return []

    def from_past(self, past_BPNC: Tensor) -> Tensor:
        """All tokens ``[B, N, C]`` of a frame from the frames before it alone."""
        raise NotImplementedError

    def fields(self, covariance: FieldCovariance, first: Tensor | None, seeds: Tensor, members: Tensor) -> Tensor:
        """Frames 0 ``[B, *grid, c]``, one for each seed and member ``[B]``, fp32.

        ``first`` are the frames 0 ``[B, *grid, c]`` of their contexts, where these are known on the grid.
        """
        raise NotImplementedError

    def static(self, frame: StaticFrame, settings: SamplingConfig, original: Decoder) -> StaticDecision:
        """What decides a frame on static buffers; `original` has the weights before they were converted."""
        raise NotImplementedError


def with_past(frames_BTNC: Tensor, past: int) -> Tensor:
    """The frames before each frame, ``[B, T, P, N, C]``, zeros before the first."""
    if not past:
        return frames_BTNC[:, :, None][:, :, :0]
    return _after_zeros(frames_BTNC[:, :-1], past).unfold(1, past, 1).movedim(-1, 2)


def first_past(history_BTNC: Tensor, past: int) -> Tensor:
    """Frames ``[B, P, N, C]`` before the frame that follows a history."""
    frames = _after_zeros(history_BTNC, past)
    return frames[:, frames.shape[1] - past :].to(torch.promote_types(history_BTNC.dtype, torch.float32))


def next_past(past_BPNC: Tensor, frame_BNC: Tensor) -> Tensor:
    """The past of the frame after this one: the oldest frame makes room for it."""
    if not past_BPNC.shape[1]:
        return past_BPNC
    return torch.cat([past_BPNC[:, 1:], frame_BNC[:, None]], 1)


def _after_zeros(frames_BTNC: Tensor, count: int) -> Tensor:
    return torch.cat([frames_BTNC.new_zeros(len(frames_BTNC), count, *frames_BTNC.shape[2:]), frames_BTNC], 1)
