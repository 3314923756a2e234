"""Cases: forecasts from frames that come one after the other are those from all of them, and read none twice."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray

import enma_fast
from enma_fast.errors import EnmaError
from enma_fast.models.codecs.native import NativeCodec
from enma_fast.models.model import Model
from enma_fast.sampling.native import NativeSampler

from .. import _told
from .._extension import needs_native

Counts = dict[str, list[Any]]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Frames that were encoded, and latent frames that were read, for each session that was begun."""
    found: Counts = defaultdict(list)
    encode, session = NativeCodec.encode, NativeSampler.session

    def counted(self: NativeCodec, u: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        found["encoded"].append(u.shape[1])
        return encode(self, u, *given, **options)

    class Counted:
        def __init__(self, of: Any) -> None:
            self.of = of

        def __getattr__(self, name: str) -> Any:
            if name == "read":
                found["read"].append(1)
            return getattr(self.of, name)

    def counting(self: NativeSampler, *given: Any, **options: Any) -> Any:
        key, made = session(self, *given, **options)
        return key, made if isinstance(made, Counted) else Counted(made)

    monkeypatch.setattr(NativeCodec, "encode", counted)
    monkeypatch.setattr(NativeSampler, "session", counting)
    return found


def observed(made: Model, frames: int = 20, trajectories: int = 3) -> np.ndarray:
    """Fields `[B, T, *grid, c]` near the training data."""
    codec = made.config.codec
    generator = np.random.default_rng(0)
    shape = (trajectories, frames, *codec.grid, codec.field_channels)
    return generator.standard_normal(shape).astype(np.float32)


@needs_native
@pytest.mark.parametrize("with_context", [False, True])
@pytest.mark.parametrize("name", ["relative", "plane", "relative-fast"])
def test_members_are_those_of_the_whole_history(name: str, models: Any, counts: Counts, with_context: bool) -> None:
    made = models[name]
    u = observed(made, 40)
    codec, context = made.config.codec, u[1, :8] if with_context else None
    case = enma_fast.Case(made, u[0, :1], context=context)
    given: dict[str, Any] = {"num_members": 5, "seed": 3, "num_frames": 5, "chunk": 2}
    before = 1
    for length in [*([1] if with_context else []), 3, 4, 5, 5, 24, 25, 25, 40]:
        case.observe(u[0, before:length]) if length > before else None
        counts.clear()
        ours = case.forecast(**given)
        encoded, read = counts["encoded"][:], len(counts["read"])
        expected = enma_fast.forecast(made, u[0, :length], context=context, **given)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))
        if length == before and length > 1:
            assert (encoded, read) == ([], 0)
        elif length in (4, 5, 25):
            assert read == codec.whole_latents(length) - codec.whole_latents(before)
        if length == 25 > before:
            assert encoded == [25 - codec.time_factor * (codec.whole_latents(24) - codec.reach)]
        before = length
    np.testing.assert_array_equal(case.history, u[0])


@needs_native
def test_cases_of_several_trajectories_read_nothing_twice(models: Any, counts: Counts) -> None:
    made = models["relative"]
    u = observed(made)
    case = enma_fast.Case(made, u[:, :5])
    given: dict[str, Any] = {"num_members": 3, "num_frames": 4, "chunk": 3}
    case.forecast(**given)
    case.observe(u[:, 5:7])
    enma_fast.forecast(made, u[:, 7:12], **given)
    counts.clear()
    ours = case.forecast(**given)
    # Three chunks, of a trajectory each.
    assert len(counts["read"]) == 3
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(enma_fast.forecast(made, u[:, :7], **given)))
    # Other settings are another sampler; the numbers stay right.
    cold: dict[str, Any] = given | {"settings": replace(made.config.sampling, temperature=0.5)}
    np.testing.assert_array_equal(
        np.asarray(case.forecast(**cold)), np.asarray(enma_fast.forecast(made, u[:, :7], **cold))
    )


@needs_native
def test_chunks_of_one_trajectory_read_it_once(models: Any, counts: Counts) -> None:
    """Without a case too; the last chunk has fewer members."""
    made = models["relative"]
    u, shifts = observed(made), replace(made.config.sampling, shifts=1)
    given: dict[str, Any] = {"num_frames": 4, "num_members": 8, "settings": shifts}
    enma_fast.forecast(made, u[0, :5], chunk=3, **given)
    assert len(counts["read"]) == made.config.codec.whole_latents(5)


def test_a_field_model_and_what_it_is_told() -> None:
    made = _told.model()
    u = observed(made, 8)
    known = _told.arrays(1, 12)
    case = enma_fast.Case(made, torch.from_numpy(u[0, :3]))
    for length in (3, 5):
        case.observe(torch.from_numpy(u[0, 3:length])) if length > 3 else None
        ours = case.forecast(num_frames=4, num_members=3, known=known)
        expected = enma_fast.forecast(made, u[0, :length], num_frames=4, num_members=3, known=known)
        assert torch.equal(ours.values, torch.from_numpy(expected.values))


def labelled(u: np.ndarray, made: Model, first: int, **changes: Any) -> xarray.DataArray:
    """Frames from number `first` on, in xarray."""
    config = made.config
    n, length = config.codec.grid[0], config.codec.lengths[0]
    times = changes.pop("start", config.frame_interval * first) + config.frame_interval * np.arange(len(u))
    coords = {"time": times, "x": np.arange(n) * length / n} | changes
    return xarray.DataArray(u[..., 0], coords, ("time", "x"), name="u")


def test_labelled_frames_go_on(models: Any) -> None:
    made = models["relative"]
    u = observed(made)[0]
    case = enma_fast.Case(made, labelled(u[:3], made, 0))
    case.observe(labelled(u[3:4], made, 3).transpose("x", "time"))
    ours = case.forecast(num_frames=4, num_members=2)
    expected = enma_fast.forecast(made, labelled(u[:4], made, 0), num_frames=4, num_members=2)
    xarray.testing.assert_identical(ours.values, expected.values)
    assert case.history.identical(labelled(u[:4], made, 0))


def test_frames_that_do_not_follow_are_refused_and_change_nothing(models: Any) -> None:
    made = models["relative"]
    u = observed(made)[0]
    case = enma_fast.Case(made, labelled(u[:3], made, 0))
    step = made.config.frame_interval
    wrong = {
        "time begins at": labelled(u[3:5], made, 4),
        "time is missing|some frames only": labelled(u[3:5], made, 3).drop_vars("time"),
        "must increase": labelled(u[3:6], made, 3, time=step * np.array([3, 5, 4])),
        "the coordinate x differs": labelled(u[3:5], made, 3, x=np.arange(u.shape[1]) + 7.0),
        "are of numpy": u[3:5],
        "shape": labelled(u[3:5, :8], made, 3, x=np.arange(8.0)),
        "not finite": labelled(u[3:5] * np.inf, made, 3),
    }
    for message, frames in wrong.items():
        with pytest.raises(EnmaError, match=message):
            case.observe(frames)
    assert case.history.identical(labelled(u[:3], made, 0))
    plain = enma_fast.Case(made, u[:3])
    for message, frames in {"shape": u[3:5, :-1], "not finite": u[3:5] * np.nan}.items():
        with pytest.raises(EnmaError, match=message):
            plain.observe(frames)
    with pytest.raises(EnmaError, match="points"):
        plain.forecast(points=np.zeros((3, 1)))
    with pytest.raises(EnmaError, match="history"):
        enma_fast.Case(made).forecast()


def test_frames_are_copied(models: Any) -> None:
    made = models["relative"]
    u = observed(made)[0, :3]
    case = enma_fast.Case(made, u)
    u[:] = 0
    assert np.abs(case.history).max() > 0
