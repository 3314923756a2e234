"""What the stage of field models chooses on validation data: size of the correction, spread and residuals of members.

Ranks share the forecasts and choose the same, as all go by the scores and the clock of the first one.
How many trajectories are forecast for it follows from how long forecasts take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.drivers import rows_of
from ..data.selection import spread_rows
from ..forecasting.members import sample_fields
from ..models.codecs.codec import Codec
from ..models.field_step import PAST, FieldStep
from ..models.model import Model
from ..utils.chance import surely_less
from .rollouts import rollout_scores, shared_forecasts
from .stage import Material

_TINY = 1e-12
# Members of a validation, and of one of a model that has no members yet; members of a calibration, and its turns.
_MEMBERS, _ALIKE, _CALIBRATED, _TURNS = 4, 2, 8, 5
# Shares of the seconds of a stage for one validation, and for the choices at its end, of so many seconds at least, as
# a floor that is right has none; fewest trajectories, and most of a validation and of the choices.
_VALIDATING, _CHOOSING, _LEAST_SECONDS, _FEWEST, _VALIDATED, CHOSEN = 0.015, 0.1, 60.0, 4, 48, 256
# Ratio of spread and error under which members draw residuals too.
_ALIKE_BELOW = 0.85
# Sizes of the correction, and by what share a smaller one has to be better.
_SIZES, _BETTER = (1.0, 0.5, 0.25), 0.01
# Bounds of the factor of the spread, by what it grows without any, the least power of it that its ratio to the error
# counts as; how far from 1 that may be, as a logarithm, and by what factor the CRPS may exceed the least for it.
_SPREAD, _WIDER, _FLATTEST, _NEAR, _DEARER = (1e-3, 1e3), 10.0, 0.25, 0.03, 1.05
# Forecasts of each trajectory for the choices at the end: sizes, and factors of the spread.
_EVALUATIONS = len(_SIZES) + 1 + _TURNS * _CALIBRATED


class Choices:
    """Validation data of a field model, and the choices made on them."""

    def __init__(self, model: Model, material: Material) -> None:
        decoder: Any = model.dynamics.step
        self.model, self.material, self.val, self.seconds_given = model, material, material.val, material.seconds
        self.step: FieldStep = decoder.model
        self.rank = material.rank
        # Seconds for one member of one trajectory, as the last scores took.
        self._seconds_each: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the choices at the end, as far as is known."""
        if self._seconds_each is None:
            return 0.0
        return _EVALUATIONS * self._affordable(_CHOOSING, _EVALUATIONS, CHOSEN) * self._seconds_each

    def validation(self, *, members: bool) -> dict[str, float]:
        """Scores of forecasts with members, or of a model that has none yet."""
        return self.scores(self._affordable(_VALIDATING, _MEMBERS), _MEMBERS if members else _ALIKE)

    def begin_members(self) -> None:
        """Choose the spread at which the training of members begins."""
        self.calibrate(self._affordable(_VALIDATING, _TURNS * _CALIBRATED))

    def finish(self) -> None:
        """Choose the size of the correction, then the spread; members that are too much alike draw residuals.

        Where nothing is corrected, members draw residuals alone if their CRPS is then clearly less.
        """
        step = self.step
        count = self._affordable(_CHOOSING, _EVALUATIONS, CHOSEN)
        if bool(step.network.head.weight.any()):
            trained = step.spread.clone()
            step.spread.zero_()
            none, chosen, best = self._errors_of(0.0, count), 0.0, math.inf
            number = independent(self.model.codec, self.val)
            for size in _SIZES:
                errors = self._errors_of(size, count)
                if float(errors.mean()) < (1 - _BETTER) * best and surely_less(errors, none, number):
                    chosen, best = size, float(errors.mean())
            step.size.fill_(chosen)
            step.spread.copy_(trained)
        drawn = self.calibrate(count)
        if drawn.ratio <= _ALIKE_BELOW:
            self._add_residuals(count)
        elif not bool(step.size) and self.material.val_contexts is None:
            spread = step.spread.clone()
            step.spread.zero_()
            if not self._add_residuals(count).crps * _DEARER < drawn.crps:
                step.spread.copy_(spread)
                step.residuals.zero_()

    def _errors_of(self, size: float, count: int) -> Tensor:
        """Relative errors `[count]` of forecasts of validation trajectories with this size of the correction."""
        self.step.size.fill_(size)
        material, rows = self.material, spread_rows(len(self.val), count)
        val, codec = self.val[rows], self.model.codec
        given = [{"history": val[:, :PAST]}]
        if material.val_contexts is not None:
            given.append({"history": val[:, :1], "context": material.val_contexts[rows]})
        errors = torch.zeros(len(rows))
        for one in given:
            forecasts = shared_forecasts(
                self.model,
                **one,
                known=rows_of(material.val_known, rows),
                context_known=rows_of(material.val_context_known, rows),
                num_members=1,
                rank=self.rank,
            )
            if forecasts is not None:
                errors += relative_errors(codec, forecasts[:, 0], val[:, one["history"].shape[1] :])
        return self.rank.from_first(errors)

    def calibrate(self, count: int) -> _Tried:
        """Choose the factors of the spread with which it is as large as the error, as far as the CRPS allows.

        Returns the one that was chosen for forecasts after frames of their own.
        """
        spread, tasks = self.step.spread, ("", "_ivp") if self.material.val_contexts is not None else ("",)
        tried: dict[str, list[_Tried]] = {task: [] for task in tasks}
        spread[spread == 0] = 1.0
        for _ in range(_TURNS):
            scores = self.scores(count, _CALIBRATED)
            for place, task in enumerate(tasks):
                tried[task].append(_Tried.of(float(spread[place]), scores, task))
                spread[place] = min(max(_next_factor(tried[task]), _SPREAD[0]), _SPREAD[1])
            if all(_chosen(of_task).off < _NEAR for of_task in tried.values()):
                break
        chosen = [_chosen(of_task) for of_task in tried.values()]
        for place in range(len(spread)):
            spread[place] = chosen[min(place, len(tasks) - 1)].factor
        return chosen[0]

    def _add_residuals(self, count: int) -> _Tried:
        """Let members differ by errors of a step on validation data too; returns the factor that was chosen."""
        residuals = self.step.residuals
        rows = spread_rows(len(self.val), len(residuals))
        val, known = self.val[rows], rows_of(self.material.val_known, rows)
        still = replace(self.model.config.sampling, temperature=0.0)
        forecasts = sample_fields(self.model, history=val[:, :PAST], known=known, num_members=1, settings=still)[:, 0]
        codec = self.model.codec
        off = codec.standardised(val[:, PAST].to(codec.device)) - codec.standardised(forecasts[:, 0])
        off = self.rank.from_first(off.cpu() / len(val) ** 0.5)
        scores = self.scores(count, _CALIBRATED)
        tried, factor = [_Tried.of(0.0, scores)], 1.0
        for _ in range(_TURNS):
            residuals[: len(val)] = factor * off
            scores = self.scores(count, _CALIBRATED)
            tried.append(_Tried.of(factor, scores))
            if _chosen(tried).off < _NEAR:
                break
            factor = _next_factor(tried)
        chosen = _chosen(tried)
        residuals[: len(val)] = chosen.factor * off
        return chosen

    def scores(self, count: int, members: int) -> dict[str, float]:
        material, rows = self.material, spread_rows(len(self.val), count)
        started = time.monotonic()
        scores = rollout_scores(
            self.model,
            self.val[rows],
            None if material.val_contexts is None else material.val_contexts[rows],
            members=members,
            rank=self.rank,
            known=rows_of(material.val_known, rows),
            context_known=rows_of(material.val_context_known, rows),
        )
        each = (time.monotonic() - started) / (len(rows) * members)
        scores, self._seconds_each = self.rank.from_first((scores, each))
        return scores

    def _affordable(self, share: float, members: int, most: int = _VALIDATED) -> int:
        """Validation trajectories that take this share of the seconds with so many members each; the most without."""
        if self.seconds_given is None:
            return min(most, len(self.val))
        if self._seconds_each is None:
            self.scores(2, _ALIKE)
            assert self._seconds_each is not None
        seconds = max(self.seconds_given, _LEAST_SECONDS)
        count = int(share * seconds / (members * self._seconds_each))
        return max(_FEWEST, min(most, count, len(self.val)))


@dataclass(frozen=True)
class _Tried:
    """A factor of what members draw, the ratio of spread and error with it, and the CRPS."""

    factor: float
    ratio: float
    crps: float

    @classmethod
    def of(cls, factor: float, scores: Mapping[str, float], task: str = "") -> _Tried:
        crps = scores[f"crps{task}"]
        return cls(factor, scores[f"spread_skill{task}"], math.inf if math.isnan(crps) else crps)

    @property
    def off(self) -> float:
        """How far the ratio is from 1, as a logarithm."""
        return abs(math.log(self.ratio)) if self.ratio > 0 else math.inf


def _chosen(tried: Sequence[_Tried]) -> _Tried:
    """Of those whose CRPS is about the least the one whose spread is nearest to the error."""
    least = min(tried, key=lambda one: one.crps)
    return min((one for one in tried if one.crps <= _DEARER * least.crps), key=lambda one: one.off, default=least)


def _next_factor(tried: Sequence[_Tried]) -> float:
    """A factor to try next, a smaller one where larger ones only cost CRPS."""
    last, chosen = tried[-1], _chosen(tried)
    if not math.isfinite(chosen.crps) or not (chosen is last or chosen.factor):
        # Some forecasts are lost, or members are best off with nothing.
        return last.factor / 2
    larger = (one.factor for one in tried if one.factor > chosen.factor)
    wider = min(larger, default=math.inf if chosen is last else last.factor)
    if chosen is last and (new := _by_ratio((tried[0], *tried)[-2], last)) < wider:
        return new
    narrowest = all(one.factor >= chosen.factor for one in tried)
    return chosen.factor**2 / wider if narrowest else (chosen.factor * wider) ** 0.5


def _by_ratio(before: _Tried, last: _Tried) -> float:
    """The factor with which spread would be as large as the error, by how their ratio followed the last one."""
    if not last.ratio > 0:
        return _WIDER * last.factor
    slope = 1.0
    if before.off < math.inf and 0 < before.factor != last.factor:
        slope = math.log(last.ratio / before.ratio) / math.log(last.factor / before.factor)
    return last.factor / last.ratio ** (1 / min(max(slope, _FLATTEST), 1.0))


def relative_errors(codec: Codec, forecasts: Tensor, truth: Tensor) -> Tensor:
    """Relative errors `[n]` of standardised forecasts of fields `[n, T, *x, c]`; infinite where one is lost."""
    forecasts, truth = (codec.standardised(fields.to(codec.device)).flatten(1) for fields in (forecasts, truth))
    return ((forecasts - truth).norm(dim=1) / truth.norm(dim=1).clamp_min(_TINY)).nan_to_num(math.inf).cpu()


def independent(codec: Codec, fields: Tensor) -> int:
    """How many of the trajectories `[n, T, *x, c]` are independent; windows of a series share frames."""
    return round(len(codec.without_gaps(fields).flatten(0, 1).flatten(1).unique(dim=0)) / fields.shape[1])
