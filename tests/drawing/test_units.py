"""Axes and colour bars have the units that are known, and no others."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the [plots] extra")

from enma_fast.drawing.calibration import SpreadErrorBins
from enma_fast.drawing.forecast import Forecast
from enma_fast.drawing.plots import forecast_figure
from enma_fast.evaluation.metrics import Scores


def texts(given: dict[str, Any], scores: dict[str, Any] | None, **more: Any) -> set[str]:
    """The labels of all axes of a figure."""
    axes = forecast_figure(Forecast(**given, **more), scores=scores).axes
    return {text for each in axes for text in (each.get_xlabel(), each.get_ylabel())}


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({}, ("", "")),
        ({"time": "s", "x": "m", "y": "m"}, (" (s)", " (m)")),
        ({"time": "1", "x": "1", "y": "1"}, (" (dimensionless)", " (dimensionless)")),
    ],
)
@pytest.mark.parametrize("space", [(7,), (6, 5)])
def test_labels(
    rng: np.random.Generator, space: tuple[int, ...], units: dict[str, str], words: tuple[str, str]
) -> None:
    members = rng.normal(size=(4, 3, *space))
    given = {"members": members[:3], "truth": members[3], "times": np.arange(3.0)}
    given |= {"coords": [np.arange(float(n)) for n in space], "axis_units": units, "name": "T"}
    pooled, bins = Scores(), SpreadErrorBins()
    pooled.update(members[None, :3, ..., None], members[None, 3, ..., None])
    bins.update(members[:3].std(0, ddof=1), members[:3].mean(0) - members[3])
    scores = {**pooled.result(), "spread_error": bins.result(3)}
    expected = {f"time{words[0]}", f"x{words[1]}"} | ({f"y{words[1]}"} if len(space) == 2 else set())
    shown = texts(given, scores, unit="K")
    assert expected | {"T (K)", "error, spread of T (K)", "spread of T (K) (RMS of a bin)"} <= shown
    assert not {"time", "x", "y", "T"} & (shown - expected)
    for none in (None, "1"):
        assert expected | {"T", "error, spread of T"} <= texts(given, None, unit=none)
