"""Observed frames outside the training data: recognised by cheap rules, reported, refused, recorded; others are not."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray

import enma_fast
from enma_fast.data import FieldFile, read, write_fields
from enma_fast.errors import EnmaError
from enma_fast.evaluation.scoring import score
from enma_fast.evaluation.store_scores import score_store
from enma_fast.figures.report import write_report
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import ENVELOPE, PRETRAINED, load_model, save_model, verify, write_manifest
from enma_fast.models.envelope import WINDOW, Envelope
from enma_fast.models.model import Model
from enma_fast.store.layout import OUTSIDE
from enma_fast.store.metadata import DIGEST
from enma_fast.store.read import read_forecast

from .._runs import prepare
from .._tiny import model as tiny_model
from .._tiny import waves

OTHER_UNITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "280 higher": lambda u: u + np.float32(280),
    "a thousandfold": lambda u: 1000 * u,
    "a thousandth": lambda u: u / 1000,
    "half a unit higher": lambda u: u + np.float32(0.5),
}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("combined-small")


@pytest.fixture(scope="module")
def inside() -> FieldFile:
    return read(PRETRAINED / "combined-test-in.h5")


@pytest.fixture(scope="module")
def outside() -> FieldFile:
    """Fields under a fourth-order damping that training never shows."""
    return read(PRETRAINED / "combined-test-out.h5")


def share(model: Model, fields: np.ndarray) -> float:
    assert model.envelope is not None
    reasons = model.envelope.reasons(fields)
    assert len(reasons) == len(fields)
    return sum(map(bool, reasons)) / len(reasons)


@pytest.mark.parametrize("frames", [3, 4, 20])
def test_unseen_physics_is_recognised_and_unseen_trajectories_are_not(
    model: Model, inside: FieldFile, outside: FieldFile, frames: int
) -> None:
    assert share(model, outside.u[:, :frames]) > 0.95
    # Two of all 1,200 trajectories are taken for others, and one of them is in this file.
    assert share(model, inside.u[:, :frames]) < 0.05
    assert share(model, -inside.u[:, :frames]) < 0.05, "the equation does not know left from right"


@pytest.mark.parametrize("unit", OTHER_UNITS)
@pytest.mark.parametrize("frames", [1, 2, 3, 20])
def test_values_in_another_unit_are_always_recognised(model: Model, inside: FieldFile, unit: str, frames: int) -> None:
    assert share(model, OTHER_UNITS[unit](inside.u[:, :frames])) == 1


def test_one_frame_of_other_physics_is_like_any(model: Model, outside: FieldFile) -> None:
    assert share(model, outside.u[:, :1]) == 0, "initial conditions are those of the training"


@pytest.mark.parametrize("space", [(12,), (6, 5), (4, 3, 5)])
@pytest.mark.parametrize("channels", [1, 2])
def test_nearly_all_training_data_lie_inside(space: tuple[int, ...], channels: int, rng: np.random.Generator) -> None:
    fields = rng.normal(size=(400, 7, *space, channels)).cumsum(1).astype(np.float32)
    # A channel that is always zero has no unit, and is no reason for anything.
    fields = np.concatenate([fields, np.zeros_like(fields[..., :1])], -1)
    envelope = Envelope.of(fields)
    for frames in (1, 2, 3):
        windows = np.concatenate([fields[:, t : t + frames] for t in range(7 - WINDOW + 1)])
        assert sum(map(bool, envelope.reasons(windows))) == pytest.approx(0.002 * len(windows), abs=1)
    # One by one as all at once.
    assert envelope.reasons(fields) == [reason for b in range(400) for reason in envelope.reasons(fields[b : b + 1])]
    np.testing.assert_allclose(
        envelope.scale[:-1], np.sqrt((fields[..., :-1].astype(float) ** 2).mean((0, 1, *range(2, 2 + len(space)))))
    )
    assert envelope.scale[-1] == 1
    other = fields[:5].copy()
    other[3, -1, ..., -1] = 0.5
    assert [bool(reason) for reason in envelope.reasons(other)].index(True) == 3


def test_noise_and_another_course_are_recognised(rng: np.random.Generator) -> None:
    x = 2 * np.pi * np.arange(32) / 32
    height, phase, decay = rng.uniform(0.5, 1, 300), rng.uniform(0, 6, 300), rng.uniform(0.95, 1, 300)
    course = height[:, None] * decay[:, None] ** np.arange(8)
    fields = (course[:, :, None] * np.sin(x + phase[:, None, None]))[..., None]
    envelope = Envelope.of(fields)
    seen = fields[:50, :3]
    assert sum(map(bool, envelope.reasons(seen))) <= 1
    for other in (
        seen + 0.2 * rng.normal(size=seen.shape),
        seen * 0.7 ** np.arange(3)[:, None, None],
        seen[:, ::-1] * 1.3 ** np.arange(3)[:, None, None],
        np.sign(seen),
    ):
        assert all(envelope.reasons(other))


def test_the_reason_is_named(model: Model, inside: FieldFile, outside: FieldFile) -> None:
    assert model.envelope is not None
    (reason,) = model.envelope.reasons(inside.u[:1, :3] + 280)
    assert reason.startswith("values from 279.")
    assert ", of training from -1.9" in reason
    (reason,) = model.envelope.reasons(outside.u[:1, :3])
    assert reason.endswith(" times the limit")


def test_scattered_points_are_judged_by_their_values(model: Model, outside: FieldFile) -> None:
    assert model.envelope is not None
    seen = outside.u[:, :3, ::9]
    assert not any(model.envelope.reasons(seen, scattered=True))
    assert all(model.envelope.reasons(1000 * seen + 50, scattered=True))


def test_forecast_warns_or_refuses(
    model: Model, inside: FieldFile, outside: FieldFile, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = np.concatenate([inside.u[:2, :3], outside.u[:3, :3]])
    start = (
        r"the observed frames of trajectory 12 \(and of 2 more\) lie outside what combined-small was trained on: their"
    )
    options = {"num_frames": 1, "trajectories": [10, 11, 12, 13, 14]}
    expected = enma_fast.forecast(model, mixed, **options)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith(
        "the observed frames of trajectory 12 (and of 2 more) lie outside what combined-small was trained on: their "
    )
    for call in (enma_fast.forecast, enma_fast.stream):
        with pytest.raises(EnmaError, match=start + r".*; check unit and physics, or leave out strict$"):
            call(model, mixed, strict=True, **options)
    caplog.clear()
    assert next(iter(enma_fast.stream(model, mixed, **options))) is not None
    assert len(caplog.records) == 1
    caplog.clear()
    quiet = enma_fast.forecast(model, mixed[:2], strict=True, num_frames=1, trajectories=[10, 11])
    assert not caplog.records
    np.testing.assert_array_equal(quiet.numpy(), expected.numpy()[:2])


def test_a_context_is_observed_too(model: Model, inside: FieldFile, outside: FieldFile) -> None:
    enma_fast.forecast(model, inside.u[0, :1], context=inside.u[1], num_frames=1, strict=True)
    with pytest.raises(EnmaError, match="frames of trajectory 0 lie outside what combined-small was trained on"):
        enma_fast.forecast(model, outside.u[0, :1], context=outside.u[1], num_frames=1, strict=True)
    with pytest.raises(EnmaError, match=r"frames of trajectory 0 \(and of 1 more\) lie outside"):
        enma_fast.forecast(model, inside.u[:2, :1], context=outside.u[0], num_frames=1, strict=True)


def test_a_checkpoint_that_does_not_say_gives_no_warning(
    tiny: Path, outside: FieldFile, caplog: pytest.LogCaptureFixture
) -> None:
    silent = load_model(tiny)
    assert silent.envelope is None
    enma_fast.forecast(silent, 1000 * outside.u[0, :3], num_frames=1, strict=True)
    assert score(silent, outside, num_members=1, limit=1, strict=True)["num_outside"] is None
    assert not caplog.records


def test_scores_count_them(
    model: Model, inside: FieldFile, outside: FieldFile, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = dataclasses.replace(inside, u=np.concatenate([inside.u[:2], outside.u[:2], inside.u[4:]]))
    assert score(model, mixed, num_members=1, limit=4)["num_outside"] == 2
    assert caplog.messages[0].startswith(
        f"{mixed.path}: the observed frames of trajectory 2 (and of 1 more) lie outside"
    )
    with pytest.raises(EnmaError, match=r"combined-test-in\.h5: the observed frames of trajectory 2 .*lie outside"):
        score(model, mixed, num_members=1, limit=4, strict=True)
    assert score(model, mixed, num_members=1, limit=2, strict=True)["num_outside"] == 0


@pytest.mark.usefixtures("undrawn")
def test_a_store_and_its_report_name_them(
    inside: FieldFile, outside: FieldFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = dataclasses.replace(inside, u=np.concatenate([inside.u[:2], outside.u[:2], inside.u[4:]]))
    out = tmp_path / "run.zarr"
    options = {"num_members": 2, "trajectories": [0, 3, 2], "chunk": 8}
    with pytest.raises(EnmaError, match=r"trajectory 3 .*lie outside"):
        prepare(mixed, out, **options, strict=True)
    assert not out.exists()
    prepare(mixed, out, **options).execute()
    assert [message for message in caplog.messages if "trajectory 3 (and of 1 more) lie outside" in message]
    assert read_forecast(out).attrs[OUTSIDE] == [3, 2]
    assert score_store(out)["num_outside"] == 2
    write_report(out, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "the observed frames of 2 of 3 trajectories (3, 2)." in page
    # A store that an earlier version began, without the attribute, can be continued.
    metadata = json.loads((out / "zarr.json").read_bytes())
    del metadata["attributes"][OUTSIDE], metadata["attributes"][DIGEST]
    (out / "zarr.json").write_text(json.dumps(metadata))
    assert prepare(mixed, out, **options).plan().members_missing == 0
    assert score_store(out)["num_outside"] is None
    write_report(out, tmp_path / "b.html")
    assert "Outside the training data" not in (tmp_path / "b.html").read_text()


def test_a_checkpoint_keeps_what_it_was_trained_on(tmp_path: Path) -> None:
    made = tiny_model("plane")
    fields = waves(8, 2, 8, made.config.codec).numpy()
    made.envelope = Envelope.of(fields)
    save_model(made, tmp_path)
    verify(tmp_path)
    found = load_model(tmp_path).envelope
    assert found is not None
    for field in dataclasses.fields(Envelope):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(made.envelope, field.name))
    assert found.reasons(fields) == made.envelope.reasons(fields)
    # It is as protected as the weights.
    (tmp_path / ENVELOPE).write_text((tmp_path / ENVELOPE).read_text().replace("1", "2", 1))
    with pytest.raises(EnmaError, match=r"domain\.json: SHA-256 differs from manifest\.json"):
        load_model(tmp_path)
    # A file that the manifest does not list is not read, and saving a model without an envelope removes the file.
    made.envelope = None
    save_model(made, tmp_path)
    assert not (tmp_path / ENVELOPE).exists()
    (tmp_path / ENVELOPE).write_text("{")
    assert load_model(tmp_path).envelope is None
    write_manifest(tmp_path)
    with pytest.raises(EnmaError, match=r"domain\.json: does not say what a model was trained on"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("limits"),
        lambda found: found.update(more=[1.0]),
        lambda found: found.update(scale=[1.0, 2.0]),
        lambda found: found.update(mean=[float("nan")] * 7),
        lambda found: found.update(low="x"),
        lambda found: found["covariance"].pop(),
        lambda found: found.update(covariance=np.zeros((7, 7)).tolist()),
        lambda found: found.update(covariance=np.triu(found["covariance"]).tolist()),
        lambda found: found.update(scale=[0.0]),
        lambda found: found.update(limits=[-1.0, 1.0, 1.0]),
        lambda found: found.update(low=found["high"], high=found["low"]),
    ],
)
def test_files_of_another_kind_are_one_line(tmp_path: Path, change: Callable[[dict], object]) -> None:
    found = json.loads((PRETRAINED / "combined-small" / ENVELOPE).read_text())
    change(found)
    (tmp_path / ENVELOPE).write_text(json.dumps(found))
    with pytest.raises(EnmaError) as error:
        Envelope.read(tmp_path / ENVELOPE)
    assert str(error.value).startswith(f"{tmp_path / ENVELOPE}: ")
    assert str(error.value).endswith("; copy the checkpoint again")
    assert "\n" not in str(error.value)


def test_fields_that_tell_nothing_are_refused(model: Model, inside: FieldFile) -> None:
    with pytest.raises(EnmaError, match="with at least 3 frames are expected"):
        Envelope.of(inside.u[:, :2])
    spoiled = inside.u.copy()
    spoiled[3, 2, 1] = np.inf
    with pytest.raises(EnmaError, match="not finite"):
        Envelope.of(spoiled)
    assert model.envelope is not None
    with pytest.raises(EnmaError, match="fields have 2 channels, the training data 1"):
        model.envelope.reasons(np.repeat(inside.u[:1], 2, -1))


def test_the_rules_cost_next_to_nothing(model: Model, inside: FieldFile, caplog: pytest.LogCaptureFixture) -> None:
    import time

    assert model.envelope is not None
    caplog.set_level(logging.ERROR)
    history = inside.u[0, :3]
    enma_fast.forecast(model, history)

    def seconds(call: Callable[[], object]) -> float:
        clock = time.perf_counter()
        call()
        return time.perf_counter() - clock

    # In turn, so that both meet the same quiet moments.
    pairs = [
        (seconds(lambda: model.envelope.reasons(history[None])), seconds(lambda: enma_fast.forecast(model, history)))
        for _ in range(20)
    ]
    rules, forecasts = zip(*pairs, strict=True)
    assert min(rules) < 0.1 * min(forecasts)


def test_channels_in_another_order_are_found(tmp_path: Path) -> None:
    made = tiny_model("plane")
    tok = made.config.codec
    fields = waves(4, 2, 8, tok).numpy()
    made.envelope = Envelope.of(fields, ("u", "v"))
    save_model(made, tmp_path / "checkpoint")
    verify(tmp_path / "checkpoint")
    found = load_model(tmp_path / "checkpoint")
    assert found.envelope is not None
    assert found.envelope.channels == ("u", "v")
    axes = {"x": np.arange(tok.grid[0]), "y": np.arange(tok.grid[1])}
    named = xarray.Dataset(
        {name: (("time", "x", "y"), fields[0, :3, ..., c]) for c, name in reversed(list(enumerate("uv")))}
    )
    assert list(named) == ["v", "u"]
    options = {"num_members": 1, "num_frames": 1}
    expected = enma_fast.forecast(found, fields[0, :3], **options).numpy()
    members = enma_fast.forecast(found, named, **options)
    np.testing.assert_array_equal(members.numpy(), expected)
    np.testing.assert_array_equal(members.to_xarray()["u"], expected[..., 0])
    expected = enma_fast.forecast(found, fields[0, :1], context=fields[0, :3], **options).numpy()
    for first in (fields[0, :1], named.isel(time=[0])):
        members = enma_fast.forecast(found, first, context=named, **options)
        np.testing.assert_array_equal(members.numpy(), expected)
    path = write_fields(
        tmp_path / "swapped.h5",
        FieldFile(
            path=tmp_path / "swapped.h5",
            name="swapped",
            u=fields[..., ::-1],
            channels=("v", "u"),
            times=made.config.frame_interval * np.arange(8),
            coords=tuple(
                length * axes[a] / (n - 1 + ring)
                for a, n, length, ring in zip("xy", tok.grid, tok.lengths, tok.periodic, strict=True)
            ),
            lengths=tok.lengths,
            periodic=tok.periodic,
            parameters={},
            environment=None,
        ),
        name="swapped",
    )
    request = ForecastRequest(num_members=1)
    with pytest.raises(
        EnmaError, match="its channels are v, u; plane expects them in the order u, v: import it with --fields u,v"
    ):
        FileForecast(found, read(path), request).check()
    FileForecast(found, read(path, fields=["u", "v"]), request).check()
    document = json.loads((tmp_path / "checkpoint" / "domain.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(document | {"channels": ["u"]}))
    with pytest.raises(EnmaError, match="numbers are those of no training data"):
        Envelope.read(tmp_path / "a.json")
