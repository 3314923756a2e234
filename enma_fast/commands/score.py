"""`enma-fast score`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import (
    DEFAULT_CHECKPOINT,
    AsJson,
    Checkpoint,
    Chunk,
    Device,
    FlowMethod,
    FlowSteps,
    History,
    LastFlowSteps,
    MaskSteps,
    Members,
    Precision,
    Seed,
    Task,
    Temperature,
    Threads,
    on_device,
    sampling,
    use_threads,
)
from .options import Data as DataFile
from .terminal import Terminal, number, table

_SCORES = ("rel_l2", "rel_l2_member", "crps", "rmsce", "rmsce_rank", "spread_skill", "solver_fidelity")


def score(
    file: DataFile,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    task: Task = "temporal",
    history: History = 3,
    members: Members = 16,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option("--limit", help="Score the first N trajectories only.")] = None,
    mask_steps: MaskSteps = None,
    flow_steps: FlowSteps = None,
    last_flow_steps: LastFlowSteps = None,
    flow_method: FlowMethod = None,
    temperature: Temperature = None,
    precision: Precision = None,
    chunk: Chunk = 64,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score ensemble forecasts of a field file: error, CRPS and calibration, beside the paper's figures."""
    from ..checkpoint import load_model
    from ..data import read
    from ..scoring import paper_table
    from ..scoring import score as measure

    terminal = Terminal(as_json)
    use_threads(threads)
    model = load_model(checkpoint, device=on_device(device))
    settings, _ = sampling(
        model.config,
        mask_steps=mask_steps,
        flow_steps=flow_steps,
        last_flow_steps=last_flow_steps,
        flow_method=flow_method,
        temperature=temperature,
    )
    data = read(file)
    with terminal.progress("scoring") as update:
        result = measure(
            model,
            data,
            task=task,
            history=history,
            members=members,
            seed=seed,
            limit=limit,
            chunk=chunk,
            settings=settings,
            precision=precision,
            progress=update,
        )
    terminal.show(_score_table(result, paper_table(result)))
    terminal.result({**result, "file": str(file), "checkpoint": str(checkpoint)})


def _score_table(result: dict[str, Any], paper: list[dict[str, Any]]) -> Any:
    names = [name for name in _SCORES if result[name] is not None]
    rows = [[f"{result['model']} (this run)", *(number(result[name]) for name in names)]]
    rows += [[f"{row['model']} (paper)", *(number(row.get(name)) for name in names)] for row in paper]
    split = result["split"] or "no split of this package"
    return table(
        f"{result['dataset']} ({split}), {result['task']}: {result['num_trajectories']} trajectories",
        ["", *names],
        rows,
        caption=f"{result['num_members']} members from {result['history']} frames, {result['num_frames']} frames "
        f"scored, seed {result['seed']}; {number(result['seconds_per_member'])} s per member, "
        f"{result['num_parameters']:,} parameters",
    )
