"""Forecast: 64 members from three observed frames, their statistics, and a figure."""

import matplotlib.pyplot as plt

import enma_fast
from enma_fast.data import example

model = enma_fast.load_model("combined-fast")
whole = example(frames=20)  # a trajectory that the model was not trained on, [20, 128, 1]
history, truth = whole[:3], whole[3:]

ensemble = enma_fast.forecast(model, history, num_members=64, seed=0)
mean, spread = ensemble.mean(), ensemble.spread()  # [17, 128, 1] each
low, high = ensemble.quantile([0.05, 0.95])
above = ensemble.exceedance(0.2)  # share of the members above 0.2

error = ((mean - truth) ** 2).sum() ** 0.5 / (truth**2).sum() ** 0.5
print(ensemble)
print(f"relative L2 of the mean {error:.4f}; mean spread {spread.mean():.4f}")
print(f"u > 0.2 is likelier than not at {(above[-1] > 0.5).sum()} of 128 points of the last frame")

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.fill_between(range(128), low[-1, :, 0], high[-1, :, 0], alpha=0.3, label="5 to 95 %")
axes.plot(mean[-1, :, 0], label="mean")
axes.plot(truth[-1, :, 0], "k--", label="truth")
axes.set(xlabel="grid point", ylabel="u", title="Last of 17 forecast frames")
axes.legend()
figure.savefig("forecast.png")
