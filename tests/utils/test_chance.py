"""Gains of a few independent trajectories may be chance."""

import math

import torch

from enma_fast.utils.chance import surely_less


def test_few_independent_trajectories_prove_only_large_gains():
    """Thirty windows of a series may be three independent ones: gains of 4 % on average are chance then."""
    others = torch.ones(30)
    slight = others - 0.04 + 0.05 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    assert surely_less(slight, others, 30)
    assert not surely_less(slight, others, 3)
    assert surely_less(slight - 0.6, others, 3)
    assert not surely_less(others, slight, 30)
    assert not surely_less(torch.full((30,), math.inf), others, 30)
