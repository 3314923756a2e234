"""Statistics of an ensemble, fed member by member: no number of members needs more memory than the first 256.

    mean, spread (ddof 1)        Welford's recurrence in float64
    exceedance                   counts of value > threshold
    quantiles                    of the members themselves up to `EXACT`, then from a histogram of each value

A "value" is one time, place and channel. Its histogram is laid out from its first 256 members: `m` is their median
(the lower of the two), and `s` four times the mean distance to `m` of those that are not `m`, the farthest one in a
hundred left out. Then x is counted in the bin

    j = sign(d) ceil(127 |d| / (s + |d|)),    d = x - m,    j = -127, ..., 127.

Bins are s / 127 wide at the median and widen as (1 + |d| / s)^2, the last without end: an outlier or a far mode costs
no resolution elsewhere. Bin 0 holds `m` alone, so that a value on which half the members agree is kept as it is. Order
statistics are taken to lie evenly in their bin, between the least and the greatest member.

Shape suffixes: K members, T frames, P values of one member, J bins, Q quantiles, E thresholds.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import EnmaError

EXACT = 256

# Row 128 of a histogram is bin 0; row 0 stays empty.
_ROWS = 256
_CENTER = 128
_SIDE = 127

_WIDTH = 4
_ONE_OUT_OF = 100
# The scale of a value whose members are all equal as yet; the first that differs gives it one.
_UNSET = 1e-300

# Values worked on at once: in the fold, and where each comes with its 256 members or bins.
_BLOCK = 4096
_COLUMNS = 512

# Bytes of Python's own objects, at most.
_OBJECTS = 2**16

# Ends of the bins as multiples of s.
_EDGES = np.append(np.arange(_SIDE) / (_SIDE - np.arange(_SIDE)), np.inf)
_UPPER_J = np.concatenate([[-np.inf], -_EDGES[-2::-1], _EDGES])
_LOWER_J = np.concatenate([[-np.inf], -_EDGES[:0:-1], [0.0], _EDGES[:-1]])

Array = Tensor | np.ndarray[Any, Any]


class NotFiniteError(EnmaError):
    """A member has a value that is not finite; `number` is its place among those given."""

    def __init__(self, number: int, count: int) -> None:
        super().__init__(
            f"members: number {number} of the {count} given has a value that is not finite; leave it out, or sample it "
            "again"
        )
        self.number = number


class Statistics:
    """Mean, spread, quantiles and exceedance of the members of one trajectory, one member after the other.

    Results have the same bits however the members are divided into calls of `update`, and whether or not the statistics
    were saved by `state` and restored in between. Up to 256 members quantiles are exact. Beyond, they err by less than
    the width of their bin: measured errors are in docs/design.md.

    Parameters
    ----------
    shape : that of one member, [T, *x, c]
    quantiles : levels inside (0, 1), increasing; numpy's method "linear"
    thresholds : increasing, in the unit of the field

    Raises
    ------
    EnmaError
        If an argument is not as described.
    """

    def __init__(
        self, shape: Sequence[int], *, quantiles: Sequence[float] = (), thresholds: Sequence[float] = ()
    ) -> None:
        self.shape = _shape(shape)
        self.quantiles = _levels(quantiles)
        self.thresholds = _increasing("thresholds", thresholds)
        size = math.prod(self.shape)
        self._num_members = 0
        self._mean_P = np.zeros(size)
        self._squares_P = np.zeros(size)
        self._exceeding_EP = np.zeros((len(self.thresholds), size), np.uint32)
        # Members, then counts in their place: 256 numbers of four bytes for each value, either way.
        self._numbers_JP = np.empty((_ROWS if self.quantiles else 0, size), np.uint32)
        self._members_KP = self._numbers_JP.view(np.float32)
        self._histograms: _Histograms | None = None

    @property
    def num_members(self) -> int:
        """Members added so far."""
        return self._num_members

    def update(self, members: Array) -> None:
        """Add members `[n, T, *x, c]`, numpy or Torch, any n; float32 (other float types are rounded to it).

        `EnmaError`, and nothing is added, if the shape or the type is another, or a value is not finite.
        """
        members_KP = self._checked(members)
        if self.quantiles and self._num_members <= EXACT < self._num_members + len(members_KP):
            self._histograms = _Histograms(self._numbers_JP)
        for first in range(0, members_KP.shape[1], _BLOCK):
            self._fold(members_KP, slice(first, first + _BLOCK))
        self._num_members += len(members_KP)

    def mean(self) -> np.ndarray:
        """Mean of the members, float32 `[T, *x, c]`; EnmaError without members, as all results."""
        self._require_members()
        return self._mean_P.astype(np.float32).reshape(self.shape)

    def spread(self) -> np.ndarray:
        """Standard deviation with K - 1 in its denominator, float32 `[T, *x, c]`; NaN for a single member."""
        self._require_members()
        if self._num_members == 1:
            return np.full(self.shape, np.nan, np.float32)
        variance_P = self._squares_P / (self._num_members - 1)
        return np.sqrt(variance_P, out=variance_P).astype(np.float32).reshape(self.shape)

    def exceedance(self) -> np.ndarray:
        """Fraction of the members greater than each threshold (compared in float64), float32 `[E, T, *x, c]`."""
        self._require_members()
        fraction_EP = np.empty(self._exceeding_EP.shape, np.float32)
        np.divide(self._exceeding_EP, self._num_members, out=fraction_EP, casting="same_kind")
        return fraction_EP.reshape(-1, *self.shape)

    def quantile(self) -> np.ndarray:
        """The quantiles, computed in float64 and rounded to float32 `[Q, T, *x, c]`.

        Up to 256 members: `np.quantile(members.astype(np.float64), quantiles, axis=0)`.
        """
        self._require_members()
        size = len(self._mean_P)
        quantile_QP = np.empty((len(self.quantiles), size), np.float32)
        for first in range(0, size if self.quantiles else 0, _COLUMNS):
            part = slice(first, first + _COLUMNS)
            if self._histograms is None:
                members = self._members_KP[: self._num_members, part].astype(np.float64)
                quantile_QP[:, part] = np.quantile(members, self.quantiles, axis=0, overwrite_input=True)
            else:
                quantile_QP[:, part] = self._histograms.quantile(part, self.quantiles, self._num_members)
        return quantile_QP.reshape(-1, *self.shape)

    def state(self) -> dict[str, np.ndarray]:
        """All that the fold needs to go on, as copies of its arrays; see `restore`."""
        arrays = {
            "shape": np.array(self.shape, np.int64),
            "quantiles": np.array(self.quantiles, np.float64),
            "thresholds": np.array(self.thresholds, np.float64),
            "num_members": np.array(self._num_members, np.int64),
        }
        return arrays | {
            name: array.reshape(*array.shape[:-1], *self.shape).copy() for name, array in self._arrays().items()
        }

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray]) -> Statistics:
        """The statistics whose `state()` this is (copied).

        `EnmaError` if an array is missing, or of another type or shape than the others call for.
        """
        try:
            head = {name: np.asarray(state[name]) for name in ("shape", "quantiles", "thresholds", "num_members")}
        except KeyError as error:
            raise _damaged(error.args[0], "is missing") from error
        count = head["num_members"]
        if count.shape or count.dtype.kind not in "iu" or count < 0:
            raise _damaged("num_members", "is no count")
        statistics = cls(
            head["shape"].tolist(), quantiles=head["quantiles"].tolist(), thresholds=head["thresholds"].tolist()
        )
        statistics._num_members = int(count)
        if statistics.quantiles and count > EXACT:
            statistics._histograms = _Histograms(statistics._numbers_JP)
        for name, array in statistics._arrays().items():
            if name not in state:
                raise _damaged(name, "is missing")
            values, expected = np.asarray(state[name]), (*array.shape[:-1], *statistics.shape)
            if values.dtype != array.dtype or values.shape != expected:
                raise _damaged(name, f"is {values.dtype} {values.shape}, not {array.dtype} {expected}")
            array[...] = values.reshape(array.shape)
        return statistics

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays in use, the last axis over values."""
        arrays: dict[str, np.ndarray] = {"mean": self._mean_P, "squares": self._squares_P}
        if self.thresholds:
            arrays["exceeding"] = self._exceeding_EP
        if self._histograms is not None:
            arrays |= vars(self._histograms)
        elif self.quantiles:
            arrays["members"] = self._members_KP[: self._num_members]
        return arrays

    def _require_members(self) -> None:
        if not self._num_members:
            raise EnmaError("the statistics have no members yet; give some to update() first")

    def _checked(self, members: Array) -> np.ndarray:
        """Members as float32 [K, P], not copied if they can be read in place."""
        if isinstance(members, Tensor):
            members = members.detach().cpu()
            # NumPy knows no bfloat16.
            members = (members.float() if members.is_floating_point() else members).numpy()
        values = np.asarray(members)
        if values.dtype.kind != "f":
            raise EnmaError(f"members are {values.dtype}; give float32")
        if values.ndim == 0 or values.shape[1:] != self.shape:
            raise EnmaError(f"members have shape {values.shape}; give (n, {', '.join(map(str, self.shape))})")
        with np.errstate(over="ignore"):
            members_KP = values.astype(np.float32, copy=False).reshape(len(values), math.prod(self.shape))
        rows = max(1, 16 * _BLOCK // members_KP.shape[1])
        for first in range(0, len(members_KP), rows):
            finite_K = np.isfinite(members_KP[first : first + rows]).all(axis=1)
            if not finite_K.all():
                raise NotFiniteError(first + int(finite_K.argmin()), len(members_KP))
        return members_KP

    def _fold(self, members_KP: np.ndarray, block: slice) -> None:
        """Add all members to one block of values."""
        mean, squares, exceeding = self._mean_P[block], self._squares_P[block], self._exceeding_EP[:, block]
        x, delta, work = np.empty((3, len(mean)))
        above = np.empty(len(mean), bool)
        histogram = None
        for k, member in enumerate(members_KP[:, block], self._num_members):
            x[...] = member
            np.subtract(x, mean, out=delta)
            np.divide(delta, k + 1, out=work)
            mean += work
            np.subtract(x, mean, out=work)
            work *= delta
            squares += work
            for count, threshold in zip(exceeding, self.thresholds, strict=True):
                np.greater(x, threshold, out=above)
                count += above
            if self._histograms is None or k < EXACT:
                if self.quantiles:
                    self._members_KP[k, block] = member
                continue
            if k == EXACT:
                self._histograms.lay_out(block)
            histogram = histogram or _Counter(self._histograms, block)
            histogram.add(member, x, delta, work)


class _Histograms:
    """One histogram for each value; the attributes are the state. `minimum` and `maximum` are over all members."""

    def __init__(self, numbers_JP: np.ndarray) -> None:
        size = numbers_JP.shape[1]
        self.counts = numbers_JP
        self.center, self.scale = np.empty(size), np.empty(size)
        self.minimum, self.maximum = np.empty(size, np.float32), np.empty(size, np.float32)

    def lay_out(self, block: slice) -> None:
        """Replace the members of a block of values, which lie where the counts will, by their histograms."""
        stop = min(block.stop, len(self.center))
        for first in range(block.start, stop, _COLUMNS):
            part = slice(first, min(first + _COLUMNS, stop))
            members_KP = np.sort(self.counts.view(np.float32)[:, part], axis=0)
            self.minimum[part], self.maximum[part] = members_KP[0], members_KP[-1]
            center = self.center[part] = members_KP[(EXACT - 1) // 2]
            delta_KP = np.subtract(members_KP, center, dtype=np.float64)
            deviation_KP = np.sort(np.abs(delta_KP), axis=0)
            num_off = (deviation_KP > 0).sum(axis=0)
            num_left_out = num_off // _ONE_OUT_OF
            last_kept = EXACT - 1 - num_left_out[None]
            total = np.take_along_axis(np.cumsum(deviation_KP, axis=0), last_kept, axis=0)[0]
            scale = _WIDTH * total / np.maximum(num_off - num_left_out, 1)
            scale = self.scale[part] = np.where(scale > 0, scale, _UNSET)
            size = len(scale)
            place_KP = _rows(delta_KP, scale, deviation_KP)
            place_KP *= size
            place_KP += np.arange(size)
            counts = np.bincount(place_KP.astype(np.intp).ravel(), minlength=_ROWS * size)
            self.counts[:, part] = counts.reshape(_ROWS, size)

    def quantile(self, part: slice, levels: Sequence[float], num_members: int) -> np.ndarray:
        """Quantiles `[Q, P]` of a part of the values: between the order statistics beside rank level (K - 1)."""
        counts_JP = self.counts[:, part]
        upto_JP = np.cumsum(counts_JP, axis=0, dtype=np.uint32)
        center, scale, low, high = (a[part] for a in (self.center, self.scale, self.minimum, self.maximum))

        def order_statistic(rank: int) -> np.ndarray:
            if rank in (0, num_members - 1):
                return low if rank == 0 else high
            j = (upto_JP <= rank).sum(axis=0)[None]
            count = np.take_along_axis(counts_JP, j, axis=0)[0].astype(np.float64)
            place = rank + 0.5 - (np.take_along_axis(upto_JP, j, axis=0)[0] - count)
            lower = np.maximum(center + scale * _LOWER_J[j[0]], low)
            upper = np.minimum(center + scale * _UPPER_J[j[0]], high)
            return np.clip(lower + place / count * (upper - lower), low, high)

        quantile_QP = np.empty((len(levels), len(center)))
        for row, level in zip(quantile_QP, levels, strict=True):
            rank, between = divmod(level * (num_members - 1), 1)
            left = order_statistic(int(rank))
            right = order_statistic(int(rank) + 1) if between else left
            row[...] = left + between * (right - left)
        return quantile_QP


class _Counter:
    """Counts members into the histograms of one block of values."""

    def __init__(self, histograms: _Histograms, block: slice) -> None:
        self._center, self._scale = histograms.center[block], histograms.scale[block]
        self._minimum, self._maximum = histograms.minimum[block], histograms.maximum[block]
        self._flat, self._size = histograms.counts.reshape(-1), histograms.counts.shape[1]
        self._columns = np.arange(block.start, block.start + len(self._center), dtype=np.float64)
        self._unset = np.flatnonzero(self._scale == _UNSET)

    def add(self, member: np.ndarray, x: np.ndarray, delta: np.ndarray, work: np.ndarray) -> None:
        """Count one member, `x` in float64; the other two arrays are overwritten."""
        np.minimum(self._minimum, member, out=self._minimum)
        np.maximum(self._maximum, member, out=self._maximum)
        np.subtract(x, self._center, out=delta)
        if len(self._unset):
            distance = np.abs(delta[self._unset])
            self._scale[self._unset] = np.where(distance > 0, _WIDTH * distance, _UNSET)
            self._unset = self._unset[distance == 0]
        place = _rows(delta, self._scale, work)
        place *= self._size
        place += self._columns
        index = place.astype(np.intp)
        # No index occurs twice: each value has counts of its own.
        self._flat[index] += 1


def bytes_needed(shape: Sequence[int], quantiles: Sequence[float], thresholds: Sequence[float], *, saved: bool) -> int:
    """Upper bound of the memory that `Statistics` of these arguments takes, with one copy of all its results.

    It holds for any number of members; those that a call of `update` is given are the caller's. `saved` adds what
    `state` returns. EnmaError for arguments that `Statistics` does not take.
    """
    size = math.prod(_shape(shape))
    num_quantiles, num_thresholds = len(_levels(quantiles)), len(_increasing("thresholds", thresholds))
    held = 16 + 4 * num_thresholds + (4 * _ROWS + 24 if num_quantiles else 0)
    results = 4 * (2 + num_quantiles + num_thresholds)
    # In float64: the variance, the arrays of a block, and some of 256 rows (or of all quantiles) for some columns.
    work = 8 * size + 64 * min(size, _BLOCK)
    if num_quantiles:
        work += min(size, _COLUMNS) * (48 * _ROWS + 64 * num_quantiles)
    return size * (held * (2 if saved else 1) + results) + work + _OBJECTS


def _rows(delta: np.ndarray, scale: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Rows of the histogram, 1 to 255, as floats, for distances to the center; both other arrays are overwritten."""
    np.abs(delta, out=work)
    work += scale
    np.divide(delta, work, out=delta)
    delta *= _SIDE
    np.abs(delta, out=work)
    np.ceil(work, out=work)
    np.copysign(work, delta, out=work)
    work += _CENTER
    return work


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise EnmaError(f"shape is {shape}: give that of one member, [T, *x, c], each at least 1")
    return sizes


def _increasing(name: str, given: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        raise EnmaError(f"{name}: give a list of numbers") from None
    if not all(map(math.isfinite, numbers)) or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise EnmaError(f"{name} are {list(numbers)}: give finite numbers that increase, none twice")
    return numbers


def _levels(quantiles: Sequence[float]) -> tuple[float, ...]:
    levels = _increasing("quantiles", quantiles)
    if not all(0 < level < 1 for level in levels):
        raise EnmaError(f"quantiles are {list(levels)}: give levels greater than 0 and less than 1")
    return levels


def _damaged(name: str, what: str) -> EnmaError:
    return EnmaError(f"state: '{name}' {what}; give one that Statistics.state() made")
