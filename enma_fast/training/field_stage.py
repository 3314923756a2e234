"""Train a field model in one stage, from the first second to the last, so any moment has a usable model.

Its floor is learned before the first step. Each step draws trajectories, each with three frames that it knows of its
own, continued for 1 to 8 frames, and windows of its first frames, or of a companion that shares its physics. Later in
the stage forecasts are longer, and pairs of members are scored by the fair CRPS. At the end the size of the correction
and the spread of the members are chosen on validation data.

Legend: B trajectories, T frames, W windows, K frames of a forecast, c channels; `*x` space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..errors import EnmaError
from ..models.checkpoint import load_tensors, read_tensors, write_tensors
from ..models.contexts.physics import PhysicsContext, window_starts
from ..models.decoders.field import FieldDecoder
from ..models.drivers import Drivers
from ..models.fair_score import fair_score
from ..models.field_step import PAST
from ..models.floors.choice import learn
from ..models.floors.ladder import forecaster
from ..models.model import Model
from .augment import Augmentation, Shift, check_augmentations, found
from .dynamics import environment_of
from .field_choices import CHOSEN, Choices
from .measured_symmetries import apart, mirrors, shift_axes
from .ranks import ALONE, BatchDraws, Rank
from .stage import Material, Stage, Task

# The floor, in the folder of the stage.
FLOOR = "floor.safetensors"
# From which share of the stage on forecasts have how many frames, and a step trajectories over frames to this power.
_UNROLLS, _POWER = ((0.0, 1), (0.3, 2), (0.5, 4), (0.7, 8)), 0.75
# From which share on members are scored; shares of the steps that infer the physics from a companion, and of the
# trajectories that are continued from any frame, not from the third one.
_MEMBERS_FROM, _COMPANIONS, _LATE = 0.7, 0.3, 0.5
# Noise on the frames that forecasts of the training begin with, at most, as a share of the floor's error, and less and
# less of it. Later frames of forecasts are wrong by about as much, and have to be brought back.
NOISE = 0.1
# Trajectories whose physics is inferred at a time, that scales are measured on, and usual shares and errors of floors.
_AT_ONCE, _MEASURED, _USUAL = 200, 400, 80
# Least size of a trajectory that its error is relative to, as a share of a standard deviation.
_LEAST_SIZE = 1e-3
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class FieldStage(Stage):
    """Train context `physics` and decoder `field`, and learn the floor.

    With the augmentation `shift` fields are shifted along the periodic axes where the data are the same everywhere.
    Where all environments have companions, a part of the steps infers the physics from these. Without a step the floor
    alone is the model.
    """

    kind: str = "field"

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = (Shift,)
    fewest_steps: ClassVar[int] = 0
    validated: ClassVar[int] = CHOSEN

    def task(self, model: Model, material: Material) -> FieldTask:
        return FieldTask(model, self, material)


@dataclass(frozen=True)
class _Physics:
    """What is read of trajectories or of their companions.

    Attributes
    ----------
    rows : whose windows are read
    windows, starts : of three frames, and the numbers of their first ones
    state, numbers : what the floor infers, and the numbers of floor and drivers
    """

    rows: Tensor
    windows: Tensor
    starts: list[int]
    state: Any
    numbers: Tensor


@dataclass(frozen=True)
class _Batch:
    own: bool
    past: Tensor
    truth: Tensor
    windows: Tensor
    state: Any
    numbers: Tensor
    told: Drivers | None


class FieldTask(Task):
    """Training fields `[B, T, *x, c]` as the codec standardises them, and validation fields with their contexts."""

    last_part = _MEMBERS_FROM

    def __init__(self, model: Model, stage: FieldStage, material: Material) -> None:
        data, name = material.train(), model.config.name
        if getattr(model.dynamics.context, "floor", None) is None:
            raise EnmaError(f"stage field: {name} has no context physics with decoder field; leave the stage out")
        check_augmentations(stage.augment, data, model.config, stage=stage.kind, known=stage.augmentations)
        self.context, decoder = cast(PhysicsContext, model.dynamics.context), cast(FieldDecoder, model.dynamics.step)
        self.model, self.stage = model, stage
        self.module, self.step, self.floor = model.dynamics, decoder.model, cast(Any, self.context.floor)
        for part in (self.context.encoder, self.step):
            part.requires_grad_(True)
        # Without members until their training begins.
        self.step.spread.zero_()
        model.codec.take_mask(data.mask)
        if model.drivers is not None:
            model.drivers.learn(data.known)
        self.told = model.told(data.known, len(data))
        self.told_numbers = None if self.told is None else self.told.numbers()
        self.fields = model.codec.standardised(torch.from_numpy(data.u).to(model.latent_std))
        if self.fields.shape[1] < PAST + 1:
            raise EnmaError(f"{data.path}: trajectories have {self.fields.shape[1]} frames; {PAST + 1} are needed")
        environments = environment_of(data)
        shared = environments if len(environments.unique()) < len(environments) else None
        self.companions = _companions(shared)
        # By trajectory, of its own windows or as a companion.
        self._inferences: dict[bool, dict[int, tuple[Any, Tensor]]] = {True: {}, False: {}}
        self._learn_floor(material, shared)
        edges = self.context.fields.edges
        moves = self.floor.moves and found(stage.augment, Shift) is not None
        self.shifts = shift_axes(self.fields[torch.from_numpy(apart(data))], edges, model.codec.mask) if moves else []
        # What a floor infers from fields is not that of their mirror images.
        self.mirrors = mirrors(self.fields, edges, self.told) if moves and not self.floor.num_features else {}
        self._measure()
        self.choices = Choices(model, material)

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean relative error of a batch of forecasts, or their CRPS relative to the size of the fields."""
        del module
        frames = min([count for start, count in _UNROLLS if self.share >= start][-1], self.fields.shape[1] - PAST)
        members = self._has_members
        if members and not self.step.spread.any():
            self._begin_members()
        count = max(4, round(self.stage.batch / frames**_POWER / (2**0.5 if members else 1)))
        draws = BatchDraws(generator, count, rank)
        loss = draws.weight * self._loss(self._batch(frames, draws), members=members, draws=draws)
        return loss, {"frames": torch.tensor(float(frames))}

    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts, of members once they are trained."""
        del rank
        members = self._has_members
        if not members:
            self.step.spread.zero_()
        self.learn_usual()
        return self.choices.validation(members=members)

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts as distributions."""
        return sum(scores[name] for name in ("crps", "crps_ivp") if name in scores)

    def finishing(self) -> float:
        """Seconds that the choices at the end take, by the pace of the last scores."""
        return self.choices.seconds

    @torch.no_grad()
    def finish(self) -> None:
        """Choose the size of the correction and the spread of the members on validation data."""
        self.learn_usual()
        self.choices.finish()
        self.choices.rank.align(self.module)

    @torch.no_grad()
    def _begin_members(self) -> None:
        """Let members that were never trained differ by as much as they are wrong, so that training begins there."""
        self.module.eval()
        with torch.autocast(self.fields.device.type, enabled=False):
            self.learn_usual()
            self.choices.begin_members()
        self.module.train()

    @torch.no_grad()
    def learn_usual(self) -> None:
        """Measure how much of the correction usually counts, for all ranks; before a model is used."""
        for own in (True, False) if self.companions is not None else (True,):
            rows = self._some_rows(_USUAL, own)
            read = self._physics(rows, own, BatchDraws(torch.Generator().manual_seed(0), len(rows)))
            added, off = self.step.known_forecasts(
                read.windows,
                self.context.encoder(read.windows, read.numbers),
                forecaster(self.floor, read.state),
                first=self.floor.reads == 1,
                told=[self.told and self.told[read.rows].since(t) for t in read.starts],
            )
            self.step.learn_usual(added, off, own=own, told=bool(self.model.config.known))
        if self.companions is None:
            self.step.usual[1], self.step.misfit[1] = self.step.usual[0], self.step.misfit[0]
        self.choices.rank.align(self.module)

    @property
    def _has_members(self) -> bool:
        """Whether members are scored by now."""
        return self.share >= _MEMBERS_FROM and bool(self.step.config.noise or self.step.config.member)

    def _learn_floor(self, material: Material, environments: Tensor | None) -> None:
        """Learn the floor, or read what was learned in the folder of the stage."""
        path = material.folder / FLOOR

        def learn_or_read() -> None:
            if path.exists():
                load_tensors(self.floor, read_tensors(path)[0], source=str(path))
                return
            material.tell("learning the floor")
            # Closed forms in float64, which take longer to move than to learn.
            learn(self.floor.cpu(), self.fields.cpu(), environments)
            self.floor.to(self.fields.device)
            write_tensors(path, self.floor.state_dict())

        material.rank.by_first(learn_or_read)
        material.rank.align(self.floor)

    @torch.no_grad()
    def _measure(self) -> None:
        """Scales of the network's inputs and of what it adds."""
        few = self.fields[torch.linspace(0, len(self.fields) - 1, min(_MEASURED, len(self.fields))).long()]
        self.context.encoder.scales.learn(few)
        self.step.scales.learn(few)
        rows = self._some_rows(_USUAL, own=True)
        draws = BatchDraws(torch.Generator().manual_seed(0), len(rows))
        frames = self._frames(rows, draws.below(self.fields.shape[1] - PAST), PAST + 1)
        floor = forecaster(self.floor, self._physics(rows, True, draws).state)
        self.step.scales.learn_floor(frames[:, :PAST], frames[:, PAST], floor)

    def _some_rows(self, most: int, own: bool) -> Tensor:
        rows = torch.arange(len(self.fields))
        if not own and self.companions is not None:
            rows = rows[torch.tensor([len(others) > 0 for others in self.companions])]
        return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]

    def _frames(self, rows: Tensor, start: Tensor, count: int) -> Tensor:
        """`count` frames of each row from a frame on; the first one stands for those before it."""
        return self.fields[rows[:, None], (start[:, None] + torch.arange(count)).clamp_min(0)]

    def _batch(self, frames: int, draws: BatchDraws) -> _Batch:
        T, generator = self.fields.shape[1], draws.generator
        coin = torch.rand(1 + len(self.mirrors), generator=generator)
        own = self.companions is None or bool(coin[0] >= _COMPANIONS)
        rows = draws.below(len(self.fields))
        # The frame before the forecast: the third one or a later one; beside a companion also the first.
        last = torch.where(draws.uniform() < _LATE, 2 + draws.below(T - frames - 2), 2)
        if not own:
            last = torch.where(draws.uniform() < 0.5, 0, last)
        last = last.clamp(max=T - 1 - frames)
        taken, last = self._frames(rows, last - 2, PAST + frames), last.to(self.fields.device)
        past, truth = taken[:, :PAST], taken[:, PAST:]
        read = self._physics(rows, own, draws)
        windows, state, told = read.windows, read.state, self.told and self.told[rows].since(last + 1)
        if not own and bool((last == 0).any()):
            before = self.floor.before(past[:, -1], state)
            begins = (last == 0).view(-1, *(1,) * (before.ndim - 1))
            past = torch.stack([*(torch.where(begins, before, past[:, t]) for t in (0, 1)), past[:, 2]], 1)
        for axis in self.shifts:
            by = int(torch.randint(self.fields.shape[2 + axis], (), generator=generator))
            past, truth, windows = past.roll(by, 2 + axis), truth.roll(by, 2 + axis), windows.roll(by, 3 + axis)
            told = told and told.rolled(axis, by)
        for drawn, (axis, signs) in zip(coin[1:].tolist(), self.mirrors.items(), strict=True):
            if drawn < 0.5:
                sign = self.fields.new_tensor(signs[: self.fields.shape[-1]])
                past, truth, windows = (
                    x.flip(dim) * sign for x, dim in ((past, 2 + axis), (truth, 2 + axis), (windows, 3 + axis))
                )
                told = told and told.mirrored(axis, signs[self.fields.shape[-1] :])
        return _Batch(own, past, truth, windows, state, read.numbers, told)

    @torch.no_grad()
    def _physics(self, rows: Tensor, own: bool, draws: BatchDraws) -> _Physics:
        """What is read of the rows' first frames, or of companions."""
        numbers = None if self.told_numbers is None else self.told_numbers[rows]
        if not own:
            assert self.companions is not None
            others = [self.companions[row] for row in rows.tolist()]
            chosen = [
                c[int(p * len(c))] if len(c) else row
                for c, p, row in zip(others, draws.uniform().tolist(), rows.tolist(), strict=True)
            ]
            rows = torch.tensor(chosen)
        state, features = self._inferred(rows, own)
        told = features if numbers is None else torch.cat([features, numbers.to(features)], -1)
        starts = [0] if own else window_starts(self.fields.shape[1])
        return _Physics(rows, self._windows(rows, own), starts, state, told)

    def _windows(self, rows: Tensor, own: bool) -> Tensor:
        return self.fields[rows, :PAST][:, None] if own else self.context.windows_of(self.fields[rows])

    def _inferred(self, rows: Tensor, own: bool) -> tuple[Any, Tensor]:
        """What the floor infers from the windows of trajectories, and its numbers; inferred once for each."""
        inferred = self._inferences[own]
        for part in torch.tensor([row for row in set(rows.tolist()) if row not in inferred]).split(_AT_ONCE):
            if len(part):
                windows = self._windows(part, own)
                state = self.floor.infer(windows, own=own)
                numbers = self.floor.features(state, windows)
                inferred |= {row: (state[i : i + 1], numbers[i : i + 1]) for i, row in enumerate(part.tolist())}
        states, features = zip(*(inferred[row] for row in rows.tolist()), strict=True)
        return type(states[0]).join(states), torch.cat(features)

    def _loss(self, batch: _Batch, *, members: bool, draws: BatchDraws) -> Tensor:
        """Mean relative error of forecasts, or the fair CRPS of two members relative to the size of the fields."""
        past, truth, state, told = self.disturbed(batch.past, draws), batch.truth, batch.state, batch.told
        scales = self.step.scales
        condition, draw = self.context.encoder(batch.windows, batch.numbers), None
        if members:
            twice = torch.arange(len(past), device=past.device).repeat_interleave(2)
            past, state, condition = past[twice], state[twice], condition[twice]
            told = told and told[twice]
            spread = float(self.step.spread[0 if batch.own else 1])

            def draw(*shape: int) -> Tensor:
                return spread * draws.normal(2, *shape).flatten(0, 1)

            condition = self.step.condition(condition, draw(self.step.config.member).to(past.device))
        forecasts = self.step.roll(
            past, condition, truth.shape[1], floor=forecaster(self.floor, state), draw=draw, told=told
        )
        size = ((truth - scales.mean) / scales.std).square().flatten(1).mean(1).sqrt() + _LEAST_SIZE
        if members:
            score = fair_score((forecasts / scales.std).unflatten(0, (-1, 2)), truth / scales.std, torch.abs)
            return (score.flatten(1).mean(1) / size).mean()
        error = ((forecasts - truth) / scales.std).square().flatten(1).mean(1)
        return ((error + _TINY).sqrt() / size).mean()

    def disturbed(self, past: Tensor, draws: BatchDraws) -> Tensor:
        """Past frames `[B, 3, *x, C]` with white noise, of an amount of its own for each trajectory."""
        noise = draws.normal(*past.shape[1:])
        noise *= NOISE * (1 - self.share) * draws.uniform(*(1,) * (past.ndim - 1))
        disturbed = past + noise.to(past.device) * self.step.scales.error
        mask = self.model.codec.mask
        return disturbed if mask is None else torch.where(mask, disturbed, past)


def _companions(environments: Tensor | None) -> list[list[int]] | None:
    """The others of the environment of each trajectory; None where there are none."""
    if environments is None:
        return None
    names: Sequence[int] = environments.tolist()
    members: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        members.setdefault(name, []).append(row)
    others = [[other for other in members[name] if other != row] for row, name in enumerate(names)]
    return others if any(others) else None
