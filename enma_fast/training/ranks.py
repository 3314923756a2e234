"""The processes of a `torchrun` launch that train one run: which part of a batch each computes, and what they agree on.

The first one reads the clock, chooses, writes and speaks; the others take what it found.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import EnmaError
from ..utils.devices import use_own_gpu
from ..utils.launch import detect

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rank:
    """This process among those of a ``torchrun`` launch."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

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
        parts: list[Tensor] | None = [part] * self.count if self.is_first else None
        _together(dist.gather_object, part.cpu(), parts)
        return torch.cat(parts) if parts is not None else None

    def from_first(self, value: _T) -> _T:
        """The value that the first rank has, on every rank."""
        if self.count == 1:
            return value
        held = [value if self.is_first else None]
        _together(dist.broadcast_object_list, held)
        return held[0]  # type: ignore[return-value]

    def by_first(self, make: Callable[[], _T]) -> _T:
        """What the first rank makes while the others wait, on every rank, or its `EnmaError`."""
        if self.count == 1:
            return make()
        result: _T | None = None
        if self.is_first:
            try:
                result = make()
            except BaseException as error:
                failure = error if isinstance(error, EnmaError) else EnmaError(_ENDED)
                with contextlib.suppress(EnmaError):
                    self.from_first((result, failure))
                raise
        result, failed = self.from_first((result, None))
        if failed is not None:
            raise failed
        return result  # type: ignore[return-value]

    def align(self, module: nn.Module) -> None:
        """Give the module of every rank the parameters and buffers that it has at the first one."""
        if self.count > 1:
            held = {name: value.cpu() for name, value in module.state_dict().items()} if self.is_first else {}
            module.load_state_dict(self.from_first(held))


ALONE = Rank()


class BatchDraws:
    """Random numbers for a batch of some trajectories, of which a rank with a `part` of them keeps its own."""

    def __init__(self, generator: torch.Generator, count: int, rank: Rank = ALONE) -> None:
        self.generator, self.count = generator, count
        part = rank.part(count)
        # A rank whose part is empty computes a row that does not count.
        self.rows = part if part.start < part.stop else slice(0, 1)
        # By this the mean over the rows of a rank is multiplied, so that the mean over ranks is that of the batch.
        self.weight = rank.count * (part.stop - part.start) / count

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from 0 to 1 for each row of this rank, `[rows, *shape]`."""
        return torch.rand(self.count, *shape, generator=self.generator)[self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers for each row of this rank, `[rows, *shape]`."""
        return torch.randn(self.count, *shape, generator=self.generator)[self.rows]

    def below(self, most: int) -> Tensor:
        """Whole numbers from 0 to below `most`, or 0, for each row of this rank `[rows]`."""
        return torch.randint(max(1, most), (self.count,), generator=self.generator)[self.rows]


# The others wait while the first rank plans a training, learns a floor or scores: in a long training for many hours.
_PATIENCE = datetime.timedelta(days=2)
_ENDED = "another process of this training has ended; its own message says why; the same command goes on"


def _together(collective: Callable[..., Any], *arguments: Any) -> Any:
    """Call a collective; `EnmaError` where another process is gone."""
    try:
        return collective(*arguments)
    except RuntimeError as error:
        abandon_ranks()
        raise EnmaError(_ENDED) from error


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
        use_own_gpu()
        # A run may also stay on the CPU of a machine that has GPUs.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
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


def average_gradients(params: Iterable[nn.Parameter], rank: Rank) -> None:
    """Mean of the gradients over all ranks, in one collective."""
    if rank.count == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    _together(dist.all_reduce, flat)
    flat /= rank.count
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def mean_over_ranks(terms: dict[str, Tensor], rank: Rank) -> dict[str, float]:
    """Mean of each term over all ranks."""
    device = next(iter(terms.values())).device
    values = torch.stack([t.to(device, torch.float32) for t in terms.values()])
    if rank.count > 1:
        _together(dist.all_reduce, values)
        values /= rank.count
    return dict(zip(terms, values.tolist(), strict=True))
