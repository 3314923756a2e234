"""Writing members and statistics to a forecast store, and reading members back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import EnmaError
from ..utils.extras import load_extra
from ..utils.files import write_file
from .checksums import Recorder
from .chunks import DiskSync, checksum, encode_chunk, encode_shard
from .layout import Layout, member_file, member_name, statistic_file
from .location import real_path
from .read import zarr_errors


class ForecastStore:
    """A forecast store that is being written.

    Several processes may write different members at the same time. Only after `sync` is the data on the disk.
    `locks` as for `Ledger`.
    """

    def __init__(self, path: Path, layout: Layout, *, locks: bool = True) -> None:
        # A link to the store is followed here, once; links inside the store are never followed.
        self.path, self.layout, self._locks = real_path(path), layout, locks

    def put(self, first: int, samples: ArrayLike) -> None:
        """Write the members `[B, K, T, *x, c]` of trajectories `first, ..., first + B - 1` of the store."""
        values, num_members = np.asarray(samples), self.layout.num_members
        if values.ndim < 2 or values.shape[1] != num_members:
            raise EnmaError(f"samples have shape {values.shape}; the store expects {num_members} members on axis 1")
        for b, members in enumerate(values):
            self.add(first + b, range(num_members), members)

    def add(self, trajectory: int, members: range, values: Any) -> None:
        """Write `values` `[n, T, *x, c]` of members of a trajectory, by their places; whole shards only."""
        layout = self.layout
        samples = np.asarray(values.cpu() if hasattr(values, "cpu") else values, np.float32)
        first, last = members.start, members.stop
        self._check("samples", samples.shape[1:], (*layout.frame_shape, len(layout.channels)), trajectory)
        if last > layout.num_members or first % layout.shard or (last % layout.shard and last != layout.num_members):
            raise EnmaError(f"samples are members {first} to {last - 1}; the store takes whole shards of its own")
        for c, name in enumerate(layout.channels):
            # Text instead of Path objects, which would add a third to the time of writing a small file.
            folder, sums = str(self.path / name), []
            for k in range(first, last, layout.shard):
                chunks = [samples[i - first, ..., c] for i in range(k, min(k + layout.shard, last))]
                data = encode_chunk(chunks[0]) if layout.shard == 1 else encode_shard(chunks, layout.shard)
                self._write(f"{folder}/{member_name(layout, trajectory, k)}", data)
                sums.append(checksum(data, chunks[0].nbytes, len(chunks)))
            self._recorder.record(layout.place_of_member(c, trajectory, first), sums)

    def get_members(self, trajectory: int, first: int, last: int) -> np.ndarray:
        """Members `[n, T, *x, c]` at places `first, ..., last - 1` of a trajectory; `EnmaError` for a damaged one."""
        for name in self.layout.channels:
            for k in range(first // self.layout.shard * self.layout.shard, last, self.layout.shard):
                file = member_file(self.path, name, self.layout, trajectory, k)
                if not file.exists():
                    # Zarr would read it as NaN.
                    raise EnmaError(f"{file}: is missing; run: enma-fast verify {self.path}")
        arrays = self._arrays
        with zarr_errors(self.path):
            return np.stack([array[trajectory, first:last] for array in arrays], axis=-1)

    def put_statistics(self, trajectory: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the statistics of a trajectory, name -> `[(own axis,) T, *x, c]`."""
        layout = self.layout
        for kind, size in layout.kept_statistics().items():
            own = () if size is None else (size,)
            array = np.asarray(values[kind], np.float32)
            self._check(kind, array.shape, (*own, *layout.frame_shape, len(layout.channels)), trajectory)
            for c, name in enumerate(layout.channels):
                data = encode_chunk(array[..., c])
                self._write(statistic_file(self.path, name, kind, layout, trajectory), data)
                self._recorder.record(
                    layout.place_of_statistic(c, trajectory, kind), [checksum(data, array[..., c].nbytes)]
                )

    def sync(self) -> None:
        """Wait until everything that was written is on the disk; `OSError` if it could not be written."""
        if "_disk" in vars(self):
            self._disk.sync()

    def close(self) -> None:
        """Close the files that writing has opened."""
        for name in ("_disk", "_recorder"):
            if name in vars(self):
                vars(self).pop(name).close()
        # The store may be another one when it is opened again.
        vars(self).pop("_arrays", None)

    @cached_property
    def _arrays(self) -> list[Any]:
        """Arrays of members, one for each channel; their metadata are kept, and values are read on demand."""
        zarr = load_extra("zarr", "store")
        with zarr_errors(self.path):
            group = zarr.open_group(self.path, mode="r", use_consolidated=True, zarr_format=3)
            return [group[name] for name in self.layout.channels]

    @cached_property
    def _disk(self) -> DiskSync:
        return DiskSync(self.path)

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self.path, locks=self._locks)

    def _write(self, path: str | Path, data: bytes) -> None:
        # Open before the first file is written, since it reports failures of later writes only.
        _ = self._disk
        write_file(path, data)

    def _check(self, what: str, shape: tuple[int, ...], expected: tuple[int, ...], trajectory: int) -> None:
        if shape != expected or not 0 <= trajectory < len(self.layout.trajectories):
            raise EnmaError(f"{what} have shape {shape} at trajectory {trajectory}; the store expects {expected}")
