"""Calibration: scores of a model, spread against error by frame, and the rank of the truth among the members."""

import enma_fast
from enma_fast.data import shipped_file
from enma_fast.evaluation.metrics import rank_histogram, spread_skill

model = enma_fast.load_model("combined-fast")
data = enma_fast.read_fields(shipped_file("combined", "test-in"))  # 24 trajectories [24, 20, 128, 1]

# One call gives all scores, as `enma-fast score` prints them.
scores = enma_fast.score(model, data, num_members=16, limit=8)
for name in ("rel_l2", "rel_l2_median", "crps", "rmsce", "spread_skill"):
    print(f"{name:14} {scores[name]:.4f}")

# The same from arrays, frame by frame: 1 is calibrated, below 1 the members are too much alike.
ensemble = enma_fast.forecast(model, data.u[:8, :3], num_members=16, seed=0)
by_frame = spread_skill(ensemble.values, data.u[:8, 3:], per_frame=True)
print("spread/skill of the first, middle and last frame:", *(f"{by_frame[i]:.2f}" for i in (0, 8, 16)))

# Rank of the truth among the members: flat where they are exchangeable with it, high at the ends where too narrow.
ranks = rank_histogram(ensemble.values, data.u[:8, 3:])
outside = 100 * float(ranks[0] + ranks[-1])
print(f"the truth lies outside all 16 members at {outside:.0f} % of the points (calibrated: 12 %)")
