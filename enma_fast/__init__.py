"""ENMA, a generative neural operator for parametric PDEs: ensemble forecasts from a few observed frames.

    model, history = enma_fast.load_model("combined-fast"), enma_fast.data.example()
    ensemble = enma_fast.forecast(model, history, num_members=64)
    print(ensemble.summary())
    ensemble.plot("forecast.png", history=history)

Names are imported when they are first used, so that `import enma_fast` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ModelConfig, SamplingConfig
    from .data import FieldFile, import_fields
    from .data import read as read_fields
    from .errors import EnmaError
    from .evaluation.scoring import score
    from .forecasting.api import forecast, stream
    from .forecasting.case import Case
    from .forecasting.ensemble import Ensemble
    from .models.checkpoint import load_model
    from .training.own_model import train_fields as train
    from .training.recipes import RECIPES

    __version__: str

# Public name -> the module that holds it and its name there.
_HOME = {
    "Case": ("forecasting.case", "Case"),
    "Ensemble": ("forecasting.ensemble", "Ensemble"),
    "EnmaError": ("errors", "EnmaError"),
    "FieldFile": ("data", "FieldFile"),
    "ModelConfig": ("config", "ModelConfig"),
    "RECIPES": ("training.recipes", "RECIPES"),
    "SamplingConfig": ("config", "SamplingConfig"),
    "forecast": ("forecasting.api", "forecast"),
    "import_fields": ("data", "import_fields"),
    "load_model": ("models.checkpoint", "load_model"),
    "read_fields": ("data", "read"),
    "score": ("evaluation.scoring", "score"),
    "stream": ("forecasting.api", "stream"),
    "train": ("training.own_model", "train_fields"),
}

__all__ = [
    "RECIPES",
    "Case",
    "EnmaError",
    "Ensemble",
    "FieldFile",
    "ModelConfig",
    "SamplingConfig",
    "__version__",
    "forecast",
    "import_fields",
    "load_model",
    "read_fields",
    "score",
    "stream",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        module, attribute = _HOME[name]
        value = getattr(import_module(f".{module}", __name__), attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("enma-fast")
    except PackageNotFoundError:
        # A source tree that was put on the path without being installed.
        return "0+unknown"
