"""Recipes derived for other data: a field model for any grid of 1 to 3 dimensions, and the one stage that trains it."""

from __future__ import annotations

from ..config import BlocksConfig, FieldConfig, KnownInput, ModelConfig, PhysicsConfig
from ..errors import EnmaError
from ..utils.bounds import FEWEST_FRAMES
from .augment import Shift
from .field_stage import FieldStage
from .recipes import Recipe
from .stage import Optimizer

# Widths of the layers of each size, relative to those of the first.
SIZES = {"small": 1.0, "base": 1.5}
# Points along the shorter side of a plane from which a level of half the points is affordable, and needed, since
# signals move several points in a frame; and from which blocks are of 4 x 4 points.
_LEVEL, _LARGE = 48, 192
# Points of a line from which blocks are of 4 and of 2.
_FOUR, _TWO = 128, 16
# More steps than anybody takes: time ends the stage.
_MOST_STEPS = 10_000_000


def derived_recipe(
    name: str,
    codec: BlocksConfig,
    *,
    num_frames: int,
    frame_interval: float,
    size: str,
    shift: bool = True,
    seed: int = 0,
    known: tuple[KnownInput, ...] = (),
) -> Recipe:
    """A field model for fields of any grid, with its stage.

    Parameters
    ----------
    name : of the model and its data set
    codec : grid, domain and channels; points are tokens
    num_frames, frame_interval : frames of a trajectory, and their distance in time
    size : "small", or "base" with wider layers
    shift : training may move the fields around periodic axes, where the data are the same everywhere
    seed : of the training
    known : what the model is told

    Raises
    ------
    EnmaError
        If the size is unknown, or there are too few frames.
    """
    if size not in SIZES:
        raise EnmaError(f"size {size!r} is unknown; use one of {', '.join(SIZES)}")
    if num_frames < FEWEST_FRAMES:
        raise EnmaError(f"{name}: trajectories have {num_frames} frames; at least {FEWEST_FRAMES} are needed")
    grid = codec.grid
    block, step = _step(grid, SIZES[size])
    return Recipe(
        model=ModelConfig(
            name=name,
            dataset=name,
            num_frames=num_frames,
            frame_interval=frame_interval,
            codec=codec,
            context=PhysicsConfig(patch=(1,) * len(grid), block=block),
            step=step,
            known=known,
        ),
        stage=(
            FieldStage(
                steps=_MOST_STEPS,
                batch=64 if len(grid) == 1 else 16,
                optimizer=Optimizer(
                    kind="muon", learning_rate=3e-3, final_learning_rate=1.5e-5, warmup_steps=30, weight_decay=0.0
                ),
                augment=(Shift(),) if shift and any(codec.periodic) else (),
            ),
        ),
        seed=seed,
    )


def _step(grid: tuple[int, ...], wider: float) -> tuple[int, FieldConfig]:
    """Points of a block along an axis, and the decoder."""
    shortest = min(grid)

    def width(of: int) -> int:
        return round(of * wider)

    match len(grid):
        case 1:
            block = 4 if shortest >= _FOUR else 2 if shortest >= _TWO else 1
            return block, FieldConfig(block=block, width=width(64), layers=6)
        case 2 if shortest >= _LEVEL:
            block = 4 if shortest >= _LARGE else 2
            return block, FieldConfig(block=block, width=width(32), layers=2, middle_layers=4, middle_width=width(64))
        case 2:
            return 2, FieldConfig(width=width(64), layers=6)
        case _:
            return 2, FieldConfig(width=width(32), layers=4)
