"""Steps on a GPU are compiled where that is faster there; the device is a clock that the test sets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enma_fast.training import compiled
from enma_fast.training.compiled import chosen_forward
from enma_fast.training.ranks import Rank

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Clock:
    """Seconds of a call: those of what it calls."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self, run: Callable[[], object], device: torch.device) -> float:
        begin = self.now
        run()
        return self.now - begin


class Layer(nn.Linear):
    """A module that takes so many seconds."""

    def __init__(self, clock: Clock, takes: float) -> None:
        super().__init__(2, 1)
        self.clock, self.takes = clock, takes

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.takes
        return super().forward(x)


class Twin:
    """Stands in for the compiled module."""

    def __init__(self, module: Layer, takes: float) -> None:
        self.module, self.takes, self.factor = module, takes, 1.0
        self.failure: Exception | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.failure is not None:
            raise self.failure
        self.module.clock.now += self.takes
        return self.factor * nn.functional.linear(x, self.module.weight, self.module.bias)


def trial(forward: Callable[..., Any]) -> Tensor:
    loss: Tensor = forward(torch.ones(4, 2)).square().mean()
    loss.backward()
    return loss


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    clock = Clock()
    monkeypatch.setattr(compiled, "seconds", clock.seconds)
    return Layer(clock, 2.0)


@pytest.fixture
def twin(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> Twin:
    made = Twin(layer, 1.0)
    monkeypatch.setattr(compiled, "compile_module", lambda module: made)
    return made


def chosen(layer: Layer, asked: bool | None = None, device: torch.device = CUDA, rank: Rank | None = None) -> Any:
    return chosen_forward(layer, asked=asked, device=device, trial=trial, rank=rank or Rank())


def test_the_faster_one_is_taken_on_a_gpu(layer: Layer, twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "enma_fast")
    assert chosen(layer) is twin
    twin.takes = 3.0
    assert chosen(layer) is layer
    assert [record.getMessage() for record in caplog.records] == [
        "steps are compiled: 1000.0 ms compiled, 2000.0 ms without",
        "steps are not compiled: 3000.0 ms compiled, 2000.0 ms without",
    ]


def test_what_is_asked_for_is_not_timed(layer: Layer, twin: Twin) -> None:
    assert chosen(layer, asked=True, device=CPU) is twin
    assert chosen(layer, asked=False) is layer
    assert chosen(layer, device=CPU) is layer
    assert layer.clock.now == 0


def test_what_does_not_compile_or_gives_another_loss_is_left(
    layer: Layer, twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    twin.factor = 1.1
    assert chosen(layer) is layer
    assert "the loss would be" in caplog.text
    twin.failure = RuntimeError("Failed to find C compiler.\nlong explanation")
    assert chosen(layer) is layer
    assert "steps are not compiled: RuntimeError: Failed to find C compiler." in caplog.text
    assert "long explanation" not in caplog.text


def test_ranks_take_the_choice_of_the_first(layer: Layer, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rank, "from_first", lambda rank, value: (True, None))
    twin.takes = 3.0
    assert chosen(layer, rank=Rank(1, 2)) is twin
    assert layer.clock.now == 0
