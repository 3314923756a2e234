"""Forecasts of the trajectories of a field file: what the model sees of each, and what is asked of it.

| task            | the model sees                                      | it forecasts             |
|-----------------|-----------------------------------------------------|--------------------------|
| `temporal`      | the first `num_history` frames                      | the frames after them    |
| `initial-value` | frame 0, and another trajectory of its environment  | the frames after frame 0 |
| `generation`    | another trajectory of the environment               | all frames               |

Of a table of readings (`data/readings`), the temporal task sees all frames.

The other trajectory is the next one of the same environment (`FieldFile.context_for`), or of a file of contexts. The
number of a trajectory in its file is part of its noise key, so its members do not depend on which others are forecast.

Shape suffixes: B trajectories, K members, T frames.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..config import ModelConfig
from ..data import SPACING_TOLERANCE, FieldFile, is_even
from ..data.drivers import rows_of
from ..domain import Domain
from ..errors import EnmaError
from ..models.codecs.interpolation import grid_points
from ..models.model import Model
from ..utils.names import SPACE
from ..utils.text import boundaries, times
from .cautions import outside, report_outside, warn_if_long, warn_if_uneven, warn_of_context
from .channels import Channels
from .extension import StoredMembers
from .known import check_mask, told
from .members import Stop, sample_as_asked, sample_members
from .request import INITIAL_VALUE, TEMPORAL, Fields, ForecastRequest
from .scattered import drawn_places, require_errors, require_scattered, require_together
from .sink import Sink

log = logging.getLogger("enma_fast")

# Trajectories whose observed frames are compared with those of the training at a time.
_COMPARED_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class FileForecast:
    """A request for forecasts of trajectories of a field file.

    Attributes
    ----------
    model : from `enma_fast.load_model`
    data : field file of the trajectories, or readings of them
    request : its `trajectories` are numbers of the file, by default all; `num_history` is of a field file
    context_file : contexts of the other tasks, one for each trajectory or one for all; by default from `data` itself
    earlier : a store whose members go on
    """

    model: Model
    data: FieldFile
    request: ForecastRequest
    context_file: FieldFile | None = None
    earlier: StoredMembers | None = None

    def __post_init__(self) -> None:
        if self.request.trajectories is None:
            object.__setattr__(self, "request", replace(self.request, trajectories=self.data.trajectories))
        if self.data.points is not None:
            object.__setattr__(self, "request", replace(self.request, num_history=len(self.data.times)))
        object.__setattr__(self, "request", self.request.on(self.model))

    @property
    def trajectories(self) -> Sequence[int]:
        """Numbers of the trajectories in the file."""
        assert self.request.trajectories is not None
        return self.request.trajectories

    @property
    def num_observed(self) -> int:
        """Observed frames of a trajectory."""
        return self.request.num_observed

    @property
    def num_frames(self) -> int:
        """Frames to forecast."""
        if self.request.num_frames is not None:
            return self.request.num_frames
        longest = self.model.config.num_frames
        rest = min(len(self.data.times), longest) - self.num_observed
        # One frame alone is an initial condition in every task.
        return rest if rest > 0 and len(self.data.times) > 1 else longest - self.num_observed

    @property
    def num_total(self) -> int:
        """Frames of the whole trajectory, observed and forecast."""
        return self.num_observed + self.num_frames

    @property
    def has_truth(self) -> bool:
        """True if the file holds all frames to forecast; a generated trajectory has no truth."""
        return self.request.task.has_truth and self.num_total <= len(self.data.times)

    def check(self, *, at_once: int | None = None) -> None:
        """Raise `EnmaError` unless the file has what is asked of it, and the forecasts fit the memory.

        At most `at_once` members are in memory at a time, by default all.
        """
        config, data, request = self.model.config, self.data, self.request
        check_file(config, data, reads_points=self.model.reads_points)
        expected = Channels.of_model(self.model)
        check_channels(expected, data, strict=request.strict)
        if data.points is not None:
            self._check_readings()
        if request.task.num_observed is None and request.num_history < 3:
            raise EnmaError(
                f"history is {request.num_history}; {config.name} needs at least 3 frames (or use --task initial-value)"
            )
        if self.num_observed > len(data.times):
            raise EnmaError(
                f"{data.path}: holds {len(data.times)} frames, history asks for {self.num_observed}; use a shorter "
                "one, or give a file of more frames"
            )
        if self.num_frames < 1 and data.points is not None:
            raise EnmaError(
                f"{data.path}: holds {self.num_observed} frames, and {config.name} was trained on {config.num_frames}: "
                "say how many to forecast (--frames), or leave some of its rows out"
            )
        if self.num_frames < 1:
            raise EnmaError(
                f"history is {self.num_observed}: of the {config.num_frames} frames that {config.name} was trained on "
                "none is left to forecast; use a shorter one, or say how many frames"
            )
        if request.points is not None:
            require_scattered("points", self.model)
            if not self._sees_whole_grids(request.points):
                require_together("points", self.model, request.points)
            drawn_places(config.codec.grid, (), count=request.points, num_frames=1, seed=request.seed)
        scattered = request.points is not None or data.points is not None
        require_errors(request.errors, config.codec, scattered=scattered)
        check_mask(self.model, data)
        every, count = range(len(data.u)), len(data.u)
        told(self.model, self.known(data, every), count=count, frames=self.num_total, argument=str(data.path))
        warn_if_long(config, self.num_total)
        warn_if_uneven(config, self.num_observed)
        device = self.model.codec.device
        request.check_memory(config, self.num_frames, at_once=at_once, device=device)
        self._check_contexts(expected.of_context(data.path, data.channels, _units(data)))

    def _sees_whole_grids(self, count: int) -> bool:
        """Whether so many points are those of the grid, as they are: of a model that reads grids, without errors."""
        tok = self.model.config.codec
        return count == math.prod(tok.grid) and not tok.at_points and not self.request.errors

    def _check_readings(self) -> None:
        require_scattered(str(self.data.path), self.model)
        assert self.data.points is not None
        require_together(str(self.data.path), self.model, self.data.points.shape[-2])
        if self.request.task != TEMPORAL or self.context_file is not None:
            raise EnmaError(
                f"task {self.request.task.name}: {self.data.path} holds readings, from which the temporal task alone "
                "forecasts; leave --task and --context out"
            )
        if self.request.points is not None:
            raise EnmaError(f"points: all readings of {self.data.path} are seen, where they are; leave it out")

    def _check_contexts(self, expected: Channels) -> None:
        config, other = self.model.config, self.context_file
        if other is None:
            if self.request.task.needs_context:
                for number in self.trajectories:
                    self.data.context_for(number)
            return
        if not self.request.task.needs_context:
            raise EnmaError(
                "context: the temporal task has none; use --task initial-value or generation, or leave it out"
            )
        check_file(config, other)
        check_channels(expected, other, strict=self.request.strict)
        check_mask(self.model, other)
        known = self.known(other, range(len(other.u)))
        told(self.model, known, count=len(other.u), frames=len(other.times), argument=str(other.path))
        warn_of_context(config, str(other.path), len(other.times))
        if other.num_trajectories not in (1, self.data.num_trajectories):
            raise EnmaError(
                f"{other.path}: holds {other.num_trajectories} contexts; give one, or one for each of "
                f"the {self.data.num_trajectories} trajectories of {self.data.path}"
            )

    def warn_of_own_contexts(self) -> None:
        """Warn which trajectories have a context that begins with their own first frame."""
        if self.request.task != INITIAL_VALUE:
            return
        source, index = self.context_places(self.trajectories)
        places = zip(self.trajectories, self.data.places(self.trajectories), index, strict=True)
        u, others = self.data.u, source.u
        own = [row for row, place, other in places if np.array_equal(u[place, 0], others[other, 0], equal_nan=True)]
        if own:
            several = f" (and those of {len(own) - 1} more)" if len(own) > 1 else ""
            log.warning(
                "the context of trajectory %d%s begins with the frame that is observed, so it shows what is to be "
                "forecast; without --context it is another trajectory of the same environment",
                own[0],
                several,
            )

    def outside_training(self, *, warn: bool = True) -> list[int] | None:
        """Numbers of the trajectories whose observed frames, or context, lie outside what the model was trained on.

        They are reported, unless `warn` is false, and a strict request is refused. None where the checkpoint does not
        say what the model was trained on.
        """
        if self.model.envelope is None:
            return None
        reasons: list[str] = []
        for first in range(0, len(self.trajectories), _COMPARED_AT_ONCE):
            part = self.trajectories[first : first + _COMPARED_AT_ONCE]
            given = [fields.values for fields in (self._history(part), self._contexts(part)) if fields is not None]
            scattered = self.request.points is not None or self.data.points is not None
            reasons += outside(self.model, given, scattered=scattered)
        strict = self.request.strict
        if warn or strict:
            report_outside(self.model, self.trajectories, reasons, strict=strict, where=f"{self.data.path}: ")
        return [int(number) for number, reason in zip(self.trajectories, reasons, strict=True) if reason]

    def sample(self, part: ForecastRequest, *, stop: Stop | None = None) -> Tensor:
        """Forecast part of the request, after `check`: `[B, K, T, *x, c]` fp32 without the observed frames.

        `part` is the request for some of the trajectories and members, perhaps of fewer frames, and is sampled by as
        many rows at a time as it says or not at all; `stop` is as that of `enma_fast.forecast`.
        """
        # `check` and `outside_training` have warned.
        return sample_as_asked(self.model, self._with_data(part, stopped=stop is not None), stop=stop)

    def _with_data(self, part: ForecastRequest, *, stopped: bool = False) -> ForecastRequest:
        """Part of the request with what is observed, and with the earlier frames of members that are not `stopped`."""
        numbers = part.trajectories
        assert numbers is not None
        history, context = self._history(numbers), self._contexts(numbers)
        part = replace(part, observed=history, context=context, num_frames=part.num_frames or self.num_frames)
        # The first frames alone, of which memory and time are measured, are made anew.
        if self.earlier is not None and not stopped and part.num_frames == self.num_frames:
            part = replace(part, earlier=self.earlier.frames(numbers, part.members))
        return part

    def fill(self, sinks: Sequence[Sink], *, progress: Callable[[int, int], None] | None = None) -> float:
        """Sample all trajectories into sinks after `check`; returns the seconds that sampling took.

        `progress` is called with (trajectories done, trajectories).
        """
        seconds, done = 0.0, 0
        clock = time.perf_counter()
        for part, samples in self.samples():
            # A GPU has then finished.
            samples.cpu()
            seconds += time.perf_counter() - clock
            for place, values in enumerate(samples, start=done):
                for sink in sinks:
                    sink.add(place, range(len(values)), values)
            done += len(part)
            if progress is not None:
                progress(done, len(self.trajectories))
            clock = time.perf_counter()
        return seconds

    def samples(self) -> Iterator[tuple[list[int], Tensor]]:
        """Forecast all trajectories after `check`, as many at a time as make a chunk.

        Yields their numbers in the file, and `[B, K, T, *x, c]` fp32 without the observed frames.
        """
        size = max(1, self.request.rows // self.request.num_members)
        for first in range(0, len(self.trajectories), size):
            part = list(self.trajectories[first : first + size])
            given = self._with_data(replace(self.request, trajectories=part))
            yield part, sample_members(self.model, given, warn=False)

    def context_places(self, trajectories: Sequence[int]) -> tuple[FieldFile, list[int]]:
        """The file that holds the contexts of these trajectories, and their places in it."""
        if self.context_file is None:
            return self.data, self.data.places([self.data.context_for(i) for i in trajectories])
        if self.context_file.num_trajectories == 1:
            return self.context_file, [0] * len(trajectories)
        return self.context_file, self.context_file.places(trajectories)

    def _history(self, trajectories: Sequence[int]) -> Fields | None:
        """Observed frames `[B, L, *x, c]` of these trajectories; None where none are observed."""
        if not self.num_observed:
            return None
        places = self.data.places(trajectories)
        known = self.known(self.data, places)
        if self.data.points is not None:
            return Fields(self.data.u[places], self.data.points[places], known)
        return replace(self._as_seen(self.data.u[places, : self.num_observed], trajectories), known=known)

    def _contexts(self, trajectories: Sequence[int]) -> Fields | None:
        """Contexts `[B, T, *x, c]` of these trajectories; None where the task has none."""
        if not self.request.task.needs_context:
            return None
        source, index = self.context_places(trajectories)
        seen = self._as_seen(source.u[index, : self.model.config.num_frames], trajectories, context=True)
        return replace(seen, known=self.known(source, index))

    def known(self, data: FieldFile, places: Sequence[int]) -> dict[str, np.ndarray]:
        """What a file says of the drivers that the model is told, of trajectories by their places."""
        names = [driver.name for driver in self.model.config.known]
        constants = {name: data.parameters[name][list(places)] for name in names if name in data.parameters}
        return constants | rows_of({name: data.known[name] for name in names if name in data.known}, list(places))

    def _as_seen(self, fields: np.ndarray, trajectories: Sequence[int], *, context: bool = False) -> Fields:
        """Fields `[B, L, *x, c]` whole, or `[B, L, P, c]` at the points `[B, L, P, d]` that the request draws."""
        tok, count = self.model.config.codec, self.request.points
        if count is None or self._sees_whole_grids(count):
            return Fields(fields)
        frames, seed = fields.shape[1], self.request.seed
        places = drawn_places(tok.grid, trajectories, count=count, num_frames=frames, seed=seed, context=context)
        flat = fields.reshape(*fields.shape[:2], -1, fields.shape[-1])
        return Fields(np.take_along_axis(flat, places[..., None], 2), grid_points(tok).numpy()[places])


def check_channels(expected: Channels, data: FieldFile, *, strict: bool) -> None:
    """Raise `EnmaError` for the expected channels in another order; see `Channels.places` for other names and units."""
    if expected.places(data.path, data.channels, _units(data), strict=strict) is None:
        return
    names = ",".join(expected.names)
    remedy = "put its columns in that order" if data.points is not None else f"import it with --fields {names}"
    raise EnmaError(
        f"{data.path}: its channels are {', '.join(data.channels)}; {expected.of} expects them in the order "
        f"{', '.join(expected.names)}: {remedy}"
    )


def _units(data: FieldFile) -> list[str]:
    return [data.units.get(channel, "1") for channel in data.channels]


def check_file(config: ModelConfig, data: FieldFile, *, reads_points: bool = False) -> None:
    """Raise `EnmaError` unless grid, domain, positions, number of channels and frame spacing are the model's."""
    tok, domain = config.codec, data.domain
    if domain.grid != tok.grid:
        remedy = "interpolate to them" + ", or give a table of readings (.csv), at any points" * reads_points
        raise EnmaError(
            f"{data.path}: the grid is {times(domain.grid)} points; {config.name} expects {times(tok.grid)}; {remedy}"
        )
    if len(data.channels) != tok.field_channels:
        told = [driver.name for driver in config.known if driver.name in data.channels]
        raise EnmaError(
            f"{data.path}: holds {len(data.channels)} channels ({', '.join(data.channels)}); {config.name} expects "
            f"{tok.field_channels}" + "".join(f"; import it with --known {name}" for name in told)
        )
    if domain.periodic != tok.periodic:
        raise EnmaError(
            f"{data.path}: boundary_conditions are {boundaries(domain.periodic)}; {config.name} expects "
            f"{boundaries(tok.periodic)} (if the file is wrong, import it with --periodic)"
        )
    if not domain.same_size(Domain.of(tok)):
        raise EnmaError(
            f"{data.path}: the domain has size {times(domain.lengths)}; {config.name} expects {times(tok.lengths)} "
            "(if it is given in another unit, import it with --spacing)"
        )
    for name, x in zip(SPACE, data.coords, strict=False):
        if not is_even(x):
            raise EnmaError(
                f"{data.path}: {name} is not evenly spaced, as the grid of {config.name} is; interpolate to even "
                "positions, or import it with --spacing to count its points as even"
            )
    steps = np.diff(data.times)
    if not np.allclose(steps, config.frame_interval, rtol=SPACING_TOLERANCE, atol=0.0):
        raise EnmaError(
            f"{data.path}: dimensions/time has frames {steps.mean():.4g} apart; {config.name} expects "
            f"{config.frame_interval:.4g} (if they are given in another unit, import it with --dt)"
        )
