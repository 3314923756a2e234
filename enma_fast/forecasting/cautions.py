"""What forecasts warn of: frames unlike those that a model was trained on, more of them, or fewer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import EnmaError
from ..models.model import Model
from ..utils.text import counted

log = logging.getLogger("enma_fast")


def outside(model: Model, given: Sequence[np.ndarray | Tensor], *, scattered: bool) -> list[str]:
    """Return, for each trajectory, why its observed frames `[B, T, *x, c]` lie outside the training data, or "".

    `given` are observed frames and contexts; one context serves all. The list is empty where the
    model's checkpoint does not say what it was trained on.
    """
    if model.envelope is None:
        return []
    if not scattered and model.codec.mask is not None:
        given = [model.codec.without_gaps(torch.as_tensor(u)) for u in given]
    arrays = (u.numpy(force=True) if isinstance(u, Tensor) else u for u in given)
    parts = [model.envelope.reasons(u, scattered=scattered) for u in arrays]
    count = max(map(len, parts), default=0)
    parts = [reasons * count if len(reasons) == 1 else reasons for reasons in parts]
    return [next(filter(None, reasons), "") for reasons in zip(*parts, strict=True)]


def report_outside(
    model: Model, numbers: Sequence[int], reasons: Sequence[str], *, strict: bool, where: str = ""
) -> None:
    """Warn which trajectories lie outside the training data, or refuse them."""
    outliers = [(number, reason) for number, reason in zip(numbers, reasons, strict=False) if reason]
    if not outliers:
        return
    number, reason = outliers[0]
    more = f" (and of {len(outliers) - 1} more)" if len(outliers) > 1 else ""
    text = (
        f"{where}the observed frames of trajectory {number}{more} lie outside what {model.config.name} was trained on: "
        f"{reason}"
    )
    if strict:
        raise EnmaError(f"{text}; check unit and physics, or leave out strict")
    log.warning("%s", text)


def warn_of_context(config: ModelConfig, name: str, frames: int) -> None:
    """Warn if a context of this many frames is longer or shorter than those of the training, or not used whole."""
    used, least = config.context_frames(frames), config.shortest_context or config.num_frames
    if frames > used:
        log.warning("%s: of its %d frames the first %d are used, as in training", name, frames, used)
    if frames < least:
        log.warning(
            "%s: has %s; %s was trained on contexts of at least %d, and may forecast far worse from fewer",
            name,
            counted(frames, "frame"),
            config.name,
            least,
        )


def warn_if_long(config: ModelConfig, frames: int) -> None:
    """Warn if trajectories of this many frames, observed and forecast, are longer than those of the training."""
    if frames > config.num_frames:
        log.warning("frames beyond %d were not seen in training of %s", config.num_frames, config.name)


def warn_if_uneven(config: ModelConfig, observed: int) -> None:
    """Warn if the last of so many observed frames fill no latent frame, so that the model does not see them."""
    factor, used = config.codec.time_factor, config.codec.whole_frames(observed)
    if observed > used > 0:
        log.warning(
            "history: of its %d frames the first %d are used; %s joins frames after the first in groups of %d, so give "
            "%d or %d",
            observed,
            used,
            config.name,
            factor,
            used,
            used + factor,
        )
