"""Checkpoints: a folder of safetensors, JSON and a manifest. Nothing is executed on load.

    config.json          ModelConfig
    model.safetensors    weights and latent statistics
    manifest.json        format version, and SHA-256 and size of every other file
    README.md            model card (optional)
    metrics.json         the card's figures (optional)
    domain.json          what the model was trained on, in a few numbers (optional)
    covariance.safetensors  how its fields vary, to estimate them from scattered points (optional)

Folders of format 1 are read too (`format_1`).

safetensors alone does not notice a flipped bit, so the manifest is verified before a weight is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from ..config import ModelConfig
from ..data import PRETRAINED as PRETRAINED
from ..data import remedy_for, shipped_paths, warn_of_leaving
from ..errors import EnmaError, first_line
from ..utils.dataclass_json import from_json, to_json
from ..utils.untrusted import open_regular, parse_json, read_bytes
from . import format_1
from .covariance import FieldCovariance
from .envelope import Envelope
from .model import Model
from .saving import CARD as CARD
from .saving import CONFIG as CONFIG
from .saving import COVARIANCE as COVARIANCE
from .saving import ENVELOPE as ENVELOPE
from .saving import FORMAT_VERSION as FORMAT_VERSION
from .saving import MANIFEST as MANIFEST
from .saving import METRICS as METRICS
from .saving import WEIGHTS as WEIGHTS
from .saving import save_model as save_model
from .saving import sha256 as sha256
from .saving import write_manifest as write_manifest
from .saving import write_tensors as write_tensors

# In the folder of a training run: its checkpoint, and its log or its plan.
IN_RUN, LOG, RECIPE = "checkpoint", "log.jsonl", "recipe.toml"
# The recipes of the package.
RECIPE_FILES = Path(__file__).parents[1] / "recipes"
# Names of files beside it that a manifest may list; and the largest size of a manifest or a config.
_NAME, _SHA256 = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"), re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 20


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; `EnmaError` if it is missing, truncated or another kind of file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise EnmaError(f"{path}: no such file; check the path") from None
    except (SafetensorError, OSError) as error:
        raise EnmaError(f"{path}: not a whole safetensors file ({error}); copy or train it again") from None


def round_weights(model: Model) -> None:
    """Round the weights to fp16 in place, still held in fp32, so that `save_model` with `half` loses nothing.

    `EnmaError` names a weight that fp16 cannot hold (over 65,504).
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            rounded = weight.half().float()
            if not torch.isfinite(rounded).all():
                raise EnmaError(f"{name}: holds weights over 65504, the largest of fp16; keep fp32")
            weight.copy_(rounded)


def hashes(checkpoint: str | Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint, as its manifest states them; loading it has verified them."""
    return {name: digest for name, (_, digest) in listed(locate(checkpoint)).items()}


def available() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted({path.parent.name for path in shipped_paths(f"*/{MANIFEST}")})


def locate(checkpoint: str | Path) -> Path:
    """Folder of a checkpoint given by shipped name, by path, or by the folder of the training run that made it."""
    given = Path(checkpoint)
    for folder in (given / IN_RUN, given):
        # Unlike Path.is_file, os.path.isfile takes any name.
        if os.path.isfile(folder / MANIFEST):
            return folder
    # Before a shipped model of the same name: a run of the recipe `wave` may be called wave.
    if os.path.isfile(given / LOG) or os.path.isfile(given / RECIPE):
        raise EnmaError(f"{checkpoint}: this run has no {IN_RUN} yet; let it finish first")
    for path in shipped_paths(f"*/{MANIFEST}"):
        if path.parent.name == str(checkpoint):
            return path.parent
    names = ", ".join(available()) or "none"
    if os.path.isdir(given):
        raise EnmaError(f"{checkpoint}: holds no {MANIFEST}; it is not a whole checkpoint")
    if remedy := remedy_for(str(checkpoint)):
        raise EnmaError(f"checkpoint {str(checkpoint)!r}: is not installed (installed: {names}){remedy}")
    if str(checkpoint) in {path.stem for path in RECIPE_FILES.glob("*.toml")}:
        raise EnmaError(
            f"checkpoint {str(checkpoint)!r}: is a recipe without weights; train it first (enma-fast train "
            f"{checkpoint} --out RUN), or use a shipped model ({names})"
        )
    raise EnmaError(f"checkpoint {str(checkpoint)!r}: neither a folder nor a shipped model (shipped: {names})")


def listed(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file of a checkpoint, as its manifest states them; `EnmaError` if it is no manifest."""
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_bytes(path, most=_MOST_BYTES))
        version, files = manifest["format"], manifest["files"]
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        for name, (size, digest) in entries.items():
            if not (_NAME.fullmatch(name) and type(size) is int and size >= 0 and _SHA256.fullmatch(digest)):
                raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, EnmaError):
            raise
        raise EnmaError(f"{path}: not a manifest; copy the checkpoint again") from None
    if version not in (1, FORMAT_VERSION):
        raise EnmaError(f"{path}: format {version}; this version of enma_fast reads up to {FORMAT_VERSION}")
    for name in (CONFIG, WEIGHTS):
        if name not in entries:
            raise EnmaError(f"{path}: lists no {name}; copy the checkpoint again")
    return entries


def verify(folder: Path) -> None:
    """Check every file of the manifest; an `EnmaError` names the file and what differs."""
    for name, (size, digest) in listed(folder).items():
        file = folder / name
        if not os.path.lexists(file):
            raise EnmaError(f"{file}: missing; copy the checkpoint again")
        with open_regular(file) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as opened:
            if (actual_size := os.fstat(descriptor).st_size) != size:
                raise EnmaError(f"{file}: {actual_size} bytes, {size} expected; copy the checkpoint again")
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise EnmaError(f"{file}: SHA-256 differs from {MANIFEST}; copy the checkpoint again")


def load_model(checkpoint: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Load a verified checkpoint by shipped name or folder, ready to sample.

    Parameters
    ----------
    checkpoint
        A shipped name such as ``"combined-small"``, or a folder.
    device
        Where the weights go.

    Raises
    ------
    EnmaError
        Names the file and field: missing, truncated, flipped, unknown key, wrong shape, wrong version.

    Warns
    -----
    FutureWarning
        If the next release has no shipped model of this name.
    """
    folder = locate(checkpoint)
    if str(folder) != str(checkpoint):
        warn_of_leaving(folder.name)
    verify(folder)
    config, old = _config(folder)
    tensors, _ = read_tensors(folder / WEIGHTS)
    if old:
        tensors = format_1.names_of(json.loads(to_json(config)), tensors)
    model = _filled(config, tensors, str(folder / WEIGHTS))
    files = listed(folder)
    if ENVELOPE in files:
        model.envelope = Envelope.read(folder / ENVELOPE)
    if COVARIANCE in files:
        model.covariance = _covariance(folder / COVARIANCE, config)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise EnmaError(f"device {device}: cannot be used here ({first_line(error)}); use cpu") from error
    return model.eval().requires_grad_(False)


def _covariance(path: Path, config: ModelConfig) -> FieldCovariance:
    """The covariance of a checkpoint's fields; `EnmaError` if a file holds another thing."""
    (tensors, _), tok = read_tensors(path), config.codec
    try:
        wide = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
        covariance = FieldCovariance(**wide, grid=tok.grid, lengths=tok.lengths, periodic=tok.periodic)
        if covariance.channels != tok.field_channels:
            raise EnmaError(f"mean is [{covariance.channels}]; [{tok.field_channels}] is expected")
        return covariance
    except (EnmaError, TypeError) as error:
        raise EnmaError(f"{path}: not how fields of this model vary ({error}); copy the checkpoint again") from None


def load_config(checkpoint: str | Path) -> ModelConfig:
    """The config of a checkpoint by shipped name or folder; its weights are not read."""
    return _config(locate(checkpoint))[0]


def _config(folder: Path) -> tuple[ModelConfig, bool]:
    """The config of a checkpoint, and whether it is of format 1."""
    path = folder / CONFIG
    try:
        text = read_bytes(path, most=_MOST_BYTES).decode()
    except UnicodeDecodeError:
        raise EnmaError(f"{path}: is not text; copy the checkpoint again") from None
    if '"tokenizer"' not in text:
        return from_json(ModelConfig, text, source=str(path)), False
    try:
        text = json.dumps(format_1.config_of(parse_json(text.encode())))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, EnmaError):
            raise
        raise EnmaError(f"{path}: not the config of a model; copy the checkpoint again") from None
    return from_json(ModelConfig, text, source=str(path)), True


def _filled(config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> Model:
    """A model with the tensors of a checkpoint; it is made only if they fit, so a wrong config costs no memory."""
    with _single_precision():
        with torch.device("meta"), _Undrawn():
            _check_tensors(Model(config).state_dict(), tensors, source)
        with _Undrawn():
            model = Model(config)
    load_tensors(model, tensors, source=source)
    return model


@contextmanager
def _single_precision() -> Iterator[None]:
    """Modules are fp32, whatever the caller's default is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Undrawn(TorchFunctionMode):
    """Modules made in it draw no initial weights, which `load_tensors` replaces all.

    That is a third of the time of loading, and leaves the caller's random numbers as they were.
    """

    _DRAWS = (init.normal_, init.uniform_, init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_tensors(module: torch.nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy tensors into a module; every name and shape has to match."""
    expected = module.state_dict()
    _check_tensors(expected, tensors, source)
    module.load_state_dict({name: t.to(expected[name].dtype) for name, t in tensors.items()})


def _check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise EnmaError(f"{source}: lacks {name}; config and weights do not belong together")
        if name not in expected:
            raise EnmaError(f"{source}: holds unknown {name}; config and weights do not belong together")
        if tensors[name].shape != expected[name].shape:
            raise EnmaError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)};"
                f" config asks for {tuple(expected[name].shape)}"
            )
        if tensors[name].dtype.is_complex or tensors[name].is_floating_point() != expected[name].is_floating_point():
            raise EnmaError(f"{source}: {name} is {tensors[name].dtype}; {expected[name].dtype} is expected")
        if not torch.isfinite(tensors[name]).all():
            raise EnmaError(f"{source}: {name} holds a value that is not finite; copy or train it again")
