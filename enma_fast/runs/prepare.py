"""A request, a file and a model, checked together before any work: what `Run` then carries out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data import FieldFile
from ..data.selection import context_of, fields_of
from ..errors import EnmaError
from ..forecasting.extension import StoredMembers
from ..forecasting.file_forecast import FileForecast
from ..forecasting.request import ForecastRequest
from ..forecasting.store_layout import as_begun, beside_hashes, layout_of, provenance
from ..models.checkpoint import hashes, load_model
from ..store.layout import OUTSIDE
from ..utils.launch import Launch, detect
from .block_sampler import BlockSampler
from .run import Run
from .static_share import require_shared_locks
from .statistics import Statistics

log = logging.getLogger("enma_fast")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run writes, and how.

    Attributes
    ----------
    keep_members : write every member; otherwise statistics only
    statistics : write mean and spread too; quantiles and thresholds ask for them
    quantiles : probabilities in (0, 1), increasing
    thresholds : values whose exceedance probability is written, increasing, in the unit of the field
    shard : members in a file
    command : written into the store, so that it can be repeated
    force : replace a forecast store that is there, in place of continuing it; not for several processes
    extend : a finished store of a shorter forecast of the same request, whose members go on
    static : give each process a fixed share of the members, which needs no locks of the file system
    """

    keep_members: bool = True
    statistics: bool = False
    quantiles: Sequence[float] = ()
    thresholds: Sequence[float] = ()
    shard: int = 1
    command: str = ""
    force: bool = False
    extend: Path | None = None
    static: bool = False

    def kept(self, num_members: int) -> dict[str, Any]:
        """Entries of a store's layout; `EnmaError` for a shard, quantiles or thresholds that no store can have."""
        statistics = self.statistics or not self.keep_members or bool(len(self.quantiles) or len(self.thresholds))
        if not self.keep_members and self.shard > 1:
            raise EnmaError(f"shard is {self.shard}: a store of statistics holds no members; leave one of the two out")
        if statistics and num_members == 1:
            log.warning("num_members is 1: the spread of one member is not defined, it is written as NaN")
        if not 1 <= self.shard <= num_members:
            raise EnmaError(f"shard is {self.shard}; 1 to {num_members}, the number of members, is expected")
        Statistics((1,), quantiles=self.quantiles, thresholds=self.thresholds)
        return {
            "keep_members": self.keep_members,
            "shard": self.shard,
            "statistics": statistics,
            "quantiles": tuple(self.quantiles),
            "thresholds": tuple(self.thresholds),
        }


def prepare(
    data: str | Path | FieldFile,
    out: str | Path,
    request: ForecastRequest | None = None,
    *,
    checkpoint: str | Path = "combined-fast",
    context: str | Path | FieldFile | None = None,
    device: str = "cpu",
    launch: Launch | None = None,
    **options: Any,
) -> Run:
    """Check a run and everything it needs, before any work.

    Parameters
    ----------
    data
        Field file (HDF5, The Well's layout), or what :func:`enma_fast.read_fields` gives; readings as
        :func:`enma_fast.forecasting.scattered.readings_for` gives them for the model.
    out
        Zarr store to write, or to continue.
    request
        The forecasts; all trajectories of the file by default. The store holds the truth if the file does.
    checkpoint
        A shipped model by name, or a checkpoint folder.
    context
        Field file whose trajectories are the contexts: as many as `data` has, or one for all. By default a context is
        another trajectory of the same environment in `data`.
    device
        ``cpu`` or ``cuda``; ranks of one machine take its GPUs in turn.
    launch
        Which process of the run this is; by default as the launcher's variables say.
    options
        Entries of `RunOptions`.

    Raises
    ------
    EnmaError
        One line that names the argument, file or field and what to do.
    """
    launch, request, out = launch or detect(), request or ForecastRequest(), Path(out)
    chosen = RunOptions(**options)
    _check_out(out, launch, force=chosen.force)
    own_contexts = request.task.needs_context and context is None
    fields, numbers = fields_of(data, request.trajectories, contexts=own_contexts)
    other = context if context is None or isinstance(context, FieldFile) else context_of(Path(context), numbers)
    kept = chosen.kept(request.num_members)
    model = load_model(checkpoint, device=launch.device(device, torch.cuda.device_count()))
    begun = as_begun(replace(request, trajectories=numbers), None if chosen.force else out)
    earlier = None if chosen.extend is None else StoredMembers(chosen.extend)
    forecast = FileForecast(model, fields, begun, other, earlier)
    forecast.check(at_once=max(forecast.request.rows, chosen.shard))
    forecast.warn_of_own_contexts()
    unlike_training = forecast.outside_training()
    sampler = BlockSampler(forecast, name=" ".join(hashes(checkpoint).values()))
    command = chosen.command
    if command and not sampler.independent:
        # The number of rows decides how results are rounded there.
        command += f" --chunk {forecast.request.rows}"
    attributes = {**provenance(forecast, checkpoint, command), "arithmetic": sampler.arithmetic}
    if unlike_training is not None:
        attributes[OUTSIDE] = unlike_training
    if earlier is not None:
        attributes["extends"] = f"{earlier.path.name}, {earlier.num_frames} frames"
    layout = replace(layout_of(forecast, attributes), **kept)
    if earlier is not None:
        _check_extension(forecast, earlier, layout.attributes, out)
    if not chosen.static:
        require_shared_locks(out, launch)
    return Run(sampler=sampler, out=out, layout=layout, launch=launch, force=chosen.force, static=chosen.static)


def _check_extension(forecast: FileForecast, earlier: StoredMembers, attributes: Mapping[str, Any], out: Path) -> None:
    if out.resolve() == earlier.path.resolve():
        raise EnmaError(f"{out}: is the store that is extended; write the longer forecast to another --out")
    if forecast.num_frames <= earlier.num_frames:
        raise EnmaError(
            f"{earlier.path}: holds {earlier.num_frames} frames, and {forecast.num_frames} are asked for; ask for more"
        )
    if forecast.request.points is not None or forecast.data.points is not None:
        raise EnmaError(f"{earlier.path}: forecasts from scattered points are not extended; forecast anew")
    beside = beside_hashes(forecast, forecast.num_observed + earlier.num_frames)
    earlier.check(forecast.data, forecast.trajectories, forecast.request.members, attributes, beside)


def _check_out(out: Path, launch: Launch, *, force: bool) -> None:
    if out.name in ("", ".."):
        raise EnmaError(f"{out}: is a folder; name the store in it, such as {out / 'run.zarr'}")
    try:
        out.exists()
    except OSError as error:
        raise EnmaError(f"{out}: cannot be written ({error}); choose another --out") from error
    if force and launch.num_ranks > 1:
        raise EnmaError(
            f"--force: one of the {launch.num_ranks} processes could come when all is written, and begin anew; remove "
            f"{out} and leave --force out"
        )
