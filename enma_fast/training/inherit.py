"""Weights of a model for one that differs from it in its decoders: what a stage takes from the one before."""

from __future__ import annotations

from ..models.checkpoint import load_tensors
from ..models.model import Model


def inherit(model: Model, before: Model, *, source: str) -> None:
    """Give a model the weights of another that differs from it in its decoders at most.

    A decoder takes what `Decoder.inherited` says from those of the other model, that of its own slot first. If any
    other weight is missing or of another shape, an `EnmaError` names `source` and the weight.
    """
    slots = before.config.decoders
    tensors = before.state_dict()
    for slot in slots:
        for name in before.dynamics.decoder(slot).state_dict():
            del tensors[f"dynamics.{slot}.{name}"]
    for slot in model.config.decoders:
        others = [before.dynamics.decoder(other) for other in sorted(slots, key=lambda other: other != slot)]
        weights = model.dynamics.decoder(slot).inherited(others)
        tensors |= {f"dynamics.{slot}.{name}": weight for name, weight in weights.items()}
    load_tensors(model, tensors, source=source)
