"""The store of a forecast: its layout, and attributes that say which model, data, versions and command made it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig, SamplingConfig
from ..data import EQUATIONS, FieldFile, dataset_split
from ..data.drivers import rows_of
from ..errors import EnmaError
from ..models.checkpoint import CONFIG, COVARIANCE, WEIGHTS, hashes, sha256
from ..sampling.engine import PRECISIONS
from ..store.layout import KNOWN, MASKED, POINTS, TOGETHER, Layout
from ..store.location import is_store
from ..store.metadata import read_metadata
from ..utils.names import check_names
from ..utils.system import versions
from .extension import BESIDE
from .file_forecast import FileForecast
from .labelled_field import later
from .request import AUTO, ForecastRequest


def layout_of(forecast: FileForecast, attributes: Mapping[str, Any]) -> Layout:
    """The layout of a store of a forecast, with the observed frames and the truth, and further attributes."""
    config, data, request = forecast.model.config, forecast.data, forecast.request
    # The names become folders of the store.
    check_names(data.channels, kind="field", where=data.path)
    check_names(data.parameters, kind="parameter", where=data.path)
    index, seen, last = data.places(forecast.trajectories), forecast.num_observed, forecast.num_total
    observed = data.u[index, :seen] if seen else None
    mask = forecast.model.codec.mask
    where = None if data.points is None else data.points[index]
    count = request.points if where is None else where.shape[2]
    if observed is not None and where is not None:
        observed = np.where(np.isnan(where[..., :1]), np.float32(np.nan), observed)
    columns: dict[str, np.ndarray] = {name: values[index] for name, values in data.parameters.items()}
    if data.environment is not None:
        columns["environment"] = data.environment[index]
    try:
        return Layout(
            channels=data.channels,
            times=_frame_times(forecast)[seen:],
            coords=data.coords,
            trajectories=list(forecast.trajectories),
            num_members=request.num_members,
            first_member=request.first_member,
            observed=observed,
            observed_times=data.times[:seen],
            observed_coords=where,
            truth=data.u[index, seen:last] if forecast.has_truth else None,
            units=data.units,
            dimensionless=dataset_split(data.name)[0] in EQUATIONS,
            columns=columns,
            attributes={
                "task": request.task.name,
                "observed_frames": seen,
                "seed": request.seed,
                "model": config.name,
                "sampling": _in_words(config, request.sampling),
                "precision": request.precision,
                TOGETHER: config.codec.time_factor,
                "data_name": data.name,
                **({} if count is None else {POINTS: count}),
                **({KNOWN: [driver.name for driver in config.known]} if config.known else {}),
                **({} if mask is None else {MASKED: round(1 - float(mask.float().mean()), 6)}),
                **({"observation_error": list(request.errors)} if request.errors else {}),
                **attributes,
            },
        )
    except EnmaError as error:
        raise EnmaError(f"{data.path}: {error}") from None


def as_begun(request: ForecastRequest, out: Path | None) -> ForecastRequest:
    """The request, with ``auto`` as the number format of the store that it continues, if there is one."""
    if request.dtype != AUTO or out is None or not is_store(out):
        return request
    begun = PRECISIONS.get(read_metadata(out)["attributes"].get("precision"))
    return request if begun is None else replace(request, dtype=begun)


def provenance(forecast: FileForecast, checkpoint: str | Path, command: str) -> dict[str, Any]:
    """Attributes of a store that say which model, data, versions and command made it.

    `input_sha256` is of all that is taken from the files.
    """
    files, releases = hashes(checkpoint), versions()
    decide = ("enma-fast", "torch", "numpy")
    attributes: dict[str, Any] = {
        "command": command,
        "model_sha256": files[WEIGHTS],
        "config_sha256": files[CONFIG],
        **_of_covariance(forecast, files),
        "data_file": forecast.data.path.name,
        "input_sha256": _input_sha256(forecast),
        # The versions that decide the bits of a result, and the others.
        "versions": ", ".join(f"{name} {releases[name]}" for name in decide),
        "further_versions": ", ".join(f"{n} {number}" for n, number in releases.items() if number and n not in decide),
    }
    if beside := beside_hashes(forecast, forecast.num_total):
        attributes[BESIDE] = beside
    if forecast.context_file is not None:
        attributes["context_file"] = forecast.context_file.path.name
    return attributes


def beside_hashes(forecast: FileForecast, frames: int) -> list[str]:
    """A hash for each trajectory of its context, and of what the model is told of both up to so many frames.

    Empty where there is neither.
    """
    has_context, config, trajectories = (
        forecast.request.task.needs_context,
        forecast.model.config,
        forecast.trajectories,
    )
    if not has_context and not config.known:
        return []
    digests = [hashlib.sha256() for _ in trajectories]

    def add(source: FieldFile, places: Sequence[int], count: int) -> None:
        for digest, place in zip(digests, places, strict=True):
            for name, values in sorted(forecast.known(source, [place]).items()):
                digest.update(name.encode())
                digest.update(values[:, :count].tobytes() if values.ndim > 1 else values.tobytes())

    add(forecast.data, forecast.data.places(trajectories), frames)
    if has_context:
        source, others = forecast.context_places(trajectories)
        add(source, others, config.num_frames)
        for digest, place in zip(digests, others, strict=True):
            digest.update(source.u[place, : config.num_frames].tobytes())
    return [digest.hexdigest()[:16] for digest in digests]


def _of_covariance(forecast: FileForecast, files: Mapping[str, str]) -> dict[str, str]:
    """Hash of what fields are estimated with, where they are seen at scattered points by a model that reads grids."""
    scattered = forecast.data.points is not None or forecast.request.points is not None
    estimated = scattered and not forecast.model.config.codec.at_points
    return {"covariance_sha256": files[COVARIANCE]} if estimated else {}


def file_hashes(forecast: FileForecast) -> dict[str, str]:
    """Further such attributes, by which people find the files again; large files take a while."""
    files = {"data_sha256": forecast.data.path}
    if forecast.context_file is not None:
        files["context_sha256"] = forecast.context_file.path
    # Fields need not come from a file.
    return {name: sha256(path) if path.is_file() else "no file" for name, path in files.items()}


def _frame_times(forecast: FileForecast) -> np.ndarray:
    """Times of all frames: those of the file, and the model's interval after them."""
    data, count = forecast.data, forecast.num_total
    beyond = np.arange(1, max(0, count - len(data.times)) + 1)
    interval = forecast.model.config.frame_interval
    return np.append(data.times, later(float(data.times[-1]), beyond, interval=interval))[:count]


def _input_sha256(forecast: FileForecast) -> str:
    """Hash of the fields, contexts and columns of the trajectories, and of the times of the frames."""
    digest, data = hashlib.sha256(), forecast.data
    places = data.places(forecast.trajectories)
    has_context = forecast.request.task.needs_context
    source, index = forecast.context_places(forecast.trajectories) if has_context else (data, places)
    for place, other in zip(places, index, strict=True):
        digest.update(data.u[place].tobytes())
        if data.points is not None:
            digest.update(data.points[place].tobytes())
        if has_context:
            digest.update(source.u[other].tobytes())
    columns = [data.times, *(values[places] for _, values in sorted(data.parameters.items()))]
    columns += [values for _, values in sorted(rows_of(data.known, places).items())]
    if data.environment is not None:
        columns.append(data.environment[places])
    for values in columns:
        digest.update(values.tobytes())
    return digest.hexdigest()


def _in_words(config: ModelConfig, settings: SamplingConfig) -> str:
    used = {name: value for name, value in asdict(settings).items() if name in (*config.step.settings, "shifts")}
    return ", ".join([config.step.kind, *(f"{name} {value}" for name, value in used.items() if value is not None)])
