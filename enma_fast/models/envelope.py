"""The fields that a model was trained on, in a few numbers, and which observed frames lie outside them.

Two rules, both cheap beside the encoding of the frames. A value is outside if it is further beyond the least or the
greatest value of the training data than half their distance: another unit, an offset. Up to three frames in a row are
outside if their features are further from those of the training data than all but a few of these are (squared
Mahalanobis distance under their mean and covariance):

    mean / s,   log(rms / s + e),   log(roughness / rms + e)     of the first frame
    change of log(rms / s + e),     log(roughness / rms + e)     of each later one

of each channel, where `s` is the RMS of the training data, `e` is 1e-3, and roughness the RMS of differences of
neighbouring points. They need no model, and see physics that training never showed by how fast fields decay or smooth.

Shape suffixes: B trajectories, T frames, W windows, F features, c channels; `*x` space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError

# Frames in a row that are looked at together, and values that are looked at at a time.
WINDOW, _AT_ONCE = 3, 1 << 22
# Share of the windows of the training data that count as inside.
_SHARE = 0.998
# Relative size below which amplitudes count as equal, least standard deviation of a feature, and how far values may lie
# beyond those of the training data, in parts of their range.
_TINY, _FLOOR, _MARGIN = 1e-3, 1e-2, 0.5
_NAMES = ("low", "high", "scale", "mean", "covariance", "limits")


@dataclass(frozen=True, eq=False)
class Envelope:
    """Summary of the training data of a model, to recognise data that lie outside.

    Attributes
    ----------
    low, high, scale : [c] least and greatest value, and RMS, of each channel
    mean, covariance : [F], [F, F] of the features of three frames in a row; the first of them are those of fewer frames
    limits : [3] greatest squared distance that is inside, for one, two and three frames
    channels : their names, in the order of the model; none where they are not known
    units : their units, "1" where there is none; none where they are not known
    """

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    limits: np.ndarray
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @classmethod
    def of(cls, fields: np.ndarray, channels: tuple[str, ...] = (), units: tuple[str, ...] = ()) -> Envelope:
        """The envelope of training fields `[B, T, *x, c]`; a few thousand trajectories are enough.

        `EnmaError` if there are fewer than three frames, or a value is not finite.
        """
        if fields.ndim < 4 or fields.shape[1] < WINDOW or not len(fields):
            raise EnmaError(
                f"fields are {list(fields.shape)}; [B, T, *x, c] with at least {WINDOW} frames are expected"
            )
        axes = tuple(range(fields.ndim - 1))
        low, high = (bound(fields, axis=axes).astype(np.float64) for bound in (np.min, np.max))
        if not (np.isfinite(low) & np.isfinite(high)).all():
            raise EnmaError("fields hold a value that is not finite; leave that trajectory out")
        squares = sum(np.square(part, dtype=np.float64).sum(axis=axes) for part in _parts(fields))
        # A channel of zeros has no unit.
        scale = np.sqrt(squares * fields.shape[-1] / fields.size)
        scale[scale == 0] = 1
        windows_WF = np.concatenate([_features(part, scale).reshape(-1, 7 * len(scale)) for part in _parts(fields)])
        mean = windows_WF.mean(0)
        covariance = np.cov(windows_WF.T, ddof=0) + _FLOOR**2 * np.eye(len(mean))
        limits = [
            np.quantile(_distances(windows_WF, mean, inverse), _SHARE)
            for inverse in _inverses_of(covariance, len(scale))
        ]
        return cls(low, high, scale, mean, covariance, np.array(limits), channels, units)

    def reasons(self, fields: np.ndarray, *, scattered: bool = False) -> list[str]:
        """Why the frames `[B, T, *x, c]` of each trajectory lie outside; an empty text if they do not.

        For `scattered` points only the values are checked. `EnmaError` for another number of channels.
        """
        if fields.shape[-1] != len(self.scale):
            raise EnmaError(
                f"fields have {fields.shape[-1]} channels, the training data {len(self.scale)}; give as many"
            )
        texts = []
        for part in _parts(fields):
            axes = tuple(range(1, fields.ndim - 1))
            low_Bc, high_Bc = part.min(axis=axes), part.max(axis=axes)
            margin = _MARGIN * (self.high - self.low)
            beyond_Bc = (low_Bc < self.low - margin) | (high_Bc > self.high + margin)
            far_B = np.zeros(len(part)) if scattered else self._far(part)
            for low, high, beyond, far in zip(low_Bc, high_Bc, beyond_Bc, far_B, strict=True):
                if beyond.any():
                    c = int(beyond.argmax())
                    texts.append(
                        f"values from {low[c]:.4g} to {high[c]:.4g}, of training from {self.low[c]:.4g} to "
                        f"{self.high[c]:.4g}"
                    )
                else:
                    far_off = f"their distance in mean, amplitude, roughness and changes is {far:.3g} times the limit"
                    texts.append(far_off if far > 1 else "")
        return texts

    def _far(self, part: np.ndarray) -> np.ndarray:
        """Greatest distance of a window of each trajectory, in units of the limit, `[B]`."""
        frames = min(WINDOW, part.shape[1])
        features_BWF = _features(part, self.scale)
        square_BW = _distances(features_BWF, self.mean, self._inverses[frames - 1])
        far: np.ndarray = np.sqrt(square_BW.max(1) / self.limits[frames - 1])
        return far

    @cached_property
    def _inverses(self) -> list[np.ndarray]:
        """Inverse covariance of the features of one, two and three frames; every forecast needs one."""
        return _inverses_of(self.covariance, len(self.scale))

    def to_json(self) -> str:
        """The envelope as JSON text, for :meth:`read`."""
        numbers = {name: getattr(self, name).tolist() for name in _NAMES}
        texts = {"channels": self.channels, "units": self.units}
        return json.dumps(numbers | {key: value for key, value in texts.items() if value}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Envelope:
        """Read a file that holds the text of :meth:`to_json`; `EnmaError` for any other."""
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            names, units = (tuple(map(str, document.pop(key, ()))) for key in ("channels", "units"))
            arrays = {name: np.asarray(document[name], np.float64) for name in _NAMES}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise EnmaError(f"{path}: does not say what a model was trained on; copy the checkpoint again") from error
        channels = arrays["scale"].size
        features = _count(WINDOW, channels)
        shapes = ((channels,), (channels,), (channels,), (features,), (features, features), (WINDOW,))
        for (name, array), shape in zip(arrays.items(), shapes, strict=True):
            if array.shape != shape or not np.isfinite(array).all() or set(document) != set(_NAMES):
                raise EnmaError(f"{path}: {name} is not {list(shape)} finite numbers; copy the checkpoint again")
        envelope = cls(**arrays, channels=names, units=units)
        if not envelope._is_of_fields() or not {len(names), len(units)} <= {0, channels}:
            raise EnmaError(f"{path}: its numbers are those of no training data; copy the checkpoint again")
        return envelope

    def _is_of_fields(self) -> bool:
        """True if :meth:`of` can have made these numbers, with which every distance is a number."""
        try:
            smallest = np.linalg.eigvalsh(self.covariance)[0]
        except np.linalg.LinAlgError:
            return False
        symmetric = np.allclose(self.covariance, self.covariance.T)
        signs = (self.low <= self.high).all() and (self.scale > 0).all() and (self.limits >= 0).all()
        return bool(symmetric and signs and smallest > _FLOOR**2 / 2)


def _count(frames: int, channels: int) -> int:
    """Number of features of so many frames in a row."""
    return channels * (1 + 2 * frames)


def _parts(fields: np.ndarray) -> Iterator[np.ndarray]:
    """Some trajectories at a time."""
    size = max(1, _AT_ONCE * len(fields) // fields.size)
    for first in range(0, len(fields), size):
        yield fields[first : first + size]


def _features(fields: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Features of every window of up to three frames, `[B, W, F]`: of its first frame, of its second, of its third."""
    u = fields.astype(np.float64)
    space = tuple(range(2, u.ndim - 1))
    mean_BTc = u.mean(axis=space) / scale
    rms_BTc = np.sqrt(np.square(u).mean(axis=space))
    rough_BTc = np.sqrt(sum(np.square(np.diff(u, axis=axis)).mean(axis=space) for axis in space if u.shape[axis] > 1))
    level_BTc = np.log(rms_BTc / scale + _TINY)
    rough_BTc = np.log(rough_BTc / np.where(rms_BTc > 0, rms_BTc, 1) + _TINY)
    frames = min(WINDOW, u.shape[1])
    count = u.shape[1] - frames + 1
    parts = [mean_BTc[:, :count], level_BTc[:, :count], rough_BTc[:, :count]]
    for t in range(1, frames):
        parts += [level_BTc[:, t : t + count] - level_BTc[:, t - 1 : t - 1 + count], rough_BTc[:, t : t + count]]
    return np.concatenate(parts, axis=-1)


def _inverses_of(covariance: np.ndarray, channels: int) -> list[np.ndarray]:
    counts = [_count(frames, channels) for frames in range(1, WINDOW + 1)]
    return [np.linalg.inv(covariance[:count, :count]) for count in counts]


def _distances(features: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances `[...]` of the first of the features `[..., F]`, as many as `inverse` has rows."""
    count = len(inverse)
    off = features[..., :count] - mean[:count]
    distances: np.ndarray = np.einsum("...f,...f->...", off @ inverse, off)
    return distances
