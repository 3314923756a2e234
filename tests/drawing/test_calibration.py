"""The panel of error and spread says why the spread of a model zig-zags from frame to frame, where it does."""

import numpy as np
import pytest

from enma_fast.drawing.forecast import Forecast
from enma_fast.drawing.plots import forecast_figure

GROWING = np.linspace(1, 2, 9)
# Frames 3 and 4, 5 and 6 and so on share a latent frame.
JAGGED = GROWING + np.where(np.arange(9) % 2, 0.3, 0.0)


@pytest.mark.parametrize(
    ("spread", "together", "num_seen", "noted"),
    [
        (JAGGED, 2, 3, True),
        (JAGGED, 2, 1, True),
        # Frame 0 is alone, then come 1 and 2.
        (JAGGED, 2, 0, False),
        (JAGGED[1:], 2, 0, True),
        (JAGGED, 1, 3, False),
        (JAGGED, 4, 1, False),
        (GROWING, 2, 3, False),
        (GROWING[::-1], 2, 3, False),
        (np.ones(9), 2, 3, False),
        ([None] * 9, 2, 3, False),
        (JAGGED[:1], 2, 3, False),
    ],
)
def test_frames_of_one_latent_are_named_where_the_spread_shows_them(spread, together, num_seen, noted) -> None:
    size = len(spread)
    forecast = Forecast(
        times=np.arange(size) + num_seen,
        coords=[np.arange(4.0)],
        mean=np.ones((size, 4)),
        observed=np.ones((num_seen, 4)),
        observed_times=np.arange(num_seen),
        together=together,
    )
    scores = {
        "per_frame": {"rmse": [1.0] * size, "spread": list(spread)},
        "num_members": 8,
        "num_trajectories": 2,
        "spread_skill": 1.0,
    }
    figure = forecast_figure(forecast, scores=scores)
    (panel,) = (axes for axes in figure.axes if axes.get_title("left").startswith("spread/error 1.00, 2 trajectories"))
    assert [text.get_text().startswith("2 frames") for text in panel.texts] == [True] * noted
