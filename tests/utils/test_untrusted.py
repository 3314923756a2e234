"""A child that reads a file runs nothing of the program that forked it, and no import changes a program's handlers."""

import subprocess
import sys
from pathlib import Path

import pytest

# A program with handlers of its own, in Python and in C; the child crashes, is asked to end, or never ends.
PROGRAM = """
import atexit, ctypes, os, signal, sys, time
from pathlib import Path

out, what = Path(sys.argv[1]), sys.argv[2]

def ran(*_):
    with out.open("a") as file:
        file.write(f"handler in {os.getpid() == parent} ")

parent = os.getpid()
import enma_fast.data, enma_fast.forecasting.api
names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGSEGV", "SIGXCPU", "SIGALRM", "SIGCHLD", "SIGABRT")
numbers = [getattr(signal, name) for name in names]
for number in numbers:
    signal.signal(number, ran)
atexit.register(ran)
callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(ran)
ctypes.CDLL(None).signal(int(signal.SIGSEGV), callback)
# Threads of a host often leave all signals to one of them.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXCPU, signal.SIGALRM, signal.SIGUSR1])
from enma_fast.errors import EnmaError
from enma_fast.utils import untrusted
untrusted.SECONDS = 1

def work(more):
    if what == "spins":
        while True: pass
    os.kill(os.getpid(), getattr(signal, what))
    time.sleep(30)

signal.signal(signal.SIGCHLD, signal.SIG_DFL)
try:
    untrusted.isolated(out, work)
except EnmaError as error:
    print(error)
assert not out.exists(), out.read_text()
assert all(signal.getsignal(number) is ran for number in numbers if number not in (signal.SIGCHLD, signal.SIGSEGV))
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGXCPU, signal.SIGALRM, signal.SIGUSR1}
"""

# The handlers before and after everything is imported, and a forecast.
IMPORTS = """
import signal
def found():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}
def own(*_): pass
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV):
    signal.signal(number, own)
before = found()
import numpy as np
import enma_fast, enma_fast.cli, enma_fast.figures, enma_fast.training.own_model
model = enma_fast.load_model("combined-fast")
enma_fast.forecast(model, np.zeros((3, 128, 1), np.float32), num_members=1, num_frames=1)
assert found() == before
"""


def run(program: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("what", ["SIGSEGV", "SIGUSR1", pytest.param("spins", marks=pytest.mark.slow)])
def test_a_reader_runs_no_handler_of_its_host(tmp_path: Path, what: str) -> None:
    said = run(PROGRAM, str(tmp_path / "ran"), what)
    assert ("does not end" if what == "spins" else "crashes the library") in said


def test_handlers_of_a_host_stay() -> None:
    run(IMPORTS)
