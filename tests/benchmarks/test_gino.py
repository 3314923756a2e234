"""GINO: its reduction and coordinates, the points that it sees, and the rows that are measured of such a method."""

import math
import shutil

import numpy as np
import pytest
import torch

from benchmarks.baselines import __main__ as command
from benchmarks.baselines.gino import _coordinates, reduced
from benchmarks.baselines.scattered import measure_points_of
from benchmarks.paper.scattered import drawn_points
from enma_fast.data import read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Observations, persistence
from enma_fast.forecasting.scattered import drawn_places
from enma_fast.models.checkpoint import PRETRAINED
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import replace

SMALL = replace(RECIPES["combined-small"].model, {"context.width": 48, "step.width": 88})


@pytest.fixture(scope="module")
def data():
    return read(PRETRAINED / "combined-test-in.h5")


@pytest.fixture
def gino(data):
    pytest.importorskip("neuralop")
    torch.manual_seed(0)
    network = command.networks()["gino"](SMALL, data)
    # As it begins, what it makes hardly depends on what it sees.
    with torch.no_grad():
        for weight in network.module["to_grid"].parameters():
            weight.mul_(3)
    return network


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("batched", [False, True])
def test_the_reduction_is_that_of_its_groups(reduction, batched):
    counts = [3, 0, 1, 4]
    begins = torch.tensor([0, 3, 3, 4, 8])
    src = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    src = src if batched else src[0]
    found = reduced(src, begins.expand(2, -1) if batched else begins, reduction)
    expected = torch.stack([part.sum(-2) for part in src.split(counts, -2)], -2)
    if reduction == "mean":
        expected = expected / torch.tensor(counts).clamp(min=1)[:, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_reduction_is_that_of_the_package(reduction, batched):
    theirs = pytest.importorskip("neuralop.layers.segment_csr").segment_csr
    begins = torch.tensor([0, 3, 3, 4, 8])
    src = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1))
    src, begins = (src, begins.expand(2, -1)) if batched else (src[0], begins)
    torch.testing.assert_close(reduced(src, begins, reduction), theirs(src, begins, reduction, False))


def test_neighbours_are_found_around_a_periodic_dimension():
    places = _coordinates((64, 5), (True, False))
    assert places.shape == (64, 5, 3)
    along = (places[:, 2] - places[0, 2]).norm(dim=-1)
    # Chords of a circle whose circumference is 1.
    n = torch.arange(64)
    torch.testing.assert_close(along, (math.pi * n / 64).sin() / math.pi, rtol=0, atol=1e-6)
    torch.testing.assert_close(along[[1, 63]], torch.full((2,), 1 / 64), rtol=1e-3, atol=0)
    across = (places[7] - places[7, 0]).norm(dim=-1)
    torch.testing.assert_close(across, torch.linspace(0, 1, 5))


def test_a_field_does_not_depend_on_the_order_of_its_points(gino, data):
    u = torch.from_numpy(data.u[:3, 4]).flatten(1, -2)
    index = torch.randperm(128, generator=torch.Generator().manual_seed(1))[:40]
    with torch.inference_mode():
        found = gino.on_grid(u[:, index], index)
        again = gino.on_grid(u[:, index.flip(0)], index.flip(0))
        other = gino.on_grid(u[:, index + 1 - 2 * (index % 2)], index)
    assert found.shape == (3, 128, 1)
    torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-5)
    assert (other - found).abs().max() > 1e-3 * found.abs().max()


def test_whole_grids_are_seen_at_all_their_points(gino, data):
    given = Observations(history=data.u[:2, :3], context=None, num_frames=4, num_members=3, trajectories=[0, 1], seed=0)
    found = gino.forecast()(given)
    assert found.shape == (2, 1, 4, 128, 1)
    order = torch.stack([torch.randperm(128, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    history = torch.from_numpy(data.u[:2, :3]).flatten(2, -2)
    seen = history.gather(2, order[None, ..., None].expand(2, -1, -1, 1))
    torch.testing.assert_close(gino.from_points(seen, order, 4), found[:, 0], rtol=1e-4, atol=1e-5)


class Nearest:
    """The nearest point of a line that is seen, and the last frame again; it writes down which points it saw."""

    def __init__(self, points):
        self.points, self.seen = points, []

    def on_grid(self, u_BPc, index_P):
        away = (torch.arange(self.points)[:, None] - index_P).abs()
        nearest = torch.minimum(away, self.points - away).argmin(1)
        return u_BPc[:, nearest]

    def from_points(self, u_BLPc, index_LP, num_frames):
        self.seen.append(index_LP.numpy().copy())
        return self.on_grid(u_BLPc[:, -1], index_LP[-1])[:, None].expand(-1, num_frames, -1, -1)


def test_rows_are_those_of_the_points_that_models_see(data):
    method = Nearest(128)
    whole = measure_points_of(method, data, 1.0, split="test-in")
    assert (whole["protocol"], whole["task"], whole["members"]) == ("100% of points", "temporal", 1)
    assert (whole["trajectories"], whole["frames"], whole["reconstruction"]) == (len(data), 17, 0)
    given = Observations(
        history=data.u[:, :3], context=None, num_frames=17, num_members=1, trajectories=data.trajectories, seed=0
    )
    last = np.asarray(persistence(given))[:, 0]
    errors = np.sqrt(np.square(last - data.u[:, 3:]).sum((1, 2, 3)) / np.square(data.u[:, 3:]).sum((1, 2, 3)))
    assert whole["rel_l2"] == pytest.approx(errors.mean(), rel=1e-5)
    method.seen.clear()
    fifth = measure_points_of(method, data, 0.2, split="test-in", seed=7)
    expected = drawn_places((128,), list(data.trajectories), count=26, num_frames=3, seed=7)
    np.testing.assert_array_equal(method.seen, expected)
    fields = torch.from_numpy(data.u).flatten(2, -2)
    ((u, index),) = drawn_points(fields, count=26, seed=7)
    made = torch.stack([method.on_grid(each[:, where], where) for each, where in zip(u, index, strict=True)])
    error = (made - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    assert fifth["reconstruction"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert fifth["reconstruction_median"] == pytest.approx(error.median().item(), rel=0.2)
    assert fifth["reconstruction"] > 0.01


def test_the_command_measures_points_of_methods_that_read_them(tmp_path, monkeypatch):
    for split, source in (("train", "in"), ("test-in", "in"), ("test-out", "out")):
        shutil.copy(PRETRAINED / f"combined-test-{source}.h5", tmp_path / f"combined-{split}.h5")
    monkeypatch.setattr(command, "prepare_own", lambda source, out, request: out)

    def train_own(plan, out, *, command):
        shutil.copytree(PRETRAINED / "combined-fast", out / "checkpoint")

    monkeypatch.setattr(command, "train_own", train_own)
    found = command.run("own", "combined", data_dir=tmp_path, seconds=60, limit=2, protocols=("points",))
    assert [row["protocol"] for row in found["rows"]] == [f"{n}% of points" for n in (100, 50, 20, 10)]
    assert all(row["trajectories"] == 2 and 0 < row["rel_l2"] < 0.2 for row in found["rows"][:2])
    assert set(found["data"]) == {"combined-test-in.h5"}
    monkeypatch.setattr(command, "train", None)
    for name in ("transformer", "persistence"):
        with pytest.raises(EnmaError, match=rf"^--protocols: {name} reads"):
            command.run(name, "combined", data_dir=tmp_path, seconds=1.0, protocols=("points",))
