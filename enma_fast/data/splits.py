"""Splits of a data set: the environments (PDE parameters) of each, and the random numbers of each group.

An equation numbers its environments in distribution (`Equation.inside`, a million for the products of three
linspaces). A fixed shuffle that does not depend on the seed cuts these numbers into train (90 %), val (5 %) and
test-in (5 %), so a train set of any seed is disjoint from a test set of any other. Inside its part a split
walks through a second, seeded shuffle: group g takes the g-th environment. Nothing is therefore drawn twice, and
the first groups are the same whatever their number. The split test-out walks over environments of its own.

Only raw Philox words are used, because NumPy promises to keep those (and not its distributions) between
releases.
"""

from __future__ import annotations

import numpy as np

from ..errors import EnmaError
from .equation import Equation

TRAJECTORIES_PER_GROUP = 10
# Paper section C: 1,200 / 120 / 12 groups of 10 trajectories; the paper names no validation set.
DEFAULT_GROUPS = {"train": 1200, "val": 60, "test-in": 120, "test-out": 12}

# First and last twentieth of the environments that a split takes.
_TWENTIETHS = {"train": (0, 18), "val": (18, 19), "test-in": (19, 20), "test-out": (0, 20)}
_STREAM_PARTITION, _STREAM_ORDER, _STREAM_GROUP = 0, 1, 2


def check_split(split: str) -> None:
    """Raise `EnmaError` unless `split` is one of train, val, test-in, test-out."""
    if split not in DEFAULT_GROUPS:
        raise EnmaError(f"split '{split}' is unknown; use one of {', '.join(DEFAULT_GROUPS)}")


def dataset_split(name: str) -> tuple[str, str | None]:
    """Data set and split in a file's `dataset_name`: `"combined-test-in"` is `("combined", "test-in")`."""
    for split in DEFAULT_GROUPS:
        if name.endswith(f"-{split}"):
            return name.removesuffix(f"-{split}"), split
    return name, None


def default_groups(equation: Equation, split: str) -> int:
    """Groups of a split: the paper's number, or all environments where there are fewer."""
    first, last = _part(equation, split)
    return min(DEFAULT_GROUPS[split], last - first)


def environments(equation: Equation, split: str, *, groups: int, seed: int) -> np.ndarray:
    """Numbers of the first `groups` environments of a split, all different, int64 [groups].

    Each is in [0, equation.environments(split).count). `EnmaError` if the split is unknown, `seed` is negative, or
    `groups` is not in 1..size of the split's part.
    """
    check_split(split)
    first, last = _part(equation, split)
    if not 1 <= groups <= last - first:
        raise EnmaError(f"groups is {groups}; the split '{split}' has between 1 and {last - first} groups")
    if seed < 0:
        raise EnmaError(f"seed is {seed}; use a seed of 0 or more")
    tag = _tag(equation.name)
    if split == "test-out":
        part = np.arange(last)
    else:
        part = _shuffle(equation.inside.count, (_STREAM_PARTITION, tag))[first:last]
    return part[_shuffle(part.size, (_STREAM_ORDER, tag, _tag(split), seed))[:groups]]


def group_uniforms(equation: str, split: str, *, seed: int, group: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 of the given shape, that belong to one group of a split."""
    words = _words((_STREAM_GROUP, _tag(equation), _tag(split), seed, group), int(np.prod(shape)))
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _part(equation: Equation, split: str) -> tuple[int, int]:
    first, last = _TWENTIETHS[split]
    count = equation.environments(split).count
    return first * count // 20, last * count // 20


def _tag(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


def _words(key: tuple[int, ...], count: int) -> np.ndarray:
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def _shuffle(size: int, key: tuple[int, ...]) -> np.ndarray:
    return np.argsort(_words(key, size), kind="stable")
