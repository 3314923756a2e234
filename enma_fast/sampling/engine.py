"""The sampling engine: the fastest implementation of the sampler on this machine, with the results of the reference.

An `Engine` packs a model's weights once and then samples any number of ensembles:

* ``native``: on the CPU, each latent frame is one call of the extension;
* ``graph``: on a GPU, each latent frame is one launch of a CUDA graph;
* ``static``: the step that the graph contains, not captured;
* ``reference``: `reference.trajectory`, on a GPU by PyTorch's own operations.

On a GPU the last three are a `ladder`: a backend that fails, or whose first frame is not that of the reference, is left
for the next, unless it is asked for.

The number format of the weights is chosen here by default, and on a GPU the rows that are sampled at a time.

Legend: B rows (members), G groups that share history and context, T latent frames, N tokens per frame, C token
channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig, SamplingConfig
from ..errors import EnmaError
from ..models.drivers import Segment
from ..models.layers import own_dtype, prepared
from ..models.model import Dynamics
from ..ops import choose, rates
from ..ops._checks import dtype_name
from ..utils.system import free_gpu_memory
from . import native, static_plan
from .ladder import Ladder, ladder_of, rungs_of
from .native import NativeSampler
from .reference import ReferenceSampler
from .settings import Chunk, chosen_sampling
from .static_plan import chunk_for
from .static_sampler import StaticSampler

BACKENDS = ("native", "graph", "static", "reference")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest distance of a backend's first frame from that of the reference with the model's own weights, of its size. The
# shipped models differ by 0.02 with bf16 weights, and another noise gives 1.
TOLERANCES = {torch.float64: 0.01, torch.float32: 0.01}
HALF_TOLERANCE = 0.1

_Sampler = NativeSampler | StaticSampler | ReferenceSampler


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


def rows_at_once(dynamics: Dynamics, *, num_frames: int) -> int | None:
    """Rows of so many frames that a model's device samples at a time, by its cache and memory; None on a CPU."""
    device = next(dynamics.parameters()).device
    if device.type != "cuda":
        return None
    cache, free = torch.cuda.get_device_properties(device).L2_cache_size, free_gpu_memory(device)
    return chunk_for(dynamics.config, num_frames=num_frames, cache=cache, free=free)


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
    before
        An engine of the same model before its weights changed, which gives up its static steps.

    Raises
    ------
    EnmaError
        If the backend, or the one that ENMA_GPU names, cannot serve; the message says why.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        before: Engine | None = None,
    ) -> None:
        self.dynamics = dynamics
        self.dtype = weights_dtype(dynamics, dtype, backend=backend)
        device = next(dynamics.parameters()).device
        problems = candidates(dynamics.config, device, self.dtype)
        if backend == "static":
            problems["static"] = static_plan.problem(dynamics.config)
        if self.dtype != own_dtype(dynamics):
            problems["reference"] = f"samples with the model's weights as they are, not with {self.dtype}"
        self._ladder: Ladder | None = None
        if backend is None and (device.type == "cuda" or problems["graph"] is None):
            self._ladder = ladder_of("frames are sampled", rungs_of(problems), dynamics.config, self.dtype, device)
        else:
            self._chosen = choose("sampler", problems, backend)
        sampler, earlier = self._sampler_by(self.backend), None if before is None else before._current[1]
        if isinstance(sampler, StaticSampler) and isinstance(earlier, StaticSampler):
            sampler.take(earlier)
        self._current: tuple[str, _Sampler] = self.backend, sampler

    @property
    def backend(self) -> str:
        """The backend that samples; on a GPU one that fails gives way to the next."""
        return self._chosen if self._ladder is None else self._ladder.rung

    @property
    def arithmetic(self) -> str:
        """The backend, or the one whose bits it gives."""
        return "static" if self.backend == "graph" else self.backend

    def _sampler_by(self, backend: str) -> _Sampler:
        if backend == "native":
            return NativeSampler(self.dynamics, dtype=self.dtype)
        if backend == "reference":
            return ReferenceSampler(self.dynamics)
        return StaticSampler(self.dynamics, self.dtype, captured=backend == "graph")

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
            another trajectory of the same environment. With one T0 may be 0. Of models that are told drivers they
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
            What is known of the rows, apart from their keys.

        Yields
        ------
        Tensor
            ``[B, N, C]`` fp32: latent frames T0, T0 + 1, ..., num_latents - 1.
        """
        settings, chunk = chosen_sampling(self.dynamics.config, settings), chunk or Chunk()
        if groups is None:
            groups = torch.arange(len(seeds), device=seeds.device)
        given: dict[str, Any] = {"seeds": seeds, "members": members, "groups": groups, "chunk": chunk}
        given |= {"segments": list(segments), "num_latents": num_latents, "settings": settings}

        def begun(backend: str) -> tuple[Tensor | None, Iterator[Tensor]]:
            if (current := self._current)[0] != backend:
                current = self._current = backend, self._sampler_by(backend)
            frames = current[1].trajectory(**given)
            first = next(frames, None)
            if ladder is not None and not ladder.proved and backend != "reference" and first is not None and len(first):
                self._prove(first, given)
                ladder.proved = True
            return first, frames

        ladder = self._ladder
        first, frames = begun(self.backend) if ladder is None else ladder.climb(begun)
        if first is not None:
            yield first
            yield from frames

    def _prove(self, first_BNC: Tensor, given: dict[str, Any]) -> None:
        """Compare the first frame of the first row with that of the reference; `RuntimeError` if they differ."""
        one = {name: given[name][:1] for name in ("seeds", "members", "groups")}
        chunk = given["chunk"]
        chunk = replace(chunk, earlier=None if chunk.earlier is None else chunk.earlier[:1])
        expected = next(ReferenceSampler(self.dynamics).trajectory(**given | one | {"chunk": chunk}))
        distance = float((first_BNC[:1] - expected).norm() / expected.norm())
        most = TOLERANCES.get(self.dtype, HALF_TOLERANCE)
        # What is not finite by the reference either is the model's.
        if not distance <= most and expected.isfinite().all():
            raise RuntimeError(f"its first frame differs from the reference by {distance:.2g}, more than {most}")

    def apart(self) -> Engine:
        """The same packed weights, with memory of their own for what the extension reads; itself by other backends."""
        backend, sampler = self._current
        if not isinstance(sampler, NativeSampler):
            return self
        engine = copy.copy(self)
        engine._current = backend, sampler.apart()
        return engine

    def planned_bytes(self) -> dict[str, int]:
        """Planned memory of the last chunk in bytes, by purpose; empty before the first chunk."""
        return self._current[1].planned_bytes()


def engine_for(dynamics: Dynamics, *, dtype: torch.dtype | str | None = None, backend: str | None = None) -> Engine:
    """Return the engine of a model; it is prepared on first use, and again after the weights have changed.

    On a GPU it then has the memory and the graphs of the one before.
    """
    if backend is not None and backend not in BACKENDS:
        raise EnmaError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    return prepared(
        dynamics,
        (dtype, backend),
        lambda: Engine(dynamics, dtype=dtype, backend=backend),
        renew=lambda engine: Engine(dynamics, dtype=dtype, backend=backend, before=engine),
    )
