"""Sampling settings of a forecast, the model's own or others that it can use; what is sampled at once, and its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from .shifts import views

# How members see a field; every model uses it.
_OF_ALL = ("shifts",)


@dataclass(frozen=True)
class Chunk:
    """What is known of rows that are sampled together.

    Attributes
    ----------
    rows
        Of the chunks of an ensemble that this is one of. A GPU computes the last one, of fewer rows, as one of that
        size, since a captured frame has one size.
    ahead
        Whether frames may be made before they are asked for, which a CPU does faster for few rows.
    earlier
        Latent frames ``[B, T, N, C]`` after the history that were forecast before, and are not yielded again.
    room
        Memory of what is read is for a multiple of so many latent frames, for histories that grow.
    """

    rows: int | None = None
    ahead: bool = False
    earlier: Tensor | None = None
    room: int = 1


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of the memory of a chunk, and what all that is sampled in it has in common.

    Attributes
    ----------
    rows : members B that are sampled together
    groups : trajectories G that they belong to
    prefix_frames : most frames of context and history together, with a start frame for each
    own_frames : most generated frames that are fed back: one less than are generated
    settings : of the sampler
    slots : of the decoders that decide its frames; by default without that of frame 0 alone
    """

    rows: int
    groups: int
    prefix_frames: int
    own_frames: int
    settings: SamplingConfig
    slots: tuple[str, ...] = ("step",)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.groups < 1:
            raise EnmaError(f"rows is {self.rows} and groups is {self.groups}; at least 1 is needed")
        if self.prefix_frames < 1 or self.own_frames < 0:
            given = f"prefix_frames is {self.prefix_frames} and own_frames is {self.own_frames}"
            raise EnmaError(f"{given}; at least 1 and 0 are needed")


def size_of(
    config: ModelConfig, segments: Sequence[Tensor], *, rows: int, num_latents: int, settings: SamplingConfig
) -> Size:
    """Size for the latent frames up to `num_latents` that follow segments ``[G, T_i, N, C]``, the last the history."""
    first = segments[-1].shape[1]
    return Size(
        rows=rows,
        groups=segments[0].shape[0],
        prefix_frames=sum(s.shape[1] + 1 for s in segments),
        own_frames=max(0, num_latents - first - 1),
        settings=settings,
        slots=config.slots(first),
    )


def chosen_sampling(config: ModelConfig, settings: SamplingConfig | None) -> SamplingConfig:
    """Return the settings to sample with: `settings` if the model can use them, or its own if they are None.

    If a setting that the model's decoder of frames after the first does not use differs from the model's own, or if the
    field cannot be shifted so many times, an `EnmaError` names it.
    """
    own = config.sampling
    views(config, settings or own)
    if settings is None:
        return own
    used = (*config.step.settings, *_OF_ALL)
    for name in (entry.name for entry in fields(SamplingConfig) if entry.name not in used):
        if (given := getattr(settings, name)) != getattr(own, name):
            raise EnmaError(
                f"{name} is {given}; {config.name} decides frames by kind {config.step.kind!r}, which does not use it: "
                f"leave out --{name.replace('_', '-')} (from Python settings=dataclasses.replace(model.config.sampling,"
                f" ...); only {' and '.join(used)} may differ from the model's own)"
            )
    return settings
