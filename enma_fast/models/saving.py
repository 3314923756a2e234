"""Writing checkpoints: the files of a folder, and their manifest (`checkpoint` reads them)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..config import ModelConfig
from ..utils.dataclass_json import to_json
from ..utils.files import write_atomic

FORMAT_VERSION = 2
WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
CARD, METRICS, ENVELOPE, COVARIANCE = "README.md", "metrics.json", "domain.json", "covariance.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # With metadata that are empty, the header of a file without tensors is no JSON.
    write_atomic(path, save(contiguous, metadata=dict(metadata) if metadata else None))


def save_model(
    model: Any,
    folder: Path,
    *,
    card: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write the checkpoint folder of a `Model`; the manifest comes last, so none is whole before it is.

    With `half`, the weights are stored in fp16, half the size, and widened to fp32 when loaded; statistics stay fp32.
    """
    weights = {name for name, _ in model.named_parameters()} if half else set()
    tensors = {name: t.half() if name in weights else t for name, t in model.state_dict().items()}
    _write_weights(folder, model.config, tensors)
    if metrics is not None:
        write_atomic(folder / METRICS, (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    if model.envelope is not None:
        write_atomic(folder / ENVELOPE, model.envelope.to_json().encode())
    if model.covariance is not None:
        write_tensors(folder / COVARIANCE, {name: x.float() for name, x in model.covariance.tensors().items()})
    if card is not None:
        write_atomic(folder / CARD, card.encode())
    write_manifest(folder)


def _write_weights(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Those of other weights say nothing of these.
    for name in (MANIFEST, CARD, METRICS, ENVELOPE, COVARIANCE):
        (folder / name).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, tensors)
    write_atomic(folder / CONFIG, to_json(config).encode())


def write_manifest(folder: Path) -> None:
    """List size and SHA-256 of config, weights, card, metrics, envelope and covariance."""
    files = {}
    for name in (CONFIG, WEIGHTS, CARD, METRICS, ENVELOPE, COVARIANCE):
        if (folder / name).exists():
            files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    write_atomic(folder / MANIFEST, (json.dumps({"format": FORMAT_VERSION, "files": files}, indent=1) + "\n").encode())


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
