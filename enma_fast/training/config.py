"""Configuration of a training: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..config_checks import require
from ..errors import EnmaError


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Training on whole forecasts: members of the sampler, scored by the fair CRPS of their tokens.

    A trajectory is observed for ``history`` latent frames (drawn between the two numbers), or for one frame beside a
    context in ``context_share`` of the batches. ``members`` are then rolled out to its end, or for ``frames`` latent
    frames, and gradients pass through all of them.

    A trajectory has the weight ``1 / (rms + weight_floor)``, relative to ``1 / (weight_rms + weight_floor)`` and at
    most ``weight_most``, where rms is the amplitude of its standardised fields in units of the field: relative errors
    count, except those of fields that have decayed. ``energy`` is the weight of the energy score of whole frames, which
    also measures how tokens vary together. ``first_frame`` is the weight of the flow loss of frame 0 given a context,
    which generation needs; its masks and noise are drawn ``first_draws`` times for each trajectory.

    An autonomous equation has two more symmetries: every n-th frame solves it with n times its rates (a batch uses one
    of ``strides``), and a trajectory may begin at any of its frames (``late_share`` of the batches, within the first
    half). With ``mirror`` each batch of a domain between walls is seen in one of its views (`sampling.shifts`):
    mirrored or not along each dimension, and on a square with the dimensions exchanged or not. ``emphasis`` holds names
    and powers of parameters of the data set: environments are drawn in proportion to their product, not all alike.

    ``damped_share`` of the trajectories are seen under a damping that their equation lacks (`training.damping`): its
    order and its largest rate, in the units of the data, are one of the pairs in ``damping``.
    """

    members: int = 2
    frames: int | None = None
    history: tuple[int, int] = (2, 4)
    weight_floor: float = 0.03
    weight_rms: float = 0.3
    weight_most: float = 6.0
    energy: float = 0.0
    first_frame: float = 0.01
    first_draws: int = 8
    strides: tuple[int, ...] = (1,)
    late_share: float = 0.0
    mirror: bool = False
    emphasis: tuple[tuple[str, float], ...] = ()
    damping: tuple[tuple[float, float], ...] = ()
    damped_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a training run: tokenizer, dynamics (paper table 11 and E.2.3), or training on whole forecasts."""

    steps: int = 100_000
    batch: int = 128
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 500
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    # Frames in a row, from a random one on, of which a sample of the tokenizer's consists; None: all of a trajectory.
    window: int | None = None
    # Names and powers of parameters of the data set: trajectories are drawn in proportion to their product, not all
    # alike (tokenizer only; whole forecasts: `rollout.emphasis`).
    emphasis: tuple[tuple[str, float], ...] = ()
    # Hold the encoder (tokenizer only), so that latents stay what dynamics were trained on.
    decoder_only: bool = False
    # Share of the grid points that are observed, drawn uniformly (tokenizers with an interpolation, and dynamics with
    # `scattered_share`).
    point_fraction: tuple[float, float] = (0.2, 1.0)
    # Share of trajectories whose context and first latent frames are encoded from that many random points, for half of
    # them new points in each frame (dynamics only).
    scattered_share: float = 0.0
    # Share of masked tokens, drawn uniformly per frame (dynamics only).
    mask_ratio: tuple[float, float] = (0.75, 1.0)
    # Shift trajectories around a periodic domain, by grid points.
    shift: bool = False
    # How many of the shifts by less than a token latents are encoded at, evenly spaced; None: all (dynamics only).
    encoded_shifts: int | None = None
    # Symmetries that the equation of the data set declares (`data.equation`): the fields are scaled by a factor drawn
    # log-uniformly (not by the dynamics, which refuse it), and a mean flow is added, drawn normally with this standard
    # deviation (by the first two stages for a copy of each environment: `training.symmetries`).
    amplitude: tuple[float, float] = (1.0, 1.0)
    boost: float = 0.0
    # Each batch of the dynamics takes every n-th frame of its trajectories, n drawn from these; of an autonomous
    # equation that is a solution at n times its rates (whole forecasts: `rollout.strides`).
    strides: tuple[int, ...] = (1,)
    # Share of training sequences that hold two trajectories of one environment (context, then target).
    context_share: float = 0.5
    # Share of the batches with a context that see only its first frames, as many as are drawn between
    # `shortest_context` and all; the dynamics, whose latent frames are made from whole trajectories, count these.
    short_context_share: float = 0.0
    shortest_context: int = 3
    # Share of the weights that the run started from in those that it gives: what a training gained stays, and less is
    # lost elsewhere (Wortsman et al., 2022, arXiv 2109.01903). Validations are of the mixture.
    start_share: float = 0.0
    rollout: RolloutConfig | None = None

    def __post_init__(self) -> None:
        check_training(self)


# Steps between the validations of each stage of training, of which the best one's weights are kept.
VALIDATE_EVERY = {"tokenizer": 500, "dynamics": 1000, "head": 1000, "forecasts": 500, "first-frame": 500}


def check_training(config: Any) -> None:
    """Raise `EnmaError` for settings that no training can have."""
    require(config, ("steps", "batch", "shortest_context"), lambda n: n >= 1, "at least 1 is needed")
    require(config, ("window",), lambda n: n is None or n >= 1, "at least 1 is needed, or null for whole trajectories")
    require(config, ("encoded_shifts",), lambda n: n is None or n >= 1, "at least 1 is needed, or null for all")
    require(config, ("clip_norm",), lambda x: x > 0, "a number above 0 is needed")
    require(config, ("learning_rate",), lambda x: 0 < x < math.inf, "a number above 0, and finite, is needed")
    amounts = ("final_learning_rate", "warmup_steps", "weight_decay", "boost")
    require(config, amounts, lambda x: 0 <= x < math.inf, "0 or more, and finite, is needed")
    shares = ("ema_decay", "scattered_share", "context_share", "short_context_share", "start_share")
    require(config, shares, lambda x: 0 <= x <= 1, "a number from 0 to 1 is needed")
    needed = "two numbers {}, the smaller first, are needed"
    require(config, ("point_fraction", "mask_ratio"), lambda x: 0 <= x[0] <= x[1] <= 1, needed.format("from 0 to 1"))
    whole = "whole numbers from 1 on are needed"
    require(config, ("strides",), lambda n: len(n) > 0 and min(n) >= 1, whole)
    # It is drawn log-uniformly.
    require(config, ("amplitude",), lambda x: 0 < x[0] <= x[1] < math.inf, needed.format("above 0 and finite"))
    rollout, place = config.rollout, "rollout."
    if rollout is None:
        return
    require(rollout, ("members",), lambda n: n >= 2, "a score of ensembles needs at least 2", place)
    require(rollout, ("first_draws",), lambda n: n >= 1, "at least 1 is needed", place)
    require(rollout, ("frames",), lambda n: n is None or n >= 1, "at least 1 is needed, or null for all", place)
    require(rollout, ("history",), lambda n: 1 <= n[0] <= n[1], needed.format("from 1 on"), place)
    weights = ("weight_floor", "weight_rms", "weight_most")
    require(rollout, weights, lambda x: x > 0, "a number above 0 is needed", place)
    require(rollout, ("energy", "first_frame"), lambda x: x >= 0, "0 or more is needed", place)
    require(rollout, ("late_share", "damped_share"), lambda x: 0 <= x <= 1, "a number from 0 to 1 is needed", place)
    pairs = "pairs of an order from 0 to 8 and a largest rate of 0 or more are needed"
    require(rollout, ("damping",), lambda x: all(0 <= p <= 8 and 0 <= d < math.inf for p, d in x), pairs, place)
    if bool(rollout.damping) != (rollout.damped_share > 0):
        raise EnmaError("rollout.damping and rollout.damped_share belong together; set both, or neither")
    require(rollout, ("strides",), lambda n: len(n) > 0 and min(n) >= 1, whole, place)
