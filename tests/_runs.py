"""Runs by keywords: those of the request, names of task and precision, and those of `prepare` together."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from enma_fast.forecasting.request import ForecastRequest, dtype_named, task_named
from enma_fast.runs import prepare as prepare_module
from enma_fast.runs.run import Run
from enma_fast.utils.launch import Launch

ASKED = {field.name for field in fields(ForecastRequest)} - {"task", "dtype", "observed", "context", "query"}
ALONE = Launch(launcher="alone", rank=0, num_ranks=1, local_rank=0, num_local=1, run="test")


def prepare(data: Any, out: Path, *, task: str | None = None, precision: str | None = None, **options: Any) -> Run:
    """A checked run."""
    asked = {name: options.pop(name) for name in ASKED & set(options)}
    asked |= {"task": task_named(task, has_contexts=options.get("context") is not None)}
    return prepare_module.prepare(data, out, ForecastRequest(dtype=dtype_named(precision), **asked), **options)


def start(data: Any, out: Path, **options: Any) -> Run:
    """A checked run of one process."""
    return prepare(data, out, **{"launch": ALONE, **options})
