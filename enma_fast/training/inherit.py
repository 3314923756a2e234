"""Weights of a model for one that differs from it in its decoders: what a stage takes from the one before."""

from __future__ import annotations

from ..models.checkpoint import load_tensors
from ..models.model import Model

# Names of the weights that a one-pass decoder has beside those of a masked-flow one.
ONE_PASS = ("dynamics.read.", "dynamics.local.", "dynamics.spatial.noise.")
# What draws frame 0, by a flow or by a head of its own.
FIRST = ("dynamics.first.", "dynamics.flow.")


def inherit(model: Model, before: Model, *, source: str) -> None:
    """Give a model the weights of another that differs from it in the decoder at most, or in what draws frame 0.

    A one-pass decoder begins with the mean of the flow head's residual target as its output, where there is one, and a
    head of frame 0 that has other sizes begins anew. If any other weight is missing or of another shape, an `EnmaError`
    names `source` and the weight.
    """
    ours = model.state_dict()
    apart = (*ONE_PASS, *FIRST) if model.config.dynamics.first is not None else ONE_PASS
    anew = FIRST if model.config.dynamics.first != before.config.dynamics.first else ()
    tensors = {
        name: t
        for name, t in before.state_dict().items()
        if not name.startswith(anew) and (name in ours or not name.startswith(apart))
    }
    new = {name: t for name, t in ours.items() if name.startswith(apart) and name not in tensors}
    moments = None if before.dynamics.flow is None else before.dynamics.flow.moments
    if "dynamics.read.weight" in new and moments is not None:
        channels = len(new["dynamics.read.weight"])
        new["dynamics.read.weight"] = moments.weight[:channels]
        new["dynamics.read.bias"] = moments.bias[:channels]
    tensors |= new
    load_tensors(model, tensors, source=source)
