"""A case that is forecast again whenever new frames of it are observed.

Legend: B trajectories, L observed frames, T frames, c physical channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import SPACING_TOLERANCE
from ..errors import EnmaError
from ..models.model import Model
from ..utils.names import SPACE
from .api import Array, ensemble_of, read_request
from .encoding import checked_field
from .ensemble import Ensemble
from .kept import KeptFrames
from .labelled_field import LabelledField, later, read_field
from .members import Stop
from .request import ForecastRequest

# What a forecast is asked for beside what was observed, as in `enma_fast.forecast`.
_OPTIONS = (
    "num_frames",
    "num_members",
    "seed",
    "query",
    "known",
    "settings",
    "trajectories",
    "first_member",
    "chunk",
    "dtype",
    "backend",
    "strict",
)


class Case:
    """One trajectory, or several, observed frame after frame and forecast in between.

    Forecasts are those of :func:`enma_fast.forecast` from all frames observed so far, to the bit on a CPU. Frames that
    were encoded stay so, and by the extension a transformer that has read them does not read them again. Make a new
    one after the model's weights have changed, and to forget old frames.

    Parameters
    ----------
    model
        From :func:`enma_fast.load_model`.
    frames
        The first observed frames, if there are some: as those of :meth:`observe`.
    context, context_known
        As for :func:`enma_fast.forecast`.
    """

    def __init__(
        self,
        model: Model,
        frames: Array | None = None,
        *,
        context: Array | None = None,
        context_known: Mapping[str, Array] | None = None,
    ) -> None:
        self.model, self._kept = model, KeptFrames()
        self._context, self._context_known = context, context_known
        self._frames: Any = None
        if frames is not None:
            self.observe(frames)

    @property
    def history(self) -> Any:
        """All observed frames, in the kind of array that they came in; None before the first."""
        return self._frames

    def observe(self, frames: Array) -> None:
        """Add frames ``[L, *grid, c]`` or ``[B, L, *grid, c]`` that follow those observed before.

        Arrays are copied. Frames that are refused change nothing.

        Raises
        ------
        EnmaError
            If they are of another kind, shape, grid or channels, their times do not go on by the model's frame
            interval, or they are no input of the model.
        """
        space = SPACE[: self.model.config.codec.dims]
        new = read_field("frames", frames, space=space)
        if self._frames is not None:
            old = read_field("history", self._frames, space=space)
            _require_alike(old, new, dims=len(space))
            _require_next(old.times, new.times, interval=self.model.config.frame_interval)
        copied = _copied(frames, new.kind)
        request, labels = read_request(self.model, ForecastRequest.of_arrays(copied, None))
        assert request.observed is not None
        checked_field("frames", request.observed.values, self.model, None, labels.batched)
        before = self._frames
        self._frames = copied if before is None else _joined(before, copied, new.kind, axis=-2 - len(space))

    def forecast(self, *, stop: Stop | None = None, **options: Any) -> Ensemble:
        """Forecast from all observed frames; options are those of :func:`enma_fast.forecast`.

        They are `num_frames`, `num_members`, `seed`, `query`, `known`, `settings`, `trajectories`, `first_member`,
        `chunk`, `dtype`, `backend`, `strict` and `stop`.
        """
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise EnmaError(f"{unknown[0]} is no option of a case; it takes {', '.join(_OPTIONS)} and stop")
        request = ForecastRequest.of_arrays(
            self._frames, self._context, context_known=self._context_known, kept=self._kept, **options
        )
        return ensemble_of(self.model, request, stop)


def _copied(frames: Any, kind: str) -> Any:
    if kind == "numpy":
        return np.array(frames)
    return frames.clone() if kind == "torch" else frames.copy(deep=True)


def _joined(old: Any, new: Any, kind: str, *, axis: int) -> Any:
    if kind == "numpy":
        return np.concatenate([old, new], axis)
    if kind == "torch":
        import torch

        return torch.cat([old, new.to(old)], axis)
    import xarray

    # Times alone differ.
    return xarray.concat([old, new], "time", join="override", coords="minimal", compat="override").transpose(*old.dims)


def _require_alike(old: LabelledField, new: LabelledField, *, dims: int) -> None:
    """Raise `EnmaError` unless new frames are of the kind, trajectories, grid and channels of those before."""
    if old.kind != new.kind:
        raise EnmaError(f"frames are of {new.kind}, those before of {old.kind}; give the same kind of array")
    shapes = [(*x.values.shape[: -2 - dims], *x.values.shape[-1 - dims :]) for x in (old, new)]
    if shapes[0] != shapes[1] or old.values.ndim != new.values.ndim:
        shape, before = ([*x.values.shape] for x in (new, old))
        raise EnmaError(f"frames has shape {shape}, those before have {before}; only the number of frames may differ")
    for what in ("channels", "numbers", "units"):
        if getattr(old, what) != getattr(new, what):
            raise EnmaError(f"frames: its {what} are {getattr(new, what)}, those before {getattr(old, what)}")
    for name in old.coords.keys() & new.coords.keys():
        if not np.allclose(old.coords[name], new.coords[name], rtol=SPACING_TOLERANCE, atol=0):
            raise EnmaError(f"frames: the coordinate {name} differs from that of the frames before")


def _require_next(old: np.ndarray | None, new: np.ndarray | None, *, interval: float) -> None:
    """Raise `EnmaError` unless new times go on after the old ones."""
    if old is None and new is None:
        return
    if old is None or new is None:
        raise EnmaError("frames: times are known of some frames only; give all or none a coordinate time")
    if not len(new) or new.dtype.kind not in "fiu":
        return
    due = float(later(float(old[-1]), 1, interval=interval))
    if not np.isclose(new[0], due, rtol=0, atol=SPACING_TOLERANCE * interval + 2 * np.spacing(abs(due))):
        raise EnmaError(f"frames: time begins at {new[0]:.6g}; the frame after the last observed one is at {due:.6g}")
