"""PDEBench's 1-D files: `tensor` [n, T, X], `x-coordinate` [X] (cell centres), `t-coordinate` [T] or [T + 1].

One file holds one PDE with one set of parameters, so all its trajectories share environment 0. The
parameters are in the file's name only and are not read. The files do not name their boundary conditions; these
data sets are periodic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from . import hdf5
from .fields import FieldArray, FieldSource, axis


def source(file: Any, path: Path) -> FieldSource:
    """Describe an open PDEBench file."""
    tensor = hdf5.get(file, "tensor", "dataset")
    if tensor.ndim != 3:
        raise EnmaError(f"{path}: tensor has shape {tensor.shape}; of PDEBench only 1-D files (n, T, X) are read")
    num_trajectories, num_frames, _ = tensor.shape
    times = axis(hdf5.get(file, "t-coordinate", "dataset"), "t-coordinate", path, fewest=1)
    if len(times) not in (num_frames, num_frames + 1):
        raise EnmaError(f"{path}: t-coordinate has {len(times)} values for {num_frames} frames; save one for each")
    x = axis(hdf5.get(file, "x-coordinate", "dataset"), "x-coordinate", path, periodic=True)
    return FieldSource(
        path=path,
        layout="pdebench",
        name=path.stem,
        num_trajectories=num_trajectories,
        times=times[:num_frames],
        coords=(x,),
        periodic=(True,),
        parameters={},
        environment=np.zeros(num_trajectories, dtype=np.int64),
        arrays=(FieldArray(dataset=tensor, where="tensor", channels=("u",), dim_varying=(True,)),),
    )
