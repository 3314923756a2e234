"""Train the dynamics on whole forecasts: members rolled out to the end of a trajectory, scored by a proper score.

A loss of one frame does not see an error of a few tenths of a percent that is the same in every frame; that of a whole
forecast does. The fair CRPS is least, in expectation, for members that are draws from the truth's own distribution.

Legend: B trajectories, K members, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelConfig, SamplingConfig
from ..data import FieldFile
from ..errors import EnmaError
from ..models.fair_score import fair_score
from ..models.model import Draws, Dynamics, Model, draw
from ..sampling.rollout import rollout
from ..sampling.shifts import View, mirrors, shifted
from ..utils.devices import to_device
from .config import RolloutConfig, TrainingConfig
from .damping import check_damping, damped, draw_damping
from .dynamics import drawn_context, environments, rollout_scores
from .emphasis import drawn, odds
from .first_field import begin_as_field
from .ranks import ALONE, Rank
from .sensitivity import TRAJECTORIES, channel_weights
from .symmetries import carried, symmetries
from .tokenizer import factors, random_shifts, roll
from .wave_score import FIRST_FRAMES, WaveScore

# The scores that choose the best weights, each in units of what is a good one.
MERIT = {"rel_l2": 0.01, "crps": 0.002, "rel_l2_ivp": 0.02, "crps_ivp": 0.004}


class Forecasts(nn.Module):
    """The dynamics, with the loss of a batch of forecasts as ``forward``."""

    def __init__(self, dynamics: Dynamics, config: TrainingConfig, first_score: WaveScore | None) -> None:
        super().__init__()
        assert config.rollout is not None
        self.dynamics, self.rollout, self.first_score = dynamics, config.rollout, first_score
        self.settings: SamplingConfig = dynamics.config.sampling
        self.mask_ratio = config.mask_ratio

    def forward(
        self,
        z_BTNC: Tensor,
        context_BTNC: Tensor | None,
        weight_B: Tensor,
        seeds_BK: Tensor,
        members_BK: Tensor,
        history: int,
        num_frames: int,
        first: Draws | Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted score of forecasts of the latent frames ``[history, history + num_frames)``.

        With the draws ``first``, or the noise of members ``[B, K, N, C]``, the loss of frame 0 is added.
        """
        made, h_BND = rollout(
            self.dynamics,
            z_BTNC[:, :history],
            num_frames=num_frames,
            seeds=seeds_BK,
            members=members_BK,
            context=context_BTNC,
            settings=self.settings,
        )
        truth = z_BTNC[:, history : history + num_frames]
        channels = self.dynamics.score_weight
        crps_B, energy_B = scores(made * channels, truth * channels)
        loss = (weight_B * (crps_B + self.rollout.energy * energy_B)).mean()
        terms = {"crps": crps_B.mean(), "energy": energy_B.mean()}
        if isinstance(first, Tensor):
            assert self.first_score is not None
            score = scored(self.dynamics, self.first_score, h_BND, z_BTNC[:, 0], first)
            loss, terms["first_frame"] = loss + self.rollout.first_frame * score, score
        elif first is not None:
            assert self.dynamics.flow is not None
            known, noise, times = (x[0].flatten(0, 1) for x in (first.known, first.noise, first.times))
            z, h = (x.repeat_interleave(self.rollout.first_draws, 0) for x in (z_BTNC[:, 0], h_BND))
            per_token, _ = self.dynamics.flow.loss(z, self.dynamics.spatial(h, z, known), noise, times)
            flow = (per_token * (~known).to(per_token.dtype)).sum() / first.masked
            loss = loss + self.rollout.first_frame * flow
            terms["first_frame"] = flow
        return loss, {name: value.detach() for name, value in terms.items()}


def first_noise(config: ModelConfig, count: int, members: int, generator: torch.Generator) -> Tensor:
    """Noise ``[B, K, N, C]`` of frames 0, of 2 members or more."""
    return torch.randn(count, max(2, members), config.num_tokens, config.token_channels, generator=generator)


def scored(dynamics: Dynamics, score: WaveScore, h_BND: Tensor, z_BNC: Tensor, noise_BKNC: Tensor) -> Tensor:
    """Score of the frames 0 that a head of its own makes of noise, after what the transformer has read."""
    h = h_BND.repeat_interleave(noise_BKNC.shape[1], 0)
    made = dynamics.first_frame(h, noise_BKNC.flatten(0, 1))
    found: Tensor = score(made.unflatten(0, noise_BKNC.shape[:2]), z_BNC)
    return found


def scores(made_BKTNC: Tensor, truth_BTNC: Tensor) -> tuple[Tensor, Tensor]:
    """Fair CRPS of all channels, averaged, and fair energy score of frames over the root of their size, ``[B]``."""
    size = truth_BTNC[0, 0].numel() ** 0.5
    crps = fair_score(made_BKTNC, truth_BTNC, torch.abs)
    energy = fair_score(made_BKTNC, truth_BTNC, lambda x: x.flatten(-2).norm(dim=-1) / size)
    return crps.flatten(1).mean(1), energy.mean(1)


class ForecastTask:
    """Training fields, and validation fields ``[n, T, *grid, c]`` with their contexts."""

    def __init__(
        self,
        model: Model,
        config: TrainingConfig,
        *,
        train: FieldFile,
        val: Tensor,
        val_contexts: Tensor | None,
        members: int = 8,
    ) -> None:
        assert config.rollout is not None
        self.model, self.config, self.options = model, config, config.rollout
        self.train = torch.from_numpy(train.u)
        self.first_score = (
            None if model.dynamics.first is None else WaveScore(model, self.train).to(model.latent_std.device)
        )
        self._begin_first()
        self.module: nn.Module = Forecasts(model.dynamics, config, self.first_score)
        self.val, self.val_contexts, self.members = val, val_contexts, members
        if train.environment is None:
            raise EnmaError(
                f"{train.path}: lacks scalars/environment; add one integer per trajectory that names its group"
            )
        self.groups = environments(torch.from_numpy(train.environment), paired=config.context_share > 0)
        self.parameters = train.parameters
        self.odds = odds(train, self.options.emphasis, option="rollout.emphasis", rows=self.groups[:, 0].numpy())
        self.symmetries = symmetries(model.config.dataset, config)
        self.latents = model.config.tokenizer.latent_frames(self.train.shape[1])
        check_rollout(self.options, self.latents, self.train.shape[1])
        self.views = _views(model.config, mirror=self.options.mirror)
        check_damping(self.options, train)
        self.times, self.lengths = torch.from_numpy(train.times), train.lengths
        model.dynamics.score_weight.copy_(self._channel_weights())

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score of a batch of forecasts, all with a context or all without."""
        config, options, model = self.config, self.options, self.model
        B = config.batch
        mine = rank.share(B)
        paired = torch.rand((), generator=generator).item() < config.context_share
        low, high = (1, 1) if paired else options.history
        most = None if options.frames is None else high + options.frames
        tokens, weight = self._tokens(generator, mine, paired=paired, latents=most)
        device = tokens[0].device
        latents = tokens[-1].shape[1]
        history = drawn_history((low, high), latents, generator)
        left = latents - history if options.frames is None else min(latents - history, options.frames)
        seeds = torch.randint(2**32, (B, 1), generator=generator).expand(-1, options.members)[mine]
        first: Draws | Tensor | None = None
        if paired and options.first_frame and self.first_score is not None:
            first = to_device(first_noise(model.config, B, options.first_draws, generator)[mine], device)
        elif paired and options.first_frame:
            draws = draw(
                model.config,
                [(B, options.first_draws)],
                flow=model.config.dynamics.flow,
                mask_ratio=config.mask_ratio,
                generator=generator,
            )
            first = draws.share(mine, ranks=rank.count, device=device)
        return module(
            tokens[-1],
            tokens[0] if paired else None,
            weight,
            to_device(seeds, device),
            torch.arange(options.members, device=device).expand_as(seeds),
            history,
            left,
            first,
        )

    def _begin_first(self) -> None:
        """Let a head of frame 0 that nothing has trained begin as a random field."""
        head = self.model.dynamics.first
        if head is None or head.read.weight.any():
            return
        with torch.no_grad():
            tokens = self.model.encode(self.train[:FIRST_FRAMES, :1].to(self.model.latent_std)).float()
        begin_as_field(head, head.on_grid(tokens)[:, 0])

    def _channel_weights(self) -> Tensor:
        sample = self.train[:TRAJECTORIES].to(self.model.latent_std)
        with torch.no_grad():
            return channel_weights(self.model, self.model.tokenizer.encode(sample))

    def _tokens(
        self,
        generator: torch.Generator,
        mine: slice,
        *,
        paired: bool,
        frames: int | None = None,
        latents: int | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Latent frames of this rank's part of a batch, ``[context, target]`` or ``[target]``, and their weights.

        With `frames`, of the target its first so many frames only; with `latents`, its first so many latent frames, and
        weights of the whole.
        """
        config, options, model, B = self.config, self.options, self.model, self.config.batch
        tok = model.config.tokenizer
        environment = drawn(B, len(self.groups), self.odds, generator)
        rows = torch.rand(B, self.groups.shape[1], generator=generator).argsort(-1)[:, : 1 + paired]
        rows = self.groups[environment[:, None], rows]
        amounts = {
            "amplitude": factors(config.amplitude, B, generator)[mine].double().numpy(),
            "boost": (config.boost * torch.randn(B, generator=generator)[mine]).double().numpy(),
        }
        window = self._window(generator)
        several = len(self.views) > 1
        view = self.views[int(torch.randint(len(self.views), (), generator=generator)) if several else 0]
        damping = draw_damping(options, B, generator) if options.damped_share else None
        context_frames = None
        if paired:
            frames_seen = len(self.times[window])
            context_frames = drawn_context(config, frames_seen, generator, least=config.shortest_context)
            if context_frames < frames_seen:
                context_frames = tok.whole_frames(context_frames)
        tokens, weight = [], torch.empty(0)
        device = next(self.module.parameters()).device
        for i in range(1 + paired):
            u = self._transformed(rows[mine, i], amounts)
            if damping is not None:
                u = damped(u, *(x[mine] for x in damping), times=self.times, lengths=self.lengths)
            u = u[:, window]
            u = u[:, : frames if i == paired else context_frames]
            shifts = random_shifts(tok.grid, tok.periodic, B, generator, shift=config.shift)
            u = shifted(roll(u, [s[mine] for s in shifts]), view, tok.periodic)
            u = to_device(u, device)
            rms = model.tokenizer.standardised(u).square().flatten(1).mean(1).sqrt()
            weight = (options.weight_rms + options.weight_floor) / (rms + options.weight_floor)
            if i == paired and latents is not None:
                # Later frames change no latent frame before them.
                u = u[:, : 1 + (latents - 1) * tok.time_factor]
            # Forecasts encode in full precision, whatever the steps multiply in.
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                tokens.append(model.encode(u))
        return tokens, weight.clamp(max=options.weight_most)

    def _transformed(self, rows: Tensor, amounts: dict[str, np.ndarray]) -> Tensor:
        """Training trajectories ``[B, T, *grid, c]``, each carried to another solution by the equation's symmetries."""
        u = self.train[rows]
        if not self.symmetries:
            return u
        parameters = {name: values[rows.numpy()] for name, values in self.parameters.items()}
        return torch.from_numpy(carried(u.numpy(), parameters, amounts, self.symmetries)[0])

    def _window(self, generator: torch.Generator) -> slice:
        """Frames of a batch: from which one on, and every how many.

        Of a part of the trajectories the last latent frame is whole, as it is at the same place of whole trajectories,
        unless it is the second one.
        """
        options, frames = self.options, self.train.shape[1]
        stride = options.strides[int(torch.randint(len(options.strides), (), generator=generator))]
        late = torch.rand((), generator=generator).item() < options.late_share
        first = int(torch.randint(1, 1 + _latest(frames), (), generator=generator)) if late else 0
        if (first, stride) == (0, 1):
            return slice(None)
        tokenizer, left = self.model.config.tokenizer, len(range(first, frames, stride))
        count = tokenizer.whole_frames(left) if tokenizer.whole_latents(left) > 1 else left
        return slice(first, first + count * stride, stride)

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts, of ensemble means and as distributions."""
        return sum(scores[name] / of for name, of in MERIT.items() if name in scores)

    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts, as those of the dynamics' training."""
        return rollout_scores(self.model, self.val, self.val_contexts, members=self.members, rank=rank)


def drawn_history(between: tuple[int, int], latents: int, generator: torch.Generator) -> int:
    """How many of so many latent frames a batch observes, of which one at least is left."""
    low, high = (min(count, latents - 1) for count in between)
    return int(torch.randint(low, high + 1, (), generator=generator))


def _views(config: ModelConfig, *, mirror: bool) -> list[View]:
    """The views that batches are seen in; `EnmaError` where a field cannot be mirrored."""
    if not mirror:
        return mirrors(config)[:1]
    if any(config.tokenizer.periodic):
        raise EnmaError(
            f"rollout.mirror is for a domain between walls; {config.name} has a periodic one: leave it at false"
        )
    return mirrors(config)


def _latest(frames: int) -> int:
    """The last frame that a part of a trajectory may begin at."""
    return max(1, frames // 2 - 1)


def check_rollout(rollout: RolloutConfig, latents: int, frames: int) -> None:
    """Raise `EnmaError` unless trajectories of so many frames have those that are observed and rolled out."""
    if rollout.history[1] >= latents:
        raise EnmaError(
            f"rollout.history is {list(rollout.history)}; a trajectory has {latents} latent frames, and one at least "
            "has to be left to forecast"
        )
    if rollout.frames is not None and rollout.frames > latents - 1:
        raise EnmaError(
            f"rollout.frames is {rollout.frames}; a trajectory has {latents} latent frames, of which at most "
            f"{latents - 1} can be rolled out"
        )
    most, first = max(rollout.strides), _latest(frames) if rollout.late_share else 0
    if (left := len(range(first, frames, most))) < 2:
        raise EnmaError(
            f"rollout.strides: a stride of {most} from frame {first} on leaves {left} of {frames} frames, none to "
            f"forecast; take a smaller one{' or rollout.late_share=0' if first else ''}"
        )
