"""Draws docs/figures/vorticity.webp: a test trajectory of Vorticity, its forecast from three frames, and the spread."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import enma_fast
from enma_fast.data import shipped_file
from enma_fast.drawing.maps import field_scale

MEMBERS, HISTORY, ROW = 16, 3, 2
# Of the movie: milliseconds of a frame, dots per inch, quality of the compression.
DURATION, DPI, QUALITY = 180, 100, 50

truth = enma_fast.read_fields(shipped_file("vorticity", "test-in"), select=[ROW]).u
ensemble = enma_fast.forecast(enma_fast.load_model("vorticity-fast"), truth[:, :HISTORY], num_members=MEMBERS)
future = truth[0, HISTORY:, ..., 0]
mean, spread = ensemble.mean()[0, ..., 0], ensemble.spread()[0, ..., 0]
# The flow decays, so the first frames are brighter than the scale.
fields, most = field_scale(mean[len(mean) // 4 :]), {"vmin": 0, "vmax": float(spread.max()), "cmap": "viridis"}


def picture(t: int) -> Image.Image:
    """Truth, mean and spread at a forecast frame."""
    figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.6), layout="constrained")
    shown = {"truth": future[t], f"mean of {MEMBERS} members": mean[t], "spread": spread[t]}
    for one, (title, field) in zip(axes, shown.items(), strict=True):
        one.imshow(field.T, origin="lower", **(most if title == "spread" else fields))
        one.set(xticks=[], yticks=[])
        one.set_title(title, fontsize=9)
    axes[0].set_xlabel(f"frame {t + 1} of {len(future)}", fontsize=8)
    stored = io.BytesIO()
    figure.savefig(stored, dpi=DPI)
    plt.close(figure)
    return Image.open(stored).convert("RGB")


frames = [picture(t) for t in range(len(future))]
out = Path(__file__).with_suffix(".webp")
frames[0].save(out, save_all=True, append_images=frames[1:], duration=DURATION, loop=0, quality=QUALITY, method=6)
