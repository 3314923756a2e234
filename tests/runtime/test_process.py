"""libenma in a program: an unknown instruction set, forks, unloading, refused threads, and nothing left behind."""

import os
import platform
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from enma_fast.models.checkpoint import PRETRAINED

from .._tiny import CONFIGS, waves
from ._libenma import CC, CSRC, INVALID_ARGUMENT, NO_MEMORY, ROOT, SANITIZED, Library, run
from ._programs import WARNINGS, linked, needs

HISTORY = waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()


def in_a_process(program: str, library: Library, folder: Path) -> list[str]:
    """What a Python program prints that is given the `library`, a `model` and its `history`."""
    begin = f"""
import os, resource, signal, sys, numpy as np
sys.path.insert(0, {str(ROOT)!r})
from tests.runtime._libenma import Failure, Library
library = Library({str(library.path)!r})
model = library.open({str(folder)!r})
history = np.load({str(folder / "history.npy")!r})
"""
    np.save(folder / "history.npy", HISTORY)
    done = subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.splitlines()


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has to be loaded first")
def test_an_unknown_instruction_set_in_the_environment(library: Library, folder: Path) -> None:
    """Without Python's own use of the variable."""
    program = f"""
import ctypes
library, model, session = ctypes.CDLL({str(library.path)!r}), ctypes.c_void_p(), ctypes.c_void_p()
library.enma_last_error.restype = ctypes.c_char_p
assert library.enma_model_open({str(folder)!r}.encode(), None, ctypes.byref(model)) == 0
print(library.enma_session_new(model, None, ctypes.byref(session)), library.enma_last_error().decode())
"""
    run = partial(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = run(env=os.environ | {"ENMA_ISA": "abacus"}).stdout
    assert said.startswith(f"{INVALID_ARGUMENT} ENMA_ISA: isa 'abacus' is unknown; expected one of scalar, ")
    assert run(env=os.environ | {"ENMA_ISA": "scalar"}).stdout == "0 \n"


@pytest.mark.slow
def test_a_forked_child_goes_on_with_one_thread(library: Library, copied: Path) -> None:
    program = """
session = model.session(num_members=4, threads=2)
session.observe(history)
expected = session.step()
child = os.fork()
if child == 0:
    signal.alarm(500)
    session.observe(history)
    os._exit(0 if np.array_equal(session.step(), expected) else 1)
print(os.waitpid(child, 0)[1])
session.observe(history)
print(np.array_equal(session.step(), expected))
"""
    assert in_a_process(program, library, copied) == ["0", "True"]


def host(program: Path, *flags: str) -> str:
    """A program that opens the library by itself, so that nothing else keeps it or OpenMP's library."""
    needs(CC)
    source, include = str(Path(__file__).with_name("process_main.c")), f"-I{CSRC / 'include'}"
    run([CC, "-std=c11", *WARNINGS, "-Wno-unknown-pragmas", include, *flags, source, "-ldl", "-o", str(program)])
    return str(program)


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has to be loaded first")
def test_threads_of_a_library_that_is_closed_find_their_code(library: Library, folder: Path, tmp_path: Path) -> None:
    run([host(tmp_path / "host"), "unload", str(library.path), str(folder)])


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has to be loaded first")
def test_a_child_of_a_host_that_uses_openmp_itself(library: Library, folder: Path, tmp_path: Path) -> None:
    run([host(tmp_path / "host", "-fopenmp"), "fork", str(library.path), str(folder)])


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has to be loaded first")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs feenableexcept of glibc")
@pytest.mark.parametrize("threads", [[], ["-fopenmp"]], ids=["alone", "openmp"])
def test_a_host_that_traps_what_its_arithmetic_cannot_do(library: Library, threads: list[str], tmp_path: Path) -> None:
    """Whether the pool of threads is the library's or the host's."""
    needs(CC)
    source, program = str(Path(__file__).with_name("traps_main.c")), str(tmp_path / "traps")
    flags = [*WARNINGS, "-Wno-unknown-pragmas", f"-I{CSRC / 'include'}", *threads]
    run([CC, "-std=c11", *flags, source, *linked(library), "-lm", "-o", program])
    assert run([program, str(PRETRAINED / "gray-scott-fast")]) == "ok\n"


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="a sanitizer takes all addresses")
@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_STACK)[0] == resource.RLIM_INFINITY, reason="stacks are small")
def test_threads_that_the_system_refuses_another_thread(library: Library, copied: Path) -> None:
    """It has no pool yet, and the session was made where there were enough."""
    program = """
import threading
few = model.session(num_members=64)
few.observe(history)
expected = few.step()
session = model.session(num_members=64, threads=64)
begin, found = threading.Event(), []
def call():
    begin.wait()
    session.observe(history)
    found.append(session.step())
other = threading.Thread(target=call)
other.start()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (150 << 20),) * 2)
begin.set()
other.join()
print(np.array_equal(found[0], expected))
"""
    assert in_a_process(program, library, copied) == ["True"]


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="a sanitizer takes all addresses")
@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_STACK)[0] == resource.RLIM_INFINITY, reason="stacks are small")
def test_threads_that_the_system_refuses_do_not_end_the_program(library: Library, copied: Path) -> None:
    program = """
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (150 << 20),) * 2)
try:
    model.session(num_members=4, threads=64)
except Failure as failure:
    print(failure.status, failure.message)
session = model.session(num_members=4)
session.observe(history)
print(session.step().shape[0])
"""
    said, members = in_a_process(program, library, copied)
    assert said == f"{NO_MEMORY} threads is 64; the system lets this process start fewer: use less"
    assert members == "4"


# What the process holds: bytes that malloc has given out (0 where the C library does not say, glibc does since 2.33),
# pages, files and threads; before and after opening and closing.
HELD = """
import ctypes, gc

class MallInfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

def held():
    gc.collect()
    libc, heap = ctypes.CDLL(None), 0
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = MallInfo2
        info = libc.mallinfo2()
        heap = info.uordblks + info.hblkhd
    pages = int(open("/proc/self/statm").read().split()[1])
    return heap, pages, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def cycle():
    model = library.open(folder)
    session = model.session(num_members=2, num_frames=1)
    session.observe(history)
    session.step()
    session.free()
    model.close()
    library.messages.clear()

for _ in range(20):
    cycle()
print(*held())
for _ in range(cycles):
    cycle()
print(*held())
"""


@pytest.mark.parametrize("cycles", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_opening_and_closing_leaves_nothing(library: Library, copied: Path, cycles: int) -> None:
    program = f"folder, cycles = {str(copied)!r}, {cycles}" + HELD
    before, after = ([int(value) for value in line.split()] for line in in_a_process(program, library, copied))
    # 10,000 times 100 bytes would be 1 MB. Pages come and go with other threads: 200 models of 200 kB would be 40 MB.
    # A sanitizer keeps what was freed.
    assert after[0] - before[0] < 500_000 or SANITIZED, (before, after)
    assert after[1] - before[1] < 1000 or SANITIZED, (before, after)
    assert after[2:] == before[2:]
