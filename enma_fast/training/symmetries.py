"""The symmetries of an equation as augmentation: a solution carried to another solution, with other parameters.

`train forecasts` carries each batch on the way. The dynamics encode their data once, so with a boost each environment
of theirs, and of the tokenizer's, is there twice: as it is, and carried by an amount of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ..data import EQUATIONS, FieldFile
from ..errors import EnmaError
from .config import TrainingConfig

# Settings of a training that draw amounts of a symmetry, and their values that draw none.
NEUTRAL = {"amplitude": (1.0, 1.0), "boost": 0.0}

Symmetry = Callable[..., Any]


def symmetries(dataset: str, config: TrainingConfig, names: Collection[str] = NEUTRAL.keys()) -> dict[str, Symmetry]:
    """The symmetries, of those named, that a training asks for, as its data set's equation declares them.

    Raises
    ------
    EnmaError
        Names the setting, if the equation has no such symmetry.
    """
    asked = [name for name in names if getattr(config, name) != NEUTRAL[name]]
    known = EQUATIONS[dataset].symmetries if dataset in EQUATIONS else {}
    for name in asked:
        if name not in known:
            raise EnmaError(
                f"{name}: the equation of {dataset} declares no such symmetry (it has: {', '.join(known) or 'none'}); "
                f"leave it at {NEUTRAL[name]}"
            )
    return {name: known[name] for name in asked}


def carried(
    u: np.ndarray,
    parameters: Mapping[str, np.ndarray],
    amounts: Mapping[str, np.ndarray],
    by: Mapping[str, Symmetry],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fields fp32 ``[B, T, *grid, c]`` and parameters ``[B]`` that symmetries carry by ``amounts`` ``[B]``."""
    fields, values = u.astype(np.float64), dict(parameters)
    for name, symmetry in by.items():
        fields, values = symmetry(fields, values, amounts[name])
    return fields.astype(np.float32), values


def with_boosts(data: FieldFile, dataset: str, config: TrainingConfig, *, seed: int) -> FieldFile:
    """The training data and, with `config.boost`, each environment once more as the mean flow of its draw carries it.

    Raises
    ------
    EnmaError
        If the equation of the data set has no boosts, or the file has no environments.
    """
    # The tokenizer scales its samples itself, whatever the equation is.
    by = symmetries(dataset, config, ["boost"])
    if not by:
        return data
    if data.environment is None:
        raise EnmaError(f"{data.path}: lacks scalars/environment, which a boost belongs to; leave boost at 0")
    there, place = np.unique(data.environment, return_inverse=True)
    speed = config.boost * np.random.default_rng(seed).standard_normal(len(there))[place]
    u, parameters = carried(data.u, data.parameters, {"boost": speed}, by)
    return dataclasses.replace(
        data,
        u=np.concatenate([data.u, u]),
        parameters={name: np.concatenate([data.parameters[name], parameters[name]]) for name in parameters},
        environment=np.concatenate([data.environment, data.environment + there.max() + 1]),
        numbers=None,
        total=None,
    )
