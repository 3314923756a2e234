"""A checkpoint of a few thousand parameters for the Combined data set, untrained."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from enma_fast.models.checkpoint import save_model
from enma_fast.models.model import Model
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import replace

# Changes to combined-small that make it small enough to train in a moment.
TINY_TOKENIZER = {
    "tokenizer.width": 4,
    "tokenizer.max_width": 8,
    "tokenizer.latent_channels": 2,
    "tokenizer.layers": ("space", "space", "space", "time", "residual"),
}
TINY_DYNAMICS = {
    "dynamics.heads": 2,
    "dynamics.width": 16,
    "dynamics.temporal_layers": 1,
    "dynamics.spatial_layers": 1,
    "dynamics.scale_shift_rank": 0,
    "dynamics.flow.width": 16,
    "dynamics.flow.layers": 1,
    "dynamics.flow.time_features": 8,
    "sampling.mask_steps": 2,
    "sampling.flow_steps": 1,
}


def tiny_config(recipe: str, **changes: Any) -> dict[str, Any]:
    """The config of a recipe's model, of a few thousand parameters, with dotted keys changed."""
    config = RECIPES[recipe].model
    return asdict(replace(config, {**TINY_TOKENIZER, **TINY_DYNAMICS} | changes))


def save_tiny(folder: Path, recipe: str = "combined-small") -> None:
    """Write the checkpoint; its weights are the same every time."""
    config = replace(RECIPES[recipe].model, {**TINY_TOKENIZER, **TINY_DYNAMICS})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(config)
    save_model(model, folder, card="an untrained model")
