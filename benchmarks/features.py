"""Train the feature network of an equation on a line: `python -m benchmarks.features EQUATION --data DIR --out FILE`.

It learns the parameters that vary in the training data, each standardised, by their squared error. The report has the
share of each parameter's variance that it explains on validation data (R^2).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.features import FeatureNetwork
from enma_fast.data import FieldFile, read
from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import sha256, write_tensors
from enma_fast.training.augment import random_shifts, roll
from enma_fast.training.run import data_file

_BATCH, _LEARNING_RATE, _WARMUP = 64, 3e-3, 50


def train(train: FieldFile, val: FieldFile, *, steps: int, seed: int) -> tuple[FeatureNetwork, dict[str, Any]]:
    """The network and its report. `EnmaError` if no parameter varies, or the fields are not on a periodic line."""
    if train.periodic != (True,):
        raise EnmaError(f"{train.path}: is not on a periodic line; the feature network is for these")
    names = [name for name, values in train.parameters.items() if np.ptp(values) > 0]
    if not names:
        raise EnmaError(f"{train.path}: no parameter varies, so there is nothing to learn from")
    targets, held = (torch.from_numpy(np.stack([of.parameters[n] for n in names], 1)) for of in (train, val))
    mean, scale = targets.mean(0), targets.std(0)
    targets, held = ((values - mean).div(scale).float() for values in (targets, held))
    u, grid = torch.from_numpy(train.u), train.u.shape[2:-1]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = FeatureNetwork(u.shape[1], u.shape[-1], len(names))
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    began = time.process_time()
    for step in range(steps):
        decay = (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / _WARMUP) * decay
        rows = torch.randint(len(u), (_BATCH,), generator=generator)
        batch = roll(u[rows], random_shifts(grid, (True,), _BATCH, generator))
        loss = (network(batch) - targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.4g}", file=sys.stderr, flush=True)
    with torch.no_grad():
        missed = (network.eval()(torch.from_numpy(val.u)) - held).square().mean(0) / held.var(0)
    explained = {name: round(1 - float(share), 4) for name, share in zip(names, missed, strict=True)}
    return network, {"steps": steps, "seed": seed, "cpu_seconds": time.process_time() - began, "explained": explained}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("equation")
    parser.add_argument("--data", type=Path, required=True, help="folder of <equation>-train.h5 and <equation>-val.h5")
    parser.add_argument("--out", type=Path, required=True, help="file to write the weights to")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        files = [data_file(given.data, given.equation, split) for split in ("train", "val")]
        network, report = train(*map(read, files), steps=given.steps, seed=given.seed)
    except EnmaError as error:
        sys.exit(f"error: {error}")
    first = network.convolutions[0]
    channels = read(files[1], select=[0]).u.shape[-1]
    sizes = {"channels": channels, "frames": first.in_channels // channels, "parameters": len(report["explained"])}
    told = sizes | {key: report[key] for key in ("steps", "seed")} | {files[0].name: sha256(files[0])}
    write_tensors(given.out, network.state_dict(), {key: str(value) for key, value in told.items()})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
