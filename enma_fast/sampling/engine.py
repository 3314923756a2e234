"""The sampling engine: the fastest implementation of the sampler on this machine, with the results of the reference.

An `Engine` packs a model's weights once and then samples any number of ensembles:

* ``native``: on the CPU, each latent frame is one call of the extension;
* ``graph``: on a GPU, each latent frame is one launch of a CUDA graph;
* ``static``: the step that the graph contains, not captured;
* ``reference``: `reference.trajectory`.

Legend: B rows (members), G groups that share history and context, T latent frames, N tokens per frame, C token
channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..errors import EnmaError
from ..models.layers import own_dtype, weights_key
from ..models.model import Dynamics
from ..ops import choose, sampler
from . import reference
from .cuda_graphs import CapturedStep, try_capture
from .native import NativeSampler
from .settings import chosen_sampling
from .static_step import StaticStep

BACKENDS = ("native", "graph", "static", "reference")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def candidates(device: torch.device, dtype: torch.dtype, *, head_dim: int) -> dict[str, str | None]:
    """Backends for weights of this device, dtype and head size, best first: None, or why one cannot serve."""
    on_gpu = device.type == "cuda"
    return {
        "native": sampler.problem(device, dtype, head_dim=head_dim),
        "graph": None if on_gpu else f"needs a CUDA device; the model is on {device}",
        "static": None if on_gpu else "is for GPUs; on the CPU it has to be asked for",
        "reference": None,
    }


class Engine:
    """A model prepared for sampling; make a new one after its weights have changed.

    Parameters
    ----------
    dynamics
        The model; its weights stay as they are.
    dtype
        Type of the packed weights: by default that of the model; bf16 is faster.
    backend
        One of ``native``, ``graph``, ``static``, ``reference``; by default the best one that can serve.

    Raises
    ------
    EnmaError
        If the backend cannot serve; the message says why.
    """

    def __init__(self, dynamics: Dynamics, *, dtype: torch.dtype | None = None, backend: str | None = None) -> None:
        self.dynamics = dynamics
        self.dtype = dtype or own_dtype(dynamics)
        config = dynamics.config.dynamics
        device = next(dynamics.parameters()).device
        found = candidates(device, self.dtype, head_dim=config.width // config.heads)
        if backend == "static":
            found["static"] = None
        if self.dtype != own_dtype(dynamics):
            found["reference"] = f"samples with the model's weights as they are, not with {self.dtype}"
        self.backend = choose("sampler", found, backend)
        self._native = NativeSampler(dynamics, dtype=self.dtype) if self.backend == "native" else None
        # The step of the last chunk; None while a trajectory uses it.
        self._idle: tuple[tuple[Any, ...], StaticStep | CapturedStep] | None = None

    # The decorator covers the computation of each frame, and not what the caller does between two frames.
    @torch.inference_mode()
    def trajectory(
        self,
        history: Tensor,
        *,
        num_latents: int,
        seeds: Tensor,
        members: Tensor,
        context: Tensor | None = None,
        settings: SamplingConfig | None = None,
        groups: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Generate the latent frames that follow a history, one at a time.

        Parameters
        ----------
        history
            Observed latent frames ``[G, T0, N, C]``; T0 may be 0 when a context is given.
        num_latents
            Latent frames of the whole trajectory, the observed ones included.
        seeds, members
            ``[B]`` int64, the key of the noise of each row. The result of a row depends only on its key, and on the
            history and context of its group.
        context
            Latent frames ``[G, Tc, N, C]`` of another trajectory of the same environment.
        settings
            Sampling settings; the model's own by default. For a one-pass model only the temperature may differ.
        groups
            ``[B]`` int64, the history that each row continues; by default row b has history b.

        Yields
        ------
        Tensor
            ``[B, N, C]`` fp32: latent frames T0, T0 + 1, ..., num_latents - 1.
        """
        settings = chosen_sampling(self.dynamics.config, settings)
        if groups is None:
            groups = torch.arange(len(seeds), device=seeds.device)
        if self.backend == "reference":
            yield from reference.trajectory(
                self.dynamics,
                history[groups],
                num_latents=num_latents,
                seeds=seeds,
                members=members,
                context=None if context is None else context[groups],
                settings=settings,
            )
            return
        segments = [history] if context is None else [context, history]
        if self._native is not None:
            yield from self._native.trajectory(
                segments, num_latents=num_latents, seeds=seeds, members=members, groups=groups, settings=settings
            )
        else:
            yield from self._static(segments, num_latents, seeds, members, groups, settings)

    def planned_bytes(self) -> dict[str, int]:
        """Planned memory of the last chunk in bytes, by purpose; empty before the first chunk."""
        if self._native is not None:
            return self._native.planned_bytes()
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
    ) -> Iterator[Tensor]:
        """Generate frames with a static step, which needs groups of equal size, one after the other."""
        G, B = segments[0].shape[0], len(seeds)
        even = B % G == 0 and torch.equal(groups, torch.arange(G, device=groups.device).repeat_interleave(B // G))
        if not even:
            segments, G = [s[groups] for s in segments], B
        first = segments[-1].shape[1]
        initial = not reference.in_one_pass(self.dynamics.config, first)
        key = (B, G, sum(s.shape[1] + 1 for s in segments), max(0, num_latents - first - 1), settings, initial)
        with torch.cuda.device_of(seeds):
            step = self._take(key)
            step.begin(segments, seeds=seeds, members=members, first=first)
        try:
            for t in range(first, num_latents):
                # Whoever takes the frames has another device current, or none.
                with torch.cuda.device_of(seeds):
                    z_BNC = step.frame(last=t + 1 == num_latents).float().clone()
                yield z_BNC
        finally:
            self._release()
            self._idle = (key, step)

    def _take(self, key: tuple[Any, ...]) -> StaticStep | CapturedStep:
        """Take the step of the last chunk if it has this size and is not in use, or else make a new one."""
        if self._idle is not None and self._idle[0] == key:
            step, self._idle = self._idle[1], None
            return step
        # The old memory is freed before new memory is allocated.
        self._release()
        rows, groups, prefix_frames, own_frames, settings, initial = key
        new = StaticStep(
            self.dynamics,
            rows=rows,
            groups=groups,
            prefix_frames=prefix_frames,
            own_frames=own_frames,
            settings=settings,
            initial=initial,
            dtype=self.dtype,
        )
        return try_capture(new) if self.backend == "graph" else new

    def _release(self) -> None:
        """Free the step of the last chunk."""
        if self._idle is not None and isinstance(self._idle[1], CapturedStep):
            self._idle[1].close()
        self._idle = None


class _Engines(dict[Any, tuple[tuple[Any, ...], Engine]]):
    """Engines of a model, kept in the model so that they are freed with it; a copy of the model has none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Engines:
        return _Engines()

    def __reduce__(self) -> tuple[type[_Engines], tuple[()]]:
        return _Engines, ()


def engine_for(dynamics: Dynamics, *, dtype: torch.dtype | None = None, backend: str | None = None) -> Engine:
    """Return the engine of a model; it is prepared on first use, and again after the weights have changed."""
    if backend is not None and backend not in BACKENDS:
        raise EnmaError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    engines: _Engines = vars(dynamics).setdefault("_engines", _Engines())
    weights = weights_key(dynamics)
    known = engines.get((dtype, backend))
    if known is None or known[0] != weights:
        known = engines[dtype, backend] = (weights, Engine(dynamics, dtype=dtype, backend=backend))
    return known[1]
