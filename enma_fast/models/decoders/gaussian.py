"""Frame 0 of a generated trajectory as a Gaussian random field: the decoder kind `gaussian`, which has no weights.

    u = mean + sum_m sigma_m n_m wave_m,    n_m standard normal,    sigma_m^2 = gain(shell of m) deviation_m^2

Mean, deviation and waves are those of `FieldCovariance`, statistics of all frames of all environments. The first frame
of a context shows the spectrum of its own environment. With it, the power of each shell of waves becomes that of the
frame, and the statistics share it out within the shell. A shell of few waves says little, so its gain is shrunk:

    log gain = (N log(own / prior) + FIRM log(all own / all prior)) / (N + FIRM)

N is the number of waves of the shell; own and prior are the sums of their squared amplitudes in the frame, and of their
variances. Without a context all gains are 1.

The normals have the key (seed of the trajectory, member) and the counter of mask step 0xFFFFFFFB, frame 0, the wave as
token (`ops/philox_normal.py`, `sampling/noise.py`).

Legend: B members, M waves, c channels; `*x` space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import GaussianConfig, ModelConfig, SamplingConfig
from ...ops._backend import choose, native, native_problem
from ...ops.philox_normal import philox_normal
from ..covariance import FieldCovariance
from ..masked_transformer import MaskedTransformer
from .decoder import Decoder, StaticDecision, StaticFrame

FIELD_STEP = 0xFFFFFFFB

# So many waves of a shell say as much of its power as the statistics do.
_FIRM = 4
_TINY = torch.finfo(torch.float64).tiny


class GaussianDecoder(Decoder):
    """It draws fields, which the codec encodes, and has no weights."""

    draws_fields = True

    def __init__(self, config: ModelConfig, own: GaussianConfig, trunk: MaskedTransformer | None) -> None:
        super().__init__()

    def fields(self, covariance: FieldCovariance, first: Tensor | None, seeds: Tensor, members: Tensor) -> Tensor:
        frames = None if first is None else first.detach().cpu()
        return random_fields(covariance, frames, seeds=seeds.cpu(), members=members.cpu())

    def static(self, frame: StaticFrame, settings: SamplingConfig, original: Decoder) -> StaticDecision:
        # Frame 0 is among those that were read.
        return StaticDecision(lambda frame: None)


def random_fields(
    covariance: FieldCovariance,
    frames: Tensor | None = None,
    *,
    seeds: Tensor,
    members: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Fields ``[B, *x, c]`` fp32 in physical units, each drawn by itself: the others of the batch do not matter.

    PyTorch's threads may change the last bits, so the reference is called by one thread (`sampling/batch_invariant`).

    Parameters
    ----------
    frames : ``[B, *x, c]`` on the CPU, finite: the first frame of each member's context; without one, all are of the
        statistics alone
    seeds, members : ``[B]`` int64 on the CPU, taken modulo 2^32
    backend : ``native``, by the extension, as `libenma`, or ``reference``, by PyTorch; the best that can run by default
    """
    frames = None if frames is None else frames.float()
    if choose("random_fields", {"native": native_problem(members.device), "reference": None}, backend) == "native":
        return _native_fields(covariance, frames, seeds, members)
    rows = [None] * len(members) if frames is None else frames
    return torch.stack([_field(covariance, *row) for row in zip(rows, seeds.split(1), members.split(1), strict=True)])


def _native_fields(covariance: FieldCovariance, frames: Tensor | None, seeds: Tensor, members: Tensor) -> Tensor:
    rows = [None] * len(members) if frames is None else [frame.contiguous() for frame in frames]
    statistics = {name: x.contiguous() for name, x in covariance.tensors().items()}
    domain = {"grid": covariance.grid, "lengths": covariance.lengths, "periodic": covariance.periodic}
    keys = zip(seeds.tolist(), members.tolist(), strict=True)
    fields = [
        native().draw_field(**statistics, **domain, first=frame, seed=seed, member=member)
        for frame, (seed, member) in zip(rows, keys, strict=True)
    ]
    return torch.stack(fields).view(len(members), *covariance.grid, covariance.channels)


def _field(covariance: FieldCovariance, frame_xc: Tensor | None, seed: Tensor, member: Tensor) -> Tensor:
    normals_Mc = philox_normal(
        seed=seed,
        members=member,
        frame=0,
        mask_step=FIELD_STEP,
        tokens=torch.arange(len(covariance.shells)),
        channels=covariance.channels,
        backend="reference",
    )[0]
    power_Mc, _ = covariance.by_wave
    if frame_xc is not None:
        power_Mc = power_Mc * _gains(covariance, power_Mc, frame_xc)
    amplitudes_cM = (normals_Mc.double() * power_Mc.sqrt()).T
    return (covariance.mean + covariance.on_grid(amplitudes_cM).movedim(0, -1)).float()


def _gains(covariance: FieldCovariance, power_Mc: Tensor, frame_xc: Tensor) -> Tensor:
    """What the variance of each wave is multiplied by, ``[M, c]``."""
    own_Mc = covariance.amplitudes(frame_xc.double() - covariance.mean).flatten(0, -2).square()
    shells = covariance.shells
    waves, own, prior = (
        x.new_zeros(int(shells.max()) + 1, x.shape[1]).index_add(0, shells, x).clamp_min(_TINY)
        for x in (torch.ones_like(own_Mc), own_Mc, power_Mc)
    )
    whole = (own_Mc.sum(0).clamp_min(_TINY) / power_Mc.sum(0).clamp_min(_TINY)).log()
    log_gain = (waves * (own / prior).log() + _FIRM * whole) / (waves + _FIRM)
    return log_gain.exp()[shells]
