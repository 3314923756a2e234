"""A forked child forecasts what its parent does, and ends."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SECONDS = 120

COMMON = """
import json, multiprocessing, os, sys
import numpy as np, torch
import enma_fast

torch.set_num_threads(int(sys.argv[2]))
model = enma_fast.load_model(sys.argv[1])
x = torch.linspace(0, 6.28, 128)
history = torch.stack([torch.sin(x + 0.1 * t) for t in range(3)])[None, ..., None].numpy()
# Large enough for PyTorch's pool of threads.
(torch.randn(2000, 2000) + 1).sum()

def sample(threads=None):
    if threads is not None:
        torch.set_num_threads(threads)
    return enma_fast.forecast(model, history, num_members=6, num_frames=4, seed=1).numpy()

expected = sample()

def same(threads=None):
    assert np.array_equal(sample(threads), expected)
    frames = np.stack(list(enma_fast.stream(model, history, num_members=6, num_frames=4, seed=1)), 2)
    assert np.allclose(frames, expected, atol=1e-4)
    return torch.get_num_threads()
"""


def run(tiny: Path, threads: int, code: str) -> object:
    """The JSON that a program prints, which has to end in time."""
    program = COMMON + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, tiny, str(threads)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_process_of_multiprocessing_forecasts_after_its_parent(tiny: Path, threads: int) -> None:
    code = """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(json.dumps([pool.map(same, [None, None]), pool.map(same, [2, 2]), torch.get_num_threads()]))
    """
    # A child starts with one thread and may ask for more.
    assert run(tiny, threads, code) == [[1, 1], [2, 2], threads]


def test_workers_of_a_data_loader_forecast(tiny: Path) -> None:
    code = """
    class Forecasts(torch.utils.data.Dataset):
        def __len__(self):
            return 4
        def __getitem__(self, i):
            return sample()
    loader = torch.utils.data.DataLoader(Forecasts(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    print(json.dumps([np.array_equal(part.numpy(), [expected, expected]) for part in loader]))
    """
    assert run(tiny, 3, code) == [True, True]


def test_a_child_of_a_child_and_the_parent_afterwards(tiny: Path) -> None:
    code = """
    def child(depth):
        pid = os.fork()
        if not pid:
            try:
                same(2)
                status = child(depth - 1) if depth else 0
            except BaseException:
                status = 1
            os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([child(1), same()]))
    """
    assert run(tiny, 3, code) == [0, 3]


def test_operators_of_a_child_that_asks_for_threads_end() -> None:
    """Outside of forecasts, which have a thread of their own: the pool of OpenMP is lost to the child."""
    code = """
    import os, torch
    from enma_fast.ops.philox_normal import philox_normal
    from enma_fast.training.subnormals import flush_subnormals

    torch.set_num_threads(3)
    many = torch.arange(64)
    def work():
        with flush_subnormals():
            return philox_normal(seed=1, members=many, frame=0, mask_step=0, tokens=many, channels=8, backend="native")
    expected = work()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(3)
        os._exit(0 if torch.equal(work(), expected) else 1)
    print(os.waitpid(child, 0)[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout == "0\n"
