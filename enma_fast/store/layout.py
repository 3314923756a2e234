"""The layout of a forecast store: its channels, axes, members and statistics, and the file that holds each of them.

A store is a Zarr v3 group that `xarray.open_zarr` reads, with CF attributes and the provenance of the forecast:

    <channel>             (trajectory, realization, time, x[, y])  float32, the forecast; one member per chunk
    <channel>_observed    (trajectory, observed_time, x[, y])      float32, what the model saw (if anything)
    <channel>_truth       (trajectory, time, x[, y])               float32 (where it is known)
    x_observed[, y_observed]             (trajectory, observed_time, observed_point)  float32, where readings lie that
                          are on no grid, NaN where a frame has fewer; <channel>_observed is along these axes then
    <channel>_mean, <channel>_spread     (trajectory, time, x[, y])             float32, if statistics are asked for
    <channel>_quantile    (trajectory, quantile, time, x[, y])     float32, likewise
    <channel>_exceedance  (trajectory, threshold, time, x[, y])    float32, share of members above the threshold
    trajectory            number of the trajectory in its file; further columns, such as PDE parameters, share its axis
    realization, time, observed_time, observed_point, x[, y], quantile, threshold              coordinates
    .checksums            a checksum of every file of the forecast
    .unfinished           the ledger of a run; removed when the store is complete
    .damaged              damaged metadata, coordinates, observations and truth; removed when a run has repaired them

A channel has the unit that `Layout.units` gives it, and "1" without one. Time, places and columns have the unit "1"
where the equation is one of this package, and else none, since it is not known. Nothing in a store depends on when,
where or by how many processes it was written.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import EnmaError
from ..utils.names import SPACE, check_names, name_twice
from .chunks import chunk_name
from .metadata import DIGEST, FORMAT, FORMAT_VERSION, METADATA, READINGS, STATISTICS, digest_of

LEDGER, DAMAGED = ".unfinished", ".damaged"
# Attributes: the trajectories whose observed frames lie outside what the model was trained on, a hash of the arithmetic
# that sampled the members, the points, at most, that the model saw of each observed frame, if not all, and how many
# frames the model decides together.
OUTSIDE, FINGERPRINT, POINTS, TOGETHER = "outside_training", "fingerprint", "observed_points", "frames_per_latent"
# Of fields that have no values at some places: the share of these. What the model was told beside fields, by name.
MASKED, KNOWN = "masked", "known_inputs"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Contents of a store.

    Attributes
    ----------
    channels : names of the c physical channels; each becomes a variable
    times : [T] times of the forecast frames
    coords : one array per space dimension
    trajectories : [B] numbers of the trajectories in the field file
    num_members, first_member : members `first_member, ...`, the coordinate `realization`
    keep_members : True to write members and statistics, False to write statistics only
    shard : members in a file
    statistics : True to write mean and spread
    quantiles, thresholds : levels of quantiles and thresholds of exceedance, which are further statistics
    observed, observed_times : `[B, L, *x, c]` and [L], the frames that the model saw of each trajectory
    observed_coords : `[B, L, P, d]` of readings, which are `observed` `[B, L, P, c]`; NaN where a frame has fewer
    truth : `[B, T, *x, c]`
    units : channel -> its unit, where it has one
    dimensionless : True if times, places and columns are so; otherwise their units are not known
    columns : further values per trajectory, name -> [B]
    attributes : attributes of the store: model, seed, command, ...
    """

    channels: Sequence[str]
    times: ArrayLike
    coords: Sequence[np.ndarray]
    trajectories: Sequence[int]
    num_members: int
    first_member: int = 0
    keep_members: bool = True
    shard: int = 1
    statistics: bool = False
    quantiles: Sequence[float] = ()
    thresholds: Sequence[float] = ()
    observed: np.ndarray | None = None
    observed_times: ArrayLike = ()
    observed_coords: np.ndarray | None = None
    truth: np.ndarray | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    dimensionless: bool = True
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.channels, kind="channel")
        check_names(self.columns, kind="parameter")
        twice = name_twice(self.channels, self.columns, self._other_names())
        if twice is not None:
            raise EnmaError(f"{twice!r} is a variable of the store twice; rename the field or the parameter")

    def _other_names(self) -> list[str]:
        """Names of the axes that the store has, and of the metadata file beside them."""
        axes = ["trajectory", "time", *SPACE[: len(self.coords)], METADATA]
        axes += ["realization"] if self.keep_members else []
        axes += [] if self.observed is None else ["observed_time"]
        if self.observed_coords is not None:
            axes += [READINGS, *(f"{axis}_observed" for axis in SPACE[: len(self.coords)])]
        axes += ["quantile"] if len(self.quantiles) else []
        axes += ["threshold"] if len(self.thresholds) else []
        return axes

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """`[T, *x]`."""
        return (np.size(self.times), *(len(x) for x in self.coords))

    @property
    def num_units(self) -> int:
        """Units of the ledger: first the members, if they are kept, then the statistics of each trajectory, if any."""
        members = self.num_members if self.keep_members else 0
        return len(self.trajectories) * (members + self.statistics)

    def kept_statistics(self) -> dict[str, int | None]:
        """Names of the statistics, and the length of the axis of its own that each has (None: it has none)."""
        sizes = {"mean": None, "spread": None, "quantile": len(self.quantiles), "exceedance": len(self.thresholds)}
        return {name: size for name, size in sizes.items() if self.statistics and size != 0}

    @property
    def _shards(self) -> int:
        """Number of files of the members of one trajectory and channel."""
        return -(-self.num_members // self.shard) if self.keep_members else 0

    def num_files(self) -> int:
        """Number of files of members and statistics."""
        return len(self.channels) * len(self.trajectories) * (self._shards + len(self.kept_statistics()))

    def place_of_member(self, channel: int, trajectory: int, member: int) -> int:
        """Place of the file of a member among all files of members and statistics."""
        before = channel * self.num_files() // len(self.channels)
        return before + trajectory * self._shards + member // self.shard

    def place_of_statistic(self, channel: int, trajectory: int, kind: str) -> int:
        """Place of the file of a statistic of a trajectory among all files of members and statistics."""
        after = len(self.trajectories) * (self._shards + list(self.kept_statistics()).index(kind))
        return channel * self.num_files() // len(self.channels) + after + trajectory

    def num_bytes(self) -> int:
        """Bytes of members and statistics on disk; everything else is small beside them."""
        frames = 4 * int(np.prod(self.frame_shape)) * len(self.channels) * len(self.trajectories)
        kept = sum(1 if size is None else size for size in self.kept_statistics().values())
        return frames * (kept + (self.num_members if self.keep_members else 0))


def member_file(store: Path, channel: str, layout: Layout, trajectory: int, member: int) -> Path:
    """Path of the file that holds a member; with shards, the file of its shard."""
    return store / channel / member_name(layout, trajectory, member)


def member_name(layout: Layout, trajectory: int, member: int) -> str:
    return chunk_name(trajectory, member // layout.shard, *(0 for _ in layout.frame_shape))


def statistic_file(store: Path, channel: str, kind: str, layout: Layout, trajectory: int) -> Path:
    """Path of the file that holds a statistic of a trajectory."""
    own = () if STATISTICS[kind][0] is None else (0,)
    return store / f"{channel}_{kind}" / chunk_name(trajectory, *own, *(0 for _ in layout.frame_shape))


def store_attributes(layout: Layout) -> dict[str, Any]:
    """Attributes of the whole store; the last one is a digest of the others."""
    attributes = {
        "Conventions": "CF-1.11",
        "title": "Ensemble forecast",
        "references": "https://arxiv.org/abs/2506.06158",
        "history": str(layout.attributes.get("command", "written by enma_fast")),
        FORMAT: FORMAT_VERSION,
        "channels": list(layout.channels),
        "num_members": layout.num_members,
        "first_member": layout.first_member,
        "shard": layout.shard,
        "keeps": ", ".join([*(["members"] if layout.keep_members else []), *layout.kept_statistics()]),
        "quantiles": [float(q) for q in layout.quantiles],
        "thresholds": [float(t) for t in layout.thresholds],
        **layout.attributes,
    }
    return {**attributes, DIGEST: digest_of(attributes)}
