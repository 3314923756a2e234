"""MEMBERS -> ENSEMBLE ON DISK: a thousand members, any number of processes, killed and continued, the same bytes.

    run = prepare("observed.h5", "run.zarr", members=1000)      checks everything, knows what is missing
    run.plan()                                                  members, memory, disk, time
    run.execute()                                               samples and writes what is missing

The work is cut into blocks of about a chunk of rows (trajectory x member). A process claims a block in the store's
ledger (`ledger`), samples it, writes one file per member, and notes it as done once it is on the disk. No process needs
another, so ranks come and go as they like.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import SamplingConfig
from ..data import FieldFile
from ..data.selection import context_of, fields_of
from ..errors import EnmaError
from ..forecasting.api import CHUNK
from ..forecasting.tasks import (
    Case,
    check_case,
    file_hashes,
    layout_of,
    outside_training,
    provenance,
    warn_of_own_contexts,
)
from ..models.checkpoint import hashes, load_model
from ..store.compare import differences
from ..store.create import create_unfinished_store
from ..store.forecast_store import ForecastStore
from ..store.layout import FINGERPRINT, LEDGER, OUTSIDE, Layout
from ..store.ledger import Ledger, RunLock
from ..store.location import check_disk, check_place, is_store, remove_leftovers, require_replaceable
from ..store.read import damaged_files
from ..store.repair import repair
from ..store.writer import Writer
from ..utils.files import temporary_name
from ..utils.launch import Launch, detect
from .block_sampler import BlockSampler
from .blocks import Block, Cut, P, Unit, claims, missing_parts
from .fingerprint import settings_here
from .saved_statistics import read_state, write_state
from .static_share import StaticShare, require_shared_locks, shares
from .statistics import NotFiniteError, Statistics, bytes_needed

log = logging.getLogger("enma_fast")

Progress = Callable[[int, int], None]
# Seconds between two saved states of statistics.
_SAVE = 30.0
# Seconds between two looks at how far all ranks are, where there are more members than are counted in no time.
_LOOK, _SHORT = 1.0, 100_000
# From so many on, the cost of about half a chunk to tell the time of all is worth it.
_MANY_CHUNKS = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do; sizes in bytes, time in seconds (None where it was not measured)."""

    trajectories: int
    members: int
    frames: int
    members_missing: int
    chunk: int
    blocks: int
    ranks: int
    disk: int
    files: int
    memory: dict[str, int]
    seconds: float | None


def prepare(
    data: str | Path | FieldFile,
    out: str | Path,
    *,
    checkpoint: str | Path = "combined-small",
    task: str | None = None,
    history: int = 3,
    frames: int | None = None,
    context: str | Path | FieldFile | None = None,
    members: int = 16,
    first_member: int = 0,
    seed: int = 0,
    select: Sequence[int] | None = None,
    keep_members: bool = True,
    statistics: bool = False,
    quantiles: Sequence[float] = (),
    thresholds: Sequence[float] = (),
    settings: SamplingConfig | None = None,
    precision: str | None = None,
    chunk: int = CHUNK,
    shard: int = 1,
    device: str = "cpu",
    command: str = "",
    strict: bool = False,
    force: bool = False,
    static: bool = False,
    launch: Launch | None = None,
) -> Run:
    """Check a run and everything it needs, before any work.

    Parameters
    ----------
    data
        Field file (HDF5, The Well's layout), or what :func:`enma_fast.read_fields` gives.
    out
        Zarr store to write, or to continue.
    checkpoint
        A shipped model by name, or a checkpoint folder.
    task
        ``temporal``, ``initial-value`` or ``generation``; by default the first, or the second with a `context`.
    history
        Observed frames of the temporal task.
    frames
        Frames to forecast; by default those of the file after the observed ones, up to the length that the model was
        trained on, or up to that length where the file holds no more. The store holds the truth if the file does.
    context
        Field file whose trajectories are the contexts: as many as `data` has, or one for all. By default a context is
        another trajectory of the same environment in `data`.
    members
        Ensemble size.
    first_member
        Number of the first member, so that a second store continues the ensemble of a first.
    seed
        Of the noise. A member depends on (model, seed, trajectory number, member number) only.
    select
        Trajectory numbers; all by default.
    keep_members
        Write every member; otherwise statistics only.
    statistics
        Write mean and spread too; `quantiles` and `thresholds` ask for them.
    quantiles
        Probabilities in (0, 1), increasing.
    thresholds
        Values whose exceedance probability is written, increasing, in the unit of the field.
    settings
        Of the sampler; the model's own by default.
    precision
        Of the sampler's weights, ``fp32`` or ``bf16``; the model's own by default.
    chunk
        Rows (trajectories x members) sampled at a time; with the extension, on the CPU, no result depends on it.
    shard
        Members in a file.
    device
        ``cpu`` or ``cuda``; ranks of one machine take its GPUs in turn.
    command
        Written into the store, so that it can be repeated.
    strict
        Refuse observed frames outside what the model was trained on, which is otherwise said and noted in the store.
    force
        Replace a forecast store that is there, in place of continuing it; not for several processes.
    static
        Give each process a fixed share of the members, which needs no locks of the file system.
    launch
        Which process of the run this is; by default as the launcher's variables say.

    Raises
    ------
    EnmaError
        One line naming the argument, file or field and the mend.
    """
    launch = launch or detect()
    if Path(out).name in ("", ".."):
        raise EnmaError(f"{out}: is a folder; name the store in it, such as {Path(out) / 'run.zarr'}")
    try:
        Path(out).exists()
    except OSError as error:
        raise EnmaError(f"{out}: cannot be written ({error}); choose another --out") from error
    if force and launch.num_ranks > 1:
        raise EnmaError(
            f"--force: one of the {launch.num_ranks} processes could come when all is written, and begin anew; remove "
            f"{out} and leave --force out"
        )
    statistics = statistics or not keep_members or bool(len(quantiles) or len(thresholds))
    task = task or ("temporal" if context is None else "initial-value")
    fields, rows = fields_of(data, select, contexts=task != "temporal" and context is None)
    other = context if context is None or isinstance(context, FieldFile) else context_of(Path(context), rows)
    case = Case(
        task=task,
        history=history,
        frames=frames,
        context=other,
        members=members,
        first_member=first_member,
        seed=seed,
        chunk=chunk,
        settings=settings,
        precision=precision,
    )
    if not keep_members and shard > 1:
        raise EnmaError(f"shard is {shard}: of statistics only no members are written; leave one of the two out")
    if statistics and members == 1:
        log.warning("members is 1: the spread of one member is not defined, it is written as NaN")
    if not 1 <= shard <= members:
        raise EnmaError(f"shard is {shard}; 1 to {members}, the number of members, is expected")
    model = load_model(checkpoint, device=launch.device(device, torch.cuda.device_count()))
    check_case(model.config, fields, case, rows, at_once=min(members, max(chunk, shard)))
    warn_of_own_contexts(fields, case, rows)
    strange = outside_training(model, fields, case, rows, strict=strict)
    # Bad quantiles and thresholds are said here.
    Statistics((1,), quantiles=quantiles, thresholds=thresholds)
    sampler = BlockSampler(model, fields, case, rows, name=" ".join(hashes(checkpoint).values()))
    if command and not sampler.independent:
        # The number of rows decides how results are rounded there.
        command += f" --chunk {chunk}"
    attributes = {**provenance(checkpoint, fields, case, rows, command), "arithmetic": sampler.arithmetic}
    if strange is not None:
        attributes[OUTSIDE] = strange
    layout = replace(
        layout_of(model.config, fields, case, rows=rows, attributes=attributes),
        keep_members=keep_members,
        shard=shard,
        statistics=statistics,
        quantiles=tuple(quantiles),
        thresholds=tuple(thresholds),
    )
    if not static:
        require_shared_locks(Path(out), launch)
    return Run(sampler=sampler, out=Path(out), layout=layout, launch=launch, force=force, static=static)


def run(
    data: str | Path | FieldFile, out: str | Path, *, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """`prepare` a run, take its options, and `Run.execute` it."""
    return prepare(data, out, **options).execute(progress)


@dataclass(kw_only=True)
class Run:
    """A checked run; made by `prepare`."""

    sampler: BlockSampler
    out: Path
    layout: Layout
    launch: Launch
    force: bool = False
    static: bool = False

    def __post_init__(self) -> None:
        self.store = ForecastStore(self.out, self.layout)
        self._last_look = 0.0

    def plan(self, *, measure: bool | None = None) -> Plan:
        """What is to be done; with `measure`, a few frames are sampled to tell the memory and the time.

        By default that is done for a run of many chunks, of which it is a small part.

        Raises
        ------
        EnmaError
            If a store that is there belongs to another run, none can be made, or the disk is too small.
        """
        layout, B, K = self.layout, len(self.layout.trajectories), self.layout.num_members
        missing = self._missing()
        disk = int(layout.num_bytes() * missing / (B * K))
        files = layout.num_files() * missing // (B * K)
        if self.force:
            require_replaceable(self.out, force=True)
        if self.force or not self.out.exists():
            check_place(self.out)
        check_disk(self.out, disk, files)
        if measure is None:
            measure = missing > _MANY_CHUNKS * self.sampler.chunk
        # Of statistics alone, a rank makes those of whole trajectories.
        cut = self._cut() if layout.keep_members else Cut(B, K, chunk=K)
        memory, seconds = self.sampler.measure(cut[0]) if measure and missing else ({}, None)
        frame = 4 * int(np.prod(layout.frame_shape)) * len(layout.channels)
        # Two blocks wait to be written while one is sampled.
        memory["fields"] = 3 * frame * min(max(self.sampler.chunk, layout.shard), B * K)
        if layout.statistics:
            shape = (*layout.frame_shape, len(layout.channels))
            memory["statistics"] = bytes_needed(
                shape, layout.quantiles, layout.thresholds, saved=not layout.keep_members
            )
        return Plan(
            trajectories=B,
            members=K,
            frames=layout.frame_shape[0],
            members_missing=missing,
            chunk=self.sampler.chunk,
            blocks=len(cut),
            ranks=self.launch.num_ranks,
            disk=disk,
            files=files,
            memory=memory,
            seconds=None if seconds is None else seconds * missing / min(self.launch.num_ranks, len(cut)),
        )

    def execute(self, progress: Progress | None = None) -> dict[str, Any]:
        """Sample and write what is missing; when it returns, the store is complete.

        Parameters
        ----------
        progress
            Called with (members done, members) after each block; those of other ranks count.

        Returns
        -------
        dict
            `store`, `num_trajectories`, `num_members`, `num_frames`, `members_sampled` (by this process), `seconds`.

        Raises
        ------
        EnmaError
            If the store belongs to another run or cannot be written. What was written stays usable.
        """
        clock = time.perf_counter()
        sampled = 0
        with StaticShare(self.out, self.launch) if self.static else RunLock(self.out, self.launch.run) as lock:
            if lock.first:
                remove_leftovers(self.out)
            if lock.first and (self.force or not self.out.exists()):
                create_unfinished_store(self.out, self._with_hashes(), force=self.force)
            else:
                self._require_same()
                if lock.first:
                    with self._in_words():
                        if damaged_files(self.out):
                            repair(self.out, self._with_hashes())
            lock.share()
            ledger = self._ledger()
            if ledger is not None:
                with self._in_words():
                    try:
                        self._fit(ledger)
                        sampled = self._work(ledger, progress)
                        if not self.static or self._all_done():
                            self._finish()
                    finally:
                        self.sampler.forget()
                        ledger.close()
                        self.store.close()
        return {
            "store": str(self.out),
            "num_trajectories": len(self.layout.trajectories),
            "num_members": self.layout.num_members,
            "num_frames": self.layout.frame_shape[0],
            "members_sampled": sampled,
            "seconds": time.perf_counter() - clock,
        }

    def _fit(self, ledger: Ledger) -> None:
        """Take no more rows at a time than were found to fit, here or by another process, and have that remembered."""
        self._heed(ledger)
        self.sampler.remember = ledger.fit
        if self.sampler.chunk < self.sampler.case.chunk:
            ledger.fit(self.sampler.chunk)

    def _heed(self, ledger: Ledger) -> None:
        self.sampler.chunk = min(self.sampler.chunk, ledger.chunk or self.sampler.chunk)

    def _work(self, ledger: Ledger, progress: Progress | None) -> int:
        """Blocks of members, then statistics; returns how many members were sampled here."""
        sampled = 0
        if self.layout.keep_members:
            total = len(self.layout.trajectories) * self.layout.num_members
            with Writer(self.store, ledger) as writer:
                for block in self._claims(ledger, self._cut(), idle=writer.flush):
                    missing = list(missing_parts(block, ledger, self.layout.shard))
                    for part, samples in self.sampler.parts(block, missing):
                        writer.put(part, samples)
                        sampled += samples.shape[0] * samples.shape[1]
                    writer.release(block)
                    if progress is not None and self._may_look(total):
                        progress(int(ledger.done(0, total).sum()) + writer.waiting, total)
            if progress is not None and total > _SHORT:
                progress(total, total)
        # With fixed shares, the process that ends last makes the statistics of members.
        if self.layout.statistics and (not self.static or not self.layout.keep_members or self._all_done(members=True)):
            sampled += self._statistics(ledger, progress)
        return sampled

    def _all_done(self, *, members: bool = False) -> bool:
        """True if all units are done, or all members; as a network file system tells who opens the file anew."""
        fresh = self._ledger()
        if fresh is None:
            return True
        total = len(self.layout.trajectories) * self.layout.num_members if members else None
        try:
            return bool(fresh.done(0, total).all())
        finally:
            fresh.close()

    def _may_look(self, total: int) -> bool:
        """Whether it is time to count the members that all ranks have done."""
        now = time.monotonic()
        if total > _SHORT and now - self._last_look < _LOOK:
            return False
        self._last_look = now
        return True

    def _claims(self, ledger: Ledger, pieces: Sequence[P], **options: Any) -> Iterator[P]:
        rank, num_ranks = self.launch.rank, self.launch.num_ranks
        if self.static:
            # Of statistics of members, there is one process left.
            alone = self.layout.keep_members and bool(pieces) and isinstance(pieces[0], Unit)
            return shares(ledger, pieces, rank=0 if alone else rank, num_ranks=1 if alone else num_ranks)
        return claims(ledger, pieces, rank=rank, num_ranks=num_ranks, **options)

    def _statistics(self, ledger: Ledger, progress: Progress | None) -> int:
        """Statistics of each trajectory; returns how many members were sampled for them."""
        B, K = len(self.layout.trajectories), self.layout.num_members
        before = B * K if self.layout.keep_members else 0
        sampled = 0

        def report(done: int) -> None:
            if progress is not None and not self.layout.keep_members:
                progress(int(ledger.done().sum()) * K + done, B * K)

        for unit in self._claims(ledger, [Unit(before + b) for b in range(B)]):
            b = unit.first - before
            saved = self.out / f".statistics-{b}.npz"
            shape = (*self.layout.frame_shape, len(self.layout.channels))
            fold = read_state(saved, shape, self.layout.quantiles, self.layout.thresholds)
            last_save = time.monotonic()
            while fold.num_members < K:
                k = fold.num_members
                k_end = min(k + self.sampler.chunk, K)
                if self.layout.keep_members:
                    values = self.store.get_members(b, k, k_end)
                else:
                    values = self.sampler.sample(Block(b=b, b_end=b + 1, k=k, k_end=k_end, members=K))[0]
                    sampled += len(values)
                try:
                    fold.update(values)
                except NotFiniteError as error:
                    number = self.layout.trajectories[b]
                    member = self.layout.first_member + k + error.number
                    log.warning("trajectory %d has no statistics: its member %d is not finite", number, member)
                    break
                report(fold.num_members)
                if time.monotonic() - last_save > _SAVE and not self.layout.keep_members:
                    write_state(saved, fold)
                    last_save = time.monotonic()
            self.store.put_statistics(b, self._results(fold))
            self.store.sync()
            ledger.mark([unit.first])
            ledger.release(unit.first, unit.last)
            saved.unlink(missing_ok=True)
            report(0)
        return sampled

    def _results(self, fold: Statistics) -> dict[str, np.ndarray]:
        """Statistics by name; of less than all members, NaN."""
        kinds = {"mean": fold.mean, "spread": fold.spread, "quantile": fold.quantile, "exceedance": fold.exceedance}
        kept = self.layout.kept_statistics()
        if fold.num_members == self.layout.num_members:
            return {kind: kinds[kind]() for kind in kept}
        return {
            kind: np.full((*(() if size is None else (size,)), *fold.shape), np.nan, np.float32)
            for kind, size in kept.items()
        }

    def _cut(self) -> Cut:
        case = self.sampler.case
        return Cut(len(self.layout.trajectories), case.members, chunk=case.chunk, shard=self.layout.shard)

    def _missing(self) -> int:
        """Members that are not written; of a statistics-only store, those of its missing trajectories."""
        B, K = len(self.layout.trajectories), self.layout.num_members
        if self.force or not self.out.exists():
            return B * K
        if not is_store(self.out):
            require_replaceable(self.out, force=False)
        self._require_same()
        ledger = self._ledger()
        if ledger is None:
            return 0
        try:
            done = ledger.done()
            self._heed(ledger)
        finally:
            ledger.close()
        return int((~done[: B * K]).sum()) if self.layout.keep_members else int((~done).sum()) * K

    def _ledger(self) -> Ledger | None:
        """The ledger of the store; None if all is written."""
        try:
            return Ledger(self.out / LEDGER, self.layout.num_units)
        except FileNotFoundError:
            return None

    def _with_hashes(self) -> Layout:
        """The layout, with hashes of the files; only who makes the store reads them whole."""
        attributes = {**self._with_fingerprint().attributes, **file_hashes(self.sampler.data, self.sampler.case)}
        return replace(self.layout, attributes=attributes)

    def _with_fingerprint(self) -> Layout:
        """The layout, with the fingerprint of the arithmetic of this process."""
        return replace(self.layout, attributes={**self.layout.attributes, FINGERPRINT: self.sampler.fingerprint()})

    def _require_same(self) -> None:
        # Of a store that is complete, nothing is sampled.
        layout = self._with_fingerprint() if (self.out / LEDGER).exists() else self.layout
        found = differences(self.out, layout, complete=self._with_hashes)
        if found and all(text.startswith(FINGERPRINT) for text in found):
            raise EnmaError(
                f"{self.out}: its members were sampled by other arithmetic ({found[0]}; here: "
                f"{', '.join(settings_here(self.sampler.device))}); continue it with the settings and on the kind of "
                "processor that began it, choose another --out, or use --force"
            )
        if found:
            raise EnmaError(
                f"{self.out}: belongs to another run: {'; '.join(found)}; choose another --out, or use --force"
            )

    def _finish(self) -> None:
        """All units are done, so on the disk: without its ledger the store is complete."""
        # A process that was killed leaves its saved statistics, or part of them.
        for left in (*self.out.glob(".statistics-*"), *self.out.glob("..statistics-*")):
            left.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (self.out / temporary_name(LEDGER)).unlink(missing_ok=True)
            (self.out / LEDGER).unlink()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """What the disk refuses, as one line."""
        try:
            yield
        except OSError as error:
            without = " without --force" if self.force else ""
            raise EnmaError(
                f"{self.out}: cannot be written ({error}); what was written is kept, mend this and repeat the command"
                f"{without}"
            ) from error
