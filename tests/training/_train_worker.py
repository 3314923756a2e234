"""A training run in its own process, to be killed or to be one of several ranks: python FILE STAGES OUT [HANG_AT]."""

import atexit
import contextlib
import os
import sys
import time
from pathlib import Path

import torch

# The root, where the package is found even if it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from enma_fast.training.loop import RunOptions, run
from tests._tiny import dynamics_task, tokenizer_task


@atexit.register
def _must_have_left() -> None:
    """Runs after what was registered later: the threads of the process group must be gone while Python still runs."""
    # A thread that was joined may be listed for a moment more.
    last = time.monotonic() + 10
    while any("gloo" in name for name in _threads()):
        if time.monotonic() > last:
            sys.stderr.write(f"still there: {sorted(_threads())}\n")
            sys.stderr.flush()
            os._exit(3)
        time.sleep(0.05)


def _threads() -> set[str]:
    names = set()
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.add(path.read_text().strip())
    return names


def main(stages: str, out: Path, hang_at: int | None) -> None:
    torch.set_num_threads(1)

    def progress(done: int, total: int, values: dict[str, float]) -> None:
        if done == hang_at:
            (out / "hangs").touch()
            time.sleep(600)

    for stage in stages.split(","):
        task = {"tokenizer": tokenizer_task, "dynamics": dynamics_task}[stage]("relative")
        options = RunOptions(
            out=out / stage, precision="fp32", log_every=1, validate_every=4, save_seconds=0.0, progress=progress
        )
        run(task, options)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
