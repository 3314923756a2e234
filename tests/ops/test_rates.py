"""Rates of number formats: measured once, kept in a file, and what is fastest by them is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.forecasting.request import ForecastRequest, dtype_named
from enma_fast.ops import rates
from enma_fast.ops._backend import extension
from enma_fast.ops.rates import Rates
from enma_fast.sampling.engine import Engine, weights_dtype
from enma_fast.training.loop import fast_bf16

from .._static import build
from .._tiny import model as tiny_model

CPU = torch.device("cpu")
# fp32 wins in training, bf16 in sampling; and the other way round.
ONE = Rates(products={"fp32": 2.0, "bf16": 1.0}, head={"fp32": 1.0, "bf16": 3.0})
OTHER = Rates(products={"fp32": 1.0, "bf16": 2.0}, head={"fp32": 3.0, "bf16": 1.0})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates._measured.cache_clear()
    fast_bf16.cache_clear()
    yield tmp_path / "enma_fast"
    rates._measured.cache_clear()
    fast_bf16.cache_clear()


def probes(monkeypatch: pytest.MonkeyPatch, found: Rates) -> list[torch.device]:
    """Devices that are probed, with this result."""
    seen: list[torch.device] = []

    def probe(device: torch.device) -> Rates:
        seen.append(device)
        return found

    monkeypatch.setattr(rates, "probe", probe)
    return seen


def test_a_probe_times_what_is_used_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, timed, seen = torch.get_num_threads(), rates.seconds, set()
    monkeypatch.setattr(
        rates, "seconds", lambda run, device: (seen.add(torch.get_num_threads()), timed(run, device))[1]
    )
    found = rates.probe(CPU)
    assert (seen, torch.get_num_threads()) == ({1}, threads)
    assert list(found.products) == ["fp32", "bf16"]
    assert list(found.head) == (["fp32", "bf16"] if extension() else [])
    # A core does between ten million and a trillion operations a second in any format.
    assert all(1e7 < rate < 1e13 for rate in (*found.products.values(), *found.head.values()))
    assert found.products[found.training] == max(found.products.values())


def test_the_faster_format_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 2.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(rates, "seconds", lambda run, device: run())
    found = rates._rates(lambda dtype, device: (lambda: seconds[dtype], 6.0), CPU)
    assert found == {"fp32": 3.0, "bf16": 6.0}


def test_the_first_product_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first one generates code: bf16 is the faster format here, and was taken for emulated once.
    times = {torch.float32: iter([2.0] * rates.ROUNDS), torch.bfloat16: iter([100.0, *[1.0] * rates.ROUNDS])}
    monkeypatch.setattr(rates, "seconds", lambda run, device: run())
    assert rates._rates(lambda dtype, device: (lambda: next(times[dtype]), 6.0), CPU) == {"fp32": 3.0, "bf16": 6.0}


def test_a_format_without_instructions_is_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {torch.float32: 0, torch.bfloat16: 0}

    def work_of(dtype: torch.dtype, device: torch.device) -> rates.Work:
        def run() -> float:
            calls[dtype] += 1
            return 1.0 if dtype == torch.float32 else 2 * rates.SLOW

        return run, 1.0

    monkeypatch.setattr(rates, "seconds", lambda run, device: run())
    rates._rates(work_of, CPU)
    assert calls == {torch.float32: rates.ROUNDS, torch.bfloat16: 2}


def test_it_is_measured_once_for_a_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = probes(monkeypatch, ONE)
    assert rates.measured(CPU) == ONE
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == {"products": ONE.products, "head": ONE.head}
    # Another process reads the file; another version, or number of threads, measures for itself.
    rates._measured.cache_clear()
    assert rates.measured(CPU) == ONE
    assert len(seen) == 1
    monkeypatch.setattr(rates, "versions", lambda: {"torch": "another", "enma-fast": "1"})
    rates._measured.cache_clear()
    rates.measured(CPU)
    assert len(seen) == len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"products": {"fp32": 0}, "head": {}}', '{"products": {"fp8": 1}, "head": {}}', "\x00"]
)
def test_a_damaged_file_is_measured_again(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = probes(monkeypatch, ONE)
    rates.measured(CPU)
    (file,) = folder.iterdir()
    file.write_text(text)
    rates._measured.cache_clear()
    assert rates.measured(CPU) == ONE
    assert len(seen) == 2
    assert json.loads(file.read_text())["products"] == ONE.products


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes(monkeypatch, ONE)
    folder.write_text("a file")
    assert rates.measured(CPU) == ONE


def test_no_home_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    seen = probes(monkeypatch, ONE)
    assert rates.measured(CPU) == rates.measured(CPU) == ONE
    assert len(seen) == 1
    assert not folder.exists()


@pytest.mark.parametrize("found", [ONE, OTHER])
def test_auto_is_what_was_measured(found: Rates, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = probes(monkeypatch, found)
    dynamics = build("paper")
    # The default does not measure.
    assert weights_dtype(dynamics) == torch.float32
    assert weights_dtype(dynamics, torch.bfloat16) == torch.bfloat16
    assert not seen
    expected = torch.bfloat16 if found is ONE else torch.float32
    assert weights_dtype(dynamics, "auto") == expected
    if extension() is not None:
        assert Engine(dynamics, dtype="auto").dtype == expected
    # A store writes down the format that was chosen.
    chosen = ForecastRequest(dtype=dtype_named("auto")).on(tiny_model())
    assert (chosen.dtype, chosen.precision) == (expected, "bf16" if found is ONE else "fp32")
    assert ForecastRequest().on(tiny_model()).precision == "model"
    assert fast_bf16("cpu") == (found is OTHER)
    with pytest.raises(EnmaError, match="dtype"):
        weights_dtype(dynamics, "fastest")


def test_the_callers_random_numbers_stay() -> None:
    before = torch.get_rng_state()
    rates.probe(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
