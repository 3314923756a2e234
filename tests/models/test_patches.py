"""Patches of latent places: they hold their neighbours, and can be undone."""

import pytest
import torch

from enma_fast.models.patches import patchify, unpatchify

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


@st.composite
def patches(draw):
    dims = draw(st.integers(1, 2))
    patch = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    return tuple(p * draw(st.integers(1, 4)) for p in patch), patch


@hypothesis.given(sizes=patches())
def test_patchify_merges_neighbours_and_can_be_undone(sizes):
    grid, patch = sizes
    tokens, channels = torch.Size(grid).numel(), 2
    z = torch.arange(2.0 * 3 * tokens * channels).view(2, 3, tokens, channels)
    merged = patchify(z, grid, patch)
    assert merged.shape == (2, 3, tokens // torch.Size(patch).numel(), channels * torch.Size(patch).numel())
    assert torch.equal(unpatchify(merged, grid, patch), z)
    # Token by token: the patch that starts at i * patch, its places in order, each with all its channels.
    planes = z.view(2, 3, *(grid if len(grid) == 2 else (1, *grid)), channels)
    height, width = patch if len(patch) == 2 else (1, *patch)
    blocks = [
        planes[:, :, i : i + height, j : j + width].reshape(2, 3, -1)
        for i in range(0, planes.shape[2], height)
        for j in range(0, planes.shape[3], width)
    ]
    assert torch.equal(merged, torch.stack(blocks, dim=2))
