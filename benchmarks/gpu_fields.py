"""Field models in two dimensions on a GPU: seconds a member, and its distance from the CPU's.

    python -m benchmarks.gpu_fields --members 64 --out benchmarks/results/NAME/results.json

A field model of the size that your own data get, with random weights, on a periodic 64 x 64 grid.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import _seconds, gpu_seconds, machine
from benchmarks.rows import add
from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Model
from enma_fast.ops import tried
from enma_fast.sampling.engine import engine_for
from tests._tiny_field import field_model, waves

SIZES: dict[str, Any] = {"grid": (64, 64), "periodic": (True, True), "width": 64, "layers": 6}
FRAMES = 20
# Frames of one member that are compared with the CPU's, and the largest distance by rounding, of the largest value: of
# fp32 with TF32, and of bf16.
COMPARED, TOLERANCE, HALF_TOLERANCE = 2, 1e-2, 1e-1


def forecast(model: Model, history: torch.Tensor, *, members: int, frames: int) -> torch.Tensor:
    """Members ``[K, T, *grid, c]``."""
    return sample_fields(model, history, num_members=members, num_frames=frames, warn=False)


def measure(members: int, device: torch.device, *, rounds: int = 3, sizes: dict[str, Any] = SIZES) -> dict[str, Any]:
    """Seconds a member of `FRAMES` frames, median of some rounds."""
    model = field_model(**sizes)
    history = waves(model.config, 1, 4, seed=5)[0]
    expected = forecast(model, history, members=1, frames=COMPARED)
    model, history = model.to(device), history.to(device)
    made = forecast(model, history, members=1, frames=COMPARED).cpu()
    distance = float((made - expected).abs().max() / expected.abs().max())
    clock = gpu_seconds if device.type == "cuda" else _seconds
    seconds = [clock(lambda: forecast(model, history, members=members, frames=FRAMES)) for _ in range(rounds + 1)][1:]
    return {
        "case": "field",
        "members": members,
        "frames": FRAMES,
        "grid": list(sizes["grid"]),
        "backend": engine_for(model.dynamics).backend,
        "distance": distance,
        "ok": distance <= (HALF_TOLERANCE if tried("fields") else TOLERANCE),
        "seconds": seconds,
        "member_s": statistics.median(seconds) / members,
    }


def main() -> int:
    """Command line; exit status 1 if a member is not the CPU's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_fields", description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="file to which the row is added")
    options = parser.parse_args()
    row = measure(options.members, torch.device(options.device))
    add(row | {"machine": machine()}, options.out)
    print(f"field {options.members:>5} members  {1e3 * row['member_s']:.3f} ms each  distance {row['distance']:.1e}")
    return int(not row["ok"])


if __name__ == "__main__":
    sys.exit(main())
