"""The request behind every forecast: what the command line, the Python API, runs and stores all derive from.

Nothing heavy is imported here, so that the command line takes its defaults from the request.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig, SamplingConfig, check_sampling
from ..errors import EnmaError
from ..utils.bounds import MOST_FRAMES, whole_number
from ..utils.system import gpu_memory, memory

if TYPE_CHECKING:
    import torch

    from ..models.model import Model
    from .kept import KeptFrames

# Number format of the weights that is chosen by measurement.
AUTO = "auto"
# Observed frames of the temporal task.
HISTORY = 3
# Rows sampled at a time on a CPU.
CPU_CHUNK = 64
# The numbers of a row take the memory of so many values.
_ROW_VALUES = 32

# Member numbers are one word of the noise's key.
MOST_MEMBERS = 2**32
# Seeds that fit 64 bits, with a sign or without.
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the paper (section 4): what the model sees of a trajectory of a file, and what it is compared with.

    Attributes
    ----------
    num_observed : observed frames; None where the request's `num_history` says how many
    needs_context : another trajectory of the same environment is seen too
    has_truth : the trajectory of the file is what is forecast; a generated one is another draw
    """

    name: str
    num_observed: int | None
    needs_context: bool
    has_truth: bool


TEMPORAL = Task(name="temporal", num_observed=None, needs_context=False, has_truth=True)
INITIAL_VALUE = Task(name="initial-value", num_observed=1, needs_context=True, has_truth=True)
GENERATION = Task(name="generation", num_observed=0, needs_context=True, has_truth=False)
TASKS = {task.name: task for task in (TEMPORAL, INITIAL_VALUE, GENERATION)}


def task_named(name: str | None, *, has_contexts: bool = False) -> Task:
    """A task by its name; without one, the temporal task, or the initial value problem where contexts are given."""
    if name is None:
        return INITIAL_VALUE if has_contexts else TEMPORAL
    if name not in TASKS:
        raise EnmaError(f"task {name!r} is unknown; use one of {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True, eq=False)
class Fields:
    """Observed values, in numpy or torch.

    Attributes
    ----------
    values : ``[L, *grid, c]`` or ``[B, L, *grid, c]``, or ``[..., L, P, c]`` at points
    points : their coordinates ``[P, d]``, or ``[L, P, d]`` or ``[B, L, P, d]`` where each frame has its own; None on
        the grid
    known : drivers of the trajectories by name, for models that are told some
    """

    values: Any
    points: Any = None
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ForecastRequest:
    """A checked request for forecasts, from the command line and the Python API down to the sampler.

    Attributes
    ----------
    observed, context
        What the model sees: observed frames, and another trajectory of the same physics; a run of a field file fills
        them in for each of its parts.
    earlier
        Frames ``[K, T0, *grid, c]`` or ``[B, K, T0, *grid, c]`` that the members have already, of a shorter forecast of
        the same request: they are the first ones of the forecast, which goes on after them.
    kept
        What earlier forecasts of a growing history have read; it is used, and added to.
    query
        Coordinates ``[Q, d]`` of the output; the model's grid by default.
    task, num_history
        Task on a field file, and observed frames of the temporal one. Arrays and readings say both by themselves.
    num_frames
        Frames to forecast, 1 to 30,000. By default up to the length that the model was trained on; of a field file,
        those that it holds after the observed ones.
    num_members, first_member
        Ensemble size, and number of the first member: members are ``first_member, ...`` below 2**32.
    trajectories
        Number of each trajectory, part of its noise key, all different; by default 0, 1, ..., or all of a file.
    seed
        Of the noise. A member depends on (model, seed, trajectory number, member number) only.
    settings
        Of the sampler; the model's own by default.
    dtype
        Of the sampler's weights. By default the model's own on a CPU, and bf16 on a GPU, whose matrix units multiply
        that. "auto" is the faster one of fp32 and bf16 on this processor (:mod:`enma_fast.ops.rates`).
    backend
        How latent frames are made (:mod:`enma_fast.sampling.engine`); the best that can serve by default.
    chunk
        Rows (trajectories x members) sampled at a time: enough to keep every core busy, few enough for their keys and
        values. By default 64 on a CPU, and at most 128 or 256 on a GPU, by its level-2 cache and by the memory that is
        free. With the ``native`` backend no result depends on it; with the others results are rounded differently.
    strict
        Refuse observed frames outside what the model was trained on, or in other units, in place of a warning.
    points
        On a field file: grid points that are observed in each frame, others in each. By default all. Arrays give the
        coordinates of theirs.
    observation_error
        Standard deviation of the error of values at scattered points, in the units of the field: one number, or one for
        each channel. For models without an interpolation.

    Raises
    ------
    EnmaError
        One line naming the field that is out of bounds.
    """

    observed: Fields | None = None
    context: Fields | None = None
    earlier: Any = None
    kept: KeptFrames | None = None
    query: Any = None
    task: Task = TEMPORAL
    num_history: int = HISTORY
    num_frames: int | None = None
    num_members: int = 16
    first_member: int = 0
    trajectories: Sequence[int] | None = None
    seed: int = 0
    settings: SamplingConfig | None = None
    dtype: torch.dtype | str | None = None
    backend: str | None = None
    chunk: int | None = None
    strict: bool = False
    points: int | None = None
    observation_error: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        def check(name: str, *, least: int | None = 1, most: int | None = None) -> None:
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=least, most=most))

        # The model says how many observed frames it needs.
        check("num_history", least=None)
        if self.num_frames is not None:
            check("num_frames", most=MOST_FRAMES)
        check("num_members", most=MOST_MEMBERS)
        check("first_member", least=0, most=MOST_MEMBERS - self.num_members)
        check("seed", least=LEAST_SEED, most=MOST_SEED)
        for name in ("chunk", "points"):
            if getattr(self, name) is not None:
                check(name)
        # A module that was never imported has no instances.
        loaded = sys.modules.get("torch")
        valid = self.dtype == AUTO if isinstance(self.dtype, str) else loaded and isinstance(self.dtype, loaded.dtype)
        if self.dtype is not None and not valid:
            raise EnmaError(f"dtype is {self.dtype!r}; a torch.dtype or 'auto' is expected")
        if self.trajectories is not None:
            object.__setattr__(self, "trajectories", _numbers(self.trajectories))
        if self.settings is not None:
            check_sampling("settings", self.settings)
        object.__setattr__(self, "observation_error", _errors(self.observation_error))

    @classmethod
    def of_arrays(
        cls,
        history: Any,
        context: Any = None,
        *,
        points: Any = None,
        context_points: Any = None,
        known: Mapping[str, Any] | None = None,
        context_known: Mapping[str, Any] | None = None,
        **entries: Any,
    ) -> ForecastRequest:
        """A request for forecasts of arrays; points and drivers of a context are those of the history by default."""
        if history is None and context_points is None:
            context_points = points
        if context is None and context_points is not None:
            raise EnmaError("context_points: there is no context; leave this out")
        own, others = known or {}, context_known or known or {}
        observed = None if history is None else Fields(history, points, own)
        other = None if context is None else Fields(context, context_points, others)
        return cls(observed=observed, context=other, **entries)

    @property
    def errors(self) -> tuple[float, ...]:
        """Standard deviations of the error of values at scattered points, one or one for each channel; or none."""
        # Checked numbers by now.
        return tuple(self.observation_error)  # type: ignore[arg-type]

    @property
    def num_observed(self) -> int:
        """Observed frames of a trajectory of a file."""
        return self.num_history if self.task.num_observed is None else self.task.num_observed

    @property
    def members(self) -> range:
        """Numbers of the members."""
        return range(self.first_member, self.first_member + self.num_members)

    @property
    def precision(self) -> str:
        """Name of the weights' dtype as stores give it: fp32, bf16, or model for the model's own."""
        from ..sampling.engine import PRECISIONS

        names: dict[torch.dtype | str | None, str] = {dtype: name for name, dtype in PRECISIONS.items()}
        return "model" if self.dtype is None else names.get(self.dtype, str(self.dtype))

    @property
    def sampling(self) -> SamplingConfig:
        """Settings of the sampler, of a request `on` a model."""
        assert self.settings is not None
        return self.settings

    @property
    def rows(self) -> int:
        """Rows sampled at a time, on a CPU where none are asked for."""
        return CPU_CHUNK if self.chunk is None else self.chunk

    def on(self, model: Model) -> ForecastRequest:
        """The request with what model and device decide where nothing is asked: settings, number format and chunk.

        `EnmaError` if the model cannot use the settings.
        """
        from ..models.layers import own_dtype
        from ..sampling.engine import rows_at_once, weights_dtype
        from ..sampling.settings import chosen_sampling

        settings = chosen_sampling(model.config, self.settings)

        dtype: torch.dtype | str | None = weights_dtype(model.dynamics, self.dtype, backend=self.backend)
        # The model's own format is written as such.
        dtype = None if self.dtype is None and dtype == own_dtype(model.dynamics) else dtype
        frames = self.num_frames or model.config.num_frames
        chunk = rows_at_once(model.dynamics, num_frames=frames) if self.chunk is None else self.chunk
        return replace(self, chunk=chunk, dtype=dtype, settings=settings)

    def part(self, trajectories: slice, members: slice, *, chunk: int) -> ForecastRequest:
        """The request for some of the trajectories and some of the members, by their places."""
        assert self.trajectories is not None
        numbers = self.members[members]
        return replace(
            self,
            trajectories=self.trajectories[trajectories],
            first_member=numbers.start,
            num_members=len(numbers),
            chunk=chunk,
        )

    def check_memory(
        self,
        config: ModelConfig,
        num_frames: int,
        *,
        num_trajectories: int = 1,
        at_once: int | None = None,
        num_points: int | None = None,
        read_latents: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Raise `EnmaError` if forecasts of so many members, by default all, cannot fit a device's memory at once.

        A frame has `num_points`, by default those of the grid. Each row also holds the keys and values of
        `read_latents` latent frames.
        """
        tok = config.codec
        rows = num_trajectories * min(self.num_members, at_once or self.num_members)
        values = num_frames * (num_points or math.prod(tok.grid)) * tok.field_channels
        keys_values = read_latents * config.context.values_kept(config.num_tokens)
        held = 4 * max(values, _ROW_VALUES) + getattr(self.dtype, "itemsize", 4) * keys_values
        on_gpu = device is not None and device.type == "cuda"
        each, room = held / 1e9, (gpu_memory(device) if on_gpu else memory()) / 1e9
        if rows * each > room:
            remedy = "fewer at a time" if each <= room else "fewer frames"
            raise EnmaError(
                f"forecasts of {rows:,} x {num_frames:,} frames take {rows * each:,.0f} GB, "
                f"this {'GPU' if on_gpu else 'machine'} has {room:,.0f} GB; use {remedy}"
            )


def dtype_named(precision: str | None) -> torch.dtype | str | None:
    """The dtype of a precision, fp32, bf16 or auto; None, the default, without one."""
    from ..sampling.engine import PRECISIONS

    if precision is None or precision == AUTO:
        return precision
    if precision not in PRECISIONS:
        raise EnmaError(f"precision {precision!r} is unknown; use one of {', '.join([*PRECISIONS, AUTO])}")
    return PRECISIONS[precision]


def _errors(given: Any) -> tuple[float, ...]:
    """Standard deviations, checked; none where there is no error."""
    try:
        if isinstance(given, str):
            raise TypeError
        # One number of any kind, arrays without an axis among them, or several.
        several = hasattr(given, "__iter__") and getattr(given, "ndim", 1) != 0
        errors = tuple(map(float, given if several else (given,)))
    except (TypeError, ValueError):
        raise EnmaError(f"observation_error is {given!r}; a number, or one for each channel, is expected") from None
    if not all(0 <= error < math.inf for error in errors):
        raise EnmaError(f"observation_error is {given!r}; numbers of at least 0 are expected")
    return errors if any(errors) else ()


def _numbers(trajectories: Sequence[int]) -> tuple[int, ...]:
    """Numbers of trajectories, checked."""
    try:
        given = list(trajectories)
    except TypeError:
        raise EnmaError(f"trajectories is {trajectories!r}; a list of numbers is expected") from None
    numbers = tuple(whole_number("a trajectory", number, least=0) for number in given)
    if len(set(numbers)) < len(numbers):
        raise EnmaError("trajectories names a number twice, and the two would share their noise; give each once")
    return numbers
