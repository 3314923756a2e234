"""The GPU tests by several processes at once, each with every eighth test.

    python -m benchmarks.gpu_tests FOLDER [SECONDS]

A bare machine has no pytest-xdist. Every process writes FOLDER/tests-N.log as it goes, a line for each test, and at its
end FOLDER/tests-N.xml (JUnit). Before SECONDS are over they are interrupted, which ends them in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/gpu", "tests/ops", "tests/sampling")
MARK = "gpu"
PROCESSES = 8
# Seconds that they may take, those before these are over at which they are interrupted, and later killed.
SECONDS, MARGIN, GRACE = 330.0, 30.0, 10.0
# Exit status of pytest where a process had no test for a GPU.
NONE_COLLECTED = 5


def command(report: Path, share: str, folders: tuple[str, ...] = TESTS) -> list[str]:
    """The tests of one process."""
    options = ["-v", "-m", MARK, "-p", "no:cacheprovider", f"--junitxml={report}", "--share", share]
    return [sys.executable, "-m", "pytest", *options, *folders]


def _interruptible() -> None:
    """What a shell starts in the background ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(
    folder: Path, folders: tuple[str, ...] = TESTS, *, count: int = PROCESSES, seconds: float = SECONDS - MARGIN
) -> list[int]:
    """The exit statuses of the processes."""
    folder.mkdir(parents=True, exist_ok=True)
    for report in folder.glob("tests-*"):
        report.unlink()
    running = []
    for i in range(count):
        variables = os.environ | {"OMP_NUM_THREADS": "1"}
        with (folder / f"tests-{i}.log").open("wb") as log:
            done = command(folder / f"tests-{i}.xml", f"{i}/{count}", folders)
            options = {"cwd": ROOT, "env": variables, "stdout": log, "stderr": subprocess.STDOUT}
            running.append(subprocess.Popen(done, **options, preexec_fn=_interruptible))
    began = time.monotonic()
    for end, number in ((seconds, signal.SIGINT), (seconds + GRACE, signal.SIGKILL)):
        while time.monotonic() - began < end and any(process.poll() is None for process in running):
            time.sleep(0.1)
        for process in running:
            if process.poll() is None:
                process.send_signal(number)
    return [process.wait() for process in running]


def main() -> int:
    """Exit status 1 if a test failed, or if there was none at all."""
    folder = Path(sys.argv[1])
    given = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    found = run(folder, seconds=max(0.0, given - MARGIN))
    for i in range(len(found)):
        sys.stdout.write((folder / f"tests-{i}.log").read_text(errors="replace")[-1500:])
    failed = any(status not in (0, NONE_COLLECTED) for status in found)
    return int(failed or all(status == NONE_COLLECTED for status in found))


if __name__ == "__main__":
    sys.exit(main())
