"""The compiled contenders of whole trajectories: their weights are constants of the generated code."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from benchmarks.trajectory import compiled_copy, random_dynamics

from .._tiny import COMBINED


@pytest.mark.slow
def test_weights_of_compiled_copies_are_frozen():
    config = COMBINED
    N, C, D = config.num_tokens, config.token_channels, config.context.width
    with torch._inductor.config.patch(freezing=False), torch.inference_mode():
        model = random_dynamics(config)
        twin = compiled_copy(model)

        # The second shape is traced when the first has run: it has to be frozen too. Other tests of compiled copies
        # have six rows as well, whose kernels are then there.
        for rows in (1, 6):
            h, z, known = torch.randn(rows, N, D), torch.randn(rows, N, C), torch.zeros(rows, N, dtype=torch.bool)
            noise = torch.randn(rows, N, C)

            def head(dynamics, h=h, noise=noise):
                return dynamics.step.sample(h, noise, steps=2)

            def masked(dynamics, h=h, z=z, known=known):
                return dynamics.trunk(h, z, known)

            for part in (masked, head):
                found, code = run_and_get_code(part, twin)
                text = "\n".join(code)
                assert "_frozen_param" in text
                torch.testing.assert_close(found, part(model), rtol=1e-4, atol=1e-5)
