"""Objects of `make install` in place of those that a test would compile from the same files once more."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# It has the compiler find all headers of a file, and then takes the object that there is of the same bytes.
SCRIPT = """#!{python} -SE
import shutil, subprocess, sys
from pathlib import Path
words, tree, made = [*{compiler!r}, *sys.argv[1:]], Path({tree!r}), Path({made!r})
sources = [word for word in words if word.endswith(".cpp")]
object = (made / Path(sources[0]).relative_to(tree)).with_suffix(".o") if "-c" in words and len(sources) == 1 else None
# A file whose text names such a macro is compiled.
macros = [word[2:].split("=")[0] for word in words if word.startswith("-DENMA_")]
if object is None or not object.is_file() or any(name in Path(sources[0]).read_text() for name in macros):
    sys.exit(subprocess.run(words).returncode)
subprocess.run(["-E" if word == "-c" else word for word in words], check=True)
shutil.copy(object, words[words.index("-o") + 1])
"""


def installed() -> Path | None:
    """Folder of the objects of `make install`; None where they are of other sources, or flags are asked for now."""
    made = ROOT / f"build/editable-torch-{version('torch')}"
    sources = [path for path in (*ROOT.glob("csrc/**/*"), ROOT / "setup.py") if path.is_file()]
    libraries = [*(ROOT / "enma_fast").glob("_C*.so"), *(ROOT / "enma_fast/embed/lib").glob("libenma.so.*")]
    if len(libraries) < 2 or not made.is_dir() or {"CC", "CXX", "CXXFLAGS"} & os.environ.keys():
        return None
    newest = max(path.stat().st_mtime for path in sources)
    return made if min(path.stat().st_mtime for path in libraries) > newest else None


def compiler(script: Path, made: Path, tree: Path, *, command: Sequence[str] = ()) -> Path:
    """Write a compiler that takes objects from `made` for files of a tree of sources.

    It is `command`; without one it stands before a compiler, as CMake's launchers do.
    """
    text = SCRIPT.format(python=sys.executable, compiler=list(command), tree=str(tree), made=str(made))
    script.write_text(text)
    script.chmod(0o755)
    return script
