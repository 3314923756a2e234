"""Objects of `make install` in place of those that a test would compile from the same files once more."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A launcher of CMake's. It has the compiler find all headers of a file, and then takes the object of the same place in
# the other build.
SCRIPT = """#!{python} -SE
import shutil, subprocess, sys
from pathlib import Path
words = sys.argv[1:]
out = words[words.index("-o") + 1] if "-c" in words else ""
made = Path({made!r}, out)
if not made.is_file():
    sys.exit(subprocess.run(words).returncode)
subprocess.run(["-E" if word == "-c" else word for word in words], check=True)
shutil.copy(made, out)
"""


def installed() -> Path | None:
    """The build of `make install`; None where it is of other sources, or flags are asked for now."""
    made = ROOT / "build/editable"
    # Written at the end of each build.
    done = made / "install_manifest_library.txt"
    if not done.is_file() or {"CC", "CXX", "CXXFLAGS"} & os.environ.keys():
        return None
    sources = [path for path in (*ROOT.glob("csrc/**/*"), ROOT / "setup.py") if path.is_file()]
    return made if done.stat().st_mtime > max(path.stat().st_mtime for path in sources) else None


def object_of(source: Path, made: Path) -> Path:
    """What a build has made of a file of the engine."""
    return made / f"CMakeFiles/engine.dir/{source.relative_to(ROOT / 'csrc')}.o"


def launcher(script: Path, made: Path) -> Path:
    """Write a program for CMAKE_CXX_COMPILER_LAUNCHER that takes the objects of a build."""
    script.write_text(SCRIPT.format(python=sys.executable, made=str(made)))
    script.chmod(0o755)
    return script
