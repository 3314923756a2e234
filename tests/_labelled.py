"""Synthetic fields as xarray gives them."""

import numpy as np
import xarray as xr

from ._tiny import waves

LINE_DIMS, PLANE_DIMS = ("trajectory", "time", "x", "channel"), ("trajectory", "time", "x", "y", "channel")
INTERVAL = 0.05
TIMES = 7.0 + INTERVAL * np.arange(8)
NUMBERS = [4, 9]


def labelled(made, frames, *, channels=("p", "q")):
    """Two trajectories as a DataArray with all its coordinates."""
    options = made.config.codec
    dims = LINE_DIMS if options.dims == 1 else PLANE_DIMS
    coords = {"trajectory": NUMBERS, "time": TIMES[:frames], "channel": list(channels[: options.field_channels])}
    for name, n, length in zip("xy", options.grid, options.lengths, strict=False):
        coords[name] = (name, length * np.arange(n) / n, {"units": "km"})
    fields = waves(2, 1, 8, options)[:, :frames].numpy()
    return xr.DataArray(fields, coords, dims, name="wave")
