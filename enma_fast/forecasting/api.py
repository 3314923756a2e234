"""The Python API: `forecast` and `stream` take and give numpy, torch or xarray.

Legend: B trajectories, K members, L observed frames, T frames, c physical channels, P observed points, Q query points,
d space dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig
from ..data import EQUATIONS
from ..domain import Domain
from ..errors import EnmaError
from ..models.model import Model
from ..utils.names import SPACE
from .channels import Channels
from .ensemble import Ensemble
from .labelled_field import LabelledField, first_time, read_field
from .labels import Labels
from .members import Stop, sample_members, stream_members
from .request import Fields, ForecastRequest
from .scattered import coordinates

# A numpy array, a tensor, an xarray.DataArray or an xarray.Dataset.
Array = np.ndarray | Tensor | Any


def forecast(
    model: Model,
    history: Array | None = None,
    *,
    num_frames: int | None = None,
    num_members: int = ForecastRequest.num_members,
    seed: int = ForecastRequest.seed,
    context: Array | None = None,
    points: np.ndarray | Tensor | None = None,
    context_points: np.ndarray | Tensor | None = None,
    query: np.ndarray | Tensor | None = None,
    known: Mapping[str, Array] | None = None,
    context_known: Mapping[str, Array] | None = None,
    observation_error: float | Sequence[float] = ForecastRequest.observation_error,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = ForecastRequest.first_member,
    chunk: int | None = ForecastRequest.chunk,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    stop: Stop | None = None,
    strict: bool = False,
    earlier: Ensemble | np.ndarray | Tensor | None = None,
) -> Ensemble:
    """Sample an ensemble of forecasts.

    The task follows from what is given: ``history`` alone is temporal conditioning, one frame of ``history`` with a
    ``context`` is the initial value problem, a ``context`` alone is generation (paper section 4).

    Parameters
    ----------
    model
        From :func:`enma_fast.load_model`.
    history
        Observed frames ``[L, *grid, c]`` or ``[B, L, *grid, c]``, or ``[..., L, P, c]`` at scattered ``points``; in
        the units of the training data, ``model.config.frame_interval`` apart. None to generate from the context. Give
        an odd number of them, or in general 1 + a multiple of ``model.config.codec.time_factor``: frames after the
        first are joined in groups of so many, and the rest of a group is left out with a warning.
        In xarray the dimensions are ``trajectory``, ``time``, ``x``, ``y`` (or ``point``) and ``channel``, in any
        order. The first and the last may be left out. The variables of a Dataset are the channels. Positions in
        space have to increase and to span the model's domain.
    num_frames
        Frames to forecast after the history; by default up to the model's trained length.
    num_members
        Ensemble size K; 16 by default, as everywhere.
    seed
        Seed of the run. Member k of trajectory b depends on (model, seed, trajectory number, k) only.
    context
        Trajectory ``[T, *grid, c]`` or ``[B, T, *grid, c]`` of the same physics with another initial value: the first
        one for the first history and so on, whatever their labels, or one for all. Give the trained length, or a
        number of frames as that of the history; fewer than ``model.config.shortest_context`` give a warning.
    points
        Coordinates of scattered observations, in the domain: ``[P, d]`` of all frames, or ``[L, P, d]`` or
        ``[B, L, P, d]`` where each frame has its own, NaN where it has fewer than others. A model without an
        interpolation of its own sees fields that optimal interpolation makes of them
        (:mod:`enma_fast.forecasting.analysis`), others of sixteen or a few more in each member.
    context_points
        Coordinates of the context's observations, where they are not those of the history.
    query
        ``[Q, d]`` coordinates of the output, in the domain; by default the model's grid. A model without an
        interpolation of its own gives the sum of waves that has its values on the grid.
    known
        Known inputs by the names of the training (``model.config.known``). A parameter is a number, or ``[B]``; a
        series ``[T]`` or ``[B, T]``, a map ``[*grid]``, a forcing ``[T, *grid]``, likewise with ``B`` before them where
        trajectories differ. T are the observed frames and all that are forecast, or more. The times of day and year go
        on by themselves.
    context_known
        The same of the context; by default that of the history.
    observation_error
        Standard deviation of the error of values at scattered points, in the units of the field: one number, or one for
        each channel (models without an interpolation). The more there is of it, the less members follow the values.
    settings
        Sampling settings; the model's own by default. Change those of the model, with
        ``dataclasses.replace(model.config.sampling, temperature=0.8)``: of a model that decides frames in one pass only
        ``temperature`` and ``shifts`` may differ from its own.
    trajectories
        Number of each trajectory, the part of its noise key, all different; by default the integers of an xarray
        coordinate ``trajectory``, and 0, 1, ... without one: names are kept, but the noise depends on the numbers.
    first_member
        Number of the first member; members are ``first_member, ..., first_member + num_members - 1``.
    chunk
        Rows (trajectories x members) sampled at a time: by default 64 on a CPU, and 128 to 256 on a GPU. With the
        backend ``native`` no result depends on it; with the others results are rounded differently.
    dtype
        Of the weights while sampling: by default the model's own on a CPU and ``torch.bfloat16`` on a GPU. ``"auto"``
        is the faster of fp32 and bf16 on this processor, measured once; members of one format have other bits than
        those of the other.
    backend
        How latent frames are made, ``native``, ``graph``, ``static`` or ``reference``
        (:mod:`enma_fast.sampling.engine`); the best that can serve by default.
    stop
        ``stop(number, frame)`` is called once for each forecast frame of all members, in order, as soon as it is
        decided: with its number, from 0, and its values ``[K, *grid, c]`` or ``[B, K, *grid, c]``. It returns None or
        False to go on, True to stop all members, or a mask ``[K]`` or ``[B, K]`` of the members to stop. In xarray the
        names of dimensions count, and a Dataset stops what any channel stops. The frame it saw stays, later frames of
        a stopped member are NaN, and other members keep their bits. Frames that share a latent frame (two, mostly)
        are decided together. A chunk that has wholly stopped is sampled no further, and after the last member ``stop``
        is called no more. The chunks advance side by side, so memory is that of all of them.
    strict
        Raise where observed frames lie outside what the model was trained on (:mod:`enma_fast.models.envelope`), or a
        channel has another unit than the model's, in place of a warning. Checkpoints that do not say what that is give
        neither, nor do inputs without units.
    earlier
        The ensemble of a shorter forecast of the same call, or its values ``[K, T0, *grid, c]`` or
        ``[B, K, T0, *grid, c]``. They are the first frames of the result, and are not computed again. Fields are
        written as fp32, so a member that goes on differs from one that is forecast at once as if its last frames had
        been rounded.

    Returns
    -------
    Ensemble
        The forecast frames, without the observed ones, fp32, in the kind of array that ``history`` (without one,
        ``context``) is.

    Raises
    ------
    EnmaError
        One line that names the argument and what to do.

    Notes
    -----
    In a forked child the work is done in a thread of its own, `stop` included (:mod:`enma_fast.utils.forks`).
    """
    request = ForecastRequest.of_arrays(
        history,
        context,
        points=points,
        context_points=context_points,
        query=query,
        known=known,
        context_known=context_known,
        num_frames=num_frames,
        num_members=num_members,
        first_member=first_member,
        trajectories=trajectories,
        seed=seed,
        settings=settings,
        dtype=dtype,
        backend=backend,
        chunk=chunk,
        strict=strict,
        observation_error=observation_error,
        earlier=earlier.data if isinstance(earlier, Ensemble) else earlier,
    )
    return ensemble_of(model, request, stop)


def ensemble_of(model: Model, request: ForecastRequest, stop: Stop | None = None) -> Ensemble:
    """The forecast of a request of arrays of any kind."""
    request, labels = read_request(model, request)
    fields = sample_members(model, request, stop=_on_tensors(stop, labels))
    return Ensemble(labels.plain(fields), labels)


def stream(
    model: Model,
    history: Array | None = None,
    *,
    num_frames: int | None = None,
    num_members: int = ForecastRequest.num_members,
    seed: int = ForecastRequest.seed,
    context: Array | None = None,
    points: np.ndarray | Tensor | None = None,
    context_points: np.ndarray | Tensor | None = None,
    query: np.ndarray | Tensor | None = None,
    known: Mapping[str, Array] | None = None,
    context_known: Mapping[str, Array] | None = None,
    observation_error: float | Sequence[float] = ForecastRequest.observation_error,
    settings: SamplingConfig | None = None,
    trajectories: Sequence[int] | None = None,
    first_member: int = ForecastRequest.first_member,
    chunk: int | None = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    stop: Stop | None = None,
    strict: bool = False,
) -> Iterator[Any]:
    """Forecast as :func:`forecast`, but yield each frame ``[K, *grid, c]`` or ``[B, K, *grid, c]`` as it is decided.

    Frames are in the kind of array that is given, and are those of :func:`forecast` up to the rounding of the decoder.
    ``chunk`` is the number of rows that advance together, all by default. ``stop`` is called before its frame is
    yielded; the stream ends with the frame at which the last member stops.
    """
    request = ForecastRequest.of_arrays(
        history,
        context,
        points=points,
        context_points=context_points,
        query=query,
        known=known,
        context_known=context_known,
        num_frames=num_frames,
        num_members=num_members,
        first_member=first_member,
        trajectories=trajectories,
        seed=seed,
        settings=settings,
        dtype=dtype,
        backend=backend,
        chunk=chunk,
        strict=strict,
        observation_error=observation_error,
    )
    request, labels = read_request(model, request)
    if chunk is None:
        request = replace(request, chunk=max(1, len(labels.trajectories)) * request.num_members)
    frames = stream_members(model, request, stop=_on_tensors(stop, labels))
    return (_labelled(labels, number, frame) for number, frame in enumerate(frames))


def read_request(model: Model, request: ForecastRequest) -> tuple[ForecastRequest, Labels]:
    """The request with plain arrays and the numbers of the trajectories, and the labels of the forecast."""
    config, tok = model.config, model.config.codec
    history, context = request.observed, request.context
    points = next((fields.points for fields in (history, context) if fields is not None), None)
    queried = None if request.query is None else coordinates("query", request.query, model)
    grid = SPACE[: tok.dims]
    space = grid if points is None else ("point",)

    expected = Channels.of_model(model)

    def read(argument: str, given: Fields, expected: Channels) -> LabelledField:
        fields = replace(read_field(argument, given.values, space=space), points=given.points, known=given.known)
        names = _channel_names(fields)
        return fields.ordered(expected.places(argument, names, fields.units, strict=request.strict))

    observed = None if history is None else read("history", history, expected)
    if observed is not None and context is not None:
        expected = expected.of_context("history", _channel_names(observed), observed.units)
    other = None if context is None else read("context", context, expected)
    leading = observed or other
    if leading is None:
        raise EnmaError("history and context are both None; give one of them")
    batched = leading.values.ndim == len(space) + 3
    if request.trajectories is None:
        numbers = leading.numbers or range(len(leading.values) if batched else 1)
        request = replace(request, trajectories=numbers)
    own = ("points", points)
    if history is not None and context is not None and context.points is not None:
        own = ("context_points", context.points)
    for argument, source, (name, where) in (("history", observed, ("points", points)), ("context", other, own)):
        if where is not None:
            _require_points(argument, source, name, coordinates(name, where, model, of_frames=True), grid)
        elif source is not None:
            source.require_domain(argument, Domain.of(tok))
    coords = {} if points is not None else {name: ((name,), values) for name, values in leading.coords.items()}
    if queried is not None:
        coords = {name: (("point",), values) for name, values in zip(grid, queried.T.numpy(force=True), strict=True)}
    # Check this before the numbers of so many members are listed.
    places = None if queried is None else len(queried)
    request.check_memory(config, num_frames=1, num_points=places, device=model.codec.device)
    labels = Labels(
        kind=leading.kind,
        members=tuple(request.members),
        trajectories=tuple(request.trajectories or ()),
        batched=batched,
        interval=config.frame_interval,
        start=first_time(observed, other, interval=config.frame_interval),
        first_times=leading.times if observed is None and leading.times is not None and leading.times.size else None,
        space=grid if queried is None else ("point",),
        coords=dict(leading.further) | coords,
        attributes=leading.attributes,
        channels=leading.channels,
        units=leading.units,
        dimensionless=config.dataset in EQUATIONS,
        has_channel=leading.has_channel,
        name=leading.name,
    )
    return replace(request, observed=observed, context=other, query=queried), labels


def _channel_names(field: LabelledField) -> tuple[str, ...] | None:
    """Names of the channels; that of an array without an axis of channels need not be a channel's."""
    return field.channels if field.has_channel else None


def _require_points(
    argument: str, source: LabelledField | None, name: str, points: Tensor, axes: tuple[str, ...]
) -> None:
    """Raise `EnmaError` if the coordinates of a field differ from the points ``[..., P, d]`` that are given."""
    coords = {} if source is None else {axis: x for axis, x in source.places.items() if axis in axes}
    for axis, x in coords.items():
        given = points[..., axes.index(axis)].numpy(force=True)
        given = np.where(np.isnan(given), x, given) if len(x) == given.shape[-1] else given
        if len(x) == given.shape[-1] and not np.allclose(x, given, rtol=1e-5, atol=1e-5 * np.ptp(x)):
            raise EnmaError(f"{argument}: its coordinate {axis} differs from `{name}`; give the same, or drop it")


def _on_tensors(stop: Stop | None, labels: Labels) -> Stop | None:
    """A `stop` that takes tensors, from one that takes the kind of array that was given."""
    if stop is None:
        return None

    def on_tensors(number: int, frame: Tensor) -> Any:
        answer = stop(number, _labelled(labels, number, frame))
        if hasattr(answer, "data_vars"):
            answer = answer.to_dataarray("channel").any("channel")
        if isinstance(answer, Tensor) or not getattr(answer, "dims", ()):
            return answer
        dims = labels.dims("realization")
        if set(answer.dims) != set(dims):
            answer_dims = ", ".join(map(str, answer.dims))
            raise EnmaError(f"stop returned the dims ({answer_dims}); expected are {', '.join(dims)}")
        return answer.transpose(*dims).to_numpy()

    return on_tensors


def _labelled(labels: Labels, number: int, frame: Tensor) -> Any:
    """One frame in the kind of array that was given."""
    return labels.wrap(labels.plain(frame), labels.dims("realization"), time=labels.times(number))
