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

import gc
import io
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .blocks import Block, P, Unit, claims, cut, missing_parts
from .checkpoint import load_model
from .chunks import write_file
from .config import SamplingConfig
from .data import FieldFile
from .data import read as read_fields
from .engine import PRECISIONS, engine_for
from .errors import EnmaError
from .launch import Launch, detect
from .ledger import Ledger, RunLock
from .members import CHUNK
from .output import LEDGER, ForecastStore, Layout, differences, lay_out, sweep
from .statistics import Statistics, bytes_needed
from .tasks import Case, check_case, forecast_rows, layout_of, num_frames, provenance
from .writer import Writer

log = logging.getLogger("enma_fast")

Progress = Callable[[int, int], None]
# Seconds between two saved states of statistics.
_SAVE = 30.0
# From so many on, the cost of about half a chunk to tell the time of all is worth it.
_MANY_CHUNKS = 32
# What PyTorch's allocator says, and operators of C++.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "bad allocation")
# Member numbers are one word of the noise's key.
_MOST_MEMBERS = 2**32


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
    context: str | Path | FieldFile | None = None,
    members: int = 16,
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
    force: bool = False,
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
    context
        Field file whose trajectories are the contexts: as many as `data` has, or one for all. By default a context is
        another trajectory of the same environment in `data`.
    members
        Ensemble size.
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
        Rows (trajectories x members) sampled at a time; on the CPU no result depends on it.
    shard
        Members in a file.
    device
        ``cpu`` or ``cuda``; ranks of one machine take its GPUs in turn.
    command
        Written into the store, so that it can be repeated.
    force
        Replace a forecast store that is there, in place of continuing it.
    launch
        Which process of the run this is; by default as the launcher's variables say.

    Raises
    ------
    EnmaError
        One line naming the argument, file or field and the mend.
    """
    launch = launch or detect()
    if not 1 <= members <= _MOST_MEMBERS:
        raise EnmaError(f"members is {members}; 1 to {_MOST_MEMBERS} can be numbered")
    if not 1 <= shard <= members:
        raise EnmaError(f"shard is {shard}; 1 to {members}, the number of members, is expected")
    statistics = statistics or not keep_members or bool(len(quantiles) or len(thresholds))
    fields = data if isinstance(data, FieldFile) else read_fields(Path(data))
    other = context if context is None or isinstance(context, FieldFile) else read_fields(Path(context))
    case = Case(
        task=task or ("temporal" if context is None else "initial-value"),
        history=history,
        context=other,
        members=members,
        seed=seed,
        chunk=chunk,
        settings=settings,
        precision=precision,
    )
    rows = range(len(fields)) if select is None else list(select)
    _check_rows(rows, fields)
    model = load_model(checkpoint, device=launch.device(device, torch.cuda.device_count()))
    check_case(model.config, fields, case, rows, at_once=min(members, chunk))
    # Bad quantiles and thresholds are said here.
    Statistics((1,), quantiles=quantiles, thresholds=thresholds)
    engine = engine_for(model.dynamics, dtype=None if precision is None else PRECISIONS[precision])
    # Only the native sampler computes each row by itself; elsewhere the chunk decides how sums are rounded.
    arithmetic = engine.backend if engine.backend == "native" else f"{engine.backend}, chunk {chunk}"
    layout = layout_of(model.config, fields, case, rows=rows)
    layout = replace(
        layout,
        keep_members=keep_members,
        shard=shard,
        statistics=statistics,
        quantiles=tuple(quantiles),
        thresholds=tuple(thresholds),
        attributes={**layout.attributes, **provenance(checkpoint, fields, command, other), "arithmetic": arithmetic},
    )
    return Run(
        model=model, data=fields, case=case, rows=list(rows), out=Path(out), layout=layout, launch=launch, force=force
    )


def run(
    data: str | Path | FieldFile, out: str | Path, *, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """`prepare` a run, take its options, and `Run.execute` it."""
    return prepare(data, out, **options).execute(progress)


@dataclass(kw_only=True)
class Run:
    """A checked run; made by `prepare`."""

    model: Any
    data: FieldFile
    case: Case
    rows: list[int]
    out: Path
    layout: Layout
    launch: Launch
    force: bool = False

    def __post_init__(self) -> None:
        self.chunk = self.case.chunk
        self.store = ForecastStore(self.out, self.layout)

    def plan(self, *, measure: bool | None = None) -> Plan:
        """What is to be done; with `measure`, a few frames are sampled to tell the memory and the time.

        By default that is done for a run of many chunks, of which it is a small part.

        Raises
        ------
        EnmaError
            If a store that is there belongs to another run, or the disk is too small.
        """
        layout, case = self.layout, self.case
        B, K = len(self.rows), case.members
        missing = self._missing()
        stored = layout.num_bytes()
        disk = int(stored * missing / (B * K)) if layout.keep_members else stored * bool(missing)
        files = len(layout.channels) * -(-missing // layout.shard) if layout.keep_members else 0
        self._check_disk(disk, files)
        if measure is None:
            measure = missing > _MANY_CHUNKS * self.chunk
        memory, seconds = self._measure() if measure and missing else ({}, None)
        frame = 4 * int(np.prod(layout.frame_shape)) * len(layout.channels)
        # Two blocks wait to be written while one is sampled.
        memory["fields"] = 3 * frame * min(max(self.chunk, layout.shard), B * K)
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
            chunk=self.chunk,
            blocks=len(self._blocks()),
            ranks=self.launch.num_ranks,
            disk=disk,
            files=files,
            memory=memory,
            seconds=None if seconds is None else seconds * missing / self.launch.num_ranks,
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
        with RunLock(self.out, self.launch.run) as lock:
            if lock.first:
                sweep(self.out)
            if lock.first and (self.force or not self.out.exists()):
                lay_out(self.out, self.layout, force=self.force)
            self._require_same()
            lock.share()
            ledger = self._ledger()
            if ledger is not None:
                try:
                    self.chunk = min(self.chunk, ledger.chunk or self.chunk)
                    sampled = self._work(ledger, progress)
                    self._finish()
                finally:
                    ledger.close()
        return {
            "store": str(self.out),
            "num_trajectories": len(self.rows),
            "num_members": self.case.members,
            "num_frames": self.layout.frame_shape[0],
            "members_sampled": sampled,
            "seconds": time.perf_counter() - clock,
        }

    def _work(self, ledger: Ledger, progress: Progress | None) -> int:
        """Blocks of members, then statistics; returns how many members were sampled here."""
        sampled = 0
        if self.layout.keep_members:
            total = len(self.rows) * self.case.members
            with Writer(self.store, ledger) as writer:
                for block in self._claims(ledger, self._blocks(), idle=writer.flush):
                    for part in missing_parts(block, ledger, self.layout.shard):
                        samples = self._sample(part, ledger)
                        writer.put(part, samples)
                        sampled += samples.shape[0] * samples.shape[1]
                    writer.release(block)
                    if progress is not None:
                        progress(int(ledger.done(0, total).sum()) + writer.waiting, total)
        if self.layout.statistics:
            sampled += self._statistics(ledger, progress)
        return sampled

    def _claims(self, ledger: Ledger, pieces: Sequence[P], **options: Any) -> Iterator[P]:
        return claims(ledger, pieces, rank=self.launch.rank, num_ranks=self.launch.num_ranks, **options)

    def _sample(self, part: Block, ledger: Ledger) -> np.ndarray:
        """Members of a block `[B, K, T, *x, c]`; with less memory than was thought, fewer rows at a time."""
        while True:
            try:
                samples = forecast_rows(
                    self.model,
                    self.data,
                    self.case,
                    rows=self.rows[part.b : part.b_end],
                    members=range(part.k, part.k_end),
                    chunk=self.chunk,
                )
                return samples.cpu().numpy()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                rows = min(self.chunk, (part.b_end - part.b) * (part.k_end - part.k))
                if rows == 1:
                    raise EnmaError(f"one member does not fit the memory ({error}); use another --device") from error
            self.chunk = rows // 2
            ledger.chunk = self.chunk
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory: %d rows at a time from now on; no result changes", self.chunk)

    def _statistics(self, ledger: Ledger, progress: Progress | None) -> int:
        """Statistics of each trajectory; returns how many members were sampled for them."""
        K = self.case.members
        before = len(self.rows) * K if self.layout.keep_members else 0
        sampled = 0

        def report(b: int, done: int) -> None:
            if progress is not None and not self.layout.keep_members:
                progress(b * K + done, len(self.rows) * K)

        for unit in self._claims(ledger, [Unit(before + b) for b in range(len(self.rows))]):
            b = unit.first - before
            saved = self.out / f".statistics-{b}.npz"
            shape = (*self.layout.frame_shape, len(self.layout.channels))
            fold = read_state(saved, shape, self.layout.quantiles, self.layout.thresholds)
            last_save = time.monotonic()
            while fold.num_members < K:
                part = Block(
                    b=b, b_end=b + 1, k=fold.num_members, k_end=min(fold.num_members + self.chunk, K), members=K
                )
                if self.layout.keep_members:
                    values = self.store.get_members(b, part.k, part.k_end)
                else:
                    values = self._sample(part, ledger)[0]
                    sampled += len(values)
                fold.update(values)
                report(int(ledger.done().sum()), fold.num_members)
                if time.monotonic() - last_save > _SAVE and not self.layout.keep_members:
                    with _in_words(self.out):
                        write_state(saved, fold)
                    last_save = time.monotonic()
            results = {"mean": fold.mean(), "spread": fold.spread()}
            if len(self.layout.quantiles):
                results["quantile"] = fold.quantile()
            if len(self.layout.thresholds):
                results["exceedance"] = fold.exceedance()
            with _in_words(self.out):
                self.store.put_statistics(b, results)
                self.store.settle()
            ledger.mark([unit.first])
            ledger.release(unit.first, unit.last)
            saved.unlink(missing_ok=True)
            report(int(ledger.done().sum()), 0)
        return sampled

    def _blocks(self) -> list[Block]:
        return cut(len(self.rows), self.case.members, chunk=self.case.chunk, shard=self.layout.shard)

    def _missing(self) -> int:
        """Members that are not written; of a statistics-only store, those of its missing trajectories."""
        B, K = len(self.rows), self.case.members
        if self.force or not self.out.exists():
            return B * K
        self._require_same()
        ledger = self._ledger()
        if ledger is None:
            return 0
        done = ledger.done()
        ledger.close()
        return int((~done[: B * K]).sum()) if self.layout.keep_members else int((~done).sum()) * K

    def _ledger(self) -> Ledger | None:
        """The ledger of the store; None if all is written."""
        try:
            return Ledger(self.out / LEDGER, self.layout.num_units)
        except FileNotFoundError:
            return None

    def _require_same(self) -> None:
        found = differences(self.out, self.layout)
        if found:
            raise EnmaError(
                f"{self.out}: belongs to another run: {'; '.join(found)}; choose another --out, or use --force"
            )

    def _check_disk(self, disk: int, files: int) -> None:
        folder = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        free = shutil.disk_usage(folder).free
        if disk > free:
            raise EnmaError(
                f"{self.out}: needs {disk / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; use fewer members, "
                "--statistics-only, or another --out"
            )
        inodes = _free_inodes(folder)
        if inodes is not None and files > inodes:
            raise EnmaError(f"{self.out}: needs {files:,} files, {inodes:,} can be made; put members together: --shard")

    def _measure(self) -> tuple[dict[str, int], float]:
        """Bytes by what they are for, and seconds a member, from a chunk of few frames."""
        engine = engine_for(
            self.model.dynamics, dtype=None if self.case.precision is None else PRECISIONS[self.case.precision]
        )
        K = self.case.members
        members = min(self.chunk, K)
        factor = self.model.config.tokenizer.time_factor
        frames = num_frames(self.model.config, self.data) - self.case.observed
        seconds = []
        # The difference of two lengths is the cost of a frame; the first run pays for packing weights too.
        lengths = sorted({min(frames, factor), min(frames, 2 * factor)})
        for length in (lengths[0], *lengths):
            clock = time.perf_counter()
            forecast_rows(
                self.model,
                self.data,
                self.case,
                rows=self.rows[:1],
                members=range(members),
                chunk=self.chunk,
                frames=length,
            )
            seconds.append(time.perf_counter() - clock)
        per_frame = (seconds[-1] - seconds[1]) / max(1, lengths[-1] - lengths[0])
        whole = seconds[-1] + max(0.0, per_frame) * (frames - lengths[-1])
        return dict(engine.planned_bytes()), whole / members

    def _finish(self) -> None:
        """Everything is on the disk: without its ledger the store is complete."""
        # A process that was killed leaves its saved statistics, or part of them.
        for left in (*self.out.glob(".statistics-*"), *self.out.glob("..statistics-*")):
            left.unlink(missing_ok=True)
        with _in_words(self.out), suppress(FileNotFoundError):
            self.store.settle()
            (self.out / LEDGER).unlink()


@contextmanager
def _in_words(out: Path) -> Iterator[None]:
    """What the disk refuses, as one line."""
    try:
        yield
    except OSError as error:
        raise EnmaError(
            f"{out}: cannot be written ({error}); what was written is kept, mend this and repeat the command"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the machine."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY)


def read_state(
    path: Path, shape: tuple[int, ...], quantiles: Sequence[float], thresholds: Sequence[float]
) -> Statistics:
    """Statistics as they were saved, or new ones."""
    try:
        with np.load(path) as saved:
            return Statistics.restore(dict(saved))
    except FileNotFoundError:
        return Statistics(shape, quantiles=quantiles, thresholds=thresholds)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        log.warning("%s: is damaged; its trajectory is sampled again", path)
        return Statistics(shape, quantiles=quantiles, thresholds=thresholds)


def write_state(path: Path, fold: Statistics) -> None:
    """Save statistics; the file appears whole."""
    data = io.BytesIO()
    arrays: dict[str, Any] = dict(fold.state())
    np.savez(data, **arrays)
    write_file(path, data.getvalue())


def _check_rows(rows: Sequence[int], data: FieldFile) -> None:
    if not len(rows):
        raise EnmaError(f"{data.path}: no trajectory is selected; it has {len(data)}")
    numbers = np.asarray(rows)
    if numbers.min() < 0 or numbers.max() >= len(data):
        raise EnmaError(f"{data.path}: trajectory {numbers.max()} is selected; it has 0 to {len(data) - 1}")
    if len(np.unique(numbers)) != len(numbers):
        raise EnmaError(f"{data.path}: a trajectory is selected twice")


def _free_inodes(folder: Path) -> int | None:
    """Files that can still be made; None where the file system sets no limit."""
    found = os.statvfs(folder)
    return found.f_favail if found.f_files else None
