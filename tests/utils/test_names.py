"""No name in a field file becomes a path outside the store."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from enma_fast.data import read, write
from enma_fast.errors import EnmaError

from .._runs import prepare


@pytest.mark.parametrize("name", ["../../x", "/enma_fast_x", "..", "a/b", ".x", "x\n", "x" * 300])
@pytest.mark.parametrize("kind", ["field", "parameter"])
def test_a_name_that_is_a_path_is_refused_with_the_file(
    tiny: Path, test_in: Path, tmp_path: Path, name: str, kind: str
) -> None:
    fields = read(test_in, select=[0, 1])
    changed = {"channels": (name,)} if kind == "field" else {"parameters": {name: np.zeros(len(fields.u))}}
    with pytest.raises(EnmaError) as caught:
        prepare(replace(fields, **changed), tmp_path / "new" / "run.zarr", checkpoint=tiny, num_members=2)
    assert str(caught.value).startswith(f"{test_in}: {kind} ")
    assert "array" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_a_file_write_nothing_outside_the_store(tiny: Path, test_in: Path, tmp_path: Path) -> None:
    fields, name = read(test_in, select=[0, 1]), "../../outside"
    file = write(
        tmp_path / "fields.h5",
        name="combined-test-in",
        times=fields.times,
        coords=fields.coords,
        periodic=[True],
        scalars=fields.parameters,
        t0_fields={"u": fields.u[..., 0]},
    )
    with h5py.File(file, "r+") as opened:
        opened.attrs["simulation_parameters"] = [name]
        opened.attrs[name] = 1.0
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EnmaError, match=r"fields\.h5: .*outside"):
        prepare(file, tmp_path / "deep" / "run.zarr", checkpoint=tiny, num_members=2).execute()
    assert sorted(tmp_path.rglob("*")) == before
