"""Tiny models, and the three tasks."""

import pytest

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
