"""Scores of an ensemble forecast: error, CRPS, calibration, spread; one by one, or streamed by `Scores`.

Truth is `[B, T, *x, c]` and an ensemble `[B, K, T, *x, c]` (torch or numpy, any float type), only forecast
frames. All sums run in float64. An unqualified "point" below is one value: a place and a channel.

Shape suffixes: B trajectories, K members, T forecast frames, P points, L interval levels, R = K + 1 ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EnmaError
from .metric_sums import (
    LEVELS_L,
    calibration_error,
    crps_sums,
    interval_counts,
    num_points,
    rank_counts,
    rank_coverage,
    ratio,
    spread_factor,
    squared_error_sums,
    trajectory_error,
    variance_sums,
)

Array = Tensor | np.ndarray[Any, Any]


def relative_l2(pred: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Relative L2 error of each trajectory, not squared.

    `||pred - truth||_2 / ||truth||_2` with both norms over all frames, points and channels of a trajectory,
    or over those of one frame. The mean over trajectories is the paper's "Relative MSE" (section 4).

    Parameters
    ----------
    pred, truth : Tensor or ndarray
        `[B, T, *x, c]`.
    per_frame : bool
        One error for each frame.

    Returns
    -------
    Tensor
        `[B]`, or `[B, T]` with `per_frame`; float64, no unit; infinite or NaN for a frame whose truth is
        zero.

    Raises
    ------
    EnmaError
        If shapes differ, a value is not finite, or the truth of a trajectory is zero throughout.
    """
    forecast, fields = _array(pred), _array(truth)
    if fields.ndim < 3 or forecast.shape != fields.shape:
        raise EnmaError(
            f"pred is {list(forecast.shape)} and truth {list(fields.shape)}: expected [B, T, *x, c] for both"
        )
    _require_finite("pred", forecast)
    _require_finite("truth", fields)
    _require_nonzero(fields)
    return trajectory_error(forecast.flatten(2), fields.flatten(2).to(forecast.device), per_frame)


def crps(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Fair continuous ranked probability score, averaged over trajectories, frames and points.

    `mean_i |x_i - y| - 1 / (2 K (K - 1)) sum_ij |x_i - x_j|`, unbiased in the number of members (Ferro, "Fair
    scores for ensemble forecasts", 2014). With one member there is no second term: it is the mean absolute
    error.

    Parameters
    ----------
    ensemble, truth : Tensor or ndarray
        `[B, K, T, *x, c]` and `[B, T, *x, c]`.
    per_frame : bool
        Average over trajectories and points only.

    Returns
    -------
    Tensor
        0-d, or `[T]` with `per_frame`; float64, in the field's unit.

    Raises
    ------
    EnmaError
        If shapes do not match or a value is not finite.
    """
    ensemble_BKTP, truth_BTP = _fields(ensemble, truth)
    sums_T = crps_sums(ensemble_BKTP, truth_BTP)
    return _pool(sums_T, per_frame) / _pool(num_points(truth_BTP), per_frame)


def rmsce(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Root mean squared calibration error of the Gaussian with the ensemble's mean and standard deviation.

    `sqrt(mean_p (p - C(p))^2)` over the 100 levels `p = linspace(0, 1, 100)`, where `C(p)` is the fraction of
    trajectories, frames and points at which the truth lies inside the central interval of probability `p`.
    The standard deviation has `K - 1` in its denominator (ddof 1). Equals uncertainty-toolbox's
    `root_mean_squared_calibration_error` with its defaults (Chung et al., 2021), from counts instead of a
    points-by-levels table. Where the members agree exactly, the truth is inside if it agrees too, and
    otherwise only at `p = 1`.

    Note that a Gaussian from few members is not calibrated even if the members are: its intervals are too
    narrow.

    Parameters
    ----------
    ensemble, truth : Tensor or ndarray
        `[B, K, T, *x, c]`, with `K >= 2`, and `[B, T, *x, c]`.
    per_frame : bool
        Pool trajectories and points only.

    Returns
    -------
    Tensor
        0-d, or `[T]` with `per_frame`; float64, no unit.

    Raises
    ------
    EnmaError
        If shapes do not match, a value is not finite, or there is one member.
    """
    ensemble_BKTP, truth_BTP = _fields(ensemble, truth, min_members=2)
    counts_TL = interval_counts(ensemble_BKTP, truth_BTP)
    return calibration_error(_pool(counts_TL, per_frame) / _pool(num_points(truth_BTP), per_frame)[..., None])


def rmsce_rank(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Root mean squared calibration error from the truth's rank among the members, with no Gaussian assumed.

    `sqrt(mean_p (p - C(p))^2)` over the levels of `rmsce`. If `b` of `K` members lie below the truth and `m`
    equal it, its probability position is uniform between `b / (K + 1)` and `(b + m + 1) / (K + 1)`; `C(p)` is
    the mean overlap of that span with `[1/2 - p/2, 1/2 + p/2]`. This is what randomly broken ties give on
    average (the non-randomised probability integral transform of Czado, Gneiting and Held, 2009), and tends
    to 0 for members that are exchangeable with the truth, however few.

    Parameters, returned value and errors are those of `rmsce`.
    """
    histogram_R = rank_histogram(ensemble, truth, per_frame=per_frame)
    return calibration_error(rank_coverage(histogram_R))


def rank_histogram(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Frequency of each rank of the truth among the members: flat if they are exchangeable.

    Rank `r` means that `r` members lie below the truth. A truth that equals `m` members counts `1 / (m + 1)`
    at each rank that breaking the tie could give. (Hamill, "Interpretation of rank histograms", 2001.)

    Parameters and errors are those of `rmsce`.

    Returns
    -------
    Tensor
        `[K + 1]`, or `[T, K + 1]` with `per_frame`; float64, each row sums to 1.
    """
    ensemble_BKTP, truth_BTP = _fields(ensemble, truth, min_members=2)
    counts_R = _pool(rank_counts(ensemble_BKTP, truth_BTP), per_frame)
    return counts_R / counts_R.sum(-1, keepdim=True)


def spread_skill(ensemble: Array, truth: Array, *, per_frame: bool = False) -> Tensor:
    """Spread-skill ratio: 1 for a calibrated ensemble, below 1 if it is too narrow.

    `sqrt((K + 1) / K mean s^2) / sqrt(mean (xbar - y)^2)` over trajectories, frames and points, with `s^2`
    the members' variance (denominator `K - 1`) and `xbar` their mean; the factor makes the ratio 1 for
    members that are exchangeable with the truth, however few (Fortin et al., 2014).

    Parameters and errors are those of `rmsce`.

    Returns
    -------
    Tensor
        0-d, or `[T]` with `per_frame`; float64, no unit; infinite or NaN where the mean has no error at all.
    """
    ensemble_BKTP, truth_BTP = _fields(ensemble, truth, min_members=2)
    error_T = squared_error_sums(ensemble_BKTP, truth_BTP)
    square = _pool(variance_sums(ensemble_BKTP), per_frame) / _pool(error_T, per_frame)
    return torch.sqrt(spread_factor(ensemble_BKTP.shape[1]) * square)


class Scores:
    """All scores of an ensemble forecast, from batches of trajectories in any partition.

    Holds sums and counts, a few thousand numbers whatever the size of the fields, and one error of each trajectory.
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
        self._sums: dict[str, Tensor] = {}
        # Relative L2 error of the ensemble mean of each trajectory.
        self._errors: list[float] = []

    def update(self, ensemble: Array, truth: Array, observed: Array | None = None) -> None:
        """Add a batch of trajectories.

        Parameters
        ----------
        ensemble, truth : Tensor or ndarray
            `[B, K, T, *x, c]` and `[B, T, *x, c]`; K and T are the same in all batches.
        observed : Tensor or ndarray
            `[B, L, *x, c]`, the observed frames, whose RMS is the unit of `crps_relative`; without them it is the
            RMS of the truth.

        Raises
        ------
        EnmaError
            If shapes do not match each other or earlier batches, a value is not finite, or the truth of a
            trajectory is zero throughout. Nothing of the batch is added then.
        """
        ensemble_BKTP, truth_BTP = _fields(ensemble, truth)
        _require_nonzero(truth_BTP)
        known_BTP = truth_BTP if observed is None else _array(observed).flatten(2)
        if len(known_BTP) != len(truth_BTP):
            raise EnmaError(
                f"observed holds {len(known_BTP)} trajectories and truth {len(truth_BTP)}; give those of each"
            )
        _require_finite("observed", known_BTP)
        amplitudes = [float(known_TP.square().mean().sqrt()) for known_TP in known_BTP]
        self._require_same_shape(ensemble_BKTP.shape[1], ensemble_BKTP.shape[2])
        self.num_members = ensemble_BKTP.shape[1]
        for ensemble_1KTP, truth_1TP, amplitude in zip(
            ensemble_BKTP[:, None], truth_BTP[:, None], amplitudes, strict=True
        ):
            self._add_one(_part_sums(ensemble_1KTP, truth_1TP), amplitude)

    def update_in_parts(
        self, parts: Iterable[tuple[int, Array, Array]], num_frames: int, *, amplitude: float | None = None
    ) -> None:
        """Add one trajectory that is too large to hold, from parts of its frames, places and channels.

        Every sum over the parts is one over their points, so any partition gives the same scores, but for rounding.

        Parameters
        ----------
        parts : iterable of (int, Tensor or ndarray, Tensor or ndarray)
            `first, ensemble, truth`: the number of the part's first frame, and `[K, t, p]` and `[t, p]`, its t frames
            at p points. Each point of each frame is in one part.
        num_frames : int
            T.
        amplitude : float
            RMS of the observed frames; without it that of the truth is the unit of `crps_relative`.

        Raises
        ------
        EnmaError
            As `update`, or if the frames have different numbers of points. Nothing of the trajectory is added then.
        """
        sums: dict[str, Tensor] = {}
        num_members, nonzero = 0, False
        for first, ensemble, truth in parts:
            ensemble_1KTP, truth_1TP = _fields(ensemble[None, ..., None], truth[None, ..., None])
            nonzero = nonzero or bool((truth_1TP != 0).any())
            num_members = ensemble_1KTP.shape[1]
            self._require_same_shape(num_members, num_frames)
            for name, part in _part_sums(ensemble_1KTP, truth_1TP).items():
                axis = _FRAME_AXIS.get(name, 0)
                if name not in sums:
                    sums[name] = part.new_zeros((*part.shape[:axis], num_frames, *part.shape[axis + 1 :]))
                sums[name].narrow(axis, first, part.shape[axis]).add_(part)
        points_T = sums.get("points", torch.zeros(1))
        if points_T.min() != points_T.max() or points_T.min() == 0:
            raise EnmaError(
                f"parts hold between {int(points_T.min())} and {int(points_T.max())} points of a frame: "
                f"give every frame in full"
            )
        if not nonzero:
            raise EnmaError(_zero_truth(0))
        self.num_members = num_members
        if amplitude is None:
            amplitude = float((sums["truth"].sum() / points_T.sum()).sqrt())
        self._add_one(sums, amplitude)

    def state(self) -> dict[str, np.ndarray]:
        """All that the accumulator holds, as plain arrays, for `restore`: to go on in another process."""
        counts = np.array([self.num_members, self.num_trajectories], np.int64)
        sums = {name: value.numpy().copy() for name, value in self._sums.items()}
        return {"counts": counts, **sums, **({_ERRORS: np.array(self._errors)} if self._errors else {})}

    @classmethod
    def restore(cls, state: Mapping[str, Array]) -> Scores:
        """The accumulator that `state` was taken from; going on with it gives the same bits.

        Raises
        ------
        EnmaError
            If an array is missing, unknown or of another shape.
        """
        arrays = {name: torch.as_tensor(value).clone() for name, value in state.items()}
        made = cls()
        counts = arrays.pop("counts", torch.zeros(0))
        if counts.numel() == 2:
            made.num_members, made.num_trajectories = counts.tolist()
        frames = len(arrays["points"]) if "points" in arrays else 0
        expected = _shapes(made.num_trajectories, made.num_members, frames) if made.num_trajectories else {}
        found = {name: tuple(value.shape) for name, value in arrays.items()}
        if counts.numel() != 2 or found != expected:
            raise EnmaError(
                f"state holds {found or 'no sums'}, expected are {expected or 'counts alone'}; it is of another "
                "version or damaged, so score again"
            )
        made._errors = arrays.pop(_ERRORS, torch.zeros(0)).tolist()
        made._sums = {name: value.to(torch.float64) for name, value in arrays.items()}
        return made

    def merge(self, other: Scores) -> None:
        """Add all trajectories of another accumulator, for example of another rank.

        Raises
        ------
        EnmaError
            If the two were fed different numbers of members or frames. Nothing is added then.
        """
        if other.num_trajectories == 0:
            return
        self._require_same_shape(other.num_members, len(other._sums["points"]))
        self.num_members = other.num_members
        self._add(other._sums)
        self._errors += other._errors
        self.num_trajectories += other.num_trajectories

    def result(self) -> dict[str, Any]:
        """Scores of all trajectories so far.

        Returns
        -------
        dict
            Floats over all frames: `rel_l2` of the ensemble mean, averaged over trajectories, its median
            `rel_l2_median` and 90 % quantile `rel_l2_q90` over trajectories, `rel_l2_member` (mean over single
            members), `crps`, `crps_relative` (the CRPS of a trajectory divided by the RMS of all that was observed of
            it, averaged over trajectories: no unit, and not ruled by fields that decay, as relative errors are),
            `rmsce`, `rmsce_rank`, `spread_skill`, `spread` (root of the mean variance, ddof 1, field's unit),
            `rmse` of the ensemble mean (field's unit); `num_members`, `num_trajectories`; and `per_frame`, a dict
            with a list over the frames for each score but the two quantiles. A score that is not defined is None:
            calibration and spread of a single member, the spread-skill ratio of a mean without error, the
            relative error in a frame whose truth is zero, and the relative CRPS where zeros were observed.

        Raises
        ------
        EnmaError
            If no trajectory was added.
        """
        self._require_trajectories()
        overall = self._finish(per_frame=False)
        frames = self._finish(per_frame=True)
        mean = _number(overall.pop("rel_l2"))
        median, tail = np.quantile(self._errors, [0.5, 0.9]).tolist()
        return {
            "rel_l2": mean,
            "rel_l2_median": median,
            "rel_l2_q90": tail,
            **{name: _number(value) for name, value in overall.items()},
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

    def _finish(self, *, per_frame: bool) -> dict[str, Tensor]:
        suffix = "_frames" if per_frame else ""
        sums = {
            name: _pool(self._sums[name], per_frame)
            for name in ("points", "crps", "squared_error", "variance", "inside", "ranks")
        }
        points = sums["points"]
        rmse = torch.sqrt(sums["squared_error"] / points)
        spread = torch.sqrt(sums["variance"] / points)
        inside = sums["inside"] / points[..., None]
        ranks = sums["ranks"] / points[..., None]
        finished = {
            "rel_l2": self._sums["rel_l2" + suffix] / self.num_trajectories,
            "rel_l2_member": self._sums["rel_l2_member" + suffix] / self.num_trajectories,
            "crps": sums["crps"] / points,
            "crps_relative": self._sums["crps_relative" + suffix] / self.num_trajectories,
            "rmsce": calibration_error(inside),
            "rmsce_rank": calibration_error(rank_coverage(ranks)),
            "spread_skill": spread_factor(self.num_members) ** 0.5 * spread / rmse,
            "spread": spread,
            "rmse": rmse,
        }
        if self.num_members == 1:
            for name in ("rmsce", "rmsce_rank", "spread_skill", "spread"):
                finished[name] = torch.full_like(rmse, torch.nan)
        return finished

    def _add_one(self, sums: dict[str, Tensor], amplitude: float) -> None:
        """Add one trajectory, from the sums over its points."""
        finished = _finished(sums, amplitude)
        self._add(finished)
        self._errors.append(float(finished["rel_l2"]))
        self.num_trajectories += 1

    def _add(self, sums: dict[str, Tensor]) -> None:
        self._sums = {name: self._sums[name] + value if self._sums else value for name, value in sums.items()}

    def _require_same_shape(self, num_members: int, num_frames: int) -> None:
        if self.num_trajectories == 0:
            return
        have = (self.num_members, len(self._sums["points"]))
        if have != (num_members, num_frames):
            raise EnmaError(
                f"scores hold {have[0]} members and {have[1]} frames, but the new ones have {num_members} "
                f"and {num_frames}: score forecasts of different shape apart"
            )

    def _require_trajectories(self) -> None:
        if self.num_trajectories == 0:
            raise EnmaError("scores hold no trajectory: call update(ensemble, truth) first")


# The errors of each trajectory in a state.
_ERRORS = "rel_l2_each"
# Sums over points of a part, by name the axis of the frames where it is not the first.
_FRAME_AXIS = {"mean_error": 1, "truth": 1, "member_error": 2}


def _part_sums(ensemble_1KTP: Tensor, truth_1TP: Tensor) -> dict[str, Tensor]:
    """Of one trajectory or a part of it, every sum over its points; each frame's apart."""
    sums = {
        "points": num_points(truth_1TP),
        "mean_error": (ensemble_1KTP.mean(1) - truth_1TP).square().sum(-1),
        "member_error": (ensemble_1KTP - truth_1TP[:, None]).square().sum(-1),
        "truth": truth_1TP.square().sum(-1),
        "crps": crps_sums(ensemble_1KTP, truth_1TP),
        "squared_error": squared_error_sums(ensemble_1KTP, truth_1TP),
        "variance": variance_sums(ensemble_1KTP),
        "inside": interval_counts(ensemble_1KTP, truth_1TP),
        "ranks": rank_counts(ensemble_1KTP, truth_1TP),
    }
    return {name: value.cpu() for name, value in sums.items()}


def _finished(sums: dict[str, Tensor], amplitude: float) -> dict[str, Tensor]:
    """What `Scores` adds up over trajectories, from the sums over all points of one and its observed amplitude."""
    sums = dict(sums)
    mean_1T, member_1KT, truth_1T = (sums.pop(name) for name in ("mean_error", "member_error", "truth"))
    truth_1KT = truth_1T[:, None].expand_as(member_1KT)
    crps_T, points_T = sums["crps"], sums["points"]
    return {
        "rel_l2": ratio(mean_1T, truth_1T, False).sum(0),
        "rel_l2_frames": ratio(mean_1T, truth_1T, True).sum(0),
        "rel_l2_member": ratio(member_1KT, truth_1KT, False).mean(1).sum(0),
        "rel_l2_member_frames": ratio(member_1KT, truth_1KT, True).mean(1).sum(0),
        "crps_relative": crps_T.sum() / points_T.sum() / amplitude,
        "crps_relative_frames": crps_T / points_T / amplitude,
        **sums,
    }


def _shapes(num_trajectories: int, num_members: int, num_frames: int) -> dict[str, tuple[int, ...]]:
    """Those of all arrays of a state but its counts."""
    averaged = ("rel_l2", "rel_l2_member", "crps_relative")
    frames = (*(f"{name}_frames" for name in averaged), "points", "crps", "squared_error", "variance")
    return {
        _ERRORS: (num_trajectories,),
        **dict.fromkeys(averaged, ()),
        **dict.fromkeys(frames, (num_frames,)),
        "inside": (num_frames, len(LEVELS_L)),
        "ranks": (num_frames, num_members + 1),
    }


def _pool(sums_T: Tensor, per_frame: bool) -> Tensor:
    return sums_T if per_frame else sums_T.sum(0)


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _array(values: Array) -> Tensor:
    return torch.as_tensor(values).detach().to(torch.float64)


def _fields(ensemble: Array, truth: Array, *, min_members: int = 1) -> tuple[Tensor, Tensor]:
    """Check both, and flatten places and channels: float64 `[B, K, T, P]` and `[B, T, P]`."""
    members, fields = _array(ensemble), _array(truth)
    shapes = f"ensemble is {list(members.shape)} and truth {list(fields.shape)}"
    if fields.ndim < 3 or members.ndim != fields.ndim + 1 or members[:, :1].shape != fields[:, None].shape:
        raise EnmaError(f"{shapes}: expected [B, K, T, *x, c] and [B, T, *x, c]")
    if fields.numel() == 0 or members.numel() == 0:
        raise EnmaError(f"{shapes}: there is nothing to score")
    if members.shape[1] < min_members:
        raise EnmaError(f"{shapes}: one member has no spread; sample at least {min_members}")
    _require_finite("ensemble", members)
    _require_finite("truth", fields)
    return members.flatten(3), fields.flatten(2).to(members.device)


def _require_finite(name: str, values: Tensor) -> None:
    finite = torch.isfinite(values)
    if finite.all():
        return
    place = (~finite).nonzero()[0].tolist()
    raise EnmaError(
        f"{name} holds {float(values[tuple(place)])} at index {place}: a score needs finite values, "
        f"so drop that trajectory or repair it"
    )


def _require_nonzero(truth: Tensor) -> None:
    zero_B = (truth == 0).flatten(1).all(1)
    if zero_B.any():
        raise EnmaError(_zero_truth(int(zero_B.nonzero()[0])))


def _zero_truth(place: int) -> str:
    return (
        f"truth of trajectory {place} is zero throughout: its relative L2 error is not defined, so drop that trajectory"
    )
