"""Accumulate all scores of the table over trajectories, in any partition.

Shape suffixes: B trajectories, K members, T forecast frames, P points, L interval levels, R = K + 1 ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import EnmaError
from .arrays import Array, checked, float64, pool, require_finite, require_nonzero, zero_truth
from .calibration import LEVELS_L
from .error import TRUTH
from .score import POINTS, Totals
from .table import SCORES


class Scores:
    """All scores of an ensemble forecast, from batches of trajectories in any partition.

    Holds sums and counts, a few thousand numbers whatever the size of the fields, and the errors of each trajectory.
    Trajectories are added one by one in their order, so splitting them into batches differently does not change a bit.

    Examples
    --------
    >>> scores = Scores()
    >>> for ensemble, truth in batches:  # [B, K, T, *x, c] and [B, T, *x, c]
    ...     scores.update(ensemble, truth)
    >>> scores.result()["crps"]
    """

    def __init__(self) -> None:
        self.num_members = 0
        self.num_trajectories = 0
        self._table = tuple(SCORES.values())
        self._pooled = {POINTS.name: POINTS}
        self._point_sums = {POINTS.name: POINTS, TRUTH.name: TRUTH}
        for score in self._table:
            sums = {point_sum.name: point_sum for point_sum in score.sums}
            self._point_sums |= sums
            if score.over == "points":
                self._pooled |= sums
        # Over trajectories: of `_pooled`, and of each averaged score, over all frames and in each.
        self._sums: dict[str, Tensor] = {}
        # The values of each trajectory, of scores that summarise them.
        self._values: dict[str, list[Any]] = {
            _each(score.name): [] for score in self._table if score.summary is not None
        }

    def update(self, ensemble: Array, truth: Array, observed: Array | None = None) -> None:
        """Add a batch of trajectories.

        `ensemble` is `[B, K, T, *x, c]` and `truth` `[B, T, *x, c]`, with one K and T in all batches; `observed` are
        the observed frames `[B, L, *x, c]`, whose RMS is the unit of `crps_relative` (without them, the RMS of the
        truth). `EnmaError` if shapes do not match each other or earlier batches, a value is not finite, or the truth of
        a trajectory is zero throughout; nothing of the batch is added then.
        """
        ensemble_BKTP, truth_BTP = checked(ensemble, truth)
        require_nonzero(truth_BTP)
        known_BTP = truth_BTP if observed is None else float64(observed).flatten(2)
        if len(known_BTP) != len(truth_BTP):
            raise EnmaError(
                f"observed holds {len(known_BTP)} trajectories and truth {len(truth_BTP)}; give those of each"
            )
        require_finite("observed", known_BTP)
        amplitudes = [float(known_TP.square().mean().sqrt()) for known_TP in known_BTP]
        self._require_same_shape(ensemble_BKTP.shape[1], ensemble_BKTP.shape[2])
        self.num_members = ensemble_BKTP.shape[1]
        for ensemble_1KTP, truth_1TP, amplitude in zip(
            ensemble_BKTP[:, None], truth_BTP[:, None], amplitudes, strict=True
        ):
            self._add_one(self._sums_of(ensemble_1KTP, truth_1TP), amplitude)

    def update_in_parts(
        self, parts: Iterable[tuple[int, Array, Array]], num_frames: int, *, amplitude: float | None = None
    ) -> None:
        """Add one trajectory that is too large to hold, from parts of its frames, places and channels.

        Every sum over the parts is one over their points, so any partition gives the same scores, but for rounding.

        Parameters
        ----------
        parts
            `first, ensemble, truth`: the number of the part's first frame, and `[K, t, p]` and `[t, p]`, its t frames
            at p points. Each point of each frame is in one part; `EnmaError` if the frames have different numbers of
            points, and as `update`.
        num_frames
            T.
        amplitude
            RMS of the observed frames; without it that of the truth is the unit of `crps_relative`.
        """
        sums = PartSums(self, num_frames)
        for part in parts:
            sums.add(*part)
        self.add_sums(sums, amplitude=amplitude)

    def add_sums(self, parts: PartSums, *, amplitude: float | None = None) -> None:
        """Add one trajectory, all of whose parts were added to `parts`; as `update_in_parts`."""
        points_T = parts.sums.get(POINTS.name, torch.zeros(1))
        if points_T.min() != points_T.max() or points_T.min() == 0:
            raise EnmaError(
                f"parts hold between {int(points_T.min())} and {int(points_T.max())} points of a frame: "
                f"give every frame in full"
            )
        if not parts.nonzero:
            raise EnmaError(zero_truth(0))
        self.num_members = parts.num_members
        if amplitude is None:
            amplitude = float((parts.sums[TRUTH.name].sum() / points_T.sum()).sqrt())
        self._add_one(parts.sums, amplitude)

    def state(self) -> dict[str, np.ndarray]:
        """The contents of the accumulator as plain arrays, for `restore` in another process."""
        counts = np.array([self.num_members, self.num_trajectories], np.int64)
        sums = {name: value.numpy().copy() for name, value in self._sums.items()}
        values = {name: np.array(value) for name, value in self._values.items() if value}
        return {"counts": counts, **sums, **values}

    @classmethod
    def restore(cls, state: Mapping[str, Array]) -> Scores:
        """Rebuild the accumulator that `state` was taken from; further updates give the same bits.

        `EnmaError` if an array is missing, unknown or of another shape.
        """
        arrays = {name: torch.as_tensor(value).clone() for name, value in state.items()}
        scores = cls()
        counts = arrays.pop("counts", torch.zeros(0))
        if counts.numel() == 2:
            scores.num_members, scores.num_trajectories = counts.tolist()
        expected = scores._shapes(len(arrays[POINTS.name]) if POINTS.name in arrays else 0)
        shapes = {name: tuple(value.shape) for name, value in arrays.items()}
        if counts.numel() != 2 or shapes != expected:
            raise EnmaError(
                f"state holds {shapes or 'no sums'}, expected are {expected or 'counts alone'}; it is of another "
                "version or damaged, so score again"
            )
        scores._values = {name: arrays.pop(name, torch.zeros(0)).tolist() for name in scores._values}
        scores._sums = {name: value.to(torch.float64) for name, value in arrays.items()}
        return scores

    def merge(self, other: Scores) -> None:
        """Add all trajectories of another accumulator, for example of another rank.

        `EnmaError`, and nothing is added, if the two were fed different numbers of members or frames.
        """
        if other.num_trajectories == 0:
            return
        self._require_same_shape(other.num_members, len(other._sums[POINTS.name]))
        self.num_members = other.num_members
        self._add(other._sums)
        for name, values in other._values.items():
            self._values[name] += values
        self.num_trajectories += other.num_trajectories

    def result(self) -> dict[str, Any]:
        """Scores of all trajectories so far; `EnmaError` if there is none.

        Returns
        -------
        dict
            A float over all frames for each row of `SCORES`: `rel_l2` of the ensemble mean, averaged over trajectories,
            its median `rel_l2_median` and 90 % quantile `rel_l2_q90` over trajectories, `rel_l2_member` (mean over
            single members), `crps`, `crps_relative` (the CRPS of a trajectory divided by the RMS of all that was
            observed of it, averaged over trajectories: no unit, and not ruled by fields that decay, as relative errors
            are), `rmsce`, `rmsce_rank`, `spread_skill`, `spread` (root of the mean variance, ddof 1, field's unit),
            `rmse` of the ensemble mean (field's unit); `spread_skill_low` and `spread_skill_high` (5 and 95 % quantiles
            of the ratio if one member of each trajectory were its truth); `num_members`, `num_trajectories`; and
            `per_frame`, a dict with a list over the frames for each score but the quantiles. A score that is not
            defined is None: calibration and spread of a single member, the range of the ratio with fewer than 3
            members, the spread-skill ratio of a mean without error, the relative error in a frame whose truth is
            zero, and the relative CRPS where zeros were observed.
        """
        self._require_trajectories()
        frames = self._finish(per_frame=True)
        return {
            **{name: _number(value) for name, value in self._finish(per_frame=False).items()},
            "num_members": self.num_members,
            "num_trajectories": self.num_trajectories,
            "per_frame": {name: [_number(value) for value in values] for name, values in frames.items()},
        }

    def rank_histogram(self) -> Tensor:
        """Frequency of each rank of the truth, `[K + 1]`, as the function of this name."""
        self._require_trajectories()
        counts_R = self._sums["ranks"].sum(0)
        return counts_R / counts_R.sum()

    def reliability(self) -> tuple[Tensor, Tensor]:
        """Levels `p` and observed coverage `C(p)` of the Gaussian central intervals, each `[100]`.

        A single member has no intervals: its coverage is 0.
        """
        self._require_trajectories()
        return LEVELS_L.clone(), self._sums["inside"].sum(0) / self._sums["points"].sum()

    def _finish(self, *, per_frame: bool) -> dict[str, Any]:
        """Values of all scores, over all frames or for each frame; NaN with too few members."""
        totals = Totals({name: pool(self._sums[name], per_frame) for name in self._pooled}, self.num_members)
        finished: dict[str, Any] = {}
        for score in self._table:
            if score.summary is not None and per_frame:
                continue
            if self.num_members < score.fewest_members:
                finished[score.name] = torch.full_like(totals[POINTS.name], torch.nan)
            elif score.summary is not None:
                finished[score.name] = score.summary(np.array(self._values[_each(score.name)]))
            elif score.over == "points":
                finished[score.name] = score.finish(totals)
            else:
                name = _frames(score.name) if per_frame else score.name
                finished[score.name] = self._sums[name] / self.num_trajectories
        return finished

    def _sums_of(self, ensemble_1KTP: Tensor, truth_1TP: Tensor) -> dict[str, Tensor]:
        """Every sum over the points of one trajectory or a part of it."""
        return {name: term.function(ensemble_1KTP, truth_1TP).cpu() for name, term in self._point_sums.items()}

    def _add_one(self, sums: dict[str, Tensor], amplitude: float) -> None:
        """Add one trajectory, from the sums over its points."""
        whole = {name: value.sum(self._point_sums[name].frame_axis) for name, value in sums.items()}
        added = {name: sums[name] for name in self._pooled}
        for score in self._table:
            if score.over == "trajectories":
                value = score.finish(Totals(whole, self.num_members, amplitude))
                if score.summary is not None:
                    self._values[_each(score.name)].append(value.tolist())
                else:
                    added[score.name] = value
                    added[_frames(score.name)] = score.finish(Totals(sums, self.num_members, amplitude))
        self._add(added)
        self.num_trajectories += 1

    def _add(self, sums: dict[str, Tensor]) -> None:
        self._sums = {name: self._sums[name] + value if self._sums else value for name, value in sums.items()}

    def _shapes(self, num_frames: int) -> dict[str, tuple[int, ...]]:
        """Expected shapes of all arrays of a state except its counts."""
        if not self.num_trajectories:
            return {}
        averaged = [score.name for score in self._table if score.over == "trajectories" and score.summary is None]
        return {
            **{
                _each(score.name): (self.num_trajectories, *score.sums[0].width(self.num_members))
                for score in self._table
                if score.summary is not None
            },
            **dict.fromkeys(averaged, ()),
            **{_frames(name): (num_frames,) for name in averaged},
            **{name: (num_frames, *term.width(self.num_members)) for name, term in self._pooled.items()},
        }

    def _require_same_shape(self, num_members: int, num_frames: int) -> None:
        if self.num_trajectories == 0:
            return
        have = (self.num_members, len(self._sums[POINTS.name]))
        if have != (num_members, num_frames):
            raise EnmaError(
                f"scores hold {have[0]} members and {have[1]} frames, but the new ones have {num_members} "
                f"and {num_frames}: score forecasts of different shape apart"
            )

    def _require_trajectories(self) -> None:
        if self.num_trajectories == 0:
            raise EnmaError("scores hold no trajectory: call update(ensemble, truth) first")


class PartSums:
    """Sums over the points of one trajectory, from parts of it, for `Scores.add_sums`; `scores` stay as they are."""

    def __init__(self, scores: Scores, num_frames: int) -> None:
        self.num_members, self.nonzero = 0, False
        self.sums: dict[str, Tensor] = {}
        self._scores, self._num_frames = scores, num_frames

    def add(self, first: int, ensemble: Array, truth: Array) -> None:
        """Add a part: the number of its first frame, and `[K, t, p]` and `[t, p]`, its t frames at p points."""
        ensemble_1KTP, truth_1TP = checked(ensemble[None, ..., None], truth[None, ..., None])
        self.nonzero = self.nonzero or bool((truth_1TP != 0).any())
        self.num_members = ensemble_1KTP.shape[1]
        self._scores._require_same_shape(self.num_members, self._num_frames)
        for name, part in self._scores._sums_of(ensemble_1KTP, truth_1TP).items():
            axis = self._scores._point_sums[name].frame_axis
            if name not in self.sums:
                self.sums[name] = part.new_zeros((*part.shape[:axis], self._num_frames, *part.shape[axis + 1 :]))
            self.sums[name].narrow(axis, first, part.shape[axis]).add_(part)


def _each(name: str) -> str:
    return f"{name}_each"


def _frames(name: str) -> str:
    return f"{name}_frames"


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
