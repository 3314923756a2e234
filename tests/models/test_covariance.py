"""The statistics of training fields: of fields whose waves are known, on rings and between walls, in checkpoints."""

import math

import numpy as np
import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models.checkpoint import COVARIANCE, load_model, save_model, write_manifest, write_tensors
from enma_fast.models.codecs.interpolation import grid_points
from enma_fast.models.covariance import FieldCovariance

from .._covariance import GRIDS, covariance_on, points_of
from .._tiny import model, waves


@pytest.mark.parametrize("name", GRIDS)
def test_waves_are_as_many_as_points_and_independent(name):
    covariance = covariance_on(name)
    waves_XM = covariance.waves(points_of(name))
    assert waves_XM.shape == (math.prod(covariance.grid),) * 2
    assert torch.linalg.matrix_rank(waves_XM) == len(waves_XM)
    amplitudes = torch.randn(3, len(waves_XM), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(covariance.on_grid(amplitudes).flatten(1), amplitudes @ waves_XM.T)


@pytest.mark.parametrize("name", ["ring", "odd ring", "odd plane"])
def test_waves_around_a_ring_are_orthogonal(name):
    waves_XM = covariance_on(name).waves(points_of(name))
    torch.testing.assert_close(waves_XM.T @ waves_XM / len(waves_XM), torch.eye(len(waves_XM)).double())


@pytest.mark.parametrize("name", GRIDS)
def test_statistics_of_drawn_fields_are_those_they_were_drawn_from(name):
    expected = covariance_on(name, channels=2)
    generator = torch.Generator().manual_seed(2)
    count = 3000
    power, correlation = expected.by_wave
    first, second = (torch.randn(count, *power.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    second = correlation * first + (1 - correlation**2).sqrt() * second
    amplitudes = torch.stack([first, second], 1) * power.sqrt()
    fields = torch.stack([expected.on_grid(amplitudes[..., c]) for c in range(2)], -1) + torch.tensor([3.0, -1.0])
    _, lengths, periodic = GRIDS[name]
    found = FieldCovariance.of(fields.numpy(), lengths=lengths, periodic=periodic)
    torch.testing.assert_close(found.mean, torch.tensor([3.0, -1.0]).double(), rtol=0, atol=0.1)
    torch.testing.assert_close(found.deviation, expected.deviation, rtol=0.06, atol=0.01)
    torch.testing.assert_close(found.correlation, expected.correlation, rtol=0, atol=0.06)


def test_statistics_do_not_depend_on_how_many_fields_are_looked_at_at_a_time(monkeypatch):
    fields = np.random.default_rng(0).normal(size=(7, 3, 8, 2)).astype(np.float32)
    whole = FieldCovariance.of(fields, lengths=(1.0,), periodic=(True,))
    monkeypatch.setattr("enma_fast.models.covariance._AT_ONCE", 50)
    parts = FieldCovariance.of(fields, lengths=(1.0,), periodic=(True,))
    for name, x in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], x)


def test_a_channel_that_never_varies_has_no_power():
    fields = np.full((4, 3, 8, 1), 2.5, np.float32)
    found = FieldCovariance.of(fields, lengths=(1.0,), periodic=(True,))
    assert (found.deviation == 0).all()
    assert (found.correlation == 0).all()
    assert found.mean == 2.5


@pytest.mark.parametrize("name", ["relative", "plane"])
def test_a_checkpoint_keeps_it(name, tmp_path):
    made = model(name)
    fields = waves(3, 2, 4, made.config.codec)
    tok = made.config.codec
    made.covariance = FieldCovariance.of(fields.numpy(), lengths=tok.lengths, periodic=tok.periodic)
    save_model(made, tmp_path / "a")
    read = load_model(tmp_path / "a").covariance
    assert read is not None
    for name, x in made.covariance.tensors().items():
        assert torch.equal(read.tensors()[name], x)
    # Its waves meet the points of the tokenizer's grid.
    amplitudes = torch.randn(len(read.by_wave[0]), dtype=torch.float64)
    on_points = read.waves(grid_points(tok)) @ amplitudes
    torch.testing.assert_close(on_points, read.on_grid(amplitudes).flatten(), rtol=0, atol=1e-4)
    made.covariance = None
    save_model(made, tmp_path / "a")
    assert load_model(tmp_path / "a").covariance is None


def _changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed("deviation", lambda x: -x), "deviation is below 0"),
        (_changed("correlation", lambda x: x + 1.5), "a correlation not between 0 and 1"),
        (_changed("deviation", lambda x: x[:-1]), r"deviation is \[16, 1\]; \[17, 1\] is expected"),
        (_changed("mean", lambda x: x * math.nan), "holds a value that is not finite"),
        (_changed("mean", lambda x: x[None]), r"mean is \[1, 1\]; \[channels\]"),
        (_changed("mean", lambda x: x.int()), "floating-point numbers are expected"),
        (lambda tensors: {name: torch.cat([x, x], -1) for name, x in tensors.items()}, r"mean is \[2\]; \[1\] is exp"),
        (lambda tensors: tensors | {"other": torch.zeros(1)}, "unexpected keyword argument 'other'"),
        (lambda tensors: {"mean": tensors["mean"]}, "missing 2 required"),
    ],
)
def test_a_file_of_other_numbers_is_refused(change, said, tmp_path):
    made = model("relative")
    fields = waves(3, 2, 4, made.config.codec)
    made.covariance = FieldCovariance.of(fields.numpy(), lengths=(2 * math.pi,), periodic=(True,))
    save_model(made, tmp_path)
    write_tensors(tmp_path / COVARIANCE, change(made.covariance.tensors()))
    write_manifest(tmp_path)
    with pytest.raises(EnmaError, match=f"{COVARIANCE}: not how fields of this model vary .*{said}.*copy the checkp"):
        load_model(tmp_path)
