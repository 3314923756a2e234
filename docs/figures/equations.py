"""Draws docs/figures/equations.png: of each equation a test trajectory, its forecast from three frames, and the errors.

On a line the fields are drawn over place and time; of a plane the first observed frame and the last of the forecast.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import enma_fast
from enma_fast.data import shipped_file
from enma_fast.figures.maps import error_scale, field_scale

# Shipped model, data set, title, trajectory of the shipped test file, channel.
ROWS = (
    ("advection-fast", "advection", "Advection", 3, 0),
    ("combined-fast", "combined", "Combined", 14, 0),
    ("gray-scott-fast", "gray_scott", "Gray-Scott, v", 2, 1),
    ("wave-fast", "wave", "Wave", 3, 0),
    ("vorticity-fast", "vorticity", "Vorticity", 3, 0),
)
MEMBERS, HISTORY = 16, 3

figure, grid = plt.subplots(len(ROWS), 5, figsize=(10.5, 2.1 * len(ROWS)), layout="constrained")

for axes, (name, dataset, title, row, channel) in zip(grid, ROWS, strict=True):
    truth = enma_fast.read_fields(shipped_file(dataset, "test-in"), select=[row]).u
    ensemble = enma_fast.forecast(enma_fast.load_model(name), truth[:, :HISTORY], num_members=MEMBERS)
    observed, truth = truth[0, :HISTORY, ..., channel], truth[0, HISTORY:, ..., channel]
    mean, spread = ensemble.mean()[0, ..., channel], ensemble.spread()[0, ..., channel]
    line = truth.ndim == 2
    if line:
        shown = [np.concatenate([observed, np.full_like(truth, np.nan)]), truth, mean, np.abs(mean - truth), spread]
        shown = [shown[0], *(np.concatenate([np.full_like(observed, np.nan), field]) for field in shown[1:])]
        names = ["observed", "truth", "mean of 16 members", "error of the mean", "spread"]
    else:
        shown = [observed[0], truth[-1], mean[-1], np.abs(mean - truth)[-1], spread[-1]]
        names = ["frame 1", f"frame {HISTORY + len(truth)}: truth", "mean", "error", "spread"]
    colours = field_scale(observed if line else mean[-1], truth if line else truth[-1]), error_scale(shown[3], shown[4])
    for i, (one, field, head) in enumerate(zip(axes, shown, names, strict=True)):
        # Place to the right, time or the second place upwards.
        aspect = "auto" if line else "equal"
        # The first frame of a plane has colours of its own.
        colour = field_scale(field) if i == 0 and not line else colours[i > 2]
        image = one.imshow(field if line else field.T, origin="lower", aspect=aspect, **colour)
        one.set(xticks=[], yticks=[])
        one.set_title(head, fontsize=9)
        if i in (2, 4):
            figure.colorbar(image, ax=one, shrink=0.9).ax.tick_params(labelsize=7)
    axes[0].set_ylabel(title)

figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)
