"""The GPU tests by several processes at once, each with files of its own: `python -m benchmarks.gpu_tests FOLDER`.

A bare machine has no pytest-xdist. Every process writes FOLDER/tests-N.xml (JUnit) and FOLDER/tests-N.log as it goes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/gpu", "tests/ops", "tests/sampling")
MARK = "gpu"
PROCESSES = 8
# Exit status of pytest where a process had no test for a GPU among its files.
NONE_COLLECTED = 5


def shares(count: int = PROCESSES) -> list[list[str]]:
    """Test files by process; those beside each other in size go to different ones."""
    files = [path for folder in TESTS for path in (ROOT / folder).glob("test_*.py")]
    files.sort(key=lambda path: (-path.stat().st_size, path.name))
    names = [path.relative_to(ROOT).as_posix() for path in files]
    return [names[i::count] for i in range(min(count, len(names)))]


def command(files: list[str], report: Path) -> list[str]:
    """The tests of one process."""
    return [sys.executable, "-m", "pytest", "-q", "-m", MARK, "-p", "no:cacheprovider", f"--junitxml={report}", *files]


def main() -> int:
    """Exit status 1 if a test failed, or if there was none at all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    running = []
    for i, files in enumerate(shares()):
        log = (folder / f"tests-{i}.log").open("wb")
        done = command(files, folder / f"tests-{i}.xml")
        running.append(subprocess.Popen(done, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT))
    found = [process.wait() for process in running]
    for i in range(len(found)):
        sys.stdout.write((folder / f"tests-{i}.log").read_text(errors="replace")[-1500:])
    failed = any(status not in (0, NONE_COLLECTED) for status in found)
    return int(failed or all(status == NONE_COLLECTED for status in found))


if __name__ == "__main__":
    sys.exit(main())
