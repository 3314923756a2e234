"""Damped Gauss-Newton steps (Levenberg and Marquardt) for many small problems at once, each of which ends by itself.

Legend: B problems, J active coefficients, M residuals, P coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# From some of the problems `[b]` and coefficients `[b, P]` to their residuals `[b, M]`, float64.
Residuals = Callable[[Tensor, Tensor], Tensor]
# Finite differences of coefficients, damping at first and its change, and the change of the cost at which steps end.
DIFFERENCE, _DAMPING, _EASIER, _HARDER, _STILL = 1e-3, 1e-3, 0.2, 8.0, 1e-2
# Damping with which a problem is left as it is.
_HOPELESS = 1e3
# Mean squares of residuals that are none to a fit, and to fields in fp32; least curvature beside the others.
EXACT, ROUNDING, LEAST, TINY = 1e-9, 1e-14, 1e-12, 1e-30
# Misfit that is as good as none where terms are chosen.
_GOOD = 1e-7


@dataclass(frozen=True, eq=False)
class Fit:
    """Coefficients `[B, P]`, the mean square of their residuals `[B]`, and its curvature `[B, J, J]`."""

    coefficients: Tensor
    misfit: Tensor
    curvature: Tensor


@torch.no_grad()
def fit(residuals: Residuals, start: Tensor, active: Sequence[int], held: Tensor, mean: Tensor, *, steps: int) -> Fit:
    """The least of misfit + (c - mean)' held (c - mean) over the active coefficients c, from `start [B, P]`.

    `mean [1, P]` and `held [J, J]` are the same for all problems.
    """
    active = list(active)
    fitted = start.double().clone()
    everyone = torch.arange(len(fitted), device=fitted.device)
    off = residuals(everyone, fitted)
    misfit = off.square().mean(1)
    damping = torch.full_like(misfit, _DAMPING)
    curvature = torch.zeros(len(fitted), len(active), len(active)).to(fitted)
    slope = torch.zeros_like(curvature[..., 0])
    rows, fresh = everyone, torch.ones_like(misfit, dtype=torch.bool)

    for _ in range(steps):
        new = rows[fresh[rows]]
        if len(new):
            curvature[new], slope[new] = slopes(residuals, new, fitted[new], off[new], active)
        stiff = curvature[rows] + held
        size = stiff.diagonal(dim1=-2, dim2=-1)
        least = LEAST * size.mean(1, keepdim=True) + TINY
        down = slope[rows] + (mean - fitted[rows])[:, active] @ held
        moved = fitted[rows]
        moved[:, active] += torch.linalg.solve(stiff + torch.diag_embed(damping[rows, None] * size + least), down)
        next_off = residuals(rows, moved)
        next_misfit = next_off.square().mean(1)
        before = cost(misfit[rows], fitted[rows], active, held, mean)
        after = cost(next_misfit, moved, active, held, mean)
        better = after < before
        to = rows[better]
        fitted[to], off[to], misfit[to] = moved[better], next_off[better], next_misfit[better]
        fresh[rows] = better
        damping[rows] *= torch.where(better, _EASIER, _HARDER)
        rows = rows[(~better & (damping[rows] < _HOPELESS)) | (before - after > _STILL * before + EXACT)]
        if not len(rows):
            break
    return Fit(fitted, misfit, curvature)


def cost(misfit: Tensor, coefficients: Tensor, active: Sequence[int], held: Tensor, mean: Tensor) -> Tensor:
    """Misfits `[B]`, and what holds the active ones of coefficients `[B, P]`."""
    away = (coefficients - mean)[:, active]
    return misfit + ((away @ held) * away).sum(1)


def slopes(
    residuals: Residuals, rows: Tensor, coefficients: Tensor, off: Tensor, active: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The curvature `[b, J, J]` of misfits and half of their slope `[b, J]`, where residuals `[b, M]` are `off`."""
    columns = []
    for j in active:
        moved = coefficients.clone()
        moved[:, j] += DIFFERENCE
        columns.append((off - residuals(rows, moved)) / DIFFERENCE)
    fall = torch.stack(columns, -1)
    return fall.mT @ fall / off.shape[1], (fall.mT @ off[..., None])[..., 0] / off.shape[1]


def left(fit: Fit, slope: Tensor, away: Tensor, held: Tensor) -> Tensor:
    """The misfits `[B]` that a Gauss-Newton step would leave, from coefficients `[B, J]` so far from their mean."""
    stiff = fit.curvature + held
    stiff.diagonal(dim1=-2, dim2=-1).mul_(1 + LEAST).add_(TINY)
    step = torch.linalg.solve(stiff, slope - away @ held)
    return fit.misfit + ((fit.curvature @ step[..., None])[..., 0] * step).sum(1) - 2 * (step * slope).sum(1)


def missed(coefficients: Tensor, curvature: Tensor, misfit: Tensor) -> Tensor:
    """How much the misfit `[B]` rises without each of coefficients `[B, J]`, as a mean logarithm `[J]`."""
    size = curvature.diagonal(dim1=-2, dim2=-1)
    least = LEAST * size.amax(1, keepdim=True) + TINY
    inverse = torch.linalg.inv(curvature + torch.diag_embed(least.expand_as(size))).diagonal(dim1=-2, dim2=-1)
    return (coefficients.square() / inverse.clamp_min(TINY) / (misfit[:, None] + _GOOD)).log1p().mean(0)


def score(misfit: Tensor) -> float:
    """The mean logarithm of misfits `[B]`, of which very small ones are alike."""
    return float((misfit + _GOOD).log().mean())
