"""Rows are encoded with the same bits alone, among others, and on any number of threads."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Model
from enma_fast.sampling import batch_invariant
from enma_fast.sampling.batch_invariant import BLOCKS, map_rows
from enma_fast.training.recipes import RECIPES

from .._tiny import CONFIGS, model

PAPER = ["combined-small", "combined-paper", "advection-paper", "vorticity-paper", "gray-scott-paper"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(name: str) -> Model:
    return model(name) if name in CONFIGS else Model(RECIPES[name].model).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_invariant, "_IN_BLOCKS", {})


def coder(code: Callable[[Tensor], Tensor], dims: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: map_rows(code, rows, operation="test", block=BLOCKS[dims])


@pytest.mark.each_value
@pytest.mark.parametrize("what", ["encode", "decode"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "vorticity-paper" else name
        for name in (*PAPER, *CONFIGS)
        if name != "points"
    ],
)
def test_bits_depend_on_nothing_but_the_row(name: str, what: str) -> None:
    one = made(name)
    config, tok = one.config, one.config.codec
    block = BLOCKS[tok.dims]
    count = 2 * block + 1 if tok.dims == 1 else block + 2
    if what == "encode":
        rows, code = torch.randn(count, 3, *tok.grid, tok.field_channels), one.encode
    else:
        rows, code = torch.randn(count, 2, config.num_tokens, config.token_channels), one.decode
    run = coder(code, tok.dims)
    torch.set_num_threads(1)
    expected = run(rows)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(expected, code(rows), rtol=1e-4, atol=1e-5)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        for size in (1, 3, block, block + 1):
            parts = torch.cat([run(part) for part in rows.split(size)])
            assert torch.equal(parts, expected), (num_threads, size)


@pytest.mark.parametrize("name", PAPER)
def test_presets_are_coded_in_blocks(name: str) -> None:
    # One by one they would be right too, and slower.
    one = made(name)
    rows = torch.randn(1, 2, one.config.num_tokens, one.config.token_channels)
    coder(one.decode, one.config.codec.dims)(rows)
    assert list(batch_invariant._IN_BLOCKS.values()) == [True]


def test_rows_that_differ_in_a_block_are_coded_one_by_one() -> None:
    sizes: list[int] = []

    def by_place(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return rows + torch.arange(len(rows))[:, None] * 1e-3

    rows = torch.randn(9, 4)
    torch.set_num_threads(1)
    assert torch.equal(coder(by_place, 1)(rows), rows)
    assert batch_invariant._IN_BLOCKS == {("test", 8, (4,)): False}
    assert sizes[-9:] == [1] * 9


def test_one_look_serves_all_rows_of_a_shape() -> None:
    calls: list[Any] = []
    run = coder(lambda rows: calls.append(rows.shape) or rows.clone(), 1)
    for count in (1, 8, 17):
        assert len(run(torch.randn(count, 32))) == count
    # The look: a block, each of its rows in a pair, and both kinds once more.
    assert len(calls) == 9 + 2 + 1 + 1 + 3
    run(torch.randn(2, 33))
    assert len(batch_invariant._IN_BLOCKS) == 2


def test_one_look_serves_all_models_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enma_fast.forecasting.encoding.native_codec", lambda tokenizer: None)
    history = torch.randn(3, *(tok := made("plane-paper").config.codec).grid, tok.field_channels)
    for _ in range(2):
        sample_fields(made("plane-paper"), history, num_members=2)
    assert len(batch_invariant._IN_BLOCKS) == 2, "one for the encoder, one for the decoder"


def test_a_model_that_gives_no_numbers_spoils_no_other() -> None:
    run = coder(lambda rows: rows * torch.nan, 1)
    run(torch.randn(3, 32))
    assert list(batch_invariant._IN_BLOCKS.values()) == [True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["combined-small", "relative", "plane"])
def test_a_member_has_the_same_bits_alone_in_any_chunk_and_on_any_threads(name: str) -> None:
    model = made(name)
    tok = model.config.codec
    history = torch.randn(3, *tok.grid, tok.field_channels)
    expected = sample_fields(model, history, num_members=9)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        for chunk in (1, 2, 5, 9):
            assert torch.equal(sample_fields(model, history, num_members=9, chunk=chunk), expected), (
                num_threads,
                chunk,
            )
        assert torch.equal(sample_fields(model, history, num_members=1, first_member=7)[0], expected[7])


def test_the_callers_threads_stay_as_they_are() -> None:
    torch.set_num_threads(3)
    coder(lambda rows: rows.clone(), 1)(torch.zeros(3, 1))
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), found) == (3, [3])


def test_what_fails_in_a_worker_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        coder(lambda rows: rows * (1 // 0), 1)(torch.zeros(3, 1))
