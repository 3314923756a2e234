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
    "codec.width": 4,
    "codec.max_width": 8,
    "codec.latent_channels": 2,
    "codec.layers": ("space", "space", "space", "time", "residual"),
}
TINY_DYNAMICS = {
    "context.heads": 2,
    "context.width": 16,
    "context.layers": 1,
    "trunk.layers": 1,
    "context.scale_shift_rank": 0,
    "step.width": 16,
    "step.layers": 1,
    "step.time_features": 8,
    "sampling.mask_steps": 2,
    "sampling.flow_steps": 1,
}


def _tiny(recipe: str) -> dict[str, Any]:
    """Dotted keys that make the model of a recipe small: the flow is what decides frame 0."""
    flow = "step." if RECIPES[recipe].model.initial is None else "initial."
    return {key.replace("step.", flow): value for key, value in {**TINY_TOKENIZER, **TINY_DYNAMICS}.items()}


def tiny_config(recipe: str, **changes: Any) -> dict[str, Any]:
    """The config of a recipe's model, of a few thousand parameters, with dotted keys changed."""
    return asdict(replace(RECIPES[recipe].model, _tiny(recipe) | changes))


def save_tiny(folder: Path, recipe: str = "combined-small") -> None:
    """Write the checkpoint; its weights are the same every time."""
    config = replace(RECIPES[recipe].model, _tiny(recipe))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(config)
    save_model(model, folder, card="an untrained model")
