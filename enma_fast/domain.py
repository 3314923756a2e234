"""Domain of a field: points, size and boundaries of each dimension, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import EnmaError

if TYPE_CHECKING:
    import numpy as np

# Relative difference up to which sizes, and spacings of frames, are the same.
SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Domain:
    """A box with an even grid, from 0 to `lengths`.

    Attributes
    ----------
    grid : points per dimension, of one to three
    lengths : size per dimension: the period of a ring, or the distance from the first to the last point between walls
    periodic : True for a ring, False between walls
    """

    grid: tuple[int, ...]
    lengths: tuple[float, ...]
    periodic: tuple[bool, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.grid), len(self.lengths), len(self.periodic)}
        if len(sizes) != 1 or not 1 <= len(self.grid) <= 3:
            raise EnmaError(
                f"grid, lengths and periodic name {sorted(sizes)} dimensions; give one entry for each of 1 to 3 "
                "dimensions"
            )

    @classmethod
    def of(cls, described: Any) -> Domain:
        """The domain of an equation or a config: of anything with `grid`, `lengths` and `periodic`."""
        return cls(tuple(described.grid), tuple(described.lengths), tuple(described.periodic))

    @classmethod
    def of_coords(cls, coords: Sequence[np.ndarray], periodic: Sequence[bool]) -> Domain:
        """The domain of a grid with these positions; the cell that closes a ring counts."""
        pairs = zip(coords, periodic, strict=True)
        lengths = tuple(float(x[-1] - x[0]) * (len(x) / (len(x) - 1) if ring else 1) for x, ring in pairs)
        return cls(tuple(map(len, coords)), lengths, tuple(periodic))

    @property
    def coords(self) -> tuple[np.ndarray, ...]:
        """Positions of the points along each dimension, float64; a ring leaves out its right end."""
        import numpy as np

        return tuple(
            np.arange(n) * length / n if ring else np.linspace(0, length, n)
            for n, length, ring in zip(self.grid, self.lengths, self.periodic, strict=True)
        )

    def same_size(self, other: Domain) -> bool:
        """True if the lengths are those of another domain, up to a tolerance of 1e-3."""
        pairs = zip(self.lengths, other.lengths, strict=True)
        return len(self.grid) == len(other.grid) and all(abs(a - b) <= SPACING_TOLERANCE * abs(b) for a, b in pairs)
