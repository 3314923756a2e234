"""MEMBERS -> ENSEMBLE ON DISK: a thousand members, any number of processes, killed and continued, the same bytes.

    run = prepare("observed.h5", "run.zarr", ForecastRequest(num_members=1000))      checks all (`prepare`)
    run.plan()                                                                       members, memory, disk, time
    run.execute()                                                                    samples and writes what is missing

The work is cut into blocks of about a chunk of rows (trajectory x member). A process claims a block in the store's
ledger (`ledger`), samples it, writes one file per member, and marks it as done once it is on the disk. No process needs
another, so ranks come and go as they like.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnmaError
from ..forecasting.store_layout import file_hashes
from ..store.compare import differences
from ..store.create import create_unfinished_store
from ..store.forecast_store import ForecastStore
from ..store.layout import FINGERPRINT, LEDGER, Layout
from ..store.ledger import Ledger, RunLock
from ..store.location import check_disk, check_place, is_store, remove_leftovers, require_replaceable
from ..store.read import damaged_files
from ..store.repair import repair
from ..store.writer import Writer
from ..utils.launch import Launch
from .block_sampler import BlockSampler
from .blocks import Block, Blocks, R, Unit, claims, missing_parts, warn_of_infinite
from .fingerprint import settings_here
from .plan import Plan, disk_needed, make_plan
from .saved_statistics import read_state, write_state
from .static_share import StaticShare, shares
from .statistics import NotFiniteError, Statistics

log = logging.getLogger("enma_fast")

Progress = Callable[[int, int], None]
# Seconds between two saved states of statistics.
_SAVE = 30.0
# Seconds between two counts of the members of all ranks, where there are more than are counted in no time.
_LOOK, _SHORT = 1.0, 100_000


@dataclass(kw_only=True)
class Run:
    """A checked run; made by `prepare.prepare`."""

    sampler: BlockSampler
    out: Path
    layout: Layout
    launch: Launch
    force: bool = False
    static: bool = False

    def __post_init__(self) -> None:
        self.store = ForecastStore(self.out, self.layout, locks=not self.static)
        self._last_look = 0.0

    def plan(self, *, measure: bool | None = None) -> Plan:
        """The work, memory, disk and time of the run; with `measure`, a few frames are sampled to know them.

        By default that is done for a run of many chunks, of which it is a small part.

        Raises
        ------
        EnmaError
            If a store that is there belongs to another run, none can be made, or the disk is too small.
        """
        missing = self._missing()
        if self.force:
            require_replaceable(self.out, force=True)
        if self.force or not self.out.exists():
            check_place(self.out)
        check_disk(self.out, *disk_needed(self.layout, missing))
        ranks = self.launch.num_ranks
        return make_plan(self.sampler, self.layout, self._blocks(), missing=missing, num_ranks=ranks, measure=measure)

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
            self._create_or_continue(first=lock.first)
            lock.share()
            ledger = self._ledger()
            if ledger is not None:
                with self._disk_errors(), closing(self.store), closing(ledger):
                    sampled = self._complete(ledger, progress)
        return {
            "store": str(self.out),
            "num_trajectories": len(self.layout.trajectories),
            "num_members": self.layout.num_members,
            "num_frames": self.layout.frame_shape[0],
            "members_sampled": sampled,
            "seconds": time.perf_counter() - clock,
        }

    def _create_or_continue(self, *, first: bool) -> None:
        """Create the store, or make sure that it is of this run; the first process on it also repairs it."""
        if first:
            remove_leftovers(self.out)
        if first and (self.force or not self.out.exists()):
            create_unfinished_store(self.out, self._with_hashes(), force=self.force)
            return
        self._require_same()
        if first:
            with self._disk_errors():
                if damaged_files(self.out):
                    repair(self.out, self._with_hashes())

    def _complete(self, ledger: Ledger, progress: Progress | None) -> int:
        """Do the work that is left, and finish the store; returns how many members were sampled here."""
        try:
            # No more rows at a time are taken than were found to fit, here or by another process.
            self._take_known_chunk(ledger)
            self.sampler.remember = ledger.limit_chunk
            if self.sampler.chunk < self.sampler.forecast.request.rows:
                ledger.limit_chunk(self.sampler.chunk)
            sampled = self._work(ledger, progress)
            if self._all_done():
                self._finish()
            elif not self.static:
                raise EnmaError(f"{self.out}: its ledger was exchanged; repeat the command")
            return sampled
        finally:
            self.sampler.forget()

    def _take_known_chunk(self, ledger: Ledger) -> None:
        """Take no more rows at a time than the ledger says fit."""
        self.sampler.chunk = min(self.sampler.chunk, ledger.chunk or self.sampler.chunk)

    def _work(self, ledger: Ledger, progress: Progress | None) -> int:
        """Sample blocks of members, then make statistics; returns how many members were sampled here."""
        sampled = 0
        if self.layout.keep_members:
            total = len(self.layout.trajectories) * self.layout.num_members
            with Writer(self.store, ledger) as writer:
                for block in self._claims(ledger, self._blocks(), idle=writer.flush):
                    missing = list(missing_parts(block, ledger, self.layout.shard))
                    for part, samples in self.sampler.parts(block, missing):
                        if not self.layout.statistics:
                            # Statistics name theirs.
                            warn_of_infinite(part, self._without_gaps(samples), self.layout)
                        writer.put(part, samples)
                        sampled += samples.shape[0] * samples.shape[1]
                    writer.release(block)
                    if progress is not None and self._may_look(total):
                        progress(int(ledger.done(0, total).sum()) + writer.waiting, total)
            if progress is not None and total > _SHORT:
                progress(total, total)
        # With fixed shares, the process that ends last makes the statistics of members.
        if self.layout.statistics and (not self.layout.keep_members or self._all_done(members=True)):
            sampled += self._statistics(ledger, progress)
        return sampled

    def _all_done(self, *, members: bool = False) -> bool:
        """True if all units are done, or all members; the ledger is opened anew, as network file systems need."""
        fresh = self._ledger()
        if fresh is None:
            return True
        total = len(self.layout.trajectories) * self.layout.num_members if members else None
        with closing(fresh):
            return bool(fresh.done(0, total).all())

    def _may_look(self, total: int) -> bool:
        """True if it is time to count the members that all ranks have done."""
        now = time.monotonic()
        if total > _SHORT and now - self._last_look < _LOOK:
            return False
        self._last_look = now
        return True

    def _claims(self, ledger: Ledger, ranges: Sequence[R], **options: Any) -> Iterator[R]:
        rank, num_ranks = self.launch.rank, self.launch.num_ranks
        if self.static:
            # One process is left to make the statistics of members.
            alone = self.layout.keep_members and bool(ranges) and isinstance(ranges[0], Unit)
            return shares(ledger, ranges, rank=0 if alone else rank, num_ranks=1 if alone else num_ranks)
        return claims(ledger, ranges, rank=rank, num_ranks=num_ranks, **options)

    def _statistics(self, ledger: Ledger, progress: Progress | None) -> int:
        """Make the statistics of each trajectory; returns how many members were sampled for them."""
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
                    values = self.sampler.sample(Block(b=b, b_end=b + 1, k=k, k_end=k_end, num_members=K))[0]
                    sampled += len(values)
                try:
                    fold.update(self._without_gaps(values))
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
        """Statistics by name; NaN where members are missing."""
        kinds = {"mean": fold.mean, "spread": fold.spread, "quantile": fold.quantile, "exceedance": fold.exceedance}
        kept = self.layout.kept_statistics()
        if fold.num_members == self.layout.num_members:
            stats = {kind: kinds[kind]() for kind in kept}
            mask = self._mask
            return stats if mask is None else {kind: np.where(mask, x, np.float32(np.nan)) for kind, x in stats.items()}
        return {
            kind: np.full((*(() if size is None else (size,)), *fold.shape), np.nan, np.float32)
            for kind, size in kept.items()
        }

    @property
    def _mask(self) -> np.ndarray | None:
        """True where fields have values, `[*x, c]`; None if they are everywhere."""
        mask = self.sampler.forecast.model.codec.mask
        return None if mask is None else mask.numpy(force=True)

    def _without_gaps(self, samples: np.ndarray) -> np.ndarray:
        """Samples with zeros where there are no values."""
        mask = self._mask
        return samples if mask is None else np.where(mask, samples, np.float32(0))

    def _blocks(self) -> Blocks:
        """The blocks that ranks share; of a store of statistics alone, whole trajectories."""
        request = self.sampler.forecast.request
        if not self.layout.keep_members:
            return Blocks(replace(request, chunk=request.num_members))
        return Blocks(request, shard=self.layout.shard)

    def _missing(self) -> int:
        """Number of members that are not written; in a store of statistics, those of its missing trajectories."""
        B, K = len(self.layout.trajectories), self.layout.num_members
        if self.force or not self.out.exists():
            return B * K
        if not is_store(self.out):
            require_replaceable(self.out, force=False)
        self._require_same()
        ledger = self._ledger()
        if ledger is None:
            return 0
        with closing(ledger):
            done = ledger.done()
            self._take_known_chunk(ledger)
        return int((~done[: B * K]).sum()) if self.layout.keep_members else int((~done).sum()) * K

    def _ledger(self) -> Ledger | None:
        """The ledger of the store; None if all is written."""
        try:
            return Ledger(self.out / LEDGER, self.layout.num_units, locks=not self.static)
        except FileNotFoundError:
            return None

    def _with_hashes(self) -> Layout:
        """The layout, with hashes of the files; only the process that makes the store reads them whole."""
        attributes = {**self._with_fingerprint().attributes, **file_hashes(self.sampler.forecast)}
        return replace(self.layout, attributes=attributes)

    def _with_fingerprint(self) -> Layout:
        """The layout, with the fingerprint of the arithmetic of this process."""
        return replace(self.layout, attributes={**self.layout.attributes, FINGERPRINT: self.sampler.fingerprint()})

    def _require_same(self) -> None:
        # Nothing more is sampled for a complete store.
        layout = self._with_fingerprint() if (self.out / LEDGER).exists() else self.layout
        changes = differences(self.out, layout, complete=self._with_hashes)
        if changes and all(text.startswith(FINGERPRINT) for text in changes):
            raise EnmaError(
                f"{self.out}: its members were sampled by other arithmetic ({changes[0]}; here: "
                f"{', '.join(settings_here(self.sampler.device))}); continue it with the settings and on the kind of "
                "processor that began it, choose another --out, or use --force"
            )
        if changes:
            raise EnmaError(
                f"{self.out}: belongs to another run: {'; '.join(changes)}; choose another --out, or use --force"
            )

    def _finish(self) -> None:
        """All units are done, so on the disk: without its ledger the store is complete."""
        # A process that was killed leaves its saved statistics.
        for left in self.out.glob(".statistics-*"):
            left.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (self.out / LEDGER).unlink()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn an error of the disk into one line."""
        try:
            yield
        except OSError as error:
            without = " without --force" if self.force else ""
            raise EnmaError(
                f"{self.out}: cannot be written ({error}); what was written is kept, fix this and repeat the command"
                f"{without}"
            ) from error
