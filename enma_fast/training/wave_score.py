"""A proper score of whole fields of a distribution: of their waves, and of their values.

Frame 0 of a generated trajectory is drawn from a distribution over fields. That a field has the right values at each
point says nothing of how these vary together; the amplitudes of its waves do, each in units of its own standard
deviation, so that small waves count as large ones.

Legend: B trajectories, K members, N tokens per frame, C token channels, c channels, M waves; `*x` space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models.covariance import FieldCovariance
from ..models.fair_score import fair_score
from ..models.model import Model

# Waves are compared to no more than this part of the deviation of the largest.
_LEAST = 1e-3
# Training trajectories whose frames 0 tell how large each wave is.
FIRST_FRAMES = 1000


class WaveScore(nn.Module):
    """Fair CRPS of the waves and of the values of frames 0, which a model's decoder makes of tokens."""

    deviation: Tensor

    def __init__(self, model: Model, fields: Tensor) -> None:
        """`fields` ``[B, T, *x, c]`` are those of the training, of which frames 0 as they are decoded are looked at."""
        super().__init__()
        tok = model.config.tokenizer
        # Not a part of this module, whose weights are not trained.
        self._decode = model.decode
        with torch.no_grad():
            first = model.decode(model.encode(fields[:FIRST_FRAMES, :1].to(model.latent_std)))
        self._covariance = FieldCovariance.of(first.numpy(force=True), lengths=tok.lengths, periodic=tok.periodic)
        power_Mc, _ = self._covariance.by_wave
        deviation_Mc = power_Mc.sqrt()
        least_c = _LEAST * deviation_Mc.amax(0)
        self.register_buffer("deviation", deviation_Mc.maximum(least_c).float(), persistent=False)

    def forward(self, made_BKNC: Tensor, truth_BNC: Tensor) -> Tensor:
        """Score of members, averaged over waves and over points, each of them half of it."""
        made, truth = self._decode(made_BKNC.flatten(0, 1)[:, None])[:, 0], self._decode(truth_BNC[:, None])[:, 0]
        values = self.deviation.square().sum(0).sqrt()
        parts = [
            fair_score(x.unflatten(0, (-1, made_BKNC.shape[1])), y, torch.abs).mean()
            for x, y in (
                (self._waves(made), self._waves(truth)),
                (made.float() / values, truth.float() / values),
            )
        ]
        return 0.5 * (parts[0] + parts[1])

    def _waves(self, fields: Tensor) -> Tensor:
        """Amplitudes ``[B, M, c]`` of fields ``[B, *x, c]``, in units of their deviation."""
        return self._covariance.amplitudes(fields.float()).flatten(1, -2) / self.deviation
