"""Weights of a model for one that differs from it in its decoders: what a stage takes from the one before."""

from __future__ import annotations

from torch import Tensor

from ..models.checkpoint import load_tensors
from ..models.decoders.linear import LinearDecoder
from ..models.model import Model


def inherit(model: Model, before: Model, *, source: str) -> None:
    """Give a model the weights of another that differs from it in its decoders at most.

    A flow that decided all frames goes on with frame 0 where `step` is another, and back. A new `step` keeps what it
    has in common with the old one, such as the layer of its noise, and a linear one begins with the mean of the flow's
    residual target, where there is one. If any other weight is missing or of another shape, an `EnmaError` names
    `source` and the weight.
    """
    ours, tensors = model.state_dict(), before.state_dict()
    if model.config.step.kind != before.config.step.kind:
        flow = "step" if before.config.initial is None else "initial"
        old = {slot: _taken(tensors, slot) for slot in ("step", "initial")}
        into = "step" if model.config.initial is None else "initial"
        tensors |= {f"dynamics.{into}.{name}": tensor for name, tensor in old[flow].items()}
        for name in (name for name in ours if name.startswith("dynamics.step.") and name not in tensors):
            kept = old["step"].get(name.removeprefix("dynamics.step."))
            tensors[name] = kept if kept is not None and kept.shape == ours[name].shape else ours[name]
        moments = getattr(before.dynamics.decoder(0), "moments", None)
        if isinstance(model.dynamics.step, LinearDecoder) and moments is not None:
            channels = model.config.token_channels
            tensors["dynamics.step.read.weight"] = moments.weight[:channels]
            tensors["dynamics.step.read.bias"] = moments.bias[:channels]
    load_tensors(model, tensors, source=source)


def _taken(tensors: dict[str, Tensor], slot: str) -> dict[str, Tensor]:
    """The weights of a slot by their names in it, taken out of all."""
    place = f"dynamics.{slot}."
    return {name.removeprefix(place): tensors.pop(name) for name in list(tensors) if name.startswith(place)}
