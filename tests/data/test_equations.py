"""An equation of one file, made elsewhere: two channels on a plane with walls along y, known in closed form."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast.data import EQUATIONS, describe, equations, generate, read, splits, subset
from enma_fast.data.equation import Environments, linspaces
from enma_fast.errors import EnmaError
from enma_fast.evaluation.solver import solver_fidelity
from enma_fast.training.recipes import RECIPES

COOLING = '''
"""Heat and a tracer that diffuses at half its rate, on a plate: periodic along x, held at zero at the walls of y.

    h_t = kappa (h_xx + h_yy),  s_t = kappa / 2 (s_xx + s_yy),    each one wave, which decays in place
"""

import numpy as np

from enma_fast.data.equation import Environments, Equation, linspaces
from enma_fast.data.splits import TRAJECTORIES_PER_GROUP, group_uniforms

GRID, LENGTHS, NUM_FRAMES, SPACING = (8, 5), (2.0, 1.0), 6, 0.01
WARM = np.array([0.5, 0.75, 1.0])


def wave(points):
    x, y = np.arange(points[0]) * LENGTHS[0] / points[0], np.linspace(0, LENGTHS[1], points[1])
    return np.cos(2 * np.pi * x / LENGTHS[0])[:, None] * np.sin(np.pi * y / LENGTHS[1])


def initial_conditions(split, *, seed, group):
    amplitude = 1 + group_uniforms("cooling", split, seed=seed, group=group, shape=(TRAJECTORIES_PER_GROUP, 1, 1, 2))
    return amplitude * wave((16, 5))[..., None]


def solve(u0, parameters):
    squares = (2 * np.pi / LENGTHS[0]) ** 2 + (np.pi / LENGTHS[1]) ** 2
    rate = parameters["kappa"][:, None] * squares * np.array([1, 0.5])
    decay = np.exp(-rate[:, None] * (np.arange(NUM_FRAMES) * SPACING)[:, None])
    return u0[:, None, ::2] * decay[:, :, None, None]


EQUATION = Equation(
    name="cooling",
    channels={"heat": "K", "tracer": "1"},
    grid=GRID,
    lengths=LENGTHS,
    periodic=(True, False),
    num_frames=NUM_FRAMES,
    frame_spacing=SPACING,
    inside=linspaces(21, kappa=(0.1, 0.3)),
    outside=Environments(count=3, ranges={"kappa": ((0.5, 1.0),)}, values=lambda i, split, seed: {"kappa": WARM[i]}),
    initial_conditions=initial_conditions,
    solve=solve,
    solver_grid=(16, 5),
)
'''


@pytest.fixture
def cooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, known by its file alone."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "cooling.py").write_text(COOLING)
    monkeypatch.setattr(equations, "__path__", [*equations.__path__, str(folder)])
    EQUATIONS["cooling"]
    yield sys.modules[name := f"{equations.__name__}.cooling"]
    del sys.modules[name], equations.cooling


def test_one_file_is_generated_read_described_and_scored(cooling: ModuleType, tmp_path: Path) -> None:
    assert list(EQUATIONS)[-1] == "cooling"
    path = generate("cooling", "train", groups=9, seed=3, out_dir=tmp_path)
    file = read(path)
    assert file.channels == ("heat", "tracer")
    assert file.units == {"heat": "K", "tracer": "1"}
    assert (file.periodic, file.lengths) == ((True, False), (2.0, 1.0))
    assert file.u.shape == (90, 6, 8, 5, 2)
    kappa, times = file.parameters["kappa"], 0.01 * np.arange(6)
    assert len(np.unique(kappa)) == 9
    decay = np.exp(-2 * np.pi**2 * kappa[:, None, None] * times[:, None] * np.array([1, 0.5]))
    amplitude = [cooling.initial_conditions("train", seed=3, group=g)[:, 0, 2] for g in range(9)]
    expected = np.concatenate(amplitude)[:, None, None, None] * decay[:, :, None, None]
    np.testing.assert_allclose(file.u, expected * cooling.wave((8, 5))[..., None], atol=1e-6)

    told = describe(path)
    assert (told["points"], told["groups"], told["split"]) == ([8, 5], 9, "train")
    assert (told["channels"], told["units"]) == (["heat", "tracer"], {"heat": "K", "tracer": "1"})
    assert told["parameters"]["kappa"] == [kappa.min(), kappa.max()]
    assert read(subset(path, tmp_path / "few.h5", environments=2)).units == file.units

    assert solver_fidelity("cooling", file, range(90), file.u) < 1e-6
    # A mean over channels of unequal size would not be this.
    wrong = file.u * np.exp(-0.3 * np.arange(6))[:, None, None, None].astype(np.float32)
    distance = np.linalg.norm((wrong - file.u).reshape(90, -1), axis=1) / np.linalg.norm(file.u.reshape(90, -1), axis=1)
    assert solver_fidelity("cooling", file, range(90), wrong) == pytest.approx(distance.mean(), rel=1e-5)


def test_few_environments_are_all_taken_and_shared_by_no_two_splits(cooling: ModuleType, tmp_path: Path) -> None:
    sizes = {split: splits.default_groups(cooling.EQUATION, split) for split in splits.DEFAULT_GROUPS}
    assert sizes == {"train": 18, "val": 1, "test-in": 2, "test-out": 3}
    files = {split: read(generate("cooling", split, out_dir=tmp_path)) for split in sizes}
    inside = [np.unique(files[split].environment) for split in ("train", "val", "test-in")]
    np.testing.assert_array_equal(np.sort(np.concatenate(inside)), np.arange(21))
    assert set(files["test-out"].environment) == {21, 22, 23}
    assert set(files["test-out"].parameters["kappa"]) == {0.5, 0.75, 1.0}
    with pytest.raises(EnmaError, match="'val'"):
        generate("cooling", "val", groups=2, out_dir=tmp_path / "more")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"periodic": (True,)}, "grid, lengths"),
        ({"solver_grid": (12, 5)}, "solver_grid"),
        ({"solver_grid": (16, 10)}, "solver_grid"),
        ({"outside": linspaces(3, nu=(0, 1))}, "parameters"),
    ],
)
def test_an_equation_whose_entries_do_not_fit_is_refused(cooling: ModuleType, changes: dict, message: str) -> None:
    with pytest.raises(EnmaError, match=f"equation cooling: .*{message}"):
        replace(cooling.EQUATION, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: {"name": "warming"}, "equations/cooling.py:"),
        (
            lambda own: {"outside": replace(own.outside, ranges={"kappa": ((0.5, 0.6), (0.8, 1))})},
            "kappa",
        ),
        (
            lambda own: {"solve": lambda u0, parameters: own.solve(u0, parameters)[..., :1]},
            "solve",
        ),
    ],
)
def test_an_equation_that_is_not_as_it_says_makes_no_file(
    cooling: ModuleType, change: Callable, message: str, tmp_path: Path
) -> None:
    cooling.EQUATION = replace(cooling.EQUATION, **change(cooling.EQUATION))
    with pytest.raises(EnmaError, match=message):
        generate("cooling", "test-out", out_dir=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_environments_are_products_and_the_last_varies_fastest() -> None:
    made = linspaces(3, a=(0.0, 1.0), b=(10.0, 20.0))
    assert made.count == 9
    values = made.checked(np.arange(9), "train", 0)
    assert values["a"].tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1]
    assert values["b"].tolist() == [10, 15, 20] * 3
    assert isinstance(made, Environments)


@pytest.mark.parametrize("name", EQUATIONS)
def test_initial_conditions_and_solutions_have_the_shapes_of_the_protocol(name: str) -> None:
    equation, channels = EQUATIONS[name], len(EQUATIONS[name].channels)
    u0 = equation.initial_conditions("val", seed=0, group=0)
    assert u0.shape == (splits.TRAJECTORIES_PER_GROUP, *equation.solver_grid, channels)
    for split in ("val", "test-out"):
        numbers = splits.environments(equation, split, groups=1, seed=0)
        u = equation.solve(u0[:1], equation.environments(split).checked(numbers, split, 0))
        assert u.shape == (1, equation.num_frames, *equation.grid, channels)
        assert np.isfinite(u).all()
        assert np.abs(u[:, 1:] - u[:, :1]).max() > 0


@pytest.mark.parametrize("preset", [preset for preset in RECIPES.values() if preset.model.dataset in EQUATIONS])
def test_presets_are_made_for_the_data_of_their_equation(preset: object) -> None:
    model, equation = preset.model, EQUATIONS[preset.model.dataset]
    assert model.codec.grid == equation.grid
    assert model.codec.lengths == pytest.approx(equation.lengths)
    assert model.codec.periodic == equation.periodic
    assert model.codec.field_channels == len(equation.channels)
    assert (model.num_frames, model.frame_interval) == (equation.num_frames, equation.frame_spacing)
