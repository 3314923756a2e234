"""Draws docs/figures/equations.png: of each equation a test trajectory, its forecast from three frames, and the errors.

On a line the fields are drawn over place and time; of a plane the first observed frame and the last of the forecast.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import enma_fast
from enma_fast.data import shipped_file
from enma_fast.drawing.maps import error_scale, field_scale

# Shipped model, data set, title, trajectory of the shipped test file, channel.
ROWS = (
    ("advection-fast", "advection", "Advection", 3, 0),
    ("combined-fast", "combined", "Combined", 14, 0),
    ("gray-scott-fast", "gray_scott", "Gray-Scott, v", 2, 1),
    ("wave-fast", "wave", "Wave", 2, 0),
    ("vorticity-fast", "vorticity", "Vorticity", 2, 0),
)
MEMBERS, HISTORY = 16, 3

figure, grid = plt.subplots(len(ROWS), 5, figsize=(10.5, 2.1 * len(ROWS)), layout="constrained")


def draw_forecast(axes, name, dataset, row, channel):
    """The observed frames, truth and mean with the same colours; error and spread with the same colours."""
    truth = enma_fast.read_fields(shipped_file(dataset, "test-in"), select=[row]).u
    ensemble = enma_fast.forecast(enma_fast.load_model(name), truth[:, :HISTORY], num_members=MEMBERS)
    observed, truth = truth[0, :HISTORY, ..., channel], truth[0, HISTORY:, ..., channel]
    mean, spread = ensemble.mean()[0, ..., channel], ensemble.spread()[0, ..., channel]
    line = truth.ndim == 2
    if line:
        empty = np.full_like(observed, np.nan)
        forecasts = (truth, mean, np.abs(mean - truth), spread)
        shown = [np.pad(observed, ((0, len(truth)), (0, 0)), constant_values=np.nan)]
        shown += [np.concatenate([empty, field]) for field in forecasts]
        names = ["observed", "truth", f"mean of {MEMBERS} members", "error of the mean", "spread"]
    else:
        shown = [observed[0], truth[-1], mean[-1], np.abs(mean - truth)[-1], spread[-1]]
        names = ["frame 1", f"frame {HISTORY + len(truth)}: truth", f"mean of {MEMBERS} members", "error", "spread"]
    colours = field_scale(observed if line else mean[-1], truth if line else truth[-1]), error_scale(*shown[3:])
    for i, (one, field, head) in enumerate(zip(axes, shown, names, strict=True)):
        # The first frame of a plane has its own colours. Time runs downwards, the second position upwards.
        colour = field_scale(field) if i == 0 and not line else colours[i > 2]
        place = {"origin": "upper", "aspect": "auto"} if line else {"origin": "lower", "aspect": "equal"}
        image = one.imshow(field if line else field.T, **place, **colour)
        one.set_title(head, fontsize=9)
        if i in (2, 4):
            figure.colorbar(image, ax=one, shrink=0.9).ax.tick_params(labelsize=7)


for axes, (name, dataset, title, row, channel) in zip(grid, ROWS, strict=True):
    draw_forecast(axes, name, dataset, row, channel)
    for one in axes:
        one.set(xticks=[], yticks=[])
    axes[0].set_ylabel(title)

figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)
