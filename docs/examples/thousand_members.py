"""A thousand members of a trajectory in a store on disk: written one by one, continued, opened, checked."""

import numpy as np
import xarray

import enma_fast
from enma_fast.data import shipped_file
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.runs.prepare import prepare

run = prepare(
    shipped_file("combined", "test-in"),
    "run.zarr",
    ForecastRequest(trajectories=[1], num_members=1000),
    checkpoint="combined-fast",
    statistics=True,
)
plan = run.plan()
print(f"{plan.members_missing:,} members to sample, {plan.disk / 1e6:.1f} MB in {plan.files:,} files")
run.execute()
print(f"{run.plan().members_missing} members are left; the same command on a store that is complete does nothing")

store = xarray.open_zarr("run.zarr", chunks=None)
u = store["u"].sel(trajectory=1)
print(dict(u.sizes))
assert np.allclose(u.mean("realization"), store["u_mean"].sel(trajectory=1), atol=1e-5)

# Member 7 has the same bits when nothing else is sampled.
model, fields = enma_fast.load_model("combined-fast"), enma_fast.read_fields(shipped_file("combined", "test-in"))
alone = enma_fast.forecast(model, fields.u[1:2, :3], trajectories=[1], first_member=7, num_members=1, seed=0)
assert np.array_equal(alone.values[0, 0, ..., 0], u.sel(realization=7))
print("member 7 alone has the bits of member 7 of a thousand")
