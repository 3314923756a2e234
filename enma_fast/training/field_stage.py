"""Train a field model in one stage, from the first second to the last, so any moment has a usable model.

Its floor is learned before the first step. Each step draws trajectories, each with three frames that it knows of its
own, continued for 1 to 8 frames, and windows of its first frames, or of a companion that shares its physics. Later in
the stage forecasts are longer, and pairs of members are scored by the fair CRPS. At the end the size of the correction
and the spread of the members are chosen on validation data.

Legend: B trajectories, T frames, W windows, K frames of a forecast, c channels; `*x` space.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..data.drivers import rows_of
from ..data.selection import spread_rows
from ..errors import EnmaError
from ..forecasting.members import sample_fields
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
from .measured_symmetries import apart, mirrors, shift_axes
from .ranks import ALONE, Rank
from .rollouts import rollout_scores
from .stage import Material, Stage, Task

# The floor, in the folder of the stage.
FLOOR = "floor.safetensors"
# From which share of the stage on forecasts have how many frames, and a step trajectories over frames to this power.
_UNROLLS, _POWER = ((0.0, 1), (0.3, 2), (0.5, 4), (0.7, 8)), 0.75
# From which share on members are scored; shares of the steps that infer the physics from a companion, and of the
# trajectories that are continued from any frame, not from the third one.
_MEMBERS_FROM, _COMPANIONS, _LATE = 0.85, 0.3, 0.5
# Trajectories whose physics is inferred at a time, that scales are measured on, and usual shares and errors of floors.
_AT_ONCE, _MEASURED, _USUAL = 200, 400, 80
# Least size of a trajectory that its error is relative to, as a share of a standard deviation.
_LEAST_SIZE = 1e-3
_TINY = 1e-12
# Members of a validation, and of one of a model that has no members yet; members of a calibration, and its turns.
_MEMBERS, _ALIKE, _CALIBRATED, _TURNS = 4, 2, 8, 4
# Shares of the seconds of a stage for one validation, and for the choices at its end, of so many seconds at least, as
# a floor that is right has none; fewest and most trajectories.
_VALIDATING, _CHOOSING, _LEAST_SECONDS, _FEWEST, _MOST = 0.015, 0.08, 60.0, 4, 48
# Ratio of spread and error under which members draw residuals too.
_ALIKE_BELOW = 0.85
# Sizes of the correction, and by what share a smaller one has to be better; quantiles of 95 % of Student's distribution
# with 1, 2, ... degrees of freedom, by which a correction has to be better than none.
_SIZES, _BETTER, _SURE = (1.0, 0.5, 0.25), 0.01, (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.65)
# Bounds of the factor of the spread, and how far from 1 its ratio to the error may be, as a logarithm.
_SPREAD, _NEAR = (1e-3, 10.0), 0.03


@dataclass(frozen=True, kw_only=True)
class FieldStage(Stage):
    """Train context `physics` and decoder `field`, and learn the floor.

    With the augmentation `shift` fields are shifted along the periodic axes where the data are the same everywhere.
    Where all environments have companions, a part of the steps infers the physics from these.
    """

    kind: str = "field"

    augmentations: ClassVar[tuple[type[Augmentation], ...]] = (Shift,)
    validated: ClassVar[int] = 48

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
        self.model, self.stage, self.seconds = model, stage, material.seconds
        self.module, self.step, self.floor = model.dynamics, decoder.model, cast(Any, self.context.floor)
        for part in (self.context.encoder, self.step):
            part.requires_grad_(True)
        self.material, self.val = material, material.val
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
        self._known: dict[bool, dict[int, tuple[Any, Tensor]]] = {True: {}, False: {}}
        self._learn_floor(material, shared)
        edges = self.context.fields.edges
        moves = self.floor.moves and found(stage.augment, Shift) is not None
        self.shifts = shift_axes(self.fields[torch.from_numpy(apart(data))], edges, model.codec.mask) if moves else []
        # What a floor infers from fields is not that of their mirror images.
        self.mirrors = mirrors(self.fields, edges, self.told) if moves and not self.floor.num_features else {}
        self._measure()
        self._seconds_each: float | None = None

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean relative error of a batch of forecasts, or their CRPS relative to the size of the fields."""
        del module
        frames = min([count for start, count in _UNROLLS if self.share >= start][-1], self.fields.shape[1] - PAST)
        members = self._has_members
        batch = self._batch(frames, members, generator, rank)
        return self._loss(batch, members=members, generator=generator), {"frames": torch.tensor(float(frames))}

    def validate(self, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts, of members once they are trained."""
        members, spread = self._has_members, self.step.spread
        if not (members and spread.all()):
            spread.fill_(float(members))
        self.learn_usual()
        count = self._affordable(_VALIDATING, _MEMBERS)
        scores = self._scores(count, _MEMBERS if members else _ALIKE, rank)
        for place, task in enumerate(("", "_ivp")):
            ratio = scores.get(f"spread_skill{task}", math.nan)
            if members and ratio > 0:
                spread[place] /= min(max(ratio, 0.5), 2.0)
        return scores

    def merit(self, scores: dict[str, float]) -> float:
        """Errors of the forecasts as distributions."""
        return sum(scores[name] for name in ("crps", "crps_ivp") if name in scores)

    @torch.no_grad()
    def finish(self) -> None:
        """Choose the size of the correction and the spread of the members on validation data."""
        self.learn_usual()
        step = self.step
        evaluations = len(_SIZES) + 1 + _TURNS * _CALIBRATED
        count = self._affordable(_CHOOSING, evaluations)
        if bool(step.network.head.weight.any()):
            step.spread.zero_()
            none, chosen, best = self._errors_of(0.0, count), 0.0, math.inf
            # Windows of a series share frames.
            frames = len(self.model.codec.without_gaps(self.val).flatten(0, 1).flatten(1).unique(dim=0))
            independent = round(frames / self.val.shape[1])
            for size in _SIZES:
                errors = self._errors_of(size, count)
                if float(errors.mean()) < (1 - _BETTER) * best and surely_less(errors, none, independent):
                    chosen, best = size, float(errors.mean())
            step.size.fill_(chosen)
        if self._calibrate(count) <= _ALIKE_BELOW:
            self._add_residuals(count)

    def _errors_of(self, size: float, count: int) -> Tensor:
        """Relative errors `[count]` of forecasts of validation trajectories with this size of the correction."""
        self.step.size.fill_(size)
        material, rows = self.material, spread_rows(len(self.val), count)
        val, standardised = self.val[rows], self.model.codec.standardised
        given: list[dict[str, Any]] = [{"history": val[:, :PAST], "known": rows_of(material.val_known, rows)}]
        if material.val_contexts is not None:
            of_context = rows_of(material.val_context_known, rows)
            context = {"context": material.val_contexts[rows], "context_known": of_context}
            given.append({**given[0], "history": val[:, :1], **context})
        errors = torch.zeros(len(rows))
        for one in given:
            made = standardised(sample_fields(self.model, **one, num_members=1)[:, 0])
            truth = standardised(val[:, one["history"].shape[1] :])
            errors += ((made - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1).clamp_min(_TINY)).cpu()
        return errors.nan_to_num(math.inf)

    def _calibrate(self, count: int) -> float:
        """Choose the factors of the spread with which it is as large as the error; returns the ratio of the two."""
        spread, tasks = self.step.spread, ("", "_ivp") if self.material.val_contexts is not None else ("",)
        best = dict.fromkeys(tasks, (math.inf, 1.0, 0.0))
        spread.fill_(1.0)
        for _ in range(_TURNS):
            scores = self._scores(count, _CALIBRATED)
            for place, task in enumerate(tasks):
                ratio, factor = scores[f"spread_skill{task}"], float(spread[place])
                off = abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf
                best[task] = min(best[task], (off, factor, ratio))
                # Spread grows about as its factor does; where forecasts are lost it is too large.
                change = 1 / ratio if 0 < ratio < math.inf else (_SPREAD[1] if ratio == 0 else 0.5)
                spread[place] = min(max(factor * change, _SPREAD[0]), _SPREAD[1])
            if all(off < _NEAR for off, *_ in best.values()):
                break
        for place in range(len(spread)):
            spread[place] = best[tasks[min(place, len(tasks) - 1)]][1]
        return best[""][2]

    def _add_residuals(self, count: int) -> None:
        """Let members differ by errors of a step on validation data too."""
        residuals = self.step.residuals
        rows = spread_rows(len(self.val), len(residuals))
        val, known = self.val[rows], rows_of(self.material.val_known, rows)
        still = replace(self.model.config.sampling, temperature=0.0)
        made = sample_fields(self.model, history=val[:, :PAST], known=known, num_members=1, settings=still)[:, 0]
        off = self.model.codec.standardised(val[:, PAST]) - self.model.codec.standardised(made[:, 0])
        residuals[: len(val)] = off / len(val) ** 0.5
        for _ in range(_TURNS):
            ratio = self._scores(count, _CALIBRATED)["spread_skill"]
            if not 0 < ratio < math.inf or abs(math.log(ratio)) < _NEAR:
                break
            residuals /= ratio

    def _scores(self, count: int, members: int, rank: Rank = ALONE) -> dict[str, float]:
        material, rows = self.material, spread_rows(len(self.val), count)
        return rollout_scores(
            self.model,
            self.val[rows],
            None if material.val_contexts is None else material.val_contexts[rows],
            members=members,
            rank=rank,
            known=rows_of(material.val_known, rows),
            context_known=rows_of(material.val_context_known, rows),
        )

    def _affordable(self, share: float, members: int) -> int:
        """Validation trajectories that take this share of the seconds with so many members each; all without."""
        if self.seconds is None:
            return len(self.val)
        if self._seconds_each is None:
            started = time.monotonic()
            self._scores(2, _ALIKE)
            self._seconds_each = (time.monotonic() - started) / (2 * _ALIKE)
        seconds = max(self.seconds, _LEAST_SECONDS)
        count = int(share * seconds / (members * self._seconds_each))
        return max(_FEWEST, min(_MOST, count, len(self.val)))

    @torch.no_grad()
    def learn_usual(self) -> None:
        """Measure how much of the correction usually counts; before a model is used."""
        for own in (True, False) if self.companions is not None else (True,):
            rows = self._some_rows(_USUAL, own)
            read = self._physics(rows, own, torch.Generator().manual_seed(0))
            shares = self.step.known_share(
                read.windows,
                self.context.encoder(read.windows, read.numbers),
                forecaster(self.floor, read.state),
                first=self.floor.reads == 1,
                told=[self.told and self.told[read.rows].since(t) for t in read.starts],
            )
            self.step.learn_usual(shares, own=own)
        if self.companions is None:
            self.step.learn_usual(self.step.usual[:1], own=False)

    @property
    def _has_members(self) -> bool:
        """Whether members are scored by now."""
        return self.share >= _MEMBERS_FROM and bool(self.step.config.noise or self.step.config.member)

    def _learn_floor(self, material: Material, environments: Tensor | None) -> None:
        """Learn the floor, or read what was learned in the folder of the stage."""
        path = material.folder / FLOOR
        if path.exists():
            load_tensors(self.floor, read_tensors(path)[0], source=str(path))
            return
        material.tell("learning the floor")
        learn(self.floor, self.fields, environments)
        if material.rank.index == 0:
            write_tensors(path, self.floor.state_dict())

    @torch.no_grad()
    def _measure(self) -> None:
        """Scales of the network's inputs and of what it adds."""
        few = self.fields[torch.linspace(0, len(self.fields) - 1, min(_MEASURED, len(self.fields))).long()]
        self.context.encoder.scales.learn(few)
        self.step.scales.learn(few)
        rows = self._some_rows(_USUAL, own=True)
        generator = torch.Generator().manual_seed(0)
        start = _random(self.fields.shape[1] - PAST, len(rows), generator)
        frames = self._frames(rows, start, PAST + 1)
        floor = forecaster(self.floor, self._physics(rows, True, generator).state)
        self.step.scales.learn_floor(frames[:, :PAST], frames[:, PAST], floor)

    def _some_rows(self, most: int, own: bool) -> Tensor:
        rows = torch.arange(len(self.fields))
        if not own and self.companions is not None:
            rows = rows[torch.tensor([len(others) > 0 for others in self.companions])]
        return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]

    def _frames(self, rows: Tensor, start: Tensor, count: int) -> Tensor:
        """`count` frames of each row from a frame on; the first one stands for those before it."""
        return self.fields[rows[:, None], (start[:, None] + torch.arange(count)).clamp_min(0)]

    def _batch(self, frames: int, members: bool, generator: torch.Generator, rank: Rank) -> _Batch:
        T = self.fields.shape[1]
        count = max(4, round(self.stage.batch / frames**_POWER / (2**0.5 if members else 1)))
        coin = torch.rand(2 * count + 1 + len(self.mirrors), generator=generator)
        own = self.companions is None or bool(coin[0] >= _COMPANIONS)
        rows = _random(len(self.fields), count, generator)
        # The frame before the forecast: the third one or a later one; beside a companion also the first.
        later = 2 + _random(T - frames - 2, count, generator)
        last = torch.where(coin[1 : count + 1] < _LATE, later, 2)
        if not own:
            last = torch.where(coin[count + 1 : 2 * count + 1] < 0.5, 0, last)
        mine = rank.part(count)
        rows, last = rows[mine], last.clamp(max=T - 1 - frames)[mine].to(self.fields.device)
        taken = self._frames(rows, last - 2, PAST + frames)
        past, truth = taken[:, :PAST], taken[:, PAST:]
        read = self._physics(rows, own, generator)
        windows, state, told = read.windows, read.state, self.told and self.told[rows].since(last + 1)
        if not own and bool((last == 0).any()):
            before = self.floor.before(past[:, -1], state)
            begins = (last == 0).view(-1, *(1,) * (before.ndim - 1))
            past = torch.stack([*(torch.where(begins, before, past[:, t]) for t in (0, 1)), past[:, 2]], 1)
        for axis in self.shifts:
            by = int(_random(self.fields.shape[2 + axis], 1, generator))
            past, truth, windows = past.roll(by, 2 + axis), truth.roll(by, 2 + axis), windows.roll(by, 3 + axis)
            told = told and told.rolled(axis, by)
        for drawn, (axis, signs) in zip(coin[2 * count + 1 :].tolist(), self.mirrors.items(), strict=True):
            if drawn < 0.5:
                sign = self.fields.new_tensor(signs[: self.fields.shape[-1]])
                past, truth, windows = (
                    x.flip(dim) * sign for x, dim in ((past, 2 + axis), (truth, 2 + axis), (windows, 3 + axis))
                )
                told = told and told.mirrored(axis, signs[self.fields.shape[-1] :])
        return _Batch(past, truth, windows, state, read.numbers, told)

    @torch.no_grad()
    def _physics(self, rows: Tensor, own: bool, generator: torch.Generator) -> _Physics:
        """What is read of the rows' first frames, or of companions."""
        numbers = None if self.told_numbers is None else self.told_numbers[rows]
        if not own:
            assert self.companions is not None
            others = [self.companions[row] for row in rows.tolist()]
            pick = torch.rand(len(rows), generator=generator)
            chosen = [
                c[int(p * len(c))] if len(c) else row
                for c, p, row in zip(others, pick.tolist(), rows.tolist(), strict=True)
            ]
            rows = torch.tensor(chosen)
        state, features = self._inferred(rows, own)
        told = features if numbers is None else torch.cat([features, numbers.to(features)], -1)
        starts = [0] if own else window_starts(self.fields.shape[1])
        return _Physics(rows, self._windows(rows, own), starts, state, told)

    def _windows(self, rows: Tensor, own: bool) -> Tensor:
        frames = self.fields[rows]
        return frames[:, None, :PAST] if own else self.context.windows_of(frames)

    def _inferred(self, rows: Tensor, own: bool) -> tuple[Any, Tensor]:
        """What the floor infers from the windows of trajectories, and its numbers; inferred once for each."""
        known = self._known[own]
        for part in torch.tensor([row for row in set(rows.tolist()) if row not in known]).split(_AT_ONCE):
            if len(part):
                windows = self._windows(part, own)
                state = self.floor.infer(windows, own=own)
                numbers = self.floor.features(state, windows)
                known |= {row: (state[i : i + 1], numbers[i : i + 1]) for i, row in enumerate(part.tolist())}
        states, features = zip(*(known[row] for row in rows.tolist()), strict=True)
        return type(states[0]).join(states), torch.cat(features)

    def _loss(self, batch: _Batch, *, members: bool, generator: torch.Generator) -> Tensor:
        """Mean relative error of forecasts, or the fair CRPS of two members relative to the size of the fields."""
        past, truth, state, told = batch.past, batch.truth, batch.state, batch.told
        scales = self.step.scales
        condition = self.context.encoder(batch.windows, batch.numbers)
        if members:
            twice = torch.arange(len(past), device=past.device).repeat_interleave(2)
            past, state, condition = past[twice], state[twice], condition[twice]
            told = told and told[twice]
            drawn = torch.randn(len(past), self.step.config.member, generator=generator).to(past.device)
            condition = self.step.condition(condition, drawn)
        floor = forecaster(self.floor, state)
        made = self.step.roll(
            past, condition, truth.shape[1], floor=floor, noisy=members, generator=generator, told=told
        )
        size = ((truth - scales.mean) / scales.std).square().flatten(1).mean(1).sqrt() + _LEAST_SIZE
        if members:
            score = fair_score((made / scales.std).unflatten(0, (-1, 2)), truth / scales.std, torch.abs)
            return (score.flatten(1).mean(1) / size).mean()
        error = ((made - truth) / scales.std).square().flatten(1).mean(1)
        return ((error + _TINY).sqrt() / size).mean()


def surely_less(errors: Tensor, others: Tensor, independent: int) -> bool:
    """Whether errors `[n]` are less than others beyond chance, where so many of the n are independent of each other."""
    gain = (others / errors).log()
    if len(gain) == 1:
        return float(gain) > 0
    independent = max(2, min(len(gain), independent))
    quantile = _SURE[min(independent - 1, len(_SURE)) - 1]
    return float(gain.mean()) > quantile * float(gain.std()) / independent**0.5


def _random(below: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(max(1, below), (count,), generator=generator)


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
