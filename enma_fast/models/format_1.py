"""Checkpoints of format 1, whose config names a tokenizer and dynamics in place of slots: as those of format 2.

Only config and names of tensors differ. Nothing behind this file knows of format 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import EnmaError

# Entries of a config that had one value in every model; with dots, those that training alone or shapes of weights show.
_GONE: Mapping[str, Mapping[str, Any]] = {
    "sampling": {"method": "midpoint", "last_flow_steps": None},
    "tokenizer": {"kernel": ..., "kernel_time": ...},
    "interpolation": {
        "distance_power": 1,
        "max_log2_frequency": 4.0,
        "learned_slopes": ...,
        **dict.fromkeys(("hidden", "head_dim", "frequencies", "slices"), ...),
        **dict.fromkeys(("refine_depth", "refine_heads", "refine_head_dim"), ...),
    },
    "dynamics": {"mlp_ratio": ...},
    "local": {"past": ...},
    "flow": {"likelihood_power": ..., "draws": ..., "time_law": ...},
}
# The parts of an old config.
_PARTS = ("tokenizer", "dynamics", "sampling")
_CONTEXT = {"width": 512, "heads": 8, "patch": [1], "positions": "sincos", "scale_shift_rank": 24}


def config_of(old: Mapping[str, Any]) -> dict[str, Any]:
    """A config of format 2, from the document of one of format 1; what it lacks has its default there."""
    codec, dynamics = dict(old.get("tokenizer", {})), _without(old.get("dynamics", {}), "dynamics")
    flow = {"kind": "flow"} | _without(dynamics.get("flow", {}), "flow")
    one_pass = dynamics.get("decoder") == "one-pass"
    local, first = dynamics.get("local"), dynamics.get("first")
    keys = {*_CONTEXT, "temporal_layers", "spatial_layers", "condition", "decoder", "local", "first", "flow"}
    if unknown := sorted(dynamics.keys() - keys):
        raise EnmaError(f"dynamics.{unknown[0]}: unknown key; use the version of enma_fast that wrote it")
    step = {"kind": "linear"} if local is None else {"kind": "local", **_without(local, "local")}
    # A trained head of frame 0 was worse than a random field (docs/notes/frame-0-field.md).
    initial = flow if first is None else {"kind": "gaussian"}
    new = {key: value for key, value in old.items() if key not in _PARTS}
    return new | {
        "codec": _codec(codec),
        "context": {"kind": "causal-transformer", "layers": dynamics.get("temporal_layers", 6)}
        | {key: dynamics.get(key, value) for key, value in _CONTEXT.items()},
        "trunk": {"layers": dynamics.get("spatial_layers", 6), "condition": dynamics.get("condition", "concat")},
        "initial": initial if one_pass else None,
        "step": step if one_pass else flow,
        "sampling": _without(old.get("sampling", {}), "sampling"),
    }


def names_of(config: Mapping[str, Any], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names of format 2; `config` is the document of format 2."""
    flow = "step" if config["initial"] is None else "initial"
    # A place in the new names for each beginning of an old one, or several; the longer beginning first.
    places: dict[str, tuple[str, ...]] = {
        "tokenizer.": () if config["codec"]["kind"] == "blocks" else ("codec.",),
        "dynamics.temporal.": ("dynamics.context.",),
        "dynamics.spatial.noise.": ("dynamics.step.noise.",),
        "dynamics.spatial.": ("dynamics.trunk.",),
        "dynamics.flow.": (f"dynamics.{flow}.",),
        "dynamics.read.": ("dynamics.step.read.",),
        "dynamics.local.": ("dynamics.step.",),
        "dynamics.first.": (),
    }
    new = {}
    for name, tensor in names.items():
        before = next((place for place in places if name.startswith(place)), "")
        for after in places.get(before, ("",)):
            new[after + name.removeprefix(before)] = tensor
    return new


def _codec(old: dict[str, Any]) -> dict[str, Any]:
    seen = old.pop("interpolation", None)
    if seen is not None:
        return {"kind": "points", **_without(old, "tokenizer"), "interpolation": _without(seen, "interpolation")}
    block = old.get("stride_ends", 1)
    values = 2 * old.get("field_channels", 1) * block ** len(old.get("grid", [0]))
    reach = old.get("kernel_ends", 7) - old.get("kernel_ends", 7) // 2
    # A network of zeros and ones that only put values elsewhere.
    lossless = old.get("layers") == ["time"] and not old.get("variational", True)
    if lossless and old.get("latent_channels") == old.get("width") == values and reach >= block:
        shared = ("grid", "lengths", "periodic", "field_channels", "field_mean", "field_scale")
        return {"kind": "blocks", "block": block, "frames": 2} | {k: old[k] for k in shared if k in old}
    return {"kind": "conv", **_without(old, "tokenizer")}


def _without(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a config without what is gone from it; `EnmaError` for a value that no model had."""
    for key, only in _GONE[name].items():
        if only is not ... and part.get(key, only) != only:
            raise EnmaError(f"{name}.{key}: is {part[key]!r}; {only!r} is all that is left")
    return {key: value for key, value in part.items() if key not in _GONE[name]}
