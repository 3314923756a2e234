"""The native sampler for the CPU: each latent frame of `reference.trajectory` is one call of the C++ extension.

Weights are packed once. Members of a trajectory share the keys and values of its history and context. In the masked
transformer, the first layer is computed only for tokens that have changed, and the last only for tokens that are being
decided. The flow head of a one-pass model is packed only if frame 0 has to be decided by it.

Legend: B rows (members), G groups that share history and context, N tokens per frame, C token channels, K head dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..errors import EnmaError
from ..models.layers import RMSNorm
from ..models.model import Dynamics
from ..models.schedule import flow_schedule, mask_schedule
from ..ops import sampler
from ..ops.flow_plan import FlowPlan
from ..utils.bounds import most_threads
from .reference import in_one_pass

# Initial number of frames in the tables of rotary positions.
TABLE_FRAMES = 64
# Members times frames that one call makes, where nobody asks for a frame as soon as it is made. A frame of one member
# of a small model takes 0.1 ms, and half as long again where Python comes between two of them.
ROWS_AHEAD = 16


class NativeSampler:
    """A model packed for the CPU; pack again after its weights have changed.

    ``dtype`` is that of the packed weights. bf16 halves their size, and is the fastest on processors that multiply it
    (AVX-512 BF16). Tokens, residuals and sums are fp32 in either case.
    """

    def __init__(self, dynamics: Dynamics, *, dtype: torch.dtype) -> None:
        self.dynamics, self.dtype = dynamics, dtype
        self._plans: dict[tuple[int, str], FlowPlan] = {}
        # The session of the last chunk; None while a trajectory uses it.
        self._idle: tuple[tuple[Any, ...], Any] | None = None
        self._pack(TABLE_FRAMES)

    def trajectory(
        self,
        segments: Sequence[Tensor],
        *,
        num_latents: int,
        seeds: Tensor,
        members: Tensor,
        groups: Tensor,
        settings: SamplingConfig,
        ahead: bool = False,
        threads: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield latent frames ``[B, N, C]`` that follow the segments ``[G, T_i, N, C]``, the last being the history.

        With `ahead` several frames of a few rows are made before the first of them is yielded.
        """
        first = segments[-1].shape[1]
        key, session = self.session(
            rows=len(seeds),
            groups=segments[0].shape[0],
            prefix_frames=sum(s.shape[1] + 1 for s in segments),
            own_frames=max(0, num_latents - first - 1),
            first=first,
            settings=settings,
            threads=threads,
        )
        config = self.dynamics.config
        try:
            session.reset()
            for number, segment in enumerate(segments):
                session.start_segment(number)
                for z_GNC in segment.float().unbind(1):
                    session.read(z_GNC.contiguous())
            session.begin(seeds.contiguous(), members.contiguous(), groups.contiguous(), first)
            most = max(1, ROWS_AHEAD // len(seeds)) if ahead else 1
            for t in range(first, num_latents, most):
                count = min(most, num_latents - t)
                z_TBNC = torch.empty(count, len(seeds), config.num_tokens, config.token_channels, dtype=torch.float32)
                session.frame(z_TBNC, t + count == num_latents)
                yield from z_TBNC
        finally:
            # A trajectory that is abandoned early returns it too.
            self._idle = (key, session)

    def session(
        self,
        *,
        rows: int,
        groups: int,
        prefix_frames: int,
        own_frames: int,
        first: int,
        settings: SamplingConfig,
        threads: int | None = None,
        isa: str = "",
        teams: str = "",
    ) -> tuple[tuple[Any, ...], Any]:
        """Return the memory of one chunk from frame `first` on, that of the last chunk if it fits, and its key."""
        threads = min(threads or torch.get_num_threads(), most_threads())
        if prefix_frames + own_frames > self._frames:
            self._pack(2 * (prefix_frames + own_frames))
        # Frames that are decided in one pass need no mask steps.
        N = self.dynamics.config.num_tokens
        mask_steps = 0 if in_one_pass(self.dynamics.config, first) else min(settings.mask_steps, N)
        key = (rows, groups, prefix_frames, own_frames, settings, mask_steps, threads, isa, teams, self._frames)
        # Taken before it is looked at: another thread may want it too.
        idle, self._idle = self._idle, None
        if idle is not None and idle[0] == key:
            return key, idle[1]
        # The old memory is freed before new memory is allocated.
        del idle
        flow_steps = flow_schedule(settings.flow_steps, settings.last_flow_steps, mask_steps=mask_steps)
        plans: dict[tuple[int, str], FlowPlan] = {
            (steps, settings.method): self._plan(steps, settings.method) for steps in flow_steps
        }
        # Each has a copy of the head: those of other settings go.
        self._plans = plans if plans else self._plans
        session = sampler.session(
            self._packed,
            [plans[steps, settings.method] for steps in flow_steps],
            counts=mask_schedule(N, mask_steps) if mask_steps else (),
            rows=rows,
            groups=groups,
            prefix_frames=prefix_frames,
            own_frames=own_frames,
            temperature=settings.temperature,
            threads=threads,
            isa=isa,
            teams=teams,
        )
        return key, session

    def planned_bytes(self) -> dict[str, int]:
        """Memory of the last session in bytes: weights, keys_values, buffers, and the work space of the threads."""
        return {} if self._idle is None else dict(self._idle[1].plan())

    def _plan(self, steps: int, method: str) -> FlowPlan:
        key = (steps, method)
        if key not in self._plans:
            assert self.dynamics.flow is not None
            with torch.no_grad():
                self._plans[key] = self.dynamics.flow.velocity.plan(steps=steps, method=method).to(self.dtype)
        return self._plans[key]

    @torch.no_grad()
    def _pack(self, frames: int) -> None:
        config, dynamics = self.dynamics.config, self.dynamics
        rotary = None
        if dynamics.temporal.rotary is not None:
            rotary = torch.stack(dynamics.temporal.rotary.tables(torch.arange(frames)))
        places, turns = dynamics.temporal.places, dynamics.spatial.rotary
        epsilons = {module.eps for module in dynamics.modules() if isinstance(module, RMSNorm)}
        if len(epsilons) != 1:
            known = ", ".join(map(str, sorted(epsilons)))
            raise EnmaError(f"norms have epsilons {known}; the native sampler takes one, so use backend 'reference'")
        self._packed = sampler.pack(
            {
                name: p.detach().to(self.dtype).contiguous()
                for name, p in dynamics.named_parameters()
                # The plans of the flow head hold these.
                if not name.startswith("flow.velocity.")
            },
            tokens=config.num_tokens,
            heads=config.dynamics.heads,
            concat=dynamics.spatial.concat,
            epsilon=epsilons.pop(),
            places=None if places is None else places.float().contiguous(),
            rotary=rotary,
            masked_rotary=None if turns is None else turns.float().contiguous(),
            grid=list(config.tokenizer.token_grid),
            patch=list(config.dynamics.patch),
            periodic=list(config.tokenizer.periodic),
        )
        self._frames: float = frames if rotary is not None else math.inf
