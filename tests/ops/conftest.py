"""Operators run on the GPU where there is one, else Triton kernels run under its interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the Triton kernels of this run execute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
