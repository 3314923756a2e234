"""The names that `import enma_fast` offers."""

from pathlib import Path

import numpy as np
import pytest

import enma_fast
from enma_fast import config, data, errors
from enma_fast.evaluation import scoring
from enma_fast.forecasting import api as members
from enma_fast.forecasting import ensemble as results
from enma_fast.models import checkpoint
from enma_fast.training import own_model, recipes


def test_every_name_is_the_library_s_own() -> None:
    assert enma_fast.forecast is members.forecast
    assert enma_fast.stream is members.stream
    assert enma_fast.Ensemble is results.Ensemble
    assert enma_fast.load_model is checkpoint.load_model
    assert enma_fast.read_fields is data.read
    assert enma_fast.import_fields is data.import_fields
    assert enma_fast.train is own_model.train_fields
    assert enma_fast.FieldFile is data.FieldFile
    assert enma_fast.score is scoring.score
    assert enma_fast.RECIPES is recipes.RECIPES
    assert (enma_fast.ModelConfig, enma_fast.SamplingConfig) == (config.ModelConfig, config.SamplingConfig)
    assert enma_fast.EnmaError is errors.EnmaError
    assert enma_fast.__version__[0].isdigit()
    assert set(enma_fast.__all__) == {*enma_fast._HOME, "__version__"}
    assert set(enma_fast.__all__) <= set(dir(enma_fast))


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'enma_fast'"):
        enma_fast.forcast  # noqa: B018


def test_a_forecast_in_few_lines(tiny: Path, test_in: Path) -> None:
    model = enma_fast.load_model(tiny)
    fields = enma_fast.read_fields(test_in, select=[0, 1])
    ensemble = enma_fast.forecast(model, fields.u[:, :3], num_members=4, seed=1)
    assert ensemble.values.shape == (2, 4, 17, 128, 1)
    frames = list(enma_fast.stream(model, fields.u[:, :3], num_members=4, seed=1))
    np.testing.assert_allclose(np.stack(frames, axis=2), ensemble, rtol=1e-4, atol=1e-5)
