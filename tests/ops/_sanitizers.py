"""The plain C++ core of an operator, with a main of its own, under sanitizers, without Torch."""

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from .._objects import installed, object_of

NONE: Mapping[str, Sequence[str] | None] = MappingProxyType({})
ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "csrc/core/cpu"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# With its stand-in for the stack, g++ 12 aligns vectors of 64 bytes to 32 and then moves them as aligned (GCC 110027).
SANITIZERS += ["--param=asan-use-after-return=0"]
# Without checks of every pointer, which the address sanitizer watches too: half the time to compile.
QUICK_SANITIZERS = [*SANITIZERS, "-fno-sanitize=null,alignment,object-size,vptr"]


def run_core(
    ops: Sequence[str],
    folder: Path,
    *,
    parts: Sequence[str] = (),
    sanitizers: Sequence[str] = SANITIZERS,
    others: Mapping[str, Sequence[str] | None] = NONE,
    flags: Sequence[str] = (),
    link: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> None:
    """Compile the core of these operators; link ``native_<op>_main.cpp`` of each to it and run it: it prints ok.

    What an earlier call has compiled into the folder in the same way is taken.

    Parameters
    ----------
    ops
        Stems of operators.
    parts
        More files of the core, as patterns; those that take longest first.
    others
        Sanitizers of some files in place of `sanitizers`, by how their names begin; None for a file that is not
        watched, whose object `make install` has made, unless its text names a macro of `flags`.
    flags, link
        Of the compiler and the linker.
    environment, arguments
        Of the program; its environment beside this process' own.
    """
    names = (*parts, *ops, "dispatch", "parallel")
    sources = [path for name in names for path in sorted(CORE.glob(f"{name}.cpp"))]
    made = installed()
    macros = [flag.removeprefix("-D") for flag in flags if flag.startswith("-DENMA_")]
    mains = [ROOT / f"tests/ops/native_{op}_main.cpp" for op in ops]

    def compiled(path: Path) -> Path:
        watched = next((flags for start, flags in others.items() if path.stem.startswith(start)), sanitizers)
        if watched is None and made is not None and not any(macro in path.read_text() for macro in macros):
            return object_of(path, made)
        watched = watched or ()
        command = ["g++", "-std=c++20", "-O1", "-g1", "-fopenmp", *WARNINGS, *watched, *flags, f"-I{ROOT / 'csrc'}"]
        out = folder / f"{path.stem}-{hashlib.sha256(repr(command).encode()).hexdigest()[:8]}.o"
        if out.exists():
            return out
        built = subprocess.run([*command, "-c", str(path), "-o", str(out)], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[-4000:]
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(map(str, pool.map(compiled, [*sources, *mains])))
    for main in objects[len(sources) :]:
        program = Path(main).with_suffix("")
        command = ["g++", "-fopenmp", *sanitizers, *objects[: len(sources)], main, *link, "-o", str(program)]
        linked = subprocess.run(command, capture_output=True, text=True)
        assert linked.returncode == 0, linked.stderr[-4000:]
        done = subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, env=os.environ | (environment or {})
        )
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert done.stdout.startswith("ok")
