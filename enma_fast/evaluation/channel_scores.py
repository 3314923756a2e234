"""Scores of each channel beside those of all together, and sentences about channels that hide others.

Shape suffixes: K members, t frames and P points of a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import EnmaError
from .metrics import SCORES, PartSums, Scores
from .metrics.arrays import Array, float64, where_there

# A mean of so many times the changes of a field hides them in relative errors, and a channel of so many times the RMS
# of another one hides that.
_DOMINANT, _RULING = 5.0, 10.0

# Channel, first frame, members `[K, t, P]` and truth `[t, P]` of a part.
ChannelPart = tuple[int, int, np.ndarray, np.ndarray]


class ChannelScores:
    """`Scores` of each channel, and the mean and spread of its truth; empty for a field of one channel.

    A trajectory whose truth is zero throughout in a channel is left out there.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels = list(channels) if len(channels) > 1 else []
        self._scores = [Scores() for _ in self.channels]
        # Of the truth: number of values, mean, and sum of squared distances from it.
        self._moments = np.zeros((len(self.channels), 3))

    def update(
        self, ensemble: Array, truth: Array, observed: Array | None = None, *, mask: np.ndarray | None = None
    ) -> None:
        """Add a batch of trajectories that `Scores.update` has taken; `mask [*x, c]` is True where there are values."""

        def of(values: Array, i: int, c: int) -> Any:
            if mask is None:
                return values[i : i + 1, ..., c : c + 1]
            return where_there(values[i : i + 1], mask & (np.arange(mask.shape[-1]) == c))

        for c, scores in enumerate(self._scores):
            for i in range(len(truth)):
                field = of(truth, i, c)
                self._moments[c] = _joined(self._moments[c], _moments(float64(field).numpy(force=True)))
                if bool((field != 0).any()):
                    seen = None if observed is None else of(observed, i, c)
                    scores.update(of(ensemble, i, c), field, seen)

    def update_in_parts(
        self, parts: Iterable[ChannelPart], num_frames: int, amplitudes: Sequence[float | None]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Add one trajectory from its parts, and yield them without their channels for `Scores.update_in_parts`.

        `amplitudes` is the RMS of the observed frames of each channel.
        """
        every, moments = [PartSums(scores, num_frames) for scores in self._scores], np.zeros_like(self._moments)
        for c, first, members_KtP, truth_tP in parts:
            if every:
                every[c].add(first, members_KtP, truth_tP)
                moments[c] = _joined(moments[c], _moments(truth_tP))
            yield first, members_KtP, truth_tP
        for c, (scores, sums) in enumerate(zip(self._scores, every, strict=True)):
            self._moments[c] = _joined(self._moments[c], moments[c])
            if sums.nonzero:
                scores.add_sums(sums, amplitude=amplitudes[c])

    def state(self) -> dict[str, np.ndarray]:
        """The contents as plain arrays, for `restore` in another process."""
        if not self.channels:
            return {}
        arrays = {"moments": self._moments.copy()}
        for c, scores in enumerate(self._scores):
            arrays |= {f"{c}.{name}": values for name, values in scores.state().items()}
        return arrays

    @classmethod
    def restore(cls, state: Mapping[str, Array], channels: Sequence[str]) -> ChannelScores:
        """Rebuild it from its state; `EnmaError` if that is of other channels."""
        scores = cls(channels)
        parts: list[dict[str, Array]] = [{} for _ in scores.channels]
        rest: dict[str, Array] = {}
        for name, values in state.items():
            c, dot, key = name.partition(".")
            (parts[int(c)] if dot and c.isdecimal() and int(c) < len(parts) else rest)[key or name] = values
        shapes = {name: tuple(values.shape) for name, values in rest.items()}
        if shapes != ({"moments": scores._moments.shape} if scores.channels else {}):
            raise EnmaError(f"state holds {shapes}, not the scores of {len(scores.channels)} channels; score again")
        scores._scores = [Scores.restore(part) for part in parts]
        if scores.channels:
            scores._moments = np.asarray(torch.as_tensor(rest["moments"]), np.float64).copy()
        return scores

    def result(self, units: Mapping[str, str], *, has_truth: bool = True) -> dict[str, dict[str, Any]] | None:
        """Channel -> its scores, as `Scores.result` has them but for `per_frame`; None for a field of one channel.

        Before them stand its `unit`, and `truth_mean` and `truth_std`, over all that was scored. In a channel whose
        truth is zero throughout all scores are None.
        """
        rows: dict[str, dict[str, Any]] = {}
        for name, scores, (count, mean, squares) in zip(self.channels, self._scores, self._moments, strict=True):
            row: dict[str, Any] = dict.fromkeys([*SCORES, "num_members", "num_trajectories"])
            if scores.num_trajectories:
                row = scores.result()
                del row["per_frame"]
            if not has_truth:
                row |= {score: None for score, definition in SCORES.items() if definition.needs_truth}
            moments = {"truth_mean": float(mean), "truth_std": float((squares / count) ** 0.5)}
            rows[name] = {"unit": units.get(name, "1"), **moments, **row, "num_trajectories": scores.num_trajectories}
        return rows or None


def hidden_changes(name: str, mean: float, changes: float) -> str | None:
    """What a relative error says nothing of, if the mean of a channel is large beside its changes."""
    if abs(mean) <= _DOMINANT * changes:
        return None
    return (
        f"Relative L2 is relative to the whole field, and {name} is {mean:.4g} with changes of {changes:.3g}: all "
        "methods look good by it, so compare the RMS errors, or import anomalies."
    )


def channel_notes(channels: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    """Sentences that a reader of the scores of these channels needs, of the `channels` of a result."""
    if not channels:
        return []
    sizes = {name: float(np.hypot(row["truth_mean"], row["truth_std"])) for name, row in channels.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    notes = [
        said
        for name, row in channels.items()
        if (said := hidden_changes(name, row["truth_mean"], row["truth_std"])) is not None
    ]
    small = [f"{name} of {size:.3g}" for name, size in sizes.items() if size * _RULING < sizes[largest]]
    if small:
        notes.append(
            f"{largest}, of RMS {sizes[largest]:.3g}, rules the scores of all channels and hides {', '.join(small)}: "
            "compare the scores of each channel."
        )
    return notes


def _moments(values: np.ndarray) -> np.ndarray:
    exact = values.astype(np.float64)
    mean = exact.mean()
    return np.array([exact.size, mean, np.square(exact - mean).sum()])


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Moments of two sets of values together."""
    count, step = a[0] + b[0], b[1] - a[1]
    if not b[0]:
        return a
    return np.array([count, a[1] + step * b[0] / count, a[2] + b[2] + step**2 * a[0] * b[0] / count])
