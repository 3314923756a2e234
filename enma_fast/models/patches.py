"""Patches of latent places: the tokens that the transformers see (paper D.2.1).

Legend: B batch, T latent frames, N places of a frame, C channels, p places of a patch.
"""

from __future__ import annotations

from torch import Tensor


def patchify(z_BTNC: Tensor, token_grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Merge patches of neighbouring tokens (paper D.2.1): ``[B, T, N, C] -> [B, T, N / p, C p]``."""
    if all(p == 1 for p in patch):
        return z_BTNC
    B, T, _, C = z_BTNC.shape
    split = [x for n, p in zip(token_grid, patch, strict=True) for x in (n // p, p)]
    d = len(patch)
    z = z_BTNC.view(B, T, *split, C)
    order = [0, 1, *(2 + 2 * i for i in range(d)), *(3 + 2 * i for i in range(d)), 2 + 2 * d]
    return z.permute(order).flatten(2 + d).flatten(2, 1 + d)


def unpatchify(z_BTNC: Tensor, token_grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Inverse of :func:`patchify`; ``token_grid`` is the grid before patchify."""
    if all(p == 1 for p in patch):
        return z_BTNC
    B, T = z_BTNC.shape[:2]
    d = len(patch)
    z = z_BTNC.reshape(B, T, *(n // p for n, p in zip(token_grid, patch, strict=True)), *patch, -1)
    order = [0, 1]
    for i in range(d):
        order += [2 + i, 2 + d + i]
    return z.permute(*order, 2 + 2 * d).flatten(2, 1 + 2 * d)
