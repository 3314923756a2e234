"""What every context does: it reads the frames of a trajectory, and tells the decoder of the next one what they say.

Legend: B batch x members, T latent frames, N tokens per frame, C token channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Context(nn.Module):
    """Base of the kinds of contexts.

    Segments are latent frames ``[B, T_i, N, C]``: of one trajectory, or of another one of the same physics and of this
    one. What was read is an object of the kind's own, and so is what it says of the next frame.
    """

    @property
    def of_grid(self) -> str | None:
        """What it has that is of its grid alone; None if it serves any."""
        return f"a {type(self).__name__}"

    def begin(self, segments: Sequence[Tensor], *, room: int) -> Any:
        """Read whole segments, of which the last may be empty; `room` is the number of frames that may follow."""
        raise NotImplementedError

    def begin_members(self, segments: Sequence[Tensor], members: int) -> tuple[Any, Tensor]:
        """Read whole segments with gradients, for so many members of each; also what is said of frame 0 of the last."""
        raise NotImplementedError

    def condition(self, past: Any) -> Any:
        """What a decoder is told of the next frame."""
        raise NotImplementedError

    def advance(self, past: Any, z_BNC: Tensor) -> None:
        """Read the frame ``[B, N, C]`` that was decided."""
        raise NotImplementedError

    def forward(self, segments: Sequence[Tensor]) -> list[Any]:
        """What is said of each frame of each segment, in one pass (training)."""
        raise NotImplementedError
