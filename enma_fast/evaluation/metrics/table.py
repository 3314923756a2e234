"""The table of scores: each is one row, and the command line, the report, the model card and the docs read it here.

A row put into `SCORES` before `Scores()` is made is accumulated and shown like the others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from . import calibration, error, probability, spread
from .score import POINTS, Column, Place, Score


def _relative(name: str, label: str, short: str, quantile: float | None = None, **options: Any) -> Score:
    """Relative L2 error of the mean, averaged over trajectories or a quantile over them."""
    return Score(
        name=name,
        label=label,
        short=short,
        sums=(error.MEAN_ERROR, error.TRUTH),
        finish=error.relative,
        over="trajectories",
        summary=None if quantile is None else partial(np.quantile, q=quantile),
        needs_truth=True,
        **options,
    )


def _calibrated(name: str, quantile: float) -> Score:
    """A quantile of the spread-skill ratio of members that are exchangeable with the truth."""
    share = f"{quantile * 100:.0f} %"
    return Score(
        name=name,
        label=f"spread / error of calibrated members, {share} quantile",
        short=f"calibrated, {share}",
        sums=(spread.DEVIATIONS,),
        finish=lambda totals: totals[spread.DEVIATIONS.name],
        over="trajectories",
        summary=partial(spread.calibrated_ratio, quantile=quantile),
        needs_members=True,
        fewest_members=3,
        places=(),
    )


_EVERYWHERE: tuple[Place, ...] = ("terminal", "card", "paper", "trajectories")
# In the order of results and tables.
SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        _relative("rel_l2", "relative L2 error of the mean", "rel. L2", places=_EVERYWHERE),
        _relative("rel_l2_median", "the same, median over trajectories", "median", 0.5, places=("card",)),
        _relative("rel_l2_q90", "the same, 90 % quantile over trajectories", "90 %", 0.9, places=("card",)),
        Score(
            name="rel_l2_member",
            label="relative L2 error of single members",
            short="one member",
            sums=(error.MEMBER_ERROR, error.TRUTH),
            finish=error.relative_of_members,
            over="trajectories",
            needs_truth=True,
            needs_members=True,
        ),
        Score(
            name="crps",
            label="CRPS",
            short="CRPS",
            sums=(POINTS, probability.CRPS),
            finish=probability.mean_crps,
            needs_members=True,
            places=_EVERYWHERE,
        ),
        Score(
            name="crps_relative",
            label="CRPS / RMS of the observed frames",
            short="CRPS / RMS",
            sums=(POINTS, probability.CRPS),
            finish=probability.relative_crps,
            over="trajectories",
            needs_members=True,
            places=("card",),
        ),
        Score(
            name="rmsce",
            label="RMSCE, Gaussian intervals",
            short="RMSCE",
            sums=(POINTS, calibration.INSIDE),
            finish=calibration.gaussian_calibration_error,
            fewest_members=2,
            places=("terminal", "card", "paper"),
        ),
        Score(
            name="rmsce_rank",
            label="RMSCE, ranks of the truth",
            short="RMSCE, ranks",
            sums=(POINTS, calibration.RANKS),
            finish=calibration.rank_calibration_error,
            needs_members=True,
            fewest_members=2,
            places=("terminal",),
        ),
        Score(
            name="spread_skill",
            label="spread / error (1 is calibrated)",
            short="spread/skill",
            sums=(POINTS, error.SQUARED_ERROR, spread.VARIANCE),
            finish=spread.ratio,
            fewest_members=2,
            places=("terminal", "card", "trajectories"),
        ),
        _calibrated("spread_skill_low", 0.05),
        _calibrated("spread_skill_high", 0.95),
        Score(
            name="spread",
            label="spread (RMS)",
            short="spread",
            sums=(POINTS, spread.VARIANCE),
            finish=spread.spread,
            fewest_members=2,
            places=("trajectories",),
        ),
        Score(
            name="rmse",
            label="error of the mean (RMS)",
            short="error",
            sums=(POINTS, error.SQUARED_ERROR),
            finish=error.rmse,
            needs_truth=True,
            places=("trajectories",),
        ),
    )
}

# For generated trajectories only; the equation's solver computes it: `evaluation.solver`.
SOLVER_FIDELITY = Column(
    name="solver_fidelity",
    label="distance from the solver's own trajectory",
    short="solver",
    places=("terminal", "card", "paper"),
)


def columns(place: Place) -> list[Column]:
    """The scores that a place shows, in order."""
    return [column for column in (*SCORES.values(), SOLVER_FIDELITY) if place in column.places]
