"""The joined model: a codec, a context and two decoders. ``Dynamics.forward`` is the training loss of single frames.

Legend: B batch, T latent frames, N tokens per frame, C token channels, D width, P past frames, K draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from ..utils.devices import to_device
from .codecs.codec import Codec
from .covariance import FieldCovariance
from .decoders.decoder import Decoder, Draws, Noise, with_past
from .drivers import Drivers, DriverScales
from .envelope import Envelope
from .masked_transformer import MaskedTransformer
from .patches import patchify, unpatchify
from .saving import save_model


@dataclass(frozen=True)
class SegmentDraws:
    """The random numbers of one training step; lists hold one entry per segment, shaped like its latent frames."""

    noise: list[Tensor]  # [B, T, N, K, C] standard normal
    times: list[Tensor]  # [B, T, N, K, 1] flow times in [0, 1]
    known: list[Tensor]  # [B, T, N] True where the masked transformer sees the token
    history: list[Tensor]  # [B, T, N, C] added to what the context reads; zeros as drawn
    masked: Tensor  # [] what the sum over masked tokens is divided by: their number, in a share their mean per share

    def share(self, rows: slice, *, ranks: int, device: torch.device) -> SegmentDraws:
        """The part of these rows; the mean of the shares' losses is the loss of the whole batch."""
        lists = (self.noise, self.times, self.known, self.history)
        noise, times, known, history = ([to_device(x[rows], device) for x in part] for part in lists)
        return SegmentDraws(noise, times, known, history, to_device(self.masked / ranks, device))


class Dynamics(nn.Module):
    """Context and decoders on standardised latent frames, and the masked transformer that decoders may share."""

    score_weight: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.context = config.context.made()(config)
        self.trunk = None if config.trunk is None else MaskedTransformer(config)
        initial, step = config.initial, config.step
        self.initial: Decoder | None = None if initial is None else initial.made()(config, initial, self.trunk)
        self.step: Decoder = step.made()(config, step, self.trunk)
        # Weights of the channels in scores that train the model (`training.sensitivity`).
        self.register_buffer("score_weight", torch.ones(config.token_channels), persistent=False)

    @property
    def past(self) -> int:
        """Past frames that its decoders see at most."""
        return max(self.step.past, 0 if self.initial is None else self.initial.past)

    @property
    def transformers(self) -> tuple[Any, MaskedTransformer]:
        """The causal and the masked transformer of a model that has both."""
        assert self.trunk is not None
        return self.context, self.trunk

    def decoder(self, slot: str) -> Decoder:
        """The decoder in a slot of the config."""
        decoder: Decoder = getattr(self, slot)
        return decoder

    def first_weights(self) -> list[nn.Parameter]:
        """Weights that decide frame 0 alone, behind its conditions; empty where none do."""
        return [] if self.initial is None else self.initial.last_weights()

    def settings(self, slot: str, settings: SamplingConfig) -> SamplingConfig:
        """The settings of the decoder in a slot: an initial state is drawn from its own distribution."""
        return settings if slot == "step" else replace(settings, temperature=1.0)

    def decide(self, h: Any, past_BPNC: Tensor, noise: Noise, settings: SamplingConfig) -> Tensor:
        """All tokens ``[B, N, C]`` of the frame that the noise is of; arguments as those of `Decoder.decide`."""
        slot = self.config.slot(noise.frame)
        decoder = self.decoder(slot)
        own_past = past_BPNC[:, past_BPNC.shape[1] - decoder.past :]
        return decoder.decide(h, own_past, noise, self.settings(slot, settings))

    def forward(self, segments: list[Tensor], draws: SegmentDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of all frames of all segments, each by the decoder that decides it, and terms to log.

        ``segments`` are standardised latent frames ``[B, T_i, N, C]``: one trajectory, or a context and a target that
        share an environment. ``draws`` are the random numbers of this step.
        """
        read = [z + n for z, n in zip(segments, draws.history, strict=True)]
        conditions = self.context(read)

        def loss(decoder: Decoder, frames: slice) -> tuple[Tensor, dict[str, Tensor]]:
            h, z, noise, times, known = (
                torch.cat([x[:, frames].flatten(0, 1) for x in part])
                for part in (conditions, segments, draws.noise, draws.times, draws.known)
            )
            past = torch.cat([with_past(x, decoder.past)[:, frames].flatten(0, 1) for x in read])
            return decoder.loss(h, past, z, Draws(noise, times, known, draws.masked, self.score_weight))

        if self.initial is None:
            return loss(self.step, slice(None))
        if self.initial.draws_fields:
            return loss(self.step, slice(1, None))
        first_loss, _ = loss(self.initial, slice(0, 1))
        later_loss, terms = loss(self.step, slice(1, None))
        return first_loss + later_loss, {"first_frame": first_loss.detach()} | terms


def draw(
    config: ModelConfig,
    shapes: list[tuple[int, int]],
    *,
    draws: int,
    mask_ratio: tuple[float, float],
    generator: torch.Generator,
) -> SegmentDraws:
    """Draw the random numbers of a step for segments of ``(batch, frames)`` each, `draws` times for each token."""
    N, C = config.num_tokens, config.token_channels
    noise, times, known, history = [], [], [], []
    for B, T in shapes:
        noise.append(torch.randn(B, T, N, draws, C, generator=generator))
        times.append(torch.rand(B, T, N, draws, 1, generator=generator))
        ratio = mask_ratio[0] + (mask_ratio[1] - mask_ratio[0]) * torch.rand(B, T, 1, generator=generator)
        masked = (ratio * N).ceil().clamp(1, N)
        rank = torch.rand(B, T, N, generator=generator).argsort(-1).argsort(-1)
        known.append(rank >= masked)
        history.append(torch.zeros(B, T, N, C))
    count = torch.stack([(~k).sum() for k in known]).sum().float()
    return SegmentDraws(noise, times, known, history, count)


class Model(nn.Module):
    """Codec and dynamics with the latent statistics between them."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # The envelope of the training data, if the checkpoint holds one.
        self.envelope: Envelope | None = None
        self.covariance: FieldCovariance | None = None
        self.codec: Codec = config.codec.made()(config.codec)
        self.dynamics = Dynamics(config)
        channels = config.codec.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.drivers = DriverScales(config) if config.is_told else None

    def told(self, arrays: Mapping[str, Any], count: int) -> Drivers | None:
        """What it is told of so many trajectories, by arrays `[n or 1, T or 1, *x or 1s]`; None of fields alone."""
        return None if self.drivers is None else self.drivers(arrays, count, self.codec.mask)

    @property
    def reads_points(self) -> bool:
        """Whether it takes observations at scattered points: by its codec, or estimated from their covariance."""
        return self.config.codec.at_points or self.covariance is not None

    @property
    def draws_fields(self) -> bool:
        """Whether frame 0 of a generated trajectory is drawn as a field, and then encoded."""
        return self.dynamics.initial is not None and self.dynamics.initial.draws_fields

    def first_fields(self, first: Tensor | None, seeds: Tensor, members: Tensor) -> Tensor:
        """Frames 0 ``[B, *grid, c]`` of generated trajectories; arguments as those of `Decoder.fields`."""
        assert self.dynamics.initial is not None
        if self.covariance is None:
            raise EnmaError(f"{self.config.name}: its checkpoint has no covariance, of which frame 0 is drawn")
        return self.dynamics.initial.fields(self.covariance, first, seeds, members)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder, which `load_model` reads."""
        save_model(self, Path(folder))

    def at_grid(self, *grid: int) -> Model:
        """A copy of a field model for fields with another number of points on each axis, and the same spacing.

        So the domain is larger or smaller; convolutions, and the laws of vibrations and diffusion, know the distance
        between points and not their number. The copy does not warn of fields outside the training data, as it knows
        none of this size. `EnmaError` if a slot has something that is of its own grid.
        """
        config, codec = self.config, self.config.codec
        for part in (self.codec, self.dynamics.context, self.dynamics.step):
            if (reason := part.of_grid) is not None:
                raise EnmaError(f"{config.name} has {reason}, which is of its grid; train on the other grid")
        if len(grid) != codec.dims:
            raise EnmaError(f"grid is {list(grid)}; {config.name} has {codec.dims} axes")
        assert codec.lengths is not None
        # Between walls a length is that of the steps between the points.
        sizes = zip(codec.grid, grid, codec.periodic, strict=True)
        steps = [(n, m) if wraps else (n - 1, m - 1) for n, m, wraps in sizes]
        lengths = tuple(length * new / old for length, (old, new) in zip(codec.lengths, steps, strict=True))
        model = Model(replace(config, codec=replace(codec, grid=grid, lengths=lengths))).requires_grad_(False).eval()
        own = self.state_dict()
        # What has another shape there is as it was made.
        tensors = {name: own[name] if own[name].shape == x.shape else x for name, x in model.state_dict().items()}
        model.load_state_dict(tensors)
        return model

    def to_tokens(self, z_BTNC: Tensor) -> Tensor:
        """Standardise the codec's latents and merge them to the transformers' tokens."""
        z = (z_BTNC - self.latent_mean) / self.latent_std
        return patchify(z, self.config.codec.token_grid, self.config.context.patch)

    def from_tokens(self, z_BTNC: Tensor) -> Tensor:
        """Inverse of :meth:`to_tokens`."""
        z = unpatchify(z_BTNC, self.config.codec.token_grid, self.config.context.patch)
        return z * self.latent_std + self.latent_mean

    def encode(self, u: Tensor, points: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Fields ``[B, T, *grid, c]`` (or points) to standardised tokens ``[B, T', N, C]``."""
        return self.to_tokens(self.codec.encode(u, points, valid))

    def decode(
        self, z_BTNC: Tensor, num_frames: int | None = None, query: Tensor | None = None, *, end: Any = None
    ) -> Tensor:
        """Standardised tokens to fields ``[B, T, *grid, c]``; arguments as those of `Codec.decode`."""
        return self.codec.decode(self.from_tokens(z_BTNC), num_frames, query, end=end)
