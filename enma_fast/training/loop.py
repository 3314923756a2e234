"""The loop of every training stage: steps shared by ranks, averaged weights, validations, and where a run goes on.

Every random number of step s is a function of (seed, s), so a run that is killed and resumed, or spread over ranks,
takes the same steps. A run folder holds ``log.jsonl``, ``state.safetensors`` (weights, average, optimiser; the resume
point), ``best.safetensors`` (the averaged weights of the best validation) and, at the end, ``checkpoint/``.

Legend: B batch, T frames (latent frames for the dynamics), N tokens per frame, C channels.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import importlib
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import TrainingConfig
from ..errors import EnmaError
from ..models.checkpoint import LOG, load_tensors, read_tensors, write_tensors
from ..ops import rates
from ..utils.dataclass_json import from_json, to_json
from ..utils.files import write_atomic
from ..utils.launch import detect
from ..utils.system import keep_freed_memory
from .optim import build, learning_rate
from .subnormals import flush_subnormals

log = logging.getLogger("enma_fast")

STATE, BEST = "state.safetensors", "best.safetensors"
# Settings that are no more, and their value, as JSON, in records that are read: the default, or any that did nothing.
_RETIRED = {
    "curriculum_steps": r"\d+",
    "fairness": r"1\.0",
    "history_noise": r"\[\s*0\.003,\s*0\.1\s*\]",
    "history_noise_share": r"0\.0",
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out.

    ``seed`` draws the batches and the noise, and ``precision``, ``compile`` and ``device`` round the steps differently.
    ``stop_after`` ends the run early. The weights of the best validation are kept, so ``validate_every`` decides which
    they can be: None is the default of the stage in :func:`enma_fast.training.recipes.train`, and the end alone in
    :func:`run`. The rest changes nothing of the weights.
    """

    out: Path
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    device: str = "cpu"
    save_seconds: float = 300.0
    validate_every: int | None = None
    log_every: int = 50
    stop_after: int | None = None
    progress: Callable[[int, int, dict[str, float]], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "fp32"):
            raise EnmaError(f"precision {self.precision!r}: use auto, bf16 or fp32")


class Stage(Protocol):
    """The part of a stage that differs from the others: its module, loss and validation, as :func:`run` needs them."""

    module: nn.Module
    config: TrainingConfig

    def loss(
        self, module: Callable[..., Any], generator: torch.Generator, rank: Rank
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this rank's share of the batch that ``generator`` draws, and terms to log."""

    def validate(self, rank: Rank) -> dict[str, float]:
        """Scores of the module as it is on held-out data, which the ranks share; those of the first rank count."""

    def merit(self, scores: dict[str, float]) -> float:
        """The number by which a validation is better than another: the lower, the better."""


@dataclass(frozen=True)
class Rank:
    """This process among those of a ``torchrun`` launch."""

    index: int = 0
    count: int = 1

    def share(self, batch: int) -> slice:
        """Rows of a global batch that this rank computes."""
        if batch < 1 or batch % self.count:
            raise EnmaError(f"batch {batch} does not divide among {self.count} ranks; choose a multiple")
        each = batch // self.count
        return slice(self.index * each, (self.index + 1) * each)

    def part(self, count: int) -> slice:
        """Rows that this rank computes of any number of them, none perhaps."""
        return slice(self.index * count // self.count, (self.index + 1) * count // self.count)

    def gathered(self, part: Tensor) -> Tensor | None:
        """The parts of all ranks in their order, on the CPU; None but at the first rank."""
        if self.count == 1:
            return part.cpu()
        parts: list[Tensor] | None = [part] * self.count if self.index == 0 else None
        dist.gather_object(part.cpu(), parts)
        return torch.cat(parts) if parts is not None else None


ALONE = Rank()

# The others wait while the first rank encodes the training data of the dynamics.
_PATIENCE = datetime.timedelta(hours=6)


def join_ranks() -> Rank:
    """Join the process group that ``torchrun`` announces in the environment, if any.

    `EnmaError` if another launcher has started several processes, which would all train the same run.
    """
    if "WORLD_SIZE" not in os.environ:
        # The tasks of a job array are runs of their own.
        launch = detect({name: value for name, value in os.environ.items() if not name.startswith("SLURM_ARRAY_")})
        if launch.num_ranks > 1:
            raise EnmaError(
                f"{launch.launcher} has started {launch.num_ranks} processes that know nothing of each other; start "
                "them with torchrun, or set WORLD_SIZE=1 where each has an --out of its own"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Rank()
    if not dist.is_initialized():
        # The optimisers import it, and defaults of its functions are the group of that time: held so, it is never left.
        importlib.import_module("torch.distributed.nn.functional")
        if torch.cuda.is_available():
            # Ranks of one machine get a GPU each; a run may also stay on the CPU of a machine that has some.
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(leave_ranks)
    return Rank(dist.get_rank(), dist.get_world_size())


def leave_ranks() -> None:
    """Leave the process group, and end its threads, while Python still runs; called at exit.

    A thread of Gloo that lets go of a tensor later than that aborts the process (pytorch/pytorch#190489).
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def abandon_ranks() -> None:
    """After a failure, exit without leaving: NCCL would wait there for ranks that wait for this one."""
    if torch.cuda.is_available():
        atexit.unregister(leave_ranks)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Generator of one step's random numbers."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) % 2**63)
    return generator


@functools.cache
def fast_bf16(device: str) -> bool:
    """True if bf16 matrix products are faster than fp32 on this device, as measured; ranks go by the first."""
    faster = torch.tensor(int(rates.measured(torch.device(device)).training == "bf16"))
    if dist.is_initialized():
        dist.broadcast(faster, 0)
    return bool(faster)


def in_bf16(options: RunOptions) -> bool:
    """True if a run multiplies matrices in bf16: where asked for, or in ``auto`` where that is faster."""
    return options.precision == "bf16" or (options.precision == "auto" and fast_bf16(options.device))


def autocast(options: RunOptions) -> AbstractContextManager[Any]:
    """bf16 autocast for the runs that use it."""
    if in_bf16(options):
        return torch.autocast(torch.device(options.device).type, torch.bfloat16)
    return nullcontext()


def average_gradients(params: Iterable[nn.Parameter], rank: Rank) -> None:
    """Mean of the gradients over all ranks, in one collective."""
    if rank.count == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= rank.count
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


class Average:
    """Exponential moving average of the weights; the decay warms up as (1 + s) / (10 + s).

    What a run gives is this average, of which ``start_share`` is replaced by the weights that the module has here.
    """

    def __init__(self, module: nn.Module, decay: float, start_share: float = 0.0) -> None:
        self.decay, self.start_share = decay, start_share
        self.values = _trainable(module)
        self.start = _trainable(module) if start_share else {}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the current weights."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for p in module.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.values.values()), current, weight)

    def put(self, module: nn.Module) -> None:
        """Give the module the weights of the result."""
        for name, p in module.named_parameters():
            if p.requires_grad:
                value = self.values[name]
                p.data = torch.lerp(value, self.start[name], self.start_share) if self.start else value.clone()

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module has the weights of the result meanwhile."""
        current = {name: p.data for name, p in module.named_parameters()}
        self.put(module)
        try:
            yield
        finally:
            for name, p in module.named_parameters():
                p.data = current[name]


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def begin_step(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of a step and drop the gradients of the one before."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)


def end_step(params: Iterable[nn.Parameter], optimizers: Iterable[torch.optim.Optimizer], clip_norm: float) -> Tensor:
    """Clip the gradients and step; returns their norm before."""
    norm = nn.utils.clip_grad_norm_(params, clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return norm


@flush_subnormals()
def run(task: Stage, options: RunOptions) -> dict[str, float]:
    """Train until ``task.config.steps``, resuming from ``options.out`` if it holds a state.

    At the end the module of the first rank holds the averaged weights of the best validation, whose scores are
    returned.
    """
    keep_freed_memory()
    module, config, rank = task.module.to(options.device), task.config, join_ranks()
    params = [p for p in module.parameters() if p.requires_grad]
    optimizers = build(module, config, dtype=torch.bfloat16 if in_bf16(options) else torch.float32)
    # Before a state is loaded, the module has the weights that the run started from.
    average = Average(module, config.ema_decay, config.start_share)
    options.out.mkdir(parents=True, exist_ok=True)
    state_path = options.out / STATE
    first = _load_state(state_path, module, average, optimizers, config) if state_path.exists() else 0
    log_path = options.out / LOG
    if rank.index == 0:
        _trim_log(log_path, first)
    forward: Callable[..., Any] = _compiled(module) if options.compile else module
    best = _Best(options.out / BEST, task, first)
    last_save, clock, since = time.monotonic(), time.monotonic(), first
    validate_every = options.validate_every or config.steps
    end = config.steps if options.stop_after is None else min(config.steps, options.stop_after)

    def record(entry: dict[str, Any]) -> None:
        if rank.index == 0:
            with log_path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    for step in range(first, end):
        rate = learning_rate(step, config)
        begin_step(optimizers, rate)
        module.train()
        with autocast(options):
            loss, terms = task.loss(forward, step_generator(options.seed, step), rank)
        loss.backward()
        average_gradients(params, rank)
        norm = end_step(params, optimizers, config.clip_norm)
        average.update(module, step)

        done = step + 1
        logs = done % options.log_every == 0 or done == end
        saves = rank.index == 0 and (done == end or time.monotonic() - last_save > options.save_seconds)
        # The norm is that of all ranks, and not finite either once a weight is not: such a state is never saved.
        if (logs or saves) and not torch.isfinite(norm):
            raise EnmaError(
                f"step {done}: loss {loss.item():.3g} or its gradient is not finite; train again in an empty folder"
                " with a lower learning_rate"
            )
        if logs:
            values = _mean_over_ranks({"loss": loss.detach(), **terms}, rank)
            elapsed, clock = time.monotonic() - clock, time.monotonic()
            values |= {"grad_norm": float(norm), "per_second": config.batch * (done - since) / elapsed}
            since = done
            record({"step": done, "lr": rate, **values})
            if options.progress:
                held = {"validation": best.scores["rel_l2"]} if "rel_l2" in best.scores else {}
                options.progress(done, config.steps, values | held)
        if done % validate_every == 0 or done == config.steps:
            paused = time.monotonic()
            module.eval()
            with average.applied(module):
                scores = task.validate(rank)
                if rank.index == 0:
                    best.offer(done, scores)
            record({"step": done, "validation": scores})
            if rank.index == 0:
                log.info("step %d: %s", done, ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
            clock += time.monotonic() - paused
        if saves:
            _save_state(state_path, module, average, optimizers, config, done)
            last_save = time.monotonic()
    if end == config.steps and rank.index == 0 and not best.scores:
        raise EnmaError(
            f"{log_path}: no validation of this run gave a number; look for huge values in the validation data, or "
            "train again in an empty folder with a lower learning_rate"
        )
    if end < config.steps or not best.take():
        average.put(module)
    module.eval()
    return best.scores


def _compiled(module: nn.Module) -> Callable[..., Any]:
    # The operators' choices are cached and do not change while a stage trains, so Dynamo may trace them.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`", category=UserWarning)
    return torch.compile(module)


class _Best:
    """The averaged weights of the best validation so far, kept in a file of the run."""

    def __init__(self, path: Path, task: Stage, step: int) -> None:
        self.path, self.task = path, task
        self.scores: dict[str, float] = {}
        if step and path.exists():
            meta = read_tensors(path)[1]
            scores = json.loads(meta["scores"])
            # One of steps that a killed run took after its last saved state is found again.
            if int(meta["step"]) <= step and math.isfinite(task.merit(scores)):
                self.scores = scores

    def offer(self, step: int, scores: dict[str, float]) -> None:
        """Keep the module's weights if they are the best so far; never those of a merit that is no finite number."""
        merit = self.task.merit(scores)
        if not math.isfinite(merit) or (self.scores and merit >= self.task.merit(self.scores)):
            return
        self.scores = scores
        write_tensors(self.path, self.task.module.state_dict(), {"step": str(step), "scores": json.dumps(scores)})

    def take(self) -> bool:
        """Put the best weights into the module, if there are any."""
        if self.scores:
            load_tensors(self.task.module, read_tensors(self.path)[0], source=str(self.path))
        return bool(self.scores)


def _mean_over_ranks(terms: dict[str, Tensor], rank: Rank) -> dict[str, float]:
    values = torch.stack([t.float() for t in terms.values()])
    if rank.count > 1:
        dist.all_reduce(values)
        values /= rank.count
    return dict(zip(terms, values.tolist(), strict=True))


def _trim_log(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last saved state, the last of them perhaps torn."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    write_atomic(path, "".join(kept).encode())


def _save_state(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    config: TrainingConfig,
    step: int,
) -> None:
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.values.items()}
    tensors |= optimizer_tensors(optimizers)
    write_tensors(path, tensors, {"step": str(step), "training": to_json(config)})


def without_retired(text: str) -> str:
    """JSON of an earlier version without the settings that are no more, where they have the value of their default.

    One with another value stays, so that whoever reads the settings refuses it as an unknown key.
    """
    held = "|".join(f'"{name}": {value}' for name, value in _RETIRED.items())
    return re.sub(rf"(?:{held}),\s*", "", text)


def _load_state(
    path: Path, module: nn.Module, average: Average, optimizers: list[torch.optim.Optimizer], config: TrainingConfig
) -> int:
    tensors, meta = read_tensors(path)
    # Keys that are newer than the file have the values of their time.
    if from_json(TrainingConfig, without_retired(meta.get("training", "{}")), source=str(path)) != config:
        raise EnmaError(f"{path}: was written by another training config; choose an empty --out or the same settings")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    load_tensors(module, weights, source=str(path))
    for name, value in average.values.items():
        value.copy_(tensors[f"average.{name}"])
    load_optimizers(optimizers, tensors)
    return int(meta["step"])


def optimizer_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """State of the optimisers by names that :func:`load_optimizers` knows."""
    tensors: dict[str, Tensor] = {}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return tensors


def load_optimizers(optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put the state of :func:`optimizer_tensors` back."""
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".")
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
