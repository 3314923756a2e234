"""Rows are coded with the same bits alone, among others, and on any number of threads."""

import threading
from collections.abc import Iterator

import pytest
import torch

from enma_fast.coding import BLOCK, code_rows
from enma_fast.config import PRESETS
from enma_fast.members import forecast
from enma_fast.model import Model

LINES = ["combined-small", "combined-paper", "advection-paper"]
PLANES = ["vorticity-paper", "gray-scott-paper"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("what", ["encode", "decode"])
@pytest.mark.parametrize("preset", LINES + PLANES)
def test_bits_depend_on_nothing_but_the_row(preset: str, what: str) -> None:
    config = PRESETS[preset].model
    model = Model(config).eval().requires_grad_(False)
    count = 2 * BLOCK + 1 if preset in LINES else 5
    if what == "encode":
        rows, code = torch.randn(count, 3, *config.tokenizer.grid, config.tokenizer.field_channels), model.encode
    else:
        rows = torch.randn(count, 2, config.num_tokens, config.token_channels)
        code = model.decode
    torch.set_num_threads(1)
    expected = code_rows(code, rows)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(expected, code(rows), rtol=1e-4, atol=1e-5)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        for size in (1, 2, 3, count):
            parts = torch.cat([code_rows(code, part) for part in rows.split(size)])
            assert torch.equal(parts, expected), (num_threads, size)


def test_a_member_has_the_same_bits_alone_in_any_chunk_and_on_any_threads() -> None:
    config = PRESETS["combined-small"].model
    model = Model(config).eval().requires_grad_(False)
    history = torch.randn(3, 128, 1)
    expected = forecast(model, history, num_members=9)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        for chunk in (1, 2, 5, 9):
            assert torch.equal(forecast(model, history, num_members=9, chunk=chunk), expected), (num_threads, chunk)
        assert torch.equal(forecast(model, history, num_members=1, first_member=7)[0], expected[7])


def test_the_callers_threads_stay_as_they_are() -> None:
    torch.set_num_threads(3)
    code_rows(lambda rows: rows, torch.zeros(3, 1))
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), found) == (3, [3])


def test_what_fails_in_a_worker_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        code_rows(lambda rows: rows * (1 // 0), torch.zeros(3, 1))
