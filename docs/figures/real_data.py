"""Draws docs/figures/real_data.png from the run folder of docs/real-data.md: python docs/figures/real_data.py RUN."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import enma_fast
from enma_fast.evaluation.baselines import Observations, baselines

SEEN, MEMBERS, SHOWN = 3, 16, 30
STYLES = {"persistence": ":", "climatology": "-.", "mean of 3 years": "--", "linear fit": (0, (1, 3))}

run = Path(sys.argv[1])
train, test = (enma_fast.read_fields(run / "data" / f"climate-{split}.h5") for split in ("train", "test-in"))
observed, truth = test.u[:, :SEEN], test.u[:, SEEN:]
numbers = range(len(test))
ensemble = enma_fast.forecast(enma_fast.load_model(run), observed, num_members=MEMBERS)
given = Observations(
    history=observed, context=None, num_frames=truth.shape[1], num_members=1, trajectories=numbers, seed=0
)
made = {name: method(given)[:, 0] for name, method in baselines(train).items()}
made["mean of 3 years"] = np.repeat(observed.mean(1, keepdims=True), truth.shape[1], axis=1)


def terms(u: np.ndarray) -> np.ndarray:
    """The mean of the observed years at each point, that over all points, and 1, for each forecast year."""
    level = np.repeat(u[:, :SEEN].mean(1, keepdims=True), u.shape[1] - SEEN, axis=1)
    return np.stack([level, np.broadcast_to(level.mean((2, 3), keepdims=True), level.shape), np.ones_like(level)], -1)


weights = np.linalg.lstsq(terms(train.u).reshape(-1, 3), train.u[:, SEEN:].ravel(), rcond=None)[0]
made["linear fit"] = terms(test.u) @ weights


def error(forecast: np.ndarray) -> np.ndarray:
    """RMS by frame."""
    return np.sqrt(np.square(forecast - truth).mean(axis=(0, 2, 3, 4)))


for name, forecast in {**made, "mean of 16 members": ensemble.mean()}.items():
    print(name, error(forecast).round(3), np.sqrt(np.square(forecast - truth).mean()).round(3))

figure, (errors, *maps) = plt.subplots(
    1, 4, figsize=(12, 3.1), layout="constrained", gridspec_kw={"width_ratios": [1.15, 1, 1, 1]}
)
years = np.arange(1, truth.shape[1] + 1)
for name, style in STYLES.items():
    errors.plot(years, error(made[name]), linestyle=style, color="#777777", label=name)
errors.plot(years, error(ensemble.mean()), color="#c2452d", label="mean of 16 members")
spread = np.sqrt(np.square(ensemble.spread()).mean(axis=(0, 2, 3, 4)))
errors.plot(years, spread, "--", color="#1f6fb4", label="spread of the members")
errors.set(title=f"{len(test)} forecasts of E1", xlabel="years ahead", ylabel="RMS (K)", xticks=years)
# Room for the legend above the lines.
errors.set_ylim(0, 2.7)
errors.legend(fontsize=7, frameon=False)

shown = {
    "truth, 5 years ahead": truth[SHOWN, -1, ..., 0],
    "mean of 16 members": ensemble.mean()[SHOWN, -1, ..., 0],
    "persistence": made["persistence"][SHOWN, -1, ..., 0],
}
most = max(float(np.abs(values).max()) for values in shown.values())
x, y = test.coords
for axes, (title, values) in zip(maps, shown.items(), strict=True):
    image = axes.pcolormesh(x - 360, y, values.T, cmap="RdBu_r", vmin=-most, vmax=most, rasterized=True)
    axes.set(title=title, xlabel="longitude")
maps[0].set_ylabel("latitude")
figure.colorbar(image, ax=maps[-1], label="anomaly (K)")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
