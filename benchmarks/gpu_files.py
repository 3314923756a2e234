"""The files that a call of `make gpu` leaves in the folder that ENMA_FAST_RESULTS names, and what it says on the way.

At most eight files come back from a machine that is lent, each of at most 16 MiB:

* <gpu>/results.json, which `benchmarks.rows` writes;
* logs.txt: all parts' logs, each under a heading;
* tests.tar.gz: logs and JUnit reports of the GPU tests;
* cache.tar.gz.0 and so on, four at most: the extension and what Triton compiled.

Only the standard library is imported.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu_bootstrap import BUILT, CACHE, OUT, ROOT, TRITON_CACHE, cache_parts, extensions
from benchmarks.rows import RESULTS

FILES, FILE_BYTES = 8, 16 << 20
# Of one part's log in logs.txt; a group has at most sixteen parts.
LOG_BYTES = 512 << 10
# Of the cache: with the other three files seven, and together less than the 64 MiB that come back.
PARTS, PART_BYTES = 4, 14 << 20


def results_folder() -> Path | None:
    """The folder that ENMA_FAST_RESULTS names."""
    named = os.environ.get(RESULTS)
    if not named:
        return None
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)


@contextlib.contextmanager
def followed(step: Callable[[], object]) -> Iterator[None]:
    """Do this every half second, and at the end."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.5):
            step()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        step()


@contextlib.contextmanager
def shown(path: Path, heading: str) -> Iterator[None]:
    """Pass on what a log that grows holds: to standard output, and to logs.txt under a heading."""
    folder = results_folder()
    kept = folder / "logs.txt" if folder else Path(os.devnull)
    with path.open(errors="replace") as log, kept.open("ab") as logs:
        room = LOG_BYTES

        def step() -> None:
            nonlocal room
            text = log.read()
            print(text, end="", flush=True)
            data = text.encode()
            logs.write(data[:room])
            if 0 < room < len(data):
                logs.write(b"\n(the rest is left out)\n")
            room = max(0, room - len(data))
            logs.flush()

        logs.write(f"=== {heading}\n".encode())
        with followed(step):
            yield


def keep_reports(folder: Path) -> None:
    """Pack the reports of the GPU tests."""
    results = results_folder()
    if results and folder.is_dir():
        with tarfile.open(results / "tests.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)


def pack() -> None:
    """Keep the extension and what Triton compiled, for a later call on a machine that is bare again."""
    results = results_folder()
    built = [*extensions(), BUILT] if BUILT.exists() else []
    compiled = [TRITON_CACHE] if TRITON_CACHE.exists() else []
    # A build that was carried along and not needed is not replaced by less.
    if results is None or not built + compiled or (not built and cache_parts(OUT)):
        return
    whole = OUT / f"{CACHE}.whole"
    if _archive(whole, built + compiled) > PARTS * PART_BYTES:
        print("warning: what Triton compiled is not kept: it is too large", flush=True)
        _archive(whole, built)
    before = cache_parts(results)
    with whole.open("rb") as packed:
        parts = [results / f"{CACHE}.{i}" for i in range(-(-whole.stat().st_size // PART_BYTES))]
        for part in parts:
            partial = part.with_name(f"{part.name}.part")
            partial.write_bytes(packed.read(PART_BYTES))
            partial.replace(part)
    for part in set(before) - set(parts):
        part.unlink()
    whole.unlink()


def _archive(target: Path, paths: list[Path]) -> int:
    """Pack these paths of the tree, quickly, and give the bytes."""
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for path in paths:
            archive.add(path, path.relative_to(ROOT))
    return target.stat().st_size
