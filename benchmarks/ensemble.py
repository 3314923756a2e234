"""Ensembles on disk: the driver against what it adds its writing to, for `benchmarks.compare ensemble`.

    python -m benchmarks.compare ensemble --members 64,256,1024,4096 --threads 2 --json

The shipped model, one trajectory, chunks of 64. Contenders:

* ``ours``: a run of `enma_fast.runs` with a new store each time, one file per member, all of it on the disk at the end;
* ``memory``: the same on a file system in memory, which leaves out what the disk and its file system take;
* ``engine``: the model loaded and the members alone, in memory, chunk by chunk as the driver asks for them: encoded,
  sampled, decoded;
* ``xarray``: `engine`, and then `Dataset.to_zarr` with one member per chunk: what one writes without the driver, and
  without waiting for the disk.

The members of all have to be equal to the bit. The data are in memory before. `overhead` is the driver's time by the
engine's, less one, the median over rounds of the ratio within a round, `overhead_in_memory` likewise; `peak_bytes` is
the most that a process of its own was seen to hold while it wrote so many members.

Stores are kept to the end: for five minutes after many files have been deleted, ext4 takes up to 0.6 ms to create one,
for it passes over every inode that was in use lately. So nothing should have been deleted just before either.
"""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case
from enma_fast.data import FieldFile, read
from enma_fast.forecasting.members import sample_fields
from enma_fast.forecasting.request import CPU_CHUNK, ForecastRequest
from enma_fast.models.checkpoint import PRETRAINED, load_model
from enma_fast.runs.prepare import prepare
from enma_fast.utils.extras import load_extra

CHECKPOINT = "combined-small"
TEST_FILE = PRETRAINED / "combined-test-in.h5"
HISTORY = 3


class Stored:
    """The members of a store, read when they are compared and not when they are timed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def double(self) -> Tensor:
        values = load_extra("xarray", "store").open_zarr(self.path, chunks=None)["u"].to_numpy()
        return torch.from_numpy(values[0, ..., None]).double()


def drive(data: FieldFile, out: Path, members: int) -> Stored:
    """Write a store of one trajectory with the driver."""
    request = ForecastRequest(num_members=members, trajectories=[0])
    prepare(data, out, request, checkpoint=CHECKPOINT).execute()
    return Stored(out)


def ensemble_case(members: int, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> Case:
    """`members` members of the first trajectory of the shipped test file."""
    del compiled
    if dtype != torch.float32:
        raise ValueError("the shipped model samples in fp32: use --dtype fp32")
    data = read(TEST_FILE)
    folder = temporary_folder()
    memory = temporary_folder("/dev/shm") if Path("/dev/shm").is_dir() else None
    number = itertools.count()
    history = data.u[0, :HISTORY]

    def engine() -> Tensor:
        model = load_model(CHECKPOINT, device=device)
        parts = [
            sample_fields(model, history, num_members=min(CPU_CHUNK, members - k), first_member=k, trajectories=[0])
            for k in range(0, members, CPU_CHUNK)
        ]
        return torch.cat(parts)

    def with_xarray() -> Stored:
        xarray = load_extra("xarray", "store")
        values = engine().numpy()[None, ..., 0]
        array = xarray.DataArray(values, dims=("trajectory", "realization", "time", "x"), name="u")
        target = folder / f"xarray-{next(number)}.zarr"
        encoding = {"u": {"chunks": (1, 1, *values.shape[2:])}}
        with warnings.catch_warnings():
            # Consolidated metadata is an extension of Zarr v3 as yet.
            warnings.simplefilter("ignore")
            array.to_dataset().to_zarr(target, encoding=encoding, zarr_format=3)
        return Stored(target)

    expected = engine()
    return Case(
        name="ensemble",
        rows=members,
        dtype=dtype,
        device=device,
        contenders={
            "ours": lambda: drive(data, folder / f"run-{next(number)}.zarr", members),
            "engine": engine,
            "xarray": with_xarray,
            **({} if memory is None else {"memory": lambda: drive(data, memory / f"run-{next(number)}.zarr", members)}),
        },
        exact=expected.double(),
        allowance=0.0,
        flops=0,
        units=members,
        notes={
            "members": members,
            "chunk": CPU_CHUNK,
            "checkpoint": CHECKPOINT,
            "peak_bytes": peak(members),
        },
    )


def temporary_folder(where: str | None = None) -> Path:
    """A folder that is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="enma_fast_ensemble_", dir=where))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def overhead(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of the table beside the times of a result."""
    if result["ours_s"] is None:
        return result
    seconds = result["seconds"]

    def over_engine(name: str) -> float | None:
        if not {name, "engine"} <= seconds.keys():
            return None
        return statistics.median(a / b for a, b in zip(seconds[name], seconds["engine"], strict=True)) - 1

    return {
        **result,
        "members_per_second": 1 / result["ours_s"],
        "overhead": over_engine("ours"),
        "overhead_in_memory": over_engine("memory"),
    }


def peak(members: int) -> int:
    """Peak bytes of a process that writes a store of so many members."""
    folder = str(temporary_folder())
    command = [sys.executable, "-m", "benchmarks.ensemble", folder, str(members), str(torch.get_num_threads())]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout)["peak_bytes"])


def main() -> None:
    """The process that `peak` looks at."""
    folder, members, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    stored = drive(read(TEST_FILE, select=np.arange(1)), Path(folder) / "run.zarr", int(members))
    # `getrusage` would report at least the memory that the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"peak_bytes": used, "store": str(stored.path)}))


if __name__ == "__main__":
    main()
