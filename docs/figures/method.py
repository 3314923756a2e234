"""Draws docs/figures/method.png: the block-causal mask, the mask schedule, and spread beside error by frame."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import enma_fast
from enma_fast.data import shipped_file
from enma_fast.models.schedule import mask_schedule

FRAMES, TOKENS, STEPS, MEMBERS = 4, 4, 6, 64

figure, (mask, schedule, spread) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")

frame = np.arange(FRAMES * TOKENS) // TOKENS
mask.imshow(frame[:, None] >= frame[None], cmap="Blues", vmin=-0.3, vmax=1.5)
mask.set(title="attention: own and past frames", xlabel="key token", ylabel="query token")
mask.set_xticks(range(0, 16, 4))
mask.set_yticks(range(0, 16, 4))

counts = mask_schedule(16, STEPS)
order = np.random.default_rng(0).permutation(16)
decided_at = np.empty(16, int)
decided_at[order] = np.repeat(np.arange(1, STEPS + 1), counts)
state = np.where(decided_at[None] < np.arange(1, STEPS + 1)[:, None], 1.0, 0.0)
state[decided_at - 1, np.arange(16)] = 2.0
schedule.imshow(state, cmap="YlOrBr", vmin=-0.2, vmax=2.6, aspect="auto")
schedule.set(title=f"16 tokens in 6 mask steps: {', '.join(map(str, counts))}", xlabel="token", ylabel="mask step")
schedule.set_yticks(range(STEPS), range(1, STEPS + 1))
schedule.set_xticks(range(0, 16, 4))

model = enma_fast.load_model("combined-fast")
data = enma_fast.read_fields(shipped_file("combined", "test-in"))
ensemble = enma_fast.forecast(model, data.u[:, :3], num_members=MEMBERS)
error = ((ensemble.mean() - data.u[:, 3:]) ** 2).mean(axis=(0, 2, 3)) ** 0.5
width = (ensemble.spread() ** 2).mean(axis=(0, 2, 3)) ** 0.5
spread.plot(range(4, 21), error, label="error of the mean")
spread.plot(range(4, 21), width, "--", label=f"spread of {MEMBERS} members")
spread.set(title="combined-fast, 24 test trajectories", xlabel="frame", ylabel="root mean square")
spread.set_ylim(bottom=0)
spread.legend()

figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
