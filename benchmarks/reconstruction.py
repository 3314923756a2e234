"""What a codec makes of fields of which it sees some points: reconstruction and super-resolution of the paper.

    python -m benchmarks.reconstruction RUN --data data/advection-test-in.h5

RUN is a run folder of `enma-fast train`, or a checkpoint, with an interpolation. Every trajectory has points
of its own, drawn from its grid, the same in all of its frames; the error is of the field on the whole grid. With
`--finer 2,4` it then sees the grid and is asked for finer ones, where the truth is that of the grid's waves: for
periodic lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.scattered import SHARES, reconstruction_errors
from enma_fast.data import read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics.error import relative_l2
from enma_fast.models.checkpoint import load_model
from enma_fast.models.codecs.codec import Codec
from enma_fast.models.codecs.interpolation import grid_points

ROWS = 50


@torch.inference_mode()
def finer_errors(codec: Codec, fields: Tensor, *, factor: int) -> Tensor:
    """Relative L2 error ``[B]`` of fields ``[B, T, n, c]`` on ``factor`` times as many points of a periodic line."""
    config = codec.config
    n = config.grid[0] * factor
    query, found = grid_points(replace(config, grid=(n,))), []
    for u in fields.split(ROWS):
        waves = torch.fft.rfft(u, dim=2)
        if u.shape[2] % 2 == 0:
            # The highest wave of the grid stands for two of the finer one.
            waves[:, :, -1] *= 0.5
        truth = torch.fft.irfft(waves, n=n, dim=2) * factor
        made = codec.decode(codec.encode(u), u.shape[1], query)
        found.append(relative_l2(made, truth))
    return torch.cat(found)


def rows(
    run: str, data: str, *, shares: Sequence[float], finer: Sequence[int], seed: int, limit: int | None
) -> list[dict[str, Any]]:
    """Mean and median error at each share and on each finer grid; `EnmaError` without an interpolation."""
    codec = load_model(run).codec
    if not codec.config.at_points:
        raise EnmaError(f"{run}: its codec has no interpolation; it sees whole grids only")
    u = torch.from_numpy(read(data, select=slice(limit)).u)
    config = codec.config
    if finer and config.periodic != (True,):
        raise EnmaError("--finer: is for periodic lines, whose waves tell what lies between the points")
    cases: list[tuple[dict[str, Any], Tensor]] = []
    for share in shares:
        if not 0 < share <= 1:
            raise EnmaError(f"--shares has {share:g}; a share is above 0 and at most 1")
        cases.append(({"share": share}, reconstruction_errors(codec, u, share=share, seed=seed)))
    cases += [({"finer": factor}, finer_errors(codec, u, factor=factor)) for factor in finer]
    return [
        case | {"trajectories": len(u), "rel_l2": error.mean().item(), "rel_l2_median": error.median().item()}
        for case, error in cases
    ]


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstruction", description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), type=lambda x: list(map(float, x.split(","))))
    parser.add_argument("--finer", default=[], type=lambda x: list(map(int, x.split(","))))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    try:
        found = rows(
            options.run,
            options.data,
            shares=options.shares,
            finer=options.finer,
            seed=options.seed,
            limit=options.limit,
        )
    except EnmaError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found))
        return 0
    for row in found:
        what = f"{row['share']:.0%} of the points" if "share" in row else f"{row['finer']} times as fine"
        print(f"{what:>20}: {row['rel_l2']:.2e}, median {row['rel_l2_median']:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
