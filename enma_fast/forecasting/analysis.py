"""Fields from observations at scattered points, by optimal interpolation with the covariance of the training data.

Optimal interpolation (Gandin, "Objective analysis of meteorological fields", 1963), also known as kriging and as
regression by a Gaussian process: of all linear estimates the one with the least expected squared error,

    analysis(x, t) = mean + sum_p  w_p cov((x, t), (x_p, t_p)),      (cov(points, points) + nugget) w = values - mean

Where all frames are seen at the same points, and values have no error, each is estimated from its own; else from those
of its neighbours in time too.

What the observations leave open is drawn from the same statistics, so that members begin from different fields, all of
which fit what was seen up to its error (Matheron's rule: to the analysis of the observations add a draw from the
statistics of the training data, less the analysis of that draw seen at the same points, with errors of its own). A draw
is the same in all frames, since what is too small to be seen changes slowly, and its size follows the observations:
where these are r times as large as the statistics have them, so is the draw, unless they are few.

Legend: L frames, P observations of a frame or of several, S draws, N sets of observations, M waves, c channels, d space
dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.covariance import FieldCovariance
from ..ops._backend import choose, native, native_problem
from ..ops.philox_normal import philox_normal

# Mask steps of the noise of draws (`sampling/noise.py`).
HISTORY, CONTEXT = 0xFFFFFFFD, 0xFFFFFFFC

# Variance of what an observation has of its own, in units of that of the field; and the share of the latter that waves
# which are left out may have.
_NUGGET, _LEFT_OUT = 1e-7, 1e-9
# So many observations tell as much of the size of draws as the statistics do.
_FIRM = 8
# Frames that are estimated together where their points differ, and the most observations that are.
_FRAMES, _MOST = 3, 3072
# The most points of a frame: their covariance takes 2 GB by the extension, five times that by PyTorch.
MOST_TOGETHER = 1 << 14


@dataclass(frozen=True)
class Draw:
    """The noise of draws: `seed` of the trajectory, numbers of the draws ``[S]``, and the mask step of their use.

    Frame 0 is that of fields, and frame t + 1 that of the errors of the observations in frame t.
    """

    seed: int
    numbers: Tensor
    step: int


def analyse(
    covariance: FieldCovariance,
    values: Tensor,
    points: Tensor,
    draw: Draw | None = None,
    *,
    errors: Sequence[float] = (),
    backend: str | None = None,
) -> tuple[Tensor, float]:
    """Fields ``[S, L, *grid, c]`` fp32 of draws that fit the observations; without a `draw` the analysis, with S = 1.

    And how many times as large as the statistics and errors have them the observations are, in the worst frame: about
    1, or up to 6 where data are more varied than the statistics, and far more where values have errors that were not
    given, or are no such fields.

    Parameters
    ----------
    values
        ``[L, P, c]``, finite.
    points
        ``[P, d]`` of all frames, or ``[L, P, d]``, NaN where a frame has fewer than others.
    errors
        Standard deviation of the error of values, one or one for each channel; none by default.
    backend
        ``native``, by the extension, as `libenma`, or ``reference``, by PyTorch; the best that can run by default.
    """
    values, points = values.float(), points.float()
    errors = [*errors, *[errors[0] if errors else 0.0] * (covariance.channels - len(errors))]
    candidates = {"native": native_problem(values.device), "reference": None}
    if choose("analyse", candidates, backend) == "native":
        return _analyse_native(covariance, values, points, draw, errors)
    parts = [
        _Channel(covariance, c, error, draw).fields(values[..., c].double(), points.double())
        for c, error in enumerate(errors)
    ]
    return torch.stack([fields for fields, _ in parts], -1).float(), max(size for _, size in parts)


def _analyse_native(
    covariance: FieldCovariance, values: Tensor, points: Tensor, draw: Draw | None, errors: list[float]
) -> tuple[Tensor, float]:
    frames, shared = len(values), points.ndim == 2
    rows = [values.shape[1]] * frames
    if not shared:
        mask = ~points.isnan().any(-1)
        rows, values, points = mask.sum(-1).tolist(), values[mask], points[mask]
    fields, size = native().analyse(
        **covariance.tensors(),
        grid=covariance.grid,
        lengths=covariance.lengths,
        periodic=covariance.periodic,
        values=values.contiguous(),
        points=points.contiguous(),
        rows=rows,
        shared=shared,
        errors=errors if any(errors) else [],
        seed=0 if draw is None else draw.seed,
        draws=[] if draw is None else draw.numbers.tolist(),
        step=0 if draw is None else draw.step,
    )
    return fields.view(-1, frames, *covariance.grid, covariance.channels), size


class _Channel:
    """The waves of a channel that matter, with their statistics."""

    def __init__(self, covariance: FieldCovariance, channel: int, error: float, draw: Draw | None) -> None:
        self.covariance, self.channel, self.error, self.draw = covariance, channel, error, draw
        self.mean = covariance.mean[channel]
        power, correlation = (x[:, channel] for x in covariance.by_wave)
        self.total, self.num_waves = power.sum(), len(power)
        order = power.argsort(descending=True, stable=True)
        left = self.total - power[order].cumsum(0)
        # A channel that never varies is its mean, whatever is observed.
        self.kept = order[: int((left > _LEFT_OUT * self.total).sum()) + int(self.total > 0)]
        self.power, self.correlation = power[self.kept], correlation[self.kept]

    def fields(self, values_LP: Tensor, points: Tensor) -> tuple[Tensor, float]:
        """``[S, L, *grid]`` float64, and the greatest size of a frame's observations."""
        prior_SM = self._normals(self.kept, frame=0) * self.power.sqrt()
        seen_LP = values_LP - self.mean
        if points.ndim == 2 and not self.error:
            estimate = self._from_same_points(seen_LP, points, prior_SM)
        else:
            points_LPd = points.expand(len(values_LP), *points.shape[-2:])
            estimate = self._from_own_points(seen_LP, points_LPd, prior_SM)
        amplitudes_LM, of_prior_LSM, size_L, count_L = estimate
        amplitudes_SLM = amplitudes_LM[None]
        if self.draw is not None:
            # A few observations say little of the size.
            drawn_L = ((_FIRM + count_L * size_L**2) / (_FIRM + count_L)).sqrt()
            left_open_LSM = drawn_L[:, None, None] * (prior_SM - of_prior_LSM)
            amplitudes_SLM = amplitudes_LM + left_open_LSM.transpose(0, 1)
        full = amplitudes_SLM.new_zeros(*amplitudes_SLM.shape[:2], self.num_waves)
        full[..., self.kept] = amplitudes_SLM
        return self.mean + self.covariance.on_grid(full), size_L.max().item()

    def _from_same_points(self, seen_LP: Tensor, points_Pd: Tensor, prior_SM: Tensor) -> tuple[Tensor, ...]:
        """Amplitudes of the analyses of what is seen ``[L, M]`` and of draws ``[L, S, M]``; size and number ``[L]``.

        These are how many times as large as the statistics have them the observations are, and how many there are.
        """
        frames, waves_PM = len(seen_LP), self._waves(points_Pd)
        weights_NP = _solved(self._between([waves_PM], [0]), torch.cat([seen_LP, prior_SM @ waves_PM.T]))
        analyses_NM = weights_NP @ waves_PM * self.power
        size_L = torch.stack([_size(u, w) for u, w in zip(seen_LP, weights_NP, strict=False)])
        count_L = torch.full((frames,), len(waves_PM))
        return analyses_NM[:frames], analyses_NM[frames:].expand(frames, -1, -1), size_L, count_L

    def _from_own_points(self, seen_LP: Tensor, points_LPd: Tensor, prior_SM: Tensor) -> tuple[Tensor, ...]:
        """The same where each frame has points of its own, or values have errors, which neighbours in time reduce."""
        mask_LP = ~points_LPd.isnan().any(-1)
        waves = [self._waves(x[ok]) for x, ok in zip(points_LPd, mask_LP, strict=True)]
        seen = [
            torch.cat([u[ok][None], self._seen(prior_SM, waves[t], t)])
            for t, (u, ok) in enumerate(zip(seen_LP, mask_LP, strict=True))
        ]
        analyses_LNM = prior_SM.new_zeros(len(seen), 1 + len(prior_SM), len(self.kept))
        size_L, count_L = prior_SM.new_zeros(2, len(seen))
        for window, targets in _windows([len(x) for x in waves]).items():
            seen_NP = torch.cat([seen[t] for t in window], -1)
            weights_NP = _solved(self._between([waves[t] for t in window], list(window)), seen_NP)
            parts = weights_NP.split([len(waves[t]) for t in window], -1)
            for target in targets:
                size_L[target], count_L[target] = _size(seen_NP[0], weights_NP[0]), seen_NP.shape[1]
                for t, part_NP in zip(window, parts, strict=True):
                    analyses_LNM[target] += part_NP @ waves[t] * self._shared(t - target)
        return analyses_LNM[:, 0], analyses_LNM[:, 1:], size_L, count_L

    def _waves(self, points_Pd: Tensor) -> Tensor:
        return self.covariance.waves(points_Pd)[:, self.kept]

    def _shared(self, apart: int) -> Tensor:
        """Covariance ``[M]`` of the amplitudes of each wave so many frames apart."""
        return self.power * self.correlation ** (apart**2)

    def _between(self, waves: list[Tensor], times: list[int]) -> Tensor:
        """Covariance ``[P, P]`` of the observations of some frames, each with what it has of its own."""
        rows = []
        for one, t in zip(waves, times, strict=True):
            blocks = [one * self._shared(t - s) @ other.T for s, other in zip(times, waves, strict=True)]
            rows.append(torch.cat(blocks, 1))
        # Any number will do where nothing varies.
        own = _NUGGET * self.total if self.total > 0 else self.total + 1
        return torch.cat(rows) + (own + self.error**2) * torch.eye(sum(map(len, waves)), dtype=torch.float64)

    def _seen(self, prior_SM: Tensor, waves_PM: Tensor, frame: int) -> Tensor:
        """What observations with these waves are of each draw in a frame, ``[S, P]``."""
        seen_SP = prior_SM @ waves_PM.T
        if self.error:
            seen_SP = seen_SP + self.error * self._normals(torch.arange(len(waves_PM)), frame=1 + frame)
        return seen_SP

    def _normals(self, tokens: Tensor, *, frame: int) -> Tensor:
        """Standard normals ``[S, tokens]``."""
        draw = self.draw
        if draw is None:
            return self.power.new_zeros(0, len(tokens))
        normals_SMc = philox_normal(
            seed=draw.seed,
            members=draw.numbers,
            frame=frame,
            mask_step=draw.step,
            tokens=tokens,
            channels=self.covariance.channels,
            backend="reference",
        )
        return normals_SMc[..., self.channel].double()


def _solved(covariance_PP: Tensor, seen_NP: Tensor) -> Tensor:
    """Weights ``[N, P]`` of sets of observations whose covariance this is."""
    return torch.cholesky_solve(seen_NP.T, torch.linalg.cholesky(covariance_PP)).T


def _size(seen_P: Tensor, weights_P: Tensor) -> Tensor:
    """How many times as large as their statistics have them observations are."""
    return (seen_P * weights_P).mean().clamp_min(0).sqrt()


def _windows(counts: list[int]) -> dict[tuple[int, ...], list[int]]:
    """Which frames are estimated from which, by their numbers of points: from themselves, and neighbours in time."""
    windows: dict[tuple[int, ...], list[int]] = {}
    for t in range(len(counts)):
        first = max(0, min(t - _FRAMES // 2, len(counts) - _FRAMES))
        window = tuple(range(first, min(first + _FRAMES, len(counts))))
        if sum(counts[s] for s in window) > _MOST:
            window = (t,)
        windows.setdefault(window, []).append(t)
    return windows
