"""The tree that travels to a GPU machine, at most 40 MiB: `python -m benchmarks.gpu_tree FOLDER`.

What git does not ignore, without weights, data, results and figures, which no part of `make gpu` reads; the wheels of
out/gpu-wheels; and what an earlier call built (out/gpu/cache.tar.gz.0 and so on), if that fits too.
"""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_bootstrap import CACHE, cache_parts

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("*.safetensors", "*.h5", "*.png", "*.tar.xz", "benchmarks/results/*", "docs/figures/*")
MOST = 40 << 20  # bytes


def travelling(root: Path = ROOT) -> list[str]:
    """Files that travel, relative to the root."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    there = (name for name in dict.fromkeys(names) if name and (root / name).is_file())
    return [name for name in there if not any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)]


def copy(folder: Path, root: Path = ROOT) -> int:
    """Copy the tree, and give its bytes, wheels and an earlier build included."""
    wheels = sorted((root / "out" / "gpu-wheels").glob("*.whl"))
    files = [*(root / name for name in travelling(root)), *wheels]
    built = cache_parts(root / "out" / "gpu")
    # Parts of an earlier copy belong to another build.
    for path in cache_parts(folder / "out" / "gpu"):
        path.unlink()
    if total(files + built) <= MOST:
        files += built
    else:
        print(f"out/gpu/{CACHE} is left out: with it the tree is larger than {MOST >> 20} MiB")
    for path in files:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return total(files)


def total(files: list[Path]) -> int:
    """The bytes of these files."""
    return sum(path.stat().st_size for path in files)


def main() -> int:
    """Exit status 1 if it is larger than what a machine takes."""
    size = copy(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {size / 2**20:.1f} MiB; at most {MOST >> 20} travel")
    return int(size > MOST)


if __name__ == "__main__":
    sys.exit(main())
