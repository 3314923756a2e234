"""The equation that a floor found, in the units of the data."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .equation import EquationSolver
from .terms import WAVE

_AXES = "xy"
# An operator and the channel that it is of, and the order of its derivatives.
_FACTOR = re.compile(r"(?:(lap lap|d\d lap|lap|d\d|p\d) )?u(\d)")
# Spread over trajectories below which a coefficient is one number, as a share.
_SAME = 5e-3


def equation_text(
    floor: EquationSolver, names: Sequence[str], *, scales: Sequence[float], spacings: Sequence[float], interval: float
) -> list[str]:
    """An equation for each channel, with the mean and spread of its coefficients over training trajectories.

    Steady sources are spelled s, each with its channel where there are several.

    Parameters
    ----------
    names : of the channels
    scales : of the channels, by which standardised fields were divided
    spacings : distance of grid points along each axis; these are the same, else there is no text
    interval : time between frames
    """
    if not math.isclose(min(spacings), max(spacings), rel_tol=1e-6):
        return []
    length, spread = spacings[0] / WAVE, floor.covariance.diagonal().sqrt()
    said: dict[int, str] = {}
    for j in floor.chosen:
        channel, term = floor.terms.names[j]
        factors = _FACTOR.findall(term.partition(" - ")[0])
        unit = (
            float(floor.unit[j]) * interval / (scales[channel] * length ** sum(map(_order, (op for op, _ in factors))))
        )
        unit *= math.prod(scales[int(c)] for _, c in factors)
        mean, off = float(floor.mean[j]) / unit, float(spread[j] / abs(unit))
        number = f"{abs(mean):.3g}" + (f"±{off:.2g}" if off > _SAME * abs(mean) else "")
        shown = _FACTOR.sub(lambda match: _factor(match, names), term)
        shown = "" if term == "1" else f" ({shown})" if " - " in shown else f" {shown}"
        before = said.get(channel, f"{names[channel]}_t =")
        sign = " -" if mean < 0 else " +" if channel in said else ""
        said[channel] = f"{before}{sign} {number}{shown}"
    source = " + s" if floor.forced else ""
    return [said[c] + (f"{source}_{names[c]}" if source and len(names) > 1 else source) for c in sorted(said)]


def _order(operator: str) -> int:
    """Of its derivatives; p, a derivative of the stream function, has one less than none."""
    return -1 if operator.startswith("p") else 2 * operator.count("lap") + operator.count("d")


def _factor(match: re.Match[str], names: Sequence[str]) -> str:
    operator, name = match[1] or "", names[int(match[2])]
    axis = "".join(_AXES[int(digit)] for digit in re.findall(r"\d", operator))
    if operator.startswith("p"):
        return f"psi_{axis}"
    laplacians = "lap " * operator.count("lap")
    return f"{laplacians}{name}_{axis}" if axis else f"{laplacians}{name}"
