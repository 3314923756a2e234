"""The joined model; ``Dynamics.forward`` is the training loss, `draw` gives the random numbers of a training step.

Legend: B batch, T latent frames, N tokens per frame, C token channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import FlowConfig, ModelConfig
from ..ops.self_attention import widened
from ..utils.devices import to_device
from .causal_transformer import CausalTransformer
from .covariance import FieldCovariance
from .envelope import Envelope
from .fair_score import fair_score
from .flow_head import FlowHead
from .layers import exact
from .local_head import LocalHead, first_head, noise_as_past, with_past
from .masked_transformer import MaskedTransformer
from .tokenizer import LinearEnd, Tokenizer, patchify, unpatchify


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step, drawn outside so that the loss is a function of its arguments.

    Lists hold one entry per segment, shaped like that segment's latent frames.
    """

    noise: list[Tensor]  # [B, T, N, draws, C] standard normal
    times: list[Tensor]  # [B, T, N, draws, 1] flow times in [0, 1]
    known: list[Tensor]  # [B, T, N] True where the masked transformer sees the token
    history: list[Tensor]  # [B, T, N, C] added to what the causal transformer reads; zeros as drawn
    masked: Tensor  # [] what the sum over masked tokens is divided by: their number, in a share their mean per share

    def share(self, rows: slice, *, ranks: int, device: torch.device) -> Draws:
        """The part of these rows; the mean of the shares' losses is the loss of the whole batch."""
        lists = (self.noise, self.times, self.known, self.history)
        noise, times, known, history = ([to_device(x[rows], device) for x in part] for part in lists)
        return Draws(noise, times, known, history, to_device(self.masked / ranks, device))


class Dynamics(nn.Module):
    """Causal transformer, masked transformer and flow head on standardised latent frames."""

    score_weight: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dyn = config.dynamics
        self.temporal = CausalTransformer(config)
        self.spatial = MaskedTransformer(config)
        self.first = None if dyn.first is None else first_head(config)
        self.flow = FlowHead(dyn.flow, config.token_channels, dyn.width) if dyn.first is None else None
        one_pass = dyn.decoder == "one-pass"
        self.read = nn.Linear(dyn.width, config.token_channels) if one_pass and dyn.local is None else None
        self.local = LocalHead(config, dyn.local) if one_pass and dyn.local is not None else None
        # Weights of the channels in scores that train the model (`training.sensitivity`).
        self.register_buffer("score_weight", torch.ones(config.token_channels), persistent=False)

    def forward(self, segments: list[Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the masked tokens of all segments, and terms to log.

        That is the flow loss; in a one-pass model that of the frames 0 only, plus the fair CRPS of the others, or the
        latter alone where frame 0 has a head of its own.
        ``segments`` are standardised latent frames ``[B, T_i, N, C]``: one trajectory, or a context and a target that
        share an environment. ``draws`` are the random numbers of this step.
        """
        read = [z + n for z, n in zip(segments, draws.history, strict=True)]
        contexts = self.temporal(read)
        one_pass = self.config.dynamics.decoder == "one-pass"
        loss, terms = torch.zeros((), device=contexts[0].device), dict[str, Tensor]()
        if self.flow is not None:
            # Frames that the flow decides: all, or frame 0 alone.
            decided = slice(0, 1) if one_pass else slice(None)
            h, z, known, noise, times = (
                torch.cat([x[:, decided].flatten(0, 1) for x in part])
                for part in (contexts, segments, draws.known, draws.noise, draws.times)
            )
            per_token, parts = self.flow.loss(z, self.spatial(h, z, known), noise, times)
            weight = (~known).to(per_token.dtype)
            total = draws.masked
            loss, terms = (per_token * weight).sum() / total, {k: (v * weight).sum() / total for k, v in parts.items()}
        if one_pass:
            h, z, noise = (
                torch.cat([x[:, 1:].flatten(0, 1) for x in part]) for part in (contexts, segments, draws.noise)
            )
            past = None
            if self.local is not None:
                past = torch.cat([with_past(x, self.local.past)[:, 1:].flatten(0, 1) for x in read])
            crps = self._crps(h, z, noise, past)
            terms = {"first_frame": loss.detach()} if self.flow is not None else {}
            loss, terms = loss + crps, terms | {"crps": crps.detach()}
        return loss, terms

    def one_pass(self, h_BND: Tensor, noise_BNC: Tensor, past_BPNC: Tensor | None = None) -> Tensor:
        """All tokens ``[B, N, C]`` of an unknown frame from context and noise, at least in fp32 (one-pass models).

        ``past_BPNC`` are the frames before it for a local head (:func:`enma_fast.models.local_head.with_past`).
        """
        condition = self.spatial.from_noise(h_BND, noise_BNC.to(h_BND.dtype))
        if self.local is not None:
            assert past_BPNC is not None
            return widened(self.local(condition, past_BPNC))
        assert self.read is not None
        return widened(exact(self.read, condition))

    def first_frame(self, h_BND: Tensor, noise_BNC: Tensor) -> Tensor:
        """All tokens ``[B, N, C]`` of frame 0 from context and noise (models with `first`)."""
        assert self.first is not None
        condition = self.spatial.from_noise(h_BND, noise_BNC.to(h_BND.dtype))
        return self.first(condition, noise_as_past(noise_BNC.to(torch.promote_types(h_BND.dtype, torch.float32))))

    def _crps(self, h_BND: Tensor, z_BNC: Tensor, noise_BNKC: Tensor, past_BPNC: Tensor | None) -> Tensor:
        """Fair CRPS of frames ``z`` decided in one pass, once for each of K noises."""
        K = noise_BNKC.shape[2]
        h, past = (None if x is None else x.repeat_interleave(K, 0) for x in (h_BND, past_BPNC))
        assert h is not None
        made = self.one_pass(h, noise_BNKC.transpose(1, 2).flatten(0, 1), past)
        return (fair_score(made.unflatten(0, (-1, K)), z_BNC, torch.abs) * self.score_weight).mean()


def draw(
    config: ModelConfig,
    shapes: list[tuple[int, int]],
    *,
    flow: FlowConfig,
    mask_ratio: tuple[float, float],
    generator: torch.Generator,
) -> Draws:
    """Draw the random numbers of a step for segments of ``(batch, frames)`` each."""
    N, C = config.num_tokens, config.token_channels
    noise, times, known, history = [], [], [], []
    for B, T in shapes:
        noise.append(torch.randn(B, T, N, flow.draws, C, generator=generator))
        if flow.time_law == "uniform":
            times.append(torch.rand(B, T, N, flow.draws, 1, generator=generator))
        else:
            times.append(torch.randn(B, T, N, flow.draws, 1, generator=generator).sigmoid())
        ratio = mask_ratio[0] + (mask_ratio[1] - mask_ratio[0]) * torch.rand(B, T, 1, generator=generator)
        masked = (ratio * N).ceil().clamp(1, N)
        rank = torch.rand(B, T, N, generator=generator).argsort(-1).argsort(-1)
        known.append(rank >= masked)
        history.append(torch.zeros(B, T, N, C))
    count = torch.stack([(~k).sum() for k in known]).sum().float()
    return Draws(noise, times, known, history, count)


class Model(nn.Module):
    """Tokenizer and dynamics with the latent statistics between them."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # The envelope of the training data, if the checkpoint holds one.
        self.envelope: Envelope | None = None
        self.covariance: FieldCovariance | None = None
        self.tokenizer = Tokenizer(config.tokenizer)
        self.dynamics = Dynamics(config)
        channels = config.tokenizer.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

    @property
    def reads_points(self) -> bool:
        """Whether it takes observations at scattered points: by its own interpolation, or estimated from covariance."""
        return self.tokenizer.interpolation is not None or self.covariance is not None

    def to_tokens(self, z_BTNC: Tensor) -> Tensor:
        """Standardise the tokenizer's latents and merge them to the transformers' tokens."""
        z = (z_BTNC - self.latent_mean) / self.latent_std
        return patchify(z, self.config.tokenizer.token_grid, self.config.dynamics.patch)

    def from_tokens(self, z_BTNC: Tensor) -> Tensor:
        """Inverse of :meth:`to_tokens`."""
        z = unpatchify(z_BTNC, self.config.tokenizer.token_grid, self.config.dynamics.patch)
        return z * self.latent_std + self.latent_mean

    def encode(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Fields ``[B, T, *grid, c]`` (or points) to standardised tokens ``[B, T', N, C]``."""
        return self.to_tokens(self.tokenizer.encode(u, points, valid))

    def decode(
        self,
        z_BTNC: Tensor,
        num_frames: int | None = None,
        query: Tensor | None = None,
        *,
        end: LinearEnd | None = None,
    ) -> Tensor:
        """Standardised tokens to fields ``[B, T, *grid, c]``; arguments as those of `Tokenizer.decode`."""
        return self.tokenizer.decode(self.from_tokens(z_BTNC), num_frames, query, end=end)
