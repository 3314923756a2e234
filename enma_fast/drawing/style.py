"""The look of the figures: colours, fonts and the empty figure that each one starts from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..utils.extras import load_extra

INK, ON_MAP, ENSEMBLE, ERROR, SPREAD = "#333333", "#303030", "#1f6fb4", "#c2452d", "#1f6fb4"
TRUTH = "#111111"
# Opacity of one band; overlapping bands are darker.
BAND_ALPHA = 0.25
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # A dollar sign in a name is a dollar sign.
    "text.parse_math": False,
    # Text is drawn as outlines, so that a picture looks the same everywhere.
    "svg.fonttype": "path",
}


def new_figure(size: tuple[float, float]) -> Any:
    """An empty matplotlib figure of `size` inches."""
    figure = load_extra("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06, hspace=0.06)
    return figure


def labelled(name: str, unit: str | None) -> str:
    """The label of an axis: the name, and the unit where it is known."""
    return name if unit is None else f"{name} ({'dimensionless' if unit == '1' else unit})"


def greatest_value(*fields: np.ndarray) -> float:
    """The greatest finite value, or 0."""
    return max((float(field[np.isfinite(field)].max(initial=0)) for field in fields), default=0.0)
