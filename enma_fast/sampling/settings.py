"""The sampling settings of a forecast: the model's own, or others that the model has a use for."""

from __future__ import annotations

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from .shifts import shift_amounts

# Options that a one-pass model has no use for; its own values serve frame 0 of a generated trajectory.
_OF_MASK_STEPS = {
    "mask_steps": "--mask-steps",
    "flow_steps": "--flow-steps",
    "last_flow_steps": "--last-flow-steps",
    "method": "--flow-method",
}


def chosen_sampling(config: ModelConfig, settings: SamplingConfig | None) -> SamplingConfig:
    """The settings to sample with: those that are asked for if the model has a use for them, or else its own.

    Raises
    ------
    EnmaError
        If a one-pass model is given others than its own for mask steps or the flow, or if the field cannot be shifted
        so often; names the first setting, and its option.
    """
    own = config.sampling
    shift_amounts(config, settings or own)
    if settings is None or config.dynamics.decoder != "one-pass":
        return settings or own
    for name, option in _OF_MASK_STEPS.items():
        if (given := getattr(settings, name)) != getattr(own, name):
            raise EnmaError(
                f"{name} is {given}; {config.name} decides a frame in one pass and has no use for it: leave out"
                f" {option} (of settings= only temperature and shifts may differ from the model's own)"
            )
    return settings
