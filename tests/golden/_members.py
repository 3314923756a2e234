"""Golden members: the SHA-256 of forecasts by every shipped model, so that a change of the code changes no bit.

    python -m tests.golden._members --record      writes golden.json

Native members depend on the instruction set alone. Those of the reference depend on PyTorch and the processor too: they
are recorded for each pair that was met. Observed fields are sums and products of integers, the same bits everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import enma_fast
from enma_fast.models.checkpoint import PRETRAINED, load_config
from enma_fast.models.model import Model
from enma_fast.ops._backend import native

FILE = Path(__file__).with_name("golden.json")
MODELS = tuple(sorted(path.parent.name for path in PRETRAINED.glob("*/config.json")))
TASKS = ("temporal", "initial-value", "generation", "points")
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The reference samples with weights as they are.
BACKENDS = {"native": tuple(FORMATS), "reference": ("fp32",)}
# Models with a floor compute in fp32.
OF_MODEL = {name: ("fp32",) if hasattr(load_config(name).context, "floor") else tuple(FORMATS) for name in MODELS}
# Its equation takes the reference 40 seconds a task, by the same code.
TASKS_OF = {("reference", "gray-scott"): TASKS[:1]}
CASES = [(name, form) for name, forms in OF_MODEL.items() for form in forms]
ISAS = ("avx512_bf16", "avx512", "avx2", "scalar")
MEMBERS, FRAMES, CONTEXT, POINTS, SEED = 2, 4, 5, 40, 11


def observed(model: Model) -> np.ndarray:
    """Two trajectories ``[2, CONTEXT, *grid, c]`` of smooth fields in the units of a model's data."""
    tokenizer = model.config.codec
    bits = np.random.Generator(np.random.PCG64(SEED)).integers(0, 2**16, (2, *tokenizer.grid, tokenizer.field_channels))
    u = bits / 2.0**15 - 1.0
    for axis in range(1, u.ndim - 1):
        for width in (1, 2, 4):
            u = 0.25 * np.roll(u, -width, axis) + 0.5 * u + 0.25 * np.roll(u, width, axis)
    frames = np.stack([(1.0 - 0.03125 * t) * np.roll(u, t, 1) for t in range(CONTEXT)], axis=1)
    mean, scale = tokenizer.field_mean or 0.0, tokenizer.field_scale or 1.0
    return (frames * 4.0 * np.array(scale) + np.array(mean)).astype(np.float32)


def scattered(model: Model, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points ``[P, d]`` of the grid, in no order, and the values ``[L, P, c]`` there."""
    tokenizer = model.config.codec
    places = np.random.Generator(np.random.PCG64(SEED)).permutation(int(np.prod(tokenizer.grid)))[:POINTS]
    index = np.unravel_index(places, tuple(tokenizer.grid))
    steps = [
        length / (n if ring else n - 1)
        for n, length, ring in zip(tokenizer.grid, tokenizer.lengths, tokenizer.periodic, strict=True)
    ]
    points = np.stack([i * step for i, step in zip(index, steps, strict=True)], axis=1)
    return points, frames[(slice(None), *index)]


def inputs(model: Model, task: str) -> dict[str, Any]:
    """The arrays of a task, as `enma_fast.forecast` takes them."""
    history, context = observed(model)
    if task == "temporal":
        return {"history": history[:3]}
    if task == "initial-value":
        return {"history": history[:1], "context": context}
    if task == "generation":
        return {"history": None, "context": context}
    points, values = scattered(model, history[:3])
    return {"history": values, "points": points}


def members(model: Model, task: str, number_format: str, backend: str) -> np.ndarray:
    """The members ``[K, T, *grid, c]`` of a case."""
    return enma_fast.forecast(
        model,
        **inputs(model, task),
        num_members=MEMBERS,
        num_frames=FRAMES,
        seed=SEED,
        dtype=FORMATS[number_format],
        backend=backend,
    ).numpy()


def digest(values: np.ndarray) -> str:
    """SHA-256 of fp32 values in C order; half of it tells any two apart."""
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:32]


def machine() -> str:
    """All that the reference's bits depend on beside the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = [
        line.split(":")[1].strip() for line in lines if line.startswith(("cpu family", "model\t", "vendor_id"))
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {' '.join(processor[:3])}, {capability}, torch {torch.__version__.split('+')[0]}"


def find(backend: str) -> dict[str, str]:
    """The hash of every case of a backend, here and now."""
    torch.set_num_threads(1)
    found = {}
    for name in MODELS:
        model = enma_fast.load_model(name)
        for task in TASKS_OF.get((backend, name), TASKS):
            for number_format in (form for form in BACKENDS[backend] if form in OF_MODEL[name]):
                found[f"{name}/{task}/{number_format}"] = digest(members(model, task, number_format, backend))
    return found


def main() -> None:
    """Print the hashes of one backend as JSON, or record those of all instruction sets and of the reference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--backend", choices=BACKENDS, default="native")
    asked = parser.parse_args()
    if not asked.record:
        sys.stdout.write(json.dumps(find(asked.backend)) + "\n")
        return
    golden = json.loads(FILE.read_text()) if FILE.is_file() else {"native": {}, "reference": {}}
    for isa in ISAS:
        if isa in native().cpu_isas():
            golden["native"][isa] = json.loads(printed("native", isa))
    before, now = golden["reference"].get(machine(), {}), json.loads(printed("reference", None))
    # What changed here changed everywhere, and is recorded where it was when the tests run there.
    changed = {case for case, found in before.items() if now.get(case) != found}
    for other, hashes in golden["reference"].items():
        golden["reference"][other] = {case: found for case, found in hashes.items() if case not in changed}
    golden["reference"][machine()] = now
    FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


def printed(backend: str, isa: str | None) -> str:
    """The hashes by a process of its own, since the instruction set is chosen once in each."""
    environment = os.environ | ({} if isa is None else {"ENMA_ISA": isa})
    command = [sys.executable, "-m", "tests.golden._members", "--backend", backend]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
