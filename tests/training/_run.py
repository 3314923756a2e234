"""Runs to test: their options, what they leave in their folder, a process of their own, and a task of one weight."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from enma_fast.data import write_fields
from enma_fast.models.checkpoint import read_tensors
from enma_fast.training.loop import RunOptions
from enma_fast.training.own_plan import Request, make_plan, with_kind
from enma_fast.training.recipes import to_toml
from enma_fast.training.stage import Stage, Task

from .._tiny import CONFIGS, dynamics_task, stage, tokenizer_task

WORKER = Path(__file__).parent / "_train_worker.py"
TASKS = {"tokenizer": tokenizer_task, "dynamics": dynamics_task}
LEARNING = {"steps": 40, "batch": 12, "learning_rate": 1e-2, "warmup_steps": 5}


def options(out, **changes):
    settings = {"precision": "fp32", "log_every": 1, "validate_every": 4, "save_seconds": 1e9} | changes
    return RunOptions(out=out, **settings)


def stepped(source, folder, steps):
    """The recipe of a training on own data, of so many steps and with the floor `waves`, and its splits in a folder.

    The recipe is also in `steps.toml` beside the folder.
    """
    plan, splits = make_plan(source, Request())
    for split, data in splits.items():
        write_fields(folder / f"waves-{split}.h5", data, name=split)
    (stage,) = plan.recipe.stage
    recipe = with_kind(dataclasses.replace(plan.recipe, stage=(dataclasses.replace(stage, steps=steps),)), "waves")
    (folder.parent / "steps.toml").write_text(to_toml(recipe))
    return recipe


def read_log(out, timings=False):
    """Entries of the log, without what the clock decides."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    clock = () if timings else ("per_second", "seconds", "cpu_seconds")
    return [{k: v for k, v in entry.items() if k not in clock} for entry in entries]


def assert_same_run(out, expected):
    """Logs and states of two run folders agree to the bit."""
    assert read_log(out) == read_log(expected)
    found, meta = read_tensors(out / "state.safetensors")
    wanted, wanted_meta = read_tensors(expected / "state.safetensors")
    assert meta == wanted_meta
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def start(*arguments, **environment):
    """The worker in a process of its own."""
    return subprocess.Popen(
        [sys.executable, WORKER, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


class Line(Task):
    """A task whose loss and scores are known: fit w to 3, and report w."""

    def __init__(self, *, breaks_at=None, value=float("nan"), best_at=3.0, **changes):
        self.best_at = best_at
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.stage = stage(
            partial(Stage, kind="line"),
            CONFIGS["paper"],
            **{"weight_decay": 0.0, "ema_decay": 0.8, "steps": 12} | changes,
        )
        self.breaks_at, self.value, self.calls = breaks_at, value, 0

    def loss(self, module, generator, rank):
        self.calls += 1
        w = module(torch.ones(1, 1)).squeeze()
        loss = (w - 3).square()
        if self.calls == self.breaks_at:
            loss = loss * self.value
        return loss, {"w": w.detach()}

    def validate(self, rank):
        return {"w": self.module.weight.item()}

    def merit(self, scores):
        return abs(scores["w"] - self.best_at)
