"""What a stage refuses before it begins: settings that do nothing in it, and data that do not fit them."""

from __future__ import annotations

from ..config import ModelConfig
from ..data import FieldFile
from ..errors import EnmaError
from .config import TrainingConfig
from .symmetries import NEUTRAL


def check_stage(stage: str, training: TrainingConfig, *, started: bool) -> None:
    """Refuse settings that would do nothing in a stage, which starts from trained weights if `started`."""
    if training.start_share and not started:
        raise EnmaError("start_share: is the share of weights that a run starts from; add --from, or leave it at 0")
    if training.decoder_only and stage != "tokenizer":
        raise EnmaError(f"decoder_only: is a setting of `train tokenizer`, not of `train {stage}`; leave it at false")
    if training.decoder_only and not started:
        raise EnmaError("decoder_only: holds the encoder that a run starts from; add --from, or leave it at false")
    if training.emphasis and stage != "tokenizer":
        instead = "use rollout.emphasis" if stage in ("head", "forecasts") else "leave it empty"
        raise EnmaError(f"emphasis: is a setting of `train tokenizer`, not of `train {stage}`; {instead}")
    if stage == "dynamics":
        if training.amplitude != NEUTRAL["amplitude"]:
            raise EnmaError(
                "amplitude: is a setting of `train tokenizer` and `train forecasts`, not of `train dynamics`; "
                "leave it at [1, 1]"
            )
        return
    if stage == "head" and training.context_share:
        raise EnmaError("context_share: the local head alone sees no context; leave it at 0")
    if training.encoded_shifts is not None:
        raise EnmaError(f"encoded_shifts: is a setting of `train dynamics`, not of `train {stage}`; leave it at null")
    if training.strides != (1,):
        instead = "; use rollout.strides" if stage in ("head", "forecasts") else ""
        raise EnmaError(f"strides: is a setting of `train dynamics`, not of `train {stage}`{instead}")
    if training.scattered_share:
        raise EnmaError(f"scattered_share: is a setting of `train dynamics`, not of `train {stage}`; leave it at 0")


def check_strides(training: TrainingConfig, config: ModelConfig, frames: int) -> None:
    """Refuse strides of the dynamics that leave nothing of so many frames to forecast."""
    most = max(training.strides)
    if most > 1 and (left := config.tokenizer.whole_frames(len(range(0, frames, most)))) < 2:
        raise EnmaError(
            f"strides: a stride of {most} leaves {left} of {frames} frames, none to forecast; take a smaller one"
        )


def check_forecasts(config: ModelConfig, val: FieldFile) -> None:
    """Refuse validation data that forecasts of the model's length cannot be scored on."""
    if (frames := val.u.shape[1]) != config.num_frames:
        raise EnmaError(
            f"{val.path}: trajectories have {frames} frames and the model's num_frames is {config.num_frames}; add "
            f"--set num_frames={frames}"
        )
