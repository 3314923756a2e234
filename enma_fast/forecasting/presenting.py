"""An ensemble for people: a summary in words, and the arrays of its picture.

Shape suffixes: B trajectories, K members, T forecast frames, L observed frames, c physical channels; `*x` space.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..drawing.forecast import Forecast
from ..errors import EnmaError
from ..utils.text import counted, times
from .channels import Channels
from .labelled_field import read_field
from .labels import Labels


def summary(labels: Labels, values: np.ndarray, mean: np.ndarray, spread: np.ndarray | None) -> str:
    """Sizes of an ensemble, and for each channel the root mean square of mean and spread, and the range of the values.

    `values` are ``[K, T, *x, c]`` or ``[B, K, T, *x, c]``; `mean` and `spread` have no member axis.
    """
    axis = int(labels.batched)
    num_frames, *grid = values.shape[axis + 1 : -1]
    when = labels.times(np.arange(num_frames))
    parts = [counted(values.shape[axis], "member")]
    if labels.batched:
        parts.append(counted(len(labels.trajectories), "trajectory"))
    parts.append(counted(num_frames, "frame") + ("" if when is None else f" at times {when[0]:.4g} to {when[-1]:.4g}"))
    parts.append(f"{times(grid)} points")
    lines = [", ".join(parts)]
    units = labels.unit_names(values.shape[-1])
    for c, name in enumerate(labels.channel_names(values.shape[-1])):
        line = f"{name}{'' if units[c] == '1' else f' ({units[c]})'}: RMS of the mean {_rms(mean[..., c])}"
        if spread is not None:
            first, last = (_rms(spread[..., c].take(frame, axis)) for frame in (0, -1))
            line += f", of the spread {_rms(spread[..., c])} ({first} in the first frame, {last} in the last)"
        least, greatest = np.nanmin(values[..., c]), np.nanmax(values[..., c])
        lines.append(f"{line}, values {least:.3g} to {greatest:.3g}")
    return "\n".join(lines)


def drawn(
    labels: Labels, members_KTxc: np.ndarray, *, place: int, channel: int | str, history: Any, truth: Any
) -> Forecast:
    """The trajectory at a place of an ensemble, as figures take it.

    `members_KTxc` are its members; `history` and `truth` are fields of the trajectory, or of all of the ensemble.
    """
    shape = members_KTxc.shape[1:]
    names = labels.channel_names(shape[-1])
    if channel not in (*names, *range(len(names))):
        raise EnmaError(f"channel {channel!r} is not in this ensemble; there are {', '.join(names)}")
    c = names.index(channel) if isinstance(channel, str) else channel
    seen_Lxc, later_Txc = (
        None if given is None else _of_place(argument, given, labels, place, shape)
        for argument, given in (("history", history), ("truth", truth))
    )
    if later_Txc is not None and later_Txc.shape != shape:
        raise EnmaError(f"truth has {len(later_Txc)} frames and the forecast {shape[0]}; give those of the forecast")
    num_seen = 0 if seen_Lxc is None else len(seen_Lxc)
    when = labels.times(np.arange(shape[0]))
    if when is None:
        when = labels.interval * (num_seen + np.arange(shape[0]))
    coords, units = [], {"time": labels.unit_of("time")}
    for name, size in zip(labels.space, shape[1:-1], strict=True):
        has_coord = name in labels.coords
        coords.append(labels.coords[name][1] if has_coord else np.arange(size))
        units[name] = labels.unit_of(name) if has_coord else "grid point"
    return Forecast(
        times=when,
        coords=coords,
        members=members_KTxc[..., c],
        truth=None if later_Txc is None else later_Txc[..., c],
        observed=None if seen_Lxc is None else seen_Lxc[..., c],
        observed_times=when[0] + labels.interval * np.arange(-num_seen, 0),
        name=names[c],
        unit=labels.unit_names(shape[-1])[c],
        axis_units={name: unit for name, unit in units.items() if unit is not None},
    )


def _of_place(argument: str, given: Any, labels: Labels, place: int, shape: tuple[int, ...]) -> np.ndarray:
    """Frames ``[L, *x, c]`` of the trajectory at a place of the ensemble."""
    frames = read_field(argument, given, space=labels.space)
    if labels.channels is not None:
        wanted = Channels(of="the ensemble", names=labels.channels, required=True)
        frames = frames.ordered(wanted.places(argument, frames.channels, None))
    data = frames.values if isinstance(frames.values, np.ndarray) else frames.values.numpy(force=True)
    if data.ndim == len(shape) + 1:
        if len(data) != len(labels.trajectories):
            raise EnmaError(
                f"{argument} has {counted(len(data), 'trajectory')} and the ensemble {len(labels.trajectories)}; "
                "give the same ones"
            )
        data = data[place]
    if data.ndim != len(shape) or data.shape[1:] != shape[1:]:
        expected = ", ".join(map(str, shape[1:]))
        raise EnmaError(f"{argument} has shape {tuple(data.shape)}; frames [.., {expected}] are drawn, or leave it out")
    return data


def _rms(x: np.ndarray) -> str:
    """Root mean square without frames in which a member was stopped, or a dash where there are no others."""
    values = x[~np.isnan(x)]
    return f"{np.sqrt(np.square(values, dtype=np.float64).mean()):.3g}" if values.size else "-"
