"""A stage of training: what all kinds of them share, what they are given, and the task that the loop runs.

A kind is one class in a file of its name, with the settings that it has and no others; nothing else lists it but
:mod:`enma_fast.training.recipe`, which reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..config_checks import require
from ..data import FieldFile
from ..models.model import Model
from ..utils.kinds import Slot
from .augment import Augmentation
from .ranks import ALONE, Rank

log = logging.getLogger("enma_fast")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How weights follow from gradients, and the average of them that a stage gives.

    Attributes
    ----------
    kind : ``adamw`` for everything, or ``muon`` for the matrices of the layers
    learning_rate : at its highest, after the warm-up
    final_learning_rate : to which it falls by a cosine
    warmup_steps : steps in which it rises linearly from 0
    weight_decay : of AdamW
    ema_decay : of the moving average of the weights, a step; 0: the last weights
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 500
    weight_decay: float = 1e-4
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        finite = float("inf")
        require(self, ("learning_rate",), lambda x: 0 < x < finite, "a number above 0, and finite, is needed")
        amounts = ("final_learning_rate", "warmup_steps", "weight_decay")
        require(self, amounts, lambda x: 0 <= x < finite, "0 or more, and finite, is needed")
        require(self, ("ema_decay",), lambda x: 0 <= x <= 1, "a number from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a stage is given: data, and where and by whom it is carried out.

    Attributes
    ----------
    train : reads the training data
    val, val_contexts : held-out fields ``[n, T, *grid, c]``, and those of their contexts, if they have some
    val_known, val_context_known : drivers of these by name
    folder : of the stage, for what it computes once
    seconds : for the stage, where steps are not what ends it
    tell : takes messages on the way
    """

    train: Callable[[], FieldFile]
    val: Tensor
    val_contexts: Tensor | None
    folder: Path
    val_known: Mapping[str, np.ndarray] = field(default_factory=dict)
    val_context_known: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds: float | None = None
    seed: int = 0
    rank: Rank = ALONE
    tell: Callable[..., None] = log.info


@dataclass(frozen=True, kw_only=True)
class Stage(Slot):
    """Base of the kinds of stages, which are told apart by their tag.

    Attributes
    ----------
    steps : steps of the optimizer
    batch : trajectories of a step, over all ranks
    optimizer : how weights follow from gradients
    augment : augmentations, which act in their order
    augmentations : the kinds of `augment` that a stage has
    fewest_steps : 0 where what is measured, and not trained, makes a model
    validated : held-out trajectories of a validation, of which there is one every `validate_every` steps
    forecasts : its validations are forecasts, from as many frames as the model's
    """

    kind: str
    steps: int
    batch: int
    optimizer: Optimizer = Optimizer()
    augment: tuple[Augmentation, ...] = ()

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = ()
    fewest_steps: ClassVar[int] = 1
    validated: ClassVar[int] = 120
    validate_every: ClassVar[int] = 500
    forecasts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fewest, where = self.fewest_steps, f"{self.kind}: "
        require(self, ("steps",), lambda n: n >= fewest, f"at least {fewest} is needed", where)
        require(self, ("batch",), lambda n: n >= 1, "at least 1 is needed", where)

    @property
    def amount(self) -> str:
        """Steps and batch, to be shown."""
        return f"{self.steps:,} steps of {self.batch}"

    @property
    def context_share(self) -> float:
        """Share of the batches that hold two trajectories of one environment: a context, then the target."""
        return 0.0

    def config(self, model: ModelConfig) -> ModelConfig:
        """The config of a model that this stage has trained, from that of one that it has not."""
        return model

    def task(self, model: Model, material: Material) -> Task:
        """What the loop runs; it trains a part of the model, whose other weights it holds."""
        raise NotImplementedError


class Task(Protocol):
    """A stage at work on a model: its module, loss and validation, as the loop needs them.

    The loop sets `share`: how much of the stage is over. Where seconds end the stage and validations improve no more,
    it goes on from the share `last_part` with its best weights.
    """

    module: nn.Module
    stage: Any
    share: float = 0.0
    last_part: float = 1.0

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this rank's share of the batch that ``generator`` draws, and terms to log."""

    def validate(self, rank: Rank) -> dict[str, float]:
        """Scores of the module as it is on held-out data, which the ranks share; those of the first rank count."""

    def merit(self, scores: dict[str, float]) -> float:
        """The number by which a validation is better than another: the lower, the better."""

    def finishing(self) -> float:
        """Seconds that `finish` takes, as far as is known by now; they are of those that end the stage."""
        return 0.0

    def finish(self) -> None:
        """What all ranks are left to do once the module holds its last weights; by default nothing."""
        return
