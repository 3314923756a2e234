"""A stand-in for a GPU, and a model that is sampled on it."""

from collections.abc import Iterator

import pytest

from enma_fast.models.model import Model
from enma_fast.sampling import ladder
from enma_fast.sampling.ladder import ladder_of

from .._tiny import model as tiny_model
from ._stand_in import StandIn


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.delenv(ladder.VARIABLE, raising=False)
    ladder_of.cache_clear()
    yield StandIn(monkeypatch)
    ladder_of.cache_clear()


@pytest.fixture
def model() -> Model:
    return tiny_model("relative-fast")
