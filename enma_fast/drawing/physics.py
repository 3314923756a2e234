"""Spectra of members and truth, as `evaluation.physics` has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..utils.extras import load_extra
from .style import ENSEMBLE, STYLE, TRUTH, new_figure

_LINES = ("wave_number", "members", "truth")


def spectrum_figure(spectra: dict[str, list[float]], error: float | None, *, mirrored: bool) -> Any:
    """Draw the power of the waves against their number; `error` is `spectrum_error`, shown in the title.

    Parameters
    ----------
    spectra : `wave_number`, `members` and `truth` of `Physics.spectra`
    mirrored : whether the longest side has walls (`Physics.mirrored`), so that half waves fit it too

    Returns
    -------
    matplotlib.figure.Figure
    """
    with load_extra("matplotlib", "plots").rc_context(STYLE):
        figure = new_figure((5.2, 3.6))
        axes = figure.add_subplot()
        # The mean, wave number 0, has no place on a logarithmic axis.
        k, members, truth = (np.asarray(spectra[name])[np.asarray(spectra["wave_number"]) > 0] for name in _LINES)
        axes.loglog(k, members, color=ENSEMBLE, lw=1.8, label="members")
        axes.loglog(k, truth, color=TRUTH, lw=1.2, ls="--", label="truth")
        axes.set_title("spectrum" if error is None else f"spectrum, {error:.2g} decades off")
        waves = "half waves" if mirrored else "waves"
        axes.set(xlabel=f"wave number ({waves} along the longest side)", ylabel="power / amplitude²")
        axes.legend(loc="lower left")
    return figure
