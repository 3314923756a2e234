"""What the stage of field models chooses on validation data: size of the correction, spread and residuals of members.

How many trajectories are forecast for it follows from how long forecasts take.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.drivers import rows_of
from ..data.selection import spread_rows
from ..forecasting.members import sample_fields
from ..models.field_step import PAST, FieldStep
from ..models.model import Model
from .ranks import ALONE, Rank
from .rollouts import rollout_scores
from .stage import Material

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
# Forecasts of each trajectory for the choices at the end: sizes, factors of the spread, and residuals.
_EVALUATIONS = len(_SIZES) + 1 + 2 * _TURNS * _CALIBRATED


class Choices:
    """Validation data of a field model, and the choices made on them."""

    def __init__(self, model: Model, material: Material) -> None:
        decoder: Any = model.dynamics.step
        self.model, self.material, self.val, self.seconds_given = model, material, material.val, material.seconds
        self.step: FieldStep = decoder.model
        # Seconds for one member of one trajectory, as the last scores took.
        self._seconds_each: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the choices at the end, as far as is known."""
        if self._seconds_each is None:
            return 0.0
        return _EVALUATIONS * self._affordable(_CHOOSING, _EVALUATIONS) * self._seconds_each

    def validation(self, *, members: bool, rank: Rank = ALONE) -> dict[str, float]:
        """Scores of forecasts with members, or of a model that has none yet."""
        return self.scores(self._affordable(_VALIDATING, _MEMBERS), _MEMBERS if members else _ALIKE, rank)

    def begin_members(self) -> None:
        """Choose the spread at which the training of members begins."""
        self.calibrate(self._affordable(_VALIDATING, _TURNS * _CALIBRATED))

    def finish(self) -> None:
        """Choose the size of the correction, then the spread; members that are too much alike draw residuals."""
        step = self.step
        count = self._affordable(_CHOOSING, _EVALUATIONS)
        if bool(step.network.head.weight.any()):
            trained = step.spread.clone()
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
            step.spread.copy_(trained)
        if self.calibrate(count) <= _ALIKE_BELOW:
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

    def calibrate(self, count: int) -> float:
        """Choose the factors of the spread with the least CRPS, near those with which spread is as large as the error.

        Returns the ratio of spread and error with the chosen one.
        """
        spread, tasks = self.step.spread, ("", "_ivp") if self.material.val_contexts is not None else ("",)
        best = dict.fromkeys(tasks, (math.inf, 1.0, 0.0))
        spread[spread == 0] = 1.0
        for _ in range(_TURNS):
            scores = self.scores(count, _CALIBRATED)
            for place, task in enumerate(tasks):
                ratio, crps, factor = scores[f"spread_skill{task}"], scores[f"crps{task}"], float(spread[place])
                if crps < best[task][0]:
                    best[task] = crps, factor, ratio
                    # Spread grows about as its factor does.
                    factor /= ratio if ratio > 0 else 1 / _SPREAD[1]
                else:
                    # Members that are too far apart have a mean that is worse; some forecasts are lost.
                    factor = (factor * best[task][1]) ** 0.5 if math.isfinite(best[task][0]) else factor / 2
                spread[place] = min(max(factor, _SPREAD[0]), _SPREAD[1])
            if all(ratio > 0 and abs(math.log(ratio)) < _NEAR for *_, ratio in best.values()):
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
        off /= len(val) ** 0.5
        least, chosen, factor = self.scores(count, _CALIBRATED)["crps"], 0.0, 1.0
        for _ in range(_TURNS):
            residuals[: len(val)] = factor * off
            scores = self.scores(count, _CALIBRATED)
            if scores["crps"] < least:
                least, chosen, ratio = scores["crps"], factor, scores["spread_skill"]
                if not ratio > 0 or abs(math.log(ratio)) < _NEAR:
                    break
                factor /= ratio
            else:
                factor = (factor * chosen) ** 0.5 if chosen else factor / 2
        residuals[: len(val)] = chosen * off

    def scores(self, count: int, members: int, rank: Rank = ALONE) -> dict[str, float]:
        material, rows = self.material, spread_rows(len(self.val), count)
        started = time.monotonic()
        scores = rollout_scores(
            self.model,
            self.val[rows],
            None if material.val_contexts is None else material.val_contexts[rows],
            members=members,
            rank=rank,
            known=rows_of(material.val_known, rows),
            context_known=rows_of(material.val_context_known, rows),
        )
        self._seconds_each = (time.monotonic() - started) / (len(rows) * members)
        return scores

    def _affordable(self, share: float, members: int) -> int:
        """Validation trajectories that take this share of the seconds with so many members each; all without."""
        if self.seconds_given is None:
            return len(self.val)
        if self._seconds_each is None:
            self.scores(2, _ALIKE)
            assert self._seconds_each is not None
        seconds = max(self.seconds_given, _LEAST_SECONDS)
        count = int(share * seconds / (members * self._seconds_each))
        return max(_FEWEST, min(_MOST, count, len(self.val)))


def surely_less(errors: Tensor, others: Tensor, independent: int) -> bool:
    """Whether errors `[n]` are less than others beyond chance, where so many of the n are independent of each other."""
    gain = (others / errors).log()
    if len(gain) == 1:
        return float(gain) > 0
    independent = max(2, min(len(gain), independent))
    quantile = _SURE[min(independent - 1, len(_SURE)) - 1]
    return float(gain.mean()) > quantile * float(gain.std()) / independent**0.5
