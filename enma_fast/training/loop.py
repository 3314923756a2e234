"""The loop of every training stage: steps shared by ranks, averaged weights, validations, and where a run goes on.

Every random number of step s is a function of (seed, s), so a run that is killed and resumed, or spread over ranks,
takes the same steps. A run folder holds ``log.jsonl``, ``state.safetensors`` (weights, average, optimiser; the resume
point), ``best.safetensors`` (the averaged weights of the best validation) and, at the end, ``checkpoint/``.

Legend: B batch, T frames (latent frames for the dynamics), N tokens per frame, C channels.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EnmaError, TrainingError
from ..models.checkpoint import LOG, load_tensors, read_tensors, write_tensors
from ..ops import rates
from ..utils.files import write_atomic
from ..utils.system import keep_freed_memory
from .average import Average
from .compiled import Forward, chosen_forward
from .optim import CLIP_NORM, build, learning_rate
from .ranks import Rank, average_gradients, join_ranks, mean_over_ranks
from .stage import Task
from .state import STATE, load_state, save_state
from .subnormals import flush_subnormals

log = logging.getLogger("enma_fast")

BEST = "best.safetensors"
# Validations of a stage that seconds end, and after how many that are no better it goes on to its last part.
_VALIDATIONS, _PATIENCE = 8, 2


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out.

    ``seed`` draws the batches and the noise, and ``precision``, ``compile`` and ``device`` round the steps differently.
    Where ``compile`` is None, steps on a GPU are compiled if that is faster there, but not in a stage that seconds end.
    ``stop_after`` ends the run early. The weights of the best validation are kept, so ``validate_every`` decides which
    they can be: None is the default of the stage. ``seconds`` end the stage, if its steps do not before: validations
    are spread over them, the first one before the first step. ``better`` is called when the module holds weights that
    are the best so far. The rest changes nothing of the weights.
    """

    out: Path
    seed: int = 0
    precision: str = "auto"
    compile: bool | None = None
    device: str = "cpu"
    save_seconds: float = 300.0
    validate_every: int | None = None
    log_every: int = 50
    stop_after: int | None = None
    seconds: float | None = None
    better: Callable[[], None] | None = field(default=None, repr=False)
    progress: Callable[[int, int, dict[str, float]], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "fp32"):
            raise EnmaError(f"precision {self.precision!r}: use auto, bf16 or fp32")


def step_generator(seed: int, step: int) -> torch.Generator:
    """Generator of one step's random numbers."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) % 2**63)
    return generator


@functools.cache
def fast_bf16(device: str) -> bool:
    """True if bf16 matrix products are faster than fp32 on this device, as measured."""
    return rates.measured(torch.device(device)).training == "bf16"


def in_bf16(options: RunOptions) -> bool:
    """True if a run multiplies matrices in bf16: where asked for, or in ``auto`` where that is faster."""
    return options.precision == "bf16" or (options.precision == "auto" and fast_bf16(options.device))


def autocast(options: RunOptions) -> AbstractContextManager[Any]:
    """bf16 autocast for the runs that use it."""
    if in_bf16(options):
        return torch.autocast(torch.device(options.device).type, torch.bfloat16)
    return nullcontext()


def begin_step(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of a step and drop the gradients of the one before."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)


def end_step(params: Iterable[nn.Parameter], optimizers: Iterable[torch.optim.Optimizer]) -> Tensor:
    """Clip the gradients and step; returns their norm before."""
    norm = nn.utils.clip_grad_norm_(params, CLIP_NORM)
    for optimizer in optimizers:
        optimizer.step()
    return norm


@flush_subnormals()
def run(task: Task, options: RunOptions) -> dict[str, float]:
    """Train until ``task.stage.steps``, or for ``options.seconds``, from the state in ``options.out`` if it holds one.

    Ranks go by the clock, the scores and the files of the first one, which also calls `options.better` and
    `options.progress`. At the end the module holds the averaged weights of the best validation, whose scores are
    returned.
    """
    keep_freed_memory()
    module, stage, rank = task.module.to(options.device), task.stage, join_ranks()
    params = [p for p in module.parameters() if p.requires_grad]
    optimizers = build(module, stage.optimizer, dtype=torch.bfloat16 if in_bf16(options) else torch.float32)
    average = Average(module, stage.optimizer.ema_decay)
    options.out.mkdir(parents=True, exist_ok=True)
    state_path = options.out / STATE
    begun = rank.from_first(state_path.exists())
    first, spent = load_state(state_path, module, average, optimizers, stage) if begun else (0, 0.0)
    clock = _Clock(stage.steps, options.seconds, spent, rank)
    log_path = options.out / LOG
    if rank.is_first:
        _trim_log(log_path, first)

    def step_loss(forward: Forward, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        module.train()
        with autocast(options):
            loss, terms = task.loss(forward, step_generator(options.seed, step), rank)
        loss.backward()
        return loss, terms

    end = stage.steps if options.stop_after is None else min(stage.steps, options.stop_after)
    # A choice takes time, which a stage that seconds end does not have, and one without steps does not need.
    unasked = None if options.seconds is None and first < end else False
    forward = chosen_forward(
        module,
        asked=unasked if options.compile is None else options.compile,
        device=torch.device(options.device),
        trial=lambda forward: step_loss(forward, first)[0],
        rank=rank,
    )
    best = _Best(options.out / BEST, task, first, rank)
    saved, timed, since, validated, worse = spent, time.monotonic(), first, -1, 0
    validate_every = options.validate_every or stage.validate_every

    def record(entry: dict[str, Any]) -> None:
        if rank.is_first:
            with log_path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def validate(done: int) -> None:
        nonlocal timed, validated, worse
        paused, validated = time.monotonic(), done
        module.eval()
        with average.applied(module):
            scores = rank.from_first(task.validate(rank))
            better = best.offer(done, scores)
            worse = 0 if better else worse + 1
            if better and options.better and rank.is_first:
                options.better()
        record({"step": done, "validation": scores})
        if rank.is_first:
            log.info("step %d: %s", done, ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        clock.finishing = task.finishing()
        clock.read()
        timed += time.monotonic() - paused

    if (options.seconds is not None or not stage.steps) and first == 0:
        validate(0)
    done = first
    while done < end and (share := clock.share(done)) < 1:
        step, task.share = done, share
        rate = learning_rate(step, stage.optimizer, clock.steps(done))
        begin_step(optimizers, rate)
        loss, terms = step_loss(forward, step)
        average_gradients(params, rank)
        norm = end_step(params, optimizers)
        average.update(module, step)
        clock.read()

        done = step + 1
        logs = done % options.log_every == 0 or done == end
        saves = done == end or clock.spent - saved > options.save_seconds
        # The norm is that of all ranks, and not finite either once a weight is not: such a state is never saved.
        if (logs or saves) and not torch.isfinite(norm):
            if options.seconds is not None and best.scores:
                log.warning("step %d: the loss is not finite; the weights of the best validation are taken", done)
                validated = done
                break
            hint = f"; {best.path} has the best weights before it" if best.scores else ""
            raise TrainingError(
                f"step {done}: loss {loss.item():.3g} or its gradient is not finite{hint}; train again in an empty"
                " folder with a lower learning_rate"
            )
        if logs:
            values = mean_over_ranks({"loss": loss.detach(), **terms}, rank)
            elapsed, timed = time.monotonic() - timed, time.monotonic()
            values |= {"grad_norm": float(norm), "per_second": stage.batch * (done - since) / elapsed}
            since = done
            record({"step": done, "lr": rate, **values})
            if options.progress and rank.is_first:
                held = {"validation": best.scores["rel_l2"]} if "rel_l2" in best.scores else {}
                options.progress(done, clock.steps(done), values | held)
        if (done % validate_every == 0 if options.seconds is None else clock.is_time(done)) or done == stage.steps:
            validate(done)
            if options.seconds is not None and worse >= _PATIENCE and share < task.last_part:
                log.info("step %d: validations improve no more; the last part begins", done)
                # Weights that were never trained would learn too little in it.
                if best.step and best.take():
                    average = Average(module, stage.optimizer.ema_decay)
                clock.go_on(task.last_part)
        if saves:
            if rank.is_first:
                # As much of the stage is over when it goes on, whatever part of it was left out.
                spent = 0.0 if options.seconds is None else clock.share(done) * options.seconds
                save_state(state_path, module, average, optimizers, stage, done, spent)
            saved = clock.spent
    if options.seconds is not None and validated < done:
        validate(done)
    if (end == stage.steps or options.seconds is not None) and not best.scores:
        raise TrainingError(
            f"{log_path}: no validation of this run gave a number; look for huge values in the validation data, or "
            "train again in an empty folder with a lower learning_rate"
        )
    if (end < stage.steps and options.seconds is None) or not best.take():
        average.put(module)
    module.eval()
    return best.scores


class _Clock:
    """How much of a stage is over: of its steps, or of the seconds that it has, if these are over before.

    Of the seconds some are left for the task to finish. `spent` are those of the stage until the last reading.
    """

    def __init__(self, most: int, seconds: float | None, spent: float, rank: Rank) -> None:
        self.most, self.seconds, self.finishing = most, seconds, 0.0
        self.spent, self.rank, self.begun = spent, rank, time.monotonic() - spent
        self.validated = int(_VALIDATIONS * self.share(0))

    def read(self) -> None:
        """Look at the clock: all ranks at that of the first one."""
        self.spent = self.rank.from_first(time.monotonic() - self.begun)

    def share(self, done: int) -> float:
        """From 0 to 1, after so many steps."""
        by_time = 0.0 if self.seconds is None else self.spent / max(self.seconds - self.finishing, 1e-9)
        return max(done / self.most if self.most else 1.0, by_time)

    def steps(self, done: int) -> int:
        """Steps that the stage will have taken at this pace."""
        return self.most if self.seconds is None else min(self.most, max(done, round(done / self.share(done))))

    def go_on(self, share: float) -> None:
        """From now on so much is over, and the rest goes on at the same pace."""
        self.seconds, self.validated = self.spent / share + self.finishing, int(_VALIDATIONS * share)

    def is_time(self, done: int) -> bool:
        """Whether another part of the stage is over, after which there is a validation."""
        passed = int(_VALIDATIONS * self.share(done))
        new = self.validated < passed < _VALIDATIONS
        self.validated = max(self.validated, passed)
        return new


class _Best:
    """The averaged weights of the best validation so far, kept in a file of the run by the first rank."""

    def __init__(self, path: Path, task: Task, step: int, rank: Rank) -> None:
        self.path, self.task, self.rank = path, task, rank
        self.scores, self.step = rank.by_first(lambda: self._kept(step))

    def _kept(self, step: int) -> tuple[dict[str, float], int]:
        """Scores and step of the file, if it is of a run until this step."""
        if step and self.path.exists():
            meta = read_tensors(self.path)[1]
            scores: dict[str, float] = json.loads(meta["scores"])
            # One of steps that a killed run took after its last saved state is found again.
            if int(meta["step"]) <= step and math.isfinite(self.task.merit(scores)):
                return scores, int(meta["step"])
        return {}, 0

    def offer(self, step: int, scores: dict[str, float]) -> bool:
        """Keep the module's weights if they are the best so far; never those of a merit that is no finite number."""
        merit = self.task.merit(scores)
        if not math.isfinite(merit) or (self.scores and merit >= self.task.merit(self.scores)):
            return False
        self.scores, self.step = scores, step
        if self.rank.is_first:
            write_tensors(self.path, self.task.module.state_dict(), {"step": str(step), "scores": json.dumps(scores)})
        return True

    def take(self) -> bool:
        """Put the best weights into the module, if there are any."""
        if self.scores:
            if self.rank.is_first:
                load_tensors(self.task.module, read_tensors(self.path)[0], source=str(self.path))
            self.rank.align(self.task.module)
        return bool(self.scores)


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
