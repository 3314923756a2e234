"""Augmentations: what a stage of training makes of the trajectories that it draws, as one list in its recipe.

Each is a small object that acts on a batch of fields before they are encoded, in the order of the list. `Emphasis` says
how often a trajectory is drawn instead, and `Scattered` how a codec sees it. One that the data or their
equation do not allow is refused by name. The dynamics encode their data once, so they read off `Shift`, `Boost`,
`Strides`, `CutContexts` and `Scattered` how (:mod:`enma_fast.training.dynamics`).

Legend: B trajectories, T frames, S points of the grid, flattened over its dimensions, c channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data import EQUATIONS, FieldFile
from ..errors import EnmaError
from ..sampling.shifts import mirrors, shifted
from ..utils.kinds import Slot

_T = TypeVar("_T")


@dataclass
class Batch:
    """Trajectories of a batch before they are encoded.

    Attributes
    ----------
    config : of the model
    fields : segments ``[B, T, *grid, c]`` of this rank's part of the batch, the target last
    parameters : of the equation, by name ``[B]``, for each segment
    times : of the frames of the target
    size, mine : trajectories of the whole batch, and those of this rank
    """

    config: ModelConfig
    fields: list[Tensor]
    parameters: list[dict[str, np.ndarray]]
    times: Tensor
    size: int
    mine: slice

    def frames(self, chosen: slice) -> None:
        """Take some frames of all segments; a last latent frame is whole, as at its place of whole trajectories.

        Unless it is the second one.
        """
        codec, left = self.config.codec, len(self.times[chosen])
        count = codec.whole_frames(left) if codec.whole_latents(left) > 1 else left
        self.times = self.times[chosen][:count]
        self.fields = [u[:, chosen][:, :count] for u in self.fields]


@dataclass(frozen=True, kw_only=True)
class Augmentation(Slot):
    """Base of the augmentations, which are told apart by their tag."""

    kind: str

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        """Why it does not apply to the data, their equation or the domain; None where it does."""
        return None

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        """Change a batch, by numbers that are drawn for all of it whatever part of it a rank has."""


@dataclass(frozen=True, kw_only=True)
class Shift(Augmentation):
    """Each trajectory from a random place of the periodic dimensions."""

    kind: str = "shift"

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        return None if any(data.periodic) else "the domain has walls on all sides"

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        codec = batch.config.codec
        for i, u in enumerate(batch.fields):
            shifts = random_shifts(codec.grid, codec.periodic, batch.size, rng)
            batch.fields[i] = roll(u, [s[batch.mine] for s in shifts])


@dataclass(frozen=True, kw_only=True)
class Mirror(Augmentation):
    """Each batch in one view of a domain between walls (:mod:`enma_fast.sampling.shifts`).

    It is mirrored or not along each dimension, and on a square the dimensions are exchanged or not.
    """

    kind: str = "mirror"

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        return "the domain is periodic" if any(data.periodic) else None

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        views = mirrors(batch.config)
        view = views[_one_of(len(views), rng)]
        batch.fields = [shifted(u, view, batch.config.codec.periodic) for u in batch.fields]


@dataclass(frozen=True, kw_only=True)
class _Symmetry(Augmentation):
    """A symmetry that the equation declares under the tag: solutions carried to solutions with other parameters."""

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        symmetries = EQUATIONS[config.dataset].symmetries if config.dataset in EQUATIONS else {}
        if self.kind in symmetries:
            return None
        return f"the equation of {config.dataset} declares no such symmetry (it has: {', '.join(symmetries) or 'none'})"

    def amounts(self, count: int, rng: torch.Generator) -> Tensor:
        """How far each of `count` trajectories is carried."""
        raise NotImplementedError

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        amounts = self.amounts(batch.size, rng)[batch.mine].double().numpy()
        for i, u in enumerate(batch.fields):
            fields, batch.parameters[i] = self.carried(batch.config, u.numpy(), batch.parameters[i], amounts)
            batch.fields[i] = torch.from_numpy(fields)

    def carried(
        self, config: ModelConfig, u: np.ndarray, parameters: dict[str, np.ndarray], amounts: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Fields fp32 ``[B, T, *grid, c]`` and parameters ``[B]`` carried by ``amounts`` ``[B]``."""
        by = EQUATIONS[config.dataset].symmetries[self.kind]
        fields, values = by(u.astype(np.float64), dict(parameters), amounts)
        return fields.astype(np.float32), values


@dataclass(frozen=True, kw_only=True)
class Amplitude(_Symmetry):
    """Fields times a factor.

    Attributes
    ----------
    between : least and largest factor, which is log-uniform
    """

    kind: str = "amplitude"
    between: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.between
        _require(0 < low <= high < math.inf, self, "between", "two numbers above 0, the smaller first")

    def amounts(self, count: int, rng: torch.Generator) -> Tensor:
        low, high = self.between
        return low * (high / low) ** torch.rand(count, generator=rng)


@dataclass(frozen=True, kw_only=True)
class Boost(_Symmetry):
    """A mean flow is added.

    The dynamics, which encode their data once, see each environment as it is and carried by a flow of its own.

    Attributes
    ----------
    deviation : standard deviation of the flow, which is normal, in the unit of the fields
    """

    kind: str = "boost"
    deviation: float

    def __post_init__(self) -> None:
        _require(0 <= self.deviation < math.inf, self, "deviation", "0 or more, and finite")

    def amounts(self, count: int, rng: torch.Generator) -> Tensor:
        return self.deviation * torch.randn(count, generator=rng)

    def with_copies(self, data: FieldFile, config: ModelConfig, *, seed: int) -> FieldFile:
        """The data, and each environment once more, carried by a flow of its own."""
        assert data.environment is not None
        environments, place = np.unique(data.environment, return_inverse=True)
        amounts = self.amounts(len(environments), torch.Generator().manual_seed(seed)).double().numpy()[place]
        u, parameters = self.carried(config, data.u, data.parameters, amounts)
        return dataclasses.replace(
            data,
            u=np.concatenate([data.u, u]),
            parameters={name: np.concatenate([data.parameters[name], parameters[name]]) for name in parameters},
            environment=np.concatenate([data.environment, data.environment + environments.max() + 1]),
            numbers=None,
            total=None,
        )


@dataclass(frozen=True, kw_only=True)
class LateStart(Augmentation):
    """Some batches begin at a later frame, within the first half: an autonomous equation may.

    Attributes
    ----------
    share : of the batches, 0 to 1
    """

    kind: str = "late-start"
    share: float

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, self, "share", "a number from 0 to 1")

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        late = torch.rand((), generator=rng).item() < self.share
        first = 1 + _one_of(max(1, len(batch.times) // 2 - 1), rng)
        if late:
            batch.frames(slice(first, None))


@dataclass(frozen=True, kw_only=True)
class Strides(Augmentation):
    """Every n-th frame of a batch: an autonomous equation with n times its rates.

    Attributes
    ----------
    steps : numbers n, one of which is drawn
    """

    kind: str = "strides"
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(len(self.steps) > 0 and min(self.steps) >= 1, self, "steps", "whole numbers from 1 on")

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        frames, most = len(data.times), max(self.steps)
        left = config.codec.whole_frames(len(range(0, frames, most)))
        return f"a stride of {most} leaves {left} of {frames} frames, none to forecast" if left < 2 < frames else None

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        stride = self.drawn(rng)
        if stride > 1 and len(batch.times[::stride]) > 1:
            batch.frames(slice(None, None, stride))

    def drawn(self, rng: torch.Generator) -> int:
        """One of the strides."""
        return self.steps[_one_of(len(self.steps), rng)]


@dataclass(frozen=True, kw_only=True)
class CutContexts(Augmentation):
    """Some contexts are cut to their first frames, to as many as are drawn between 3 and all.

    Attributes
    ----------
    share : of the contexts, 0 to 1
    """

    kind: str = "cut-contexts"
    share: float = 0.5

    shortest: ClassVar[int] = 3

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, self, "share", "a number from 0 to 1")

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        if len(batch.fields) < 2:
            return
        codec, frames = batch.config.codec, len(batch.times)
        if (count := self.drawn(frames, rng, least=self.shortest)) < frames:
            batch.fields[0] = batch.fields[0][:, : codec.whole_frames(count)]

    def drawn(self, frames: int, rng: torch.Generator, *, least: int) -> int:
        """How many of so many frames are left, at least `least` of them."""
        if torch.rand((), generator=rng).item() >= self.share:
            return frames
        return int(torch.randint(min(least, frames), frames + 1, (), generator=rng))


@dataclass(frozen=True, kw_only=True)
class Damping(Augmentation):
    """Some trajectories under a damping that their equation lacks, for physics beyond that of the data.

    A solution whose waves are multiplied by ``exp(-d |k|^p t)`` solves the equation with the term
    ``-d (-lap)^(p/2) u`` added: exactly where the equation is linear with constant coefficients, nearly where its other
    terms are small.

    Attributes
    ----------
    rates : pairs of an order p and the largest d, in the units of the data: a length to the power p over a time
    share : of the trajectories, 0 to 1
    """

    kind: str = "damping"
    rates: tuple[tuple[float, float], ...]
    share: float

    def __post_init__(self) -> None:
        fits = len(self.rates) > 0 and all(0 <= p <= 8 and 0 <= d < math.inf for p, d in self.rates)
        _require(fits, self, "rates", "pairs of an order from 0 to 8 and a largest rate of 0 or more")
        _require(0 <= self.share <= 1, self, "share", "a number from 0 to 1")

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        return None if all(data.periodic) else "the domain has walls, on which waves are none of the fields'"

    def __call__(self, batch: Batch, rng: torch.Generator) -> None:
        order_B, rate_B = (x[batch.mine] for x in self.drawn(batch.size, rng))
        lengths = batch.config.codec.lengths
        batch.fields = [damped(u, order_B, rate_B, times=batch.times, lengths=lengths) for u in batch.fields]

    def drawn(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Orders p and rates d ``[B]``; the rate is 0 for all but about the share of them."""
        order, most = torch.tensor(self.rates, dtype=torch.float64).unbind(1)
        kind = torch.randint(len(order), (count,), generator=rng)
        rate = torch.rand(count, generator=rng, dtype=torch.float64) * most[kind]
        return order[kind], rate * (torch.rand(count, generator=rng) < self.share)


@dataclass(frozen=True, kw_only=True)
class Emphasis(Augmentation):
    """Some trajectories are drawn more often than others.

    Attributes
    ----------
    powers : names of parameters and their powers, whose product says how often
    """

    kind: str = "emphasis"
    powers: tuple[tuple[str, float], ...]

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        for name, power in self.powers:
            if name not in data.parameters:
                return f"the data have no parameter {name!r} (they have: {', '.join(data.parameters) or 'none'})"
            with np.errstate(all="ignore"):
                odds = np.asarray(data.parameters[name], dtype=np.float64) ** power
            if not (np.isfinite(odds).all() and (odds > 0).all()):
                return f"{name} to the power of {power:g} is not above 0 and finite in all environments"
        return None

    def odds(self, data: FieldFile) -> Tensor:
        """How often each trajectory is drawn, relative to the others."""
        product = np.ones(len(data.u))
        for name, power in self.powers:
            product *= np.asarray(data.parameters[name], dtype=np.float64) ** power
        return torch.from_numpy(product / product.max())


@dataclass(frozen=True, kw_only=True)
class Scattered(Augmentation):
    """Some trajectories are seen at random points of the grid, a fifth of them to all; for codecs that take points.

    Attributes
    ----------
    share : of the trajectories, 0 to 1
    """

    kind: str = "scattered"
    share: float = 0.5

    fewest: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, self, "share", "a number from 0 to 1")

    def refused_by(self, data: FieldFile, config: ModelConfig) -> str | None:
        return None if config.codec.at_points else "the codec sees whole grids"

    def counts(self, trajectories: int, points: int, rng: torch.Generator) -> Tensor:
        """How many of the points each trajectory shows, ``[B, 1]``; the share is of no matter."""
        shares = self.fewest + (1 - self.fewest) * torch.rand(trajectories, 1, generator=rng)
        return (shares * points).round().clamp(1, points)


def check_augmentations(
    augment: Iterable[Augmentation],
    data: FieldFile,
    config: ModelConfig,
    *,
    stage: str,
    known: Sequence[type[Augmentation]],
) -> None:
    """Raise `EnmaError` for an augmentation that a stage does not have, or that the data do not allow; it names it."""
    kinds: set[str] = set()
    tags = [tag for tag, kind in Augmentation.kinds.items() if kind in known]
    for each in augment:
        reason = f"it is no augmentation of this stage (use {', '.join(tags)})"
        if isinstance(each, tuple(known)):
            reason = "it is there twice" if each.kind in kinds else each.refused_by(data, config) or ""
        if reason:
            raise EnmaError(f"stage {stage}: augmentation {each.kind}: {reason}; take it out")
        kinds.add(each.kind)


def found(augment: Iterable[Augmentation], kind: type[_T]) -> _T | None:
    """The augmentation of a kind in a list of them."""
    return next((each for each in augment if isinstance(each, kind)), None)


def drawn(count: int, of: int, odds: Tensor | None, rng: torch.Generator) -> Tensor:
    """`count` of so many trajectories or environments at random, by their odds; all alike without."""
    if odds is None:
        return torch.randint(of, (count,), generator=rng)
    return torch.multinomial(odds, count, replacement=True, generator=rng)


def damped(u: Tensor, order_B: Tensor, rate_B: Tensor, *, times: Tensor, lengths: Sequence[float]) -> Tensor:
    """Periodic fields ``[B, T, *grid, c]`` with the wave k multiplied by ``exp(-rate |k|^order (t - times[0]))``.

    Wave numbers are ``2 pi n / length``; those of the mean, 0, are damped by order 0 alone.
    """
    grid = u.shape[2:-1]
    axes = tuple(range(2, 2 + len(grid)))
    k2 = torch.zeros((1,) * len(grid), dtype=torch.float64)
    for i, (points, length) in enumerate(zip(grid, lengths, strict=True)):
        last = i == len(grid) - 1
        n = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(points, 1 / points, dtype=torch.float64)
        k2 = k2 + (2 * torch.pi * n / length).square().reshape([-1 if j == i else 1 for j in range(len(grid))])
    k_S = k2.sqrt().flatten()
    exponent = rate_B[:, None, None] * (times - times[0])[:, None] * k_S ** order_B[:, None, None]
    gain = torch.exp(-exponent).reshape(*u.shape[:2], *k2.shape, 1)
    return torch.fft.irfftn(torch.fft.rfftn(u.double(), dim=axes) * gain, s=grid, dim=axes).to(u.dtype)


def random_shifts(grid: tuple[int, ...], periodic: tuple[bool, ...], count: int, rng: torch.Generator) -> list[Tensor]:
    """`count` random places of each dimension of a grid, for `roll`; zeros along walls."""
    return [torch.randint(n if ring else 1, (count,), generator=rng) for n, ring in zip(grid, periodic, strict=True)]


def roll(u: Tensor, shifts: list[Tensor]) -> Tensor:
    """Shift each sample of ``[B, T, *grid, c]`` forward by its own number of grid points; ``u`` itself if by none."""
    for axis, shift in enumerate(shifts, start=2):
        if not shift.any():
            continue
        n = u.shape[axis]
        index = (torch.arange(n) - shift[:, None]) % n
        shape = [1] * u.ndim
        shape[0], shape[axis] = len(shift), n
        u = u.gather(axis, index.view(shape).expand_as(u))
    return u


def _one_of(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=rng)) if count > 1 else 0


def _require(fits: bool, augmentation: Augmentation, name: str, needed: str) -> None:
    if not fits:
        value = getattr(augmentation, name)
        raise EnmaError(f"{augmentation.kind}.{name} is {value}; {needed} is needed")
