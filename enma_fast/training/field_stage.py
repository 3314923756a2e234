"""The training of field models: one stage from the first second to the last, so any moment has a usable model.

Each step draws trajectories, each with three frames that it knows of its own, continued for 1 to 8 frames, and windows
of its first frames, or of a companion that shares its physics. Later in the stage forecasts are longer, and pairs of
members are scored by the fair CRPS.

Legend: B trajectories, T frames, W windows, K frames of a forecast, c channels; `*x` space.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..models.contexts.physics import PhysicsContext
from ..models.decoders.field import FieldDecoder
from ..models.fair_score import fair_score
from ..models.field_step import PAST
from ..models.floors.ladder import forecaster
from ..models.model import Model
from .measured_symmetries import shift_axes
from .optim import Muon

# Trajectories whose physics is inferred at a time, that scales are measured on, and usual shares.
_AT_ONCE, _MEASURED, _USUAL = 200, 400, 80
# Least size of a trajectory that its error is relative to, as a share of a standard deviation.
_LEAST_SIZE = 1e-3
_TINY = 1e-12
# Good steps after which weights are kept, and bad ones in a row after which they come back, with a smaller rate.
_KEEP_EVERY, _MOST_BAD = 200, 10
# Matrices and filters of blocks, which Muon steps.
_MATRIX = re.compile(r"\.blocks\.\d+\.(gate_up|down)\.weight$")


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldStage:
    """Settings of the stage.

    Attributes
    ----------
    learning_rate, last_rate, warmup_steps : of a cosine, whose last rate is a share of the first
    batch, unroll_power : trajectories of a step, over the frames of a forecast to this power
    unrolls : from which share of the stage on forecasts have how many frames
    members_from : from which share on members are scored
    companions : share of the steps that infer the physics from another trajectory
    late : share of the trajectories that are continued from any frame, not from the third one
    bf16 : whether products are of that type; by default where it is measured to be faster
    """

    learning_rate: float = 3e-3
    last_rate: float = 5e-3
    warmup_steps: int = 30
    batch: int = 16
    unroll_power: float = 0.75
    unrolls: tuple[tuple[float, int], ...] = ((0.0, 1), (0.3, 2), (0.5, 4), (0.7, 8))
    members_from: float = 0.65
    companions: float = 0.3
    late: float = 0.5
    bf16: bool | None = None
    seed: int = 0

    def frames(self, share: float) -> int:
        """Frames of a forecast at a share of the stage."""
        return [frames for start, frames in self.unrolls if share >= start][-1]

    def rate(self, step: int, share: float) -> float:
        """Learning rate of a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1)))
        return (
            self.learning_rate
            * min(1, (step + 1) / self.warmup_steps)
            * (cosine * (1 - self.last_rate) + self.last_rate)
        )


@dataclass(frozen=True)
class Progress:
    """A step that was taken.

    Attributes
    ----------
    step, share : its number, and how much of the stage is over
    loss, frames : mean error of the forecasts relative to their size, or their CRPS, and how many frames they had
    skipped : steps so far whose loss or gradient was not finite; the weights stayed as they were
    """

    step: int
    share: float
    loss: float
    frames: int
    skipped: int


@dataclass(frozen=True)
class _Batch:
    past: Tensor
    truth: Tensor
    windows: Tensor
    state: Any
    told: Tensor


class FieldTraining:
    """Trains the context and the decoder of a field model on fields `[B, T, *x, c]` as its codec standardises them.

    The floor is learned before, by :func:`enma_fast.models.floors.choice.choose`. `environments [B]` says which
    trajectories share their physics.
    """

    def __init__(
        self, model: Model, fields: Tensor, *, environments: Tensor | None = None, stage: FieldStage | None = None
    ) -> None:
        self.stage = stage or FieldStage()
        context = cast(PhysicsContext, model.dynamics.context)
        decoder = cast(FieldDecoder, model.dynamics.step)
        self.modules = nn.ModuleList([context.encoder, decoder.model])
        self.context, self.step, self.floor = context, decoder.model, context.floor
        self.fields, self.generator = fields, torch.Generator().manual_seed(self.stage.seed)
        self.shifts = shift_axes(fields, context.fields.edges) if self.floor.moves else []
        self.companions = _companions(environments)
        self._states: dict[bool, tuple[Any, Tensor]] = {}
        self._measure()
        self.bf16 = self._bf16_is_faster() if self.stage.bf16 is None else self.stage.bf16
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, p in self.modules.named_parameters():
            (matrices if _MATRIX.search(name) and min(len(p), p[0].numel()) >= 16 else rest).append(p)
        self._rest = rest
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=self.stage.learning_rate, betas=(0.9, 0.95), weight_decay=0)
        ]
        if matrices:
            dtype = torch.bfloat16 if self.bf16 else None
            self.optimizers.append(Muon(matrices, lr=self.stage.learning_rate, dtype=dtype))

    def run(self, share: Callable[[], float]) -> Iterator[Progress]:
        """Take steps until `share`, of the budget that is spent, is 1; whoever takes the progress may stop before."""
        good, skipped, bad, caution, step = self._weights(), 0, 0, 1.0, 0
        while (now := share()) < 1:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.stage.rate(step, now) * caution
            frames = min(self.stage.frames(now), self.fields.shape[1] - PAST)
            loss = self._loss(self._batch(frames, now), members=now >= self.stage.members_from and self._has_members)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            size = nn.utils.clip_grad_norm_(self._rest, 1.0)
            if bool(torch.isfinite(loss) & torch.isfinite(size)):
                for optimizer in self.optimizers:
                    optimizer.step()
                step, bad = step + 1, 0
                if step % _KEEP_EVERY == 0 and all(bool(torch.isfinite(p).all()) for p in self._rest):
                    good = self._weights()
            else:
                skipped, bad = skipped + 1, bad + 1
                if bad >= _MOST_BAD:
                    self.modules.load_state_dict(good)
                    bad, caution = 0, caution / 2
            yield Progress(step, now, float(loss.detach()), frames, skipped)
        self.learn_usual()

    @torch.no_grad()
    def learn_usual(self) -> None:
        """Measure how much of the correction usually counts; before a model is used."""
        for own in (True, False) if self.companions is not None else (True,):
            rows = self._some_rows(_USUAL, own)
            windows, state, told = self._physics(rows, own, None)
            numbers = self.context.encoder(windows, told)
            shares = self.step.known_share(windows, numbers, forecaster(self.floor, state), first=self.floor.reads == 1)
            self.step.learn_usual(shares, own=own)
        if self.companions is None:
            self.step.learn_usual(self.step.usual[:1], own=False)

    @property
    def _has_members(self) -> bool:
        return bool(self.step.sizes.noise or self.step.sizes.member)

    def _weights(self) -> dict[str, Tensor]:
        return {name: x.clone() for name, x in self.modules.state_dict().items()}

    @torch.no_grad()
    def _measure(self) -> None:
        """Scales of the network's inputs and of what it adds."""
        few = self.fields[torch.linspace(0, len(self.fields) - 1, min(_MEASURED, len(self.fields))).long()]
        self.context.encoder.scales.learn(few)
        self.step.scales.learn(few)
        rows = self._some_rows(_MEASURED, own=True)
        start = self._random(self.fields.shape[1] - PAST, len(rows))
        frames = self._frames(rows, start, PAST + 1)
        _, state, _ = self._physics(rows, True, frames[:, :PAST])
        self.step.scales.learn_floor(frames[:, :PAST], frames[:, PAST], forecaster(self.floor, state))

    def _some_rows(self, most: int, own: bool) -> Tensor:
        rows = torch.arange(len(self.fields))
        if not own and self.companions is not None:
            rows = rows[torch.tensor([len(found) > 0 for found in self.companions])]
        if len(rows) == 1:
            # A single series stands for as many trajectories as it has beginnings.
            return rows.repeat(min(most, self.fields.shape[1] - PAST))
        return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]

    def _random(self, below: int, count: int) -> Tensor:
        return torch.randint(max(1, below), (count,), generator=self.generator)

    def _frames(self, rows: Tensor, start: Tensor, count: int) -> Tensor:
        """`count` frames of each row from a frame on; the first one stands for those before it."""
        return self.fields[rows[:, None], (start[:, None] + torch.arange(count)).clamp_min(0)]

    def _batch(self, frames: int, share: float) -> _Batch:
        stage, T = self.stage, self.fields.shape[1]
        pairs = share >= stage.members_from and self._has_members
        count = max(4, round(stage.batch / frames**stage.unroll_power / (2**0.5 if pairs else 1)))
        coin = torch.rand(2 * count + 1, generator=self.generator)
        own = self.companions is None or bool(coin[0] >= stage.companions)
        rows = self._random(len(self.fields), count)
        # The frame before the forecast: the third one or a later one; beside a companion also the first.
        last = torch.where(coin[1 : count + 1] < stage.late, 2 + self._random(T - frames - 2, count), 2)
        if len(self.fields) == 1:
            last = 2 + self._random(T - frames - 2, count)
        if not own:
            last = torch.where(coin[count + 1 :] < 0.5, 0, last)
        last = last.clamp(max=T - 1 - frames)
        taken = self._frames(rows, last - 2, PAST + frames)
        past, truth = taken[:, :PAST], taken[:, PAST:]
        windows, state, told = self._physics(rows, own, past)
        if not own and bool((last == 0).any()):
            before = self.floor.before(past[:, -1], state)
            begins = (last == 0).view(-1, *(1,) * (before.ndim - 1))
            past = torch.stack([*(torch.where(begins, before, past[:, t]) for t in (0, 1)), past[:, 2]], 1)
        for axis in self.shifts:
            by = int(self._random(self.fields.shape[2 + axis], 1))
            past, truth, windows = past.roll(by, 2 + axis), truth.roll(by, 2 + axis), windows.roll(by, 3 + axis)
        return _Batch(past, truth, windows, state, told)

    @torch.no_grad()
    def _physics(self, rows: Tensor, own: bool, past: Tensor | None) -> tuple[Tensor, Any, Tensor]:
        """Windows, what the floor infers from them and its numbers: of the rows' first frames, or of companions.

        Those of a single series are its past frames, where these are given.
        """
        if own and len(self.fields) == 1:
            start = torch.linspace(0, self.fields.shape[1] - PAST, len(rows)).long()
            windows = (self._frames(rows, start, PAST) if past is None else past)[:, None]
            state = self.floor.infer(windows)
            return windows, state, self.floor.features(state, windows)
        if not own:
            assert self.companions is not None
            found = [self.companions[row] for row in rows.tolist()]
            pick = torch.rand(len(rows), generator=self.generator)
            chosen = [
                c[int(p * len(c))] if len(c) else row
                for c, p, row in zip(found, pick.tolist(), rows.tolist(), strict=True)
            ]
            rows = torch.tensor(chosen)
        state, told = self._inferred(own)
        return self._windows(rows, own), state[rows], told[rows]

    def _windows(self, rows: Tensor | slice, own: bool) -> Tensor:
        frames = self.fields[rows]
        return frames[:, None, :PAST] if own else self.context.windows_of(frames)

    def _inferred(self, own: bool) -> tuple[Any, Tensor]:
        """What the floor infers from the windows of every trajectory, and its numbers; kept."""
        if own not in self._states:
            states, told = [], []
            for first in range(0, len(self.fields), _AT_ONCE):
                windows = self._windows(slice(first, first + _AT_ONCE), own)
                states.append(self.floor.infer(windows, own=own))
                told.append(self.floor.features(states[-1], windows))
            self._states[own] = type(states[0]).join(states), torch.cat(told)
        return self._states[own]

    def _loss(self, batch: _Batch, *, members: bool) -> Tensor:
        """Mean relative error of forecasts, or the fair CRPS of two members relative to the size of the fields."""
        past, truth, state = batch.past, batch.truth, batch.state
        scales, device = self.step.scales, past.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            condition = self.context.encoder(batch.windows, batch.told)
            if members:
                twice = torch.arange(len(past), device=device).repeat_interleave(2)
                past, state, condition = past[twice], state[twice], condition[twice]
                drawn = torch.randn(len(past), self.step.sizes.member, generator=self.generator).to(device)
                condition = self.step.condition(condition, drawn)
            floor = forecaster(self.floor, state)
            made = self.step.roll(past, condition, truth.shape[1], floor=floor, noisy=members, generator=self.generator)
        size = ((truth - scales.mean) / scales.std).square().flatten(1).mean(1).sqrt() + _LEAST_SIZE
        if members:
            score = fair_score((made / scales.std).unflatten(0, (-1, 2)), truth / scales.std, torch.abs)
            return (score.flatten(1).mean(1) / size).mean()
        error = ((made - truth) / scales.std).square().flatten(1).mean(1)
        return ((error + _TINY).sqrt() / size).mean()

    def _bf16_is_faster(self) -> bool:
        """Measured on steps of one frame, by the time of this process."""
        spent = {}
        state = self.generator.get_state()
        for bf16 in (False, True, False, True):
            self.bf16 = bf16
            start = time.process_time()
            self._loss(self._batch(1, 0.0), members=False).backward()
            # Of each type the second step counts: the first one prepares kernels.
            spent[bf16] = time.process_time() - start
        self.modules.zero_grad(set_to_none=True)
        self.generator.set_state(state)
        return spent[True] < 0.9 * spent[False]


def _companions(environments: Tensor | None) -> list[list[int]] | None:
    """The others of the environment of each trajectory; None where there are none."""
    if environments is None:
        return None
    names: Sequence[int] = environments.tolist()
    members: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        members.setdefault(name, []).append(row)
    found = [[other for other in members[name] if other != row] for row, name in enumerate(names)]
    return found if any(found) else None
