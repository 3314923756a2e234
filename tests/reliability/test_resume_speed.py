"""A run of ten thousand members goes on at once."""

import time
from pathlib import Path

import numpy as np
import pytest

from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.runs import fingerprint
from enma_fast.store.chunks import encode_chunk
from enma_fast.store.create import create_unfinished_store
from enma_fast.store.layout import LEDGER, member_file
from enma_fast.store.ledger import write_ledger

from .._runs import prepare

MEMBERS, MISSING = 10_000, 3


class Begun(Exception):
    """The first block is about to be sampled."""


def test_ten_thousand_members_are_continued_in_two_seconds(
    test_in: Path, tiny: Path, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With loading model and data, without importing; in blocks of one member, of which there are most."""
    out = quick / "run.zarr"
    options = {"checkpoint": tiny, "num_members": MEMBERS, "trajectories": [3], "chunk": 1}
    layout = prepare(test_in, out, **options).layout
    create_unfinished_store(out, layout)
    data = encode_chunk(np.zeros(layout.frame_shape, np.float32))
    for k in range(MEMBERS - MISSING):
        member_file(out, "u", layout, 0, k).write_bytes(data)
    write_ledger(out / LEDGER, np.arange(MEMBERS) < MEMBERS - MISSING)
    begun = {}

    def begin(forecast: FileForecast, part: ForecastRequest, **given: object) -> None:
        begun.update(seconds=time.perf_counter() - clock, members=part.members)
        raise Begun

    monkeypatch.setattr(FileForecast, "sample", begin)
    # Nothing is written before, so it can be tried again where another process was in the way.
    for _ in range(5):
        fingerprint._KNOWN.clear()
        clock = time.perf_counter()
        run = prepare(test_in, out, **options)
        plan = run.plan()
        with pytest.raises(Begun):
            run.execute()
        assert (plan.members_missing, plan.blocks) == (MISSING, MEMBERS)
        assert begun["members"] == range(MEMBERS - MISSING, MEMBERS - MISSING + 1)
        if begun["seconds"] < 2:
            break
    assert begun["seconds"] < 2
