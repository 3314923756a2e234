"""Sampling settings of a forecast: the model's own, or others that the model can use."""

from __future__ import annotations

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from .shifts import views

# Settings that a one-pass model does not use, except its own values for frame 0 of a generated trajectory.
_MASK_STEP_OPTIONS = {
    "mask_steps": "--mask-steps",
    "flow_steps": "--flow-steps",
    "last_flow_steps": "--last-flow-steps",
    "method": "--flow-method",
}


def chosen_sampling(config: ModelConfig, settings: SamplingConfig | None) -> SamplingConfig:
    """Return the settings to sample with: `settings` if the model can use them, or its own if they are None.

    If settings of mask steps or of the flow differ from those of a one-pass model, or if the field cannot be shifted so
    many times, an `EnmaError` names the first such setting and its option.
    """
    own = config.sampling
    views(config, settings or own)
    if settings is None or config.dynamics.decoder != "one-pass":
        return settings or own
    for name, option in _MASK_STEP_OPTIONS.items():
        if (given := getattr(settings, name)) != getattr(own, name):
            raise EnmaError(
                f"{name} is {given}; {config.name} decides a frame in one pass and does not use it: leave out {option}"
                " (from Python settings=dataclasses.replace(model.config.sampling, temperature=...); only temperature "
                "and shifts may differ from the model's own)"
            )
    return settings
