"""The protocol of an equation, which the generator, the splits, the scores and training read.

An equation is one file `equations/<name>.py` with an `EQUATION`; nothing else lists it.

Shape suffixes: G environments, B trajectories, T frames, c channels; `*x` points of the grid, `*s` of the solver's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np

from ..domain import Domain
from ..errors import EnmaError

Values = dict[str, np.ndarray]
Interval = tuple[float, float]


class InitialConditions(Protocol):
    """The initial conditions of one group, float64 `[TRAJECTORIES_PER_GROUP, *s, c]`, from `splits.group_uniforms`."""

    def __call__(self, split: str, *, seed: int, group: int) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Environments:
    """Numbered environments: the values of the PDE parameters that groups of trajectories share.

    Attributes
    ----------
    count : environments are numbered 0 to `count - 1`
    ranges : name of a parameter -> the closed intervals that its values lie in
    values : (numbers int64 [G], split, seed) -> name -> float64 [G]; element g belongs to group g of the split
    """

    count: int
    ranges: Mapping[str, tuple[Interval, ...]]
    values: Callable[[np.ndarray, str, int], Values]

    def checked(self, numbers: np.ndarray, split: str, seed: int) -> Values:
        """The values of environments; `EnmaError` if one lies outside the ranges."""
        values = self.values(numbers, split, seed)
        for name, intervals in self.ranges.items():
            inside = np.any([(low <= values[name]) & (values[name] <= high) for low, high in intervals], axis=0)
            if not inside.all():
                wrong = values[name][np.argmin(inside)]
                raise EnmaError(f"{name} is {wrong:g} in the split '{split}'; its range is {intervals}")
        return values


def linspaces(levels: int, **ranges: Interval) -> Environments:
    """The products of evenly spaced values, `levels` of each parameter with both ends; the last one varies fastest."""

    def values(numbers: np.ndarray, split: str, seed: int) -> Values:
        indices = np.unravel_index(numbers, (levels,) * len(ranges))
        pairs = zip(ranges.items(), indices, strict=True)
        return {name: low + (high - low) * level / (levels - 1) for (name, (low, high)), level in pairs}

    intervals = {name: (interval,) for name, interval in ranges.items()}
    return Environments(count=levels ** len(ranges), ranges=intervals, values=values)


# A map from solutions to solutions: (u [B, T, *x, c], parameters name -> [B], amount [B]) -> (u, parameters).
Symmetry = Callable[[np.ndarray, Values, np.ndarray], tuple[np.ndarray, Values]]


def in_batches(size: int, solve: Callable[..., np.ndarray], u0: np.ndarray, parameters: Values) -> np.ndarray:
    """Solve so many trajectories at a time, whose arrays then stay in the processor's cache, and join the solutions."""
    parts = [slice(i, i + size) for i in range(0, len(u0), size)]
    return np.concatenate([solve(u0[p], {name: np.asarray(v)[p] for name, v in parameters.items()}) for p in parts])


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """The mean over space of a density, and what the physics says of it.

    Attributes
    ----------
    name : of the quantity
    density : fields `[..., c]` -> `[...]`
    law : it is "conserved", or it "decays": it never grows
    degree : power of the fields' amplitude that is its unit
    """

    name: str
    density: Callable[[np.ndarray], np.ndarray]
    law: Literal["conserved", "decays"]
    degree: int = 1


def mass(name: str = "mass") -> Quantity:
    """The mean of the first channel, conserved."""
    return Quantity(name=name, density=lambda u: u[..., 0], law="conserved")


def energy(law: Literal["conserved", "decays"], name: str = "energy") -> Quantity:
    """Half the mean square of the first channel."""
    return Quantity(name=name, density=lambda u: np.square(u[..., 0]) / 2, law=law, degree=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Equation:
    """A time-dependent PDE on a fixed grid, with its environments, initial conditions and solver.

    Attributes
    ----------
    name : that of its file in `equations/`, and the beginning of its data files' names
    channels : name -> unit of each field, "1" where it has none
    grid : points per dimension, at most 3 dimensions
    lengths : domain size per dimension: the period, or the distance from the first to the last point
    periodic : per dimension
    num_frames, frame_spacing : frame 0 is the initial condition
    inside, outside : environments in distribution, divided among train, val and test-in, and those of test-out
    initial_conditions : float64 `[TRAJECTORIES_PER_GROUP, *s, c]` of a group
    spin_up : (initial conditions, parameters name -> float64 [B]) -> frames 0, for an equation whose own flow has to
        form them first; by default they are the initial conditions
    solve : (u0 float64 `[B, *s, c]`, parameters name -> float64 [B]) -> float64 `[B, num_frames, *x, c]`;
        a trajectory does not depend on the others of its batch
    solver_grid : points per dimension of `u0`, multiples of `grid` on periodic dimensions, equal to it on others;
        by default `grid`
    symmetries : by the name of the training setting that draws their amount, "amplitude" or "boost"
    quantities : that the equation conserves, or lets decay

    Raises
    ------
    EnmaError
        If the entries do not fit each other.
    """

    name: str
    channels: Mapping[str, str]
    grid: tuple[int, ...]
    lengths: tuple[float, ...]
    periodic: tuple[bool, ...]
    num_frames: int
    frame_spacing: float
    inside: Environments
    outside: Environments
    initial_conditions: InitialConditions
    solve: Callable[[np.ndarray, Values], np.ndarray]
    spin_up: Callable[[np.ndarray, Values], np.ndarray] | None = None
    solver_grid: tuple[int, ...] = ()
    symmetries: Mapping[str, Symmetry] = field(default_factory=lambda: MappingProxyType({}))
    quantities: tuple[Quantity, ...] = ()

    def __post_init__(self) -> None:
        if not self.solver_grid:
            object.__setattr__(self, "solver_grid", self.grid)
        try:
            _ = self.domain, Domain(self.solver_grid, self.lengths, self.periodic)
        except EnmaError as error:
            raise EnmaError(f"equation {self.name}: {error}") from None
        for points, start, wraps in zip(self.grid, self.solver_grid, self.periodic, strict=True):
            if start % points if wraps else start != points:
                raise EnmaError(
                    f"equation {self.name}: solver_grid is {self.solver_grid} and grid {self.grid}; give multiples on "
                    "periodic dimensions, and the same number of points on others"
                )
        if set(self.inside.ranges) != set(self.outside.ranges):
            raise EnmaError(
                f"equation {self.name}: its parameters are {', '.join(self.inside.ranges)} in distribution and "
                f"{', '.join(self.outside.ranges)} out of it; give both the same names"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the PDE parameters."""
        return tuple(self.inside.ranges)

    @property
    def domain(self) -> Domain:
        """Where the fields live."""
        return Domain.of(self)

    @property
    def times(self) -> np.ndarray:
        """Times of the frames, float64 [num_frames]."""
        return np.arange(self.num_frames) * self.frame_spacing

    @property
    def coords(self) -> list[np.ndarray]:
        """The points of each dimension, float64; a periodic one leaves out its right end."""
        return list(self.domain.coords)

    def environments(self, split: str) -> Environments:
        """The environments that a split draws from."""
        return self.outside if split == "test-out" else self.inside
