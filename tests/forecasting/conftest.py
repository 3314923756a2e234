"""Tiny models, and the three tasks."""

from functools import partial

import pytest

from enma_fast.forecasting import analysis, encoding

from .._extension import needs_native
from .._tiny import CONFIGS, model
from ._inputs import TASKS


@pytest.fixture(scope="module")
def models():
    return {name: model(name) for name in CONFIGS}


@pytest.fixture(scope="module")
def line():
    return model("relative")


@pytest.fixture(scope="module")
def plane():
    return model("plane")


@pytest.fixture(params=["relative", "plane", "relative-fast"])
def made(models, request):
    return models[request.param]


@pytest.fixture
def relative(models):
    return models["relative"]


@pytest.fixture
def points(models):
    return models["points"]


@pytest.fixture(params=TASKS)
def task(request):
    """Observed frames, and whether there is a context."""
    return TASKS[request.param]


@pytest.fixture(params=[pytest.param("reference"), pytest.param("native", marks=needs_native)])
def analysis_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimal interpolation by either implementation."""
    chosen = partial(analysis.analyse, backend=request.param)
    monkeypatch.setattr(analysis, "analyse", chosen)
    monkeypatch.setattr(encoding, "analyse", chosen)
