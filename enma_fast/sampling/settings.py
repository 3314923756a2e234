"""Sampling settings of a forecast: the model's own, or others that the model can use."""

from __future__ import annotations

from dataclasses import fields

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from .shifts import views

# How members see a field; every model uses it.
_OF_ALL = ("shifts",)


def chosen_sampling(config: ModelConfig, settings: SamplingConfig | None) -> SamplingConfig:
    """Return the settings to sample with: `settings` if the model can use them, or its own if they are None.

    If a setting that the model's decoder of frames after the first does not use differs from the model's own, or if the
    field cannot be shifted so many times, an `EnmaError` names it.
    """
    own = config.sampling
    views(config, settings or own)
    if settings is None:
        return own
    used = (*config.step.settings, *_OF_ALL)
    for name in (entry.name for entry in fields(SamplingConfig) if entry.name not in used):
        if (given := getattr(settings, name)) != getattr(own, name):
            raise EnmaError(
                f"{name} is {given}; {config.name} decides frames by kind {config.step.kind!r}, which does not use it: "
                f"leave out --{name.replace('_', '-')} (from Python settings=dataclasses.replace(model.config.sampling,"
                f" ...); only {' and '.join(used)} may differ from the model's own)"
            )
    return settings
