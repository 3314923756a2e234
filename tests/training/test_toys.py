"""A decoder, a codec and an equation of one file each, from a recipe to a forecast: ten steps, and no other file."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="needs the [data] extra")

from enma_fast import forecast
from enma_fast.data import EQUATIONS, equations, generate, read
from enma_fast.models.checkpoint import load_model
from enma_fast.models.model import Model
from enma_fast.training.loop import RunOptions
from enma_fast.training.recipes import read_recipe
from enma_fast.training.run import train

from ..toys import codec, decoder  # noqa: F401  (a kind is known once its file is imported)

RECIPE = """
[data]
train = 2
val = 1

[model]
name = "spreading-tiny"
dataset = "spreading"
num_frames = 8
frame_interval = 0.1
{codec}
[model.context]
kind = "causal-transformer"
patch = [2]
width = 16
heads = 2
layers = 1
scale_shift_rank = 0

[model.trunk]
layers = 1

[model.step]
{step}
[model.sampling]
mask_steps = 1
flow_steps = 1
{tokenizer}
[[stage]]
kind = "dynamics"
steps = 10
batch = 8
optimizer = {{ learning_rate = 0.01, warmup_steps = 2 }}
"""
CONV = """
[model.codec]
kind = "conv"
grid = [16]
lengths = [6.283185307179586]
latent_channels = 2
width = 8
max_width = 8
layers = ["space", "time"]
"""
EVERY = """
[model.codec]
kind = "toy-every"
grid = [16]
lengths = [6.283185307179586]
"""
TOKENIZER = """
[[stage]]
kind = "tokenizer"
steps = 10
batch = 8
optimizer = { learning_rate = 0.01, warmup_steps = 2 }
"""
TOYS = {
    "a decoder": RECIPE.format(codec=CONV, step='kind = "toy-persistence"\n', tokenizer=TOKENIZER),
    "a codec": RECIPE.format(codec=EVERY, step='kind = "linear"\n', tokenizer=""),
    "an equation": RECIPE.format(
        codec=CONV, step='kind = "flow"\nwidth = 16\nlayers = 1\ntime_features = 8\n', tokenizer=TOKENIZER
    ),
}


@pytest.fixture(autouse=True)
def spreading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The equation, in a folder of equations of its own."""
    folder = Path(__file__).parents[1] / "toys" / "equations"
    monkeypatch.setattr(equations, "__path__", [*equations.__path__, str(folder)])


@pytest.mark.parametrize("toy", TOYS)
def test_it_is_trained_saved_loaded_and_forecast_with(
    toy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    path = tmp_path / "toy.toml"
    path.write_text(TOYS[toy])
    recipe = read_recipe(path)
    torch.manual_seed(recipe.seed)
    begun = Model(recipe.model).state_dict()
    options = RunOptions(out=tmp_path / "run", precision="fp32", log_every=5)
    trained = train(recipe, options=options)
    assert trained is not None
    parts = {"a decoder": "dynamics.step.scale", "a codec": "dynamics.context.", "an equation": "codec."}
    moved = [n for n, x in trained.state_dict().items() if n.startswith(parts[toy]) and not torch.equal(x, begun[n])]
    assert moved
    assert (tmp_path / "run" / "dynamics" / "log.jsonl").read_text().count('"loss"') == 2

    model = load_model(tmp_path / "run" / "dynamics")
    held = read(generate("spreading", "test-in", groups=1, out_dir=tmp_path))
    members = forecast(model, held.u[:2, :3], num_members=2, num_frames=5, seed=3).numpy()
    assert members.shape == (2, 2, 5, 16, 1)
    assert np.isfinite(members).all()
    np.testing.assert_array_equal(
        forecast(trained, held.u[:2, :3], num_members=2, num_frames=5, seed=3).numpy(), members
    )


def test_the_equation_is_what_it_says(tmp_path: Path) -> None:
    assert "spreading" in EQUATIONS
    held = read(generate("spreading", "test-out", groups=1, out_dir=tmp_path))
    c, nu = held.parameters["c"], held.parameters["nu"]
    waves = np.fft.rfft(held.u[..., 0])
    assert held.u.shape == (10, 8, 16, 1)
    np.testing.assert_allclose(
        waves[:, 5, 2], waves[:, 0, 2] * np.exp((-2j * c - 4 * nu) * 0.5), atol=1e-5 * np.abs(waves).max()
    )
