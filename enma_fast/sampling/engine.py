"""The sampling engine: the fastest implementation of the sampler on this machine, with the results of the reference.

An `Engine` packs a model's weights once and then samples any number of ensembles:

* ``native``: on the CPU, each latent frame is one call of the extension;
* ``graph``: on a GPU, each latent frame is one launch of a CUDA graph;
* ``static``: the step that the graph contains, not captured; also what ``graph`` does where a capture fails;
* ``reference``: `reference.trajectory`.

The number format of the weights is chosen here by default, and on a GPU the rows that are sampled at a time.

Legend: B rows (members), G groups that share history and context, T latent frames, N tokens per frame, C token
channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from ..models.drivers import Segment, frames_of
from ..models.layers import own_dtype, prepared
from ..models.model import Dynamics
from ..ops import choose, rates
from ..ops._checks import dtype_name
from . import native, static_plan
from .cuda_graphs import CapturedStep, try_capture
from .native import NativeSampler
from .reference import ReferenceSampler
from .settings import Chunk, Size, chosen_sampling, size_of
from .static_plan import chunk_for
from .static_step import StaticStep

BACKENDS = ("native", "graph", "static", "reference")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def candidates(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Backends for weights of this device and dtype, best first: None, or why one cannot serve."""
    on_gpu, lacking = device.type == "cuda", static_plan.problem(config)
    return {
        "native": native.problem(config, device, dtype),
        "graph": lacking or (None if on_gpu else f"needs a CUDA device; the model is on {device}"),
        "static": lacking or (None if on_gpu else "is for GPUs; on the CPU it has to be asked for"),
        "reference": None,
    }


def weights_dtype(
    dynamics: Dynamics, dtype: torch.dtype | str | None = None, *, backend: str | None = None
) -> torch.dtype:
    """Type of the weights while sampling, where it is not given.

    That of the model on a CPU. On a GPU bf16 in place of fp32, which its matrix units multiply and the kernels of the
    flow head take; the reference samples with the model's weights as they are. ``"auto"`` is the faster one of fp32 and
    bf16 by measurement, of those that the engine computes with.

    Raises
    ------
    EnmaError
        If it is another word.
    """
    own, device = own_dtype(dynamics), next(dynamics.parameters()).device
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None and dtype != "auto":
        raise EnmaError(f"dtype is {dtype!r}; a torch.dtype or 'auto' is expected")
    if backend == "reference" or own not in PRECISIONS.values():
        return own
    if device.type == "cuda":
        faster = torch.bfloat16
    else:
        faster = own if dtype is None else PRECISIONS[rates.measured(device).sampling]
    return faster if dtype_name(faster) in dynamics.config.context.formats else own


def rows_at_once(dynamics: Dynamics) -> int | None:
    """Rows that the device of a model samples at a time, by its level-2 cache; None on a CPU."""
    device = next(dynamics.parameters()).device
    if device.type != "cuda":
        return None
    return chunk_for(dynamics.config, cache=torch.cuda.get_device_properties(device).L2_cache_size)


class Engine:
    """A model prepared for sampling; make a new one after its weights have changed.

    Parameters
    ----------
    dynamics
        The model; its weights stay as they are.
    dtype
        Type of the packed weights, or "auto"; by default as :func:`weights_dtype` says.
    backend
        One of ``native``, ``graph``, ``static``, ``reference``; by default the best one that can serve.

    Raises
    ------
    EnmaError
        If the backend cannot serve; the message says why.
    """

    def __init__(
        self, dynamics: Dynamics, *, dtype: torch.dtype | str | None = None, backend: str | None = None
    ) -> None:
        self.dynamics = dynamics
        self.dtype = weights_dtype(dynamics, dtype, backend=backend)
        found = candidates(dynamics.config, next(dynamics.parameters()).device, self.dtype)
        if backend == "static":
            found["static"] = static_plan.problem(dynamics.config)
        if self.dtype != own_dtype(dynamics):
            found["reference"] = f"samples with the model's weights as they are, not with {self.dtype}"
        self.backend = choose("sampler", found, backend)
        # Of a GPU there is a step in its place.
        self._sampler: NativeSampler | ReferenceSampler | None = None
        if self.backend == "native":
            self._sampler = NativeSampler(dynamics, dtype=self.dtype)
        elif self.backend == "reference":
            self._sampler = ReferenceSampler(dynamics)
        # The step of the last chunk; None while a trajectory uses it.
        self._idle: tuple[Size, StaticStep | CapturedStep] | None = None
        self._captured: bool | None = None

    @property
    def captured(self) -> bool | None:
        """True if frames of the last chunk were launched as CUDA graphs; None where that is not the backend."""
        return self._captured if self.backend == "graph" else None

    # The decorator covers the computation of each frame, and not what the caller does between two frames.
    @torch.inference_mode()
    def trajectory(
        self,
        segments: Sequence[Segment],
        *,
        num_latents: int,
        seeds: Tensor,
        members: Tensor,
        settings: SamplingConfig | None = None,
        groups: Tensor | None = None,
        chunk: Chunk | None = None,
    ) -> Iterator[Tensor]:
        """Generate the latent frames that follow a history, one at a time.

        Parameters
        ----------
        segments
            The history, observed latent frames ``[G, T0, N, C]``, alone or after a context ``[G, Tc, N, C]``, which is
            another trajectory of the same environment; beside one T0 may be 0. Of models that are told drivers they
            are `Told`.
        num_latents
            Latent frames of the whole trajectory, the observed ones included.
        seeds, members
            ``[B]`` int64, the key of the noise of each row. The result of a row depends only on its key, and on the
            history and context of its group.
        settings
            Sampling settings; the model's own by default.
        groups
            ``[B]`` int64, the history that each row continues; by default row b has history b.
        chunk
            What is known of the rows beside their keys.

        Yields
        ------
        Tensor
            ``[B, N, C]`` fp32: latent frames T0, T0 + 1, ..., num_latents - 1.
        """
        settings, chunk = chosen_sampling(self.dynamics.config, settings), chunk or Chunk()
        if groups is None:
            groups = torch.arange(len(seeds), device=seeds.device)
        if self._sampler is not None:
            yield from self._sampler.trajectory(
                list(segments),
                num_latents=num_latents,
                seeds=seeds,
                members=members,
                groups=groups,
                settings=settings,
                chunk=chunk,
            )
        else:
            frames = [frames_of(segment) for segment in segments]
            if chunk.earlier is not None:
                *others, known = (segment[groups] for segment in frames)
                frames, groups = [*others, torch.cat([known, chunk.earlier], 1)], torch.arange(len(seeds))
                groups = groups.to(seeds.device)
            yield from self._static(frames, num_latents, seeds, members, groups, settings, chunk.rows)

    def planned_bytes(self) -> dict[str, int]:
        """Planned memory of the last chunk in bytes, by purpose; empty before the first chunk."""
        if self._sampler is not None:
            return self._sampler.planned_bytes()
        if self._idle is None:
            return {}
        plan = self._idle[1].plan
        return {"weights": plan.weights, "keys_values": plan.kv_bytes, "buffers": plan.buffer_bytes}

    def _static(
        self,
        segments: list[Tensor],
        num_latents: int,
        seeds: Tensor,
        members: Tensor,
        groups: Tensor,
        settings: SamplingConfig,
        chunk: int | None,
    ) -> Iterator[Tensor]:
        """Generate frames with a static step, which needs groups of equal size, one after the other."""
        G, B = segments[0].shape[0], len(seeds)
        even = B % G == 0 and torch.equal(groups, torch.arange(G, device=groups.device).repeat_interleave(B // G))
        if not even:
            segments, G = [s[groups] for s in segments], B
        first = segments[-1].shape[1]
        size = size_of(self.dynamics.config, segments, rows=B, num_latents=num_latents, settings=settings)
        kept = slice(B)
        if (larger := self._larger(size, chunk)) is not None:
            size = larger
            if size.groups == size.rows and len(segments[0]) < B:
                segments = [s[groups] for s in segments]
            segments = [_filled(s, size.groups) for s in segments]
            seeds, members = _filled(seeds, size.rows), _filled(members, size.rows)
        with torch.cuda.device_of(seeds):
            step = self._take(size)
        try:
            with torch.cuda.device_of(seeds):
                step.begin(segments, seeds=seeds, members=members, first=first)
            for t in range(first, num_latents):
                # Whoever takes the frames has another device current, or none.
                with torch.cuda.device_of(seeds):
                    z_BNC = step.frame(last=t + 1 == num_latents)[kept].float().clone()
                yield z_BNC
        finally:
            idle, self._idle = self._idle, (size, step)
            _close(idle)

    def _larger(self, size: Size, chunk: int | None) -> Size | None:
        """The size of the last chunk, if it had `chunk` rows and this one of no more can be computed in it.

        Rows are added at the end: to the only group, or as whole groups, or each row is a group of its own.
        """
        idle = self._idle
        if idle is None or chunk is None or size.rows > chunk:
            return None
        there = idle[0]
        alike = replace(size, rows=there.rows, groups=there.groups) == there
        whole = size.groups <= there.groups and size.rows * there.groups == there.rows * size.groups
        fits = there.groups == size.groups == 1 or there.groups == there.rows or whole
        return there if alike and fits and there.rows == chunk else None

    def _take(self, size: Size) -> StaticStep | CapturedStep:
        """Take the step of the last chunk if it has this size and is not in use, or else make a new one."""
        # Taken before it is looked at: another thread may want it too.
        idle, self._idle = self._idle, None
        if idle is not None and idle[0] == size:
            return idle[1]
        # The old memory is freed before new memory is allocated.
        _close(idle)
        del idle
        new = StaticStep(self.dynamics, size, dtype=self.dtype)
        if self.backend != "graph":
            return new
        captured = try_capture(new)
        self._captured = isinstance(captured, CapturedStep)
        return captured


def _close(idle: tuple[Size, StaticStep | CapturedStep] | None) -> None:
    """Free what a step holds outside of its own memory."""
    if idle is not None and isinstance(idle[1], CapturedStep):
        idle[1].close()


def _filled(x: Tensor, count: int) -> Tensor:
    """`count` rows: those of `x`, and copies of the last one after them."""
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])


def engine_for(dynamics: Dynamics, *, dtype: torch.dtype | str | None = None, backend: str | None = None) -> Engine:
    """Return the engine of a model; it is prepared on first use, and again after the weights have changed."""
    if backend is not None and backend not in BACKENDS:
        raise EnmaError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    return prepared(dynamics, (dtype, backend), lambda: Engine(dynamics, dtype=dtype, backend=backend))
