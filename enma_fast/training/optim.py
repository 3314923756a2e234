"""Optimisers and the learning rate of each step.

AdamW is for everything, or Muon for the matrices and filters in the layers of the transformers, of the heads and of
the tokenizer's encoder and decoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .stage import Optimizer

# Quintic Newton-Schulz coefficients of Muon (Jordan et al., 2024): singular values end near 1, not at 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# What gradients are clipped to, and the decays of AdamW's moments.
CLIP_NORM, _BETAS = 1.0, (0.9, 0.95)
# A layer of a list: of the transformers, of the heads, and of the tokenizer's encoder and decoder.
_LAYER = re.compile(r"(^|\.)(blocks|down|up)\.\d+\.")


def orthogonalise(g: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrix to each ``[..., rows, columns]``, by five Newton-Schulz steps in its own type.

    ``torch.optim.Muon`` does this in bfloat16, which CPUs without AVX-512 BF16 run a hundred times slower than fp32.
    """
    a, b, c = _COEFFICIENTS
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    batch = x.shape[:-2]
    x = x.reshape(-1, *x.shape[-2:])
    for _ in range(5):
        gram = x @ x.transpose(-1, -2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(*batch, *x.shape[-2:])
    return x.transpose(-1, -2) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, scaled by 0.2 sqrt(max(rows, columns)) to the root mean square of an AdamW step.

    Matrices of one shape are orthogonalised in one batch, in ``dtype``, by default their own. A convolution
    is one matrix, with a row for each output channel.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, members in by_shape.items():
                updates = []
                for p in members:
                    assert p.grad is not None
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
                matrices = torch.stack(updates).to(self.dtype or updates[0].dtype)
                size = 0.2 * math.sqrt(max(matrices.shape[1:]))
                for p, update in zip(members, orthogonalise(matrices), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.to(p.dtype).view(shape), alpha=-group["lr"] * size)


def build(module: nn.Module, config: Optimizer, *, dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """Optimisers for ``module``: one AdamW, or Muon for the matrices and filters of its layers and AdamW for the rest.

    The rest are vectors, and what maps from and to fields, latent frames and tokens.
    ``dtype`` is that of Muon's orthogonalisation. Parameters that need no gradient have their places in the state too,
    and are never changed.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        inner = p.ndim >= 2 and _LAYER.search(name) is not None and min(len(p), p[0].numel()) >= 16
        (matrices if config.kind == "muon" and inner else rest).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=_BETAS, weight_decay=config.weight_decay, fused=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay, dtype=dtype))
    return optimizers


def learning_rate(step: int, config: Optimizer, steps: int) -> float:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``final_learning_rate`` at the last of so many steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    low, high = config.final_learning_rate, config.learning_rate
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(1.0, done)))
