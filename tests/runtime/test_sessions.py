"""Sessions of libenma that are stopped for some members, saved and restored: the same bits, or a refusal."""

import ctypes
import hashlib
import struct
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import example
from enma_fast.models.checkpoint import save_model

from .._tiny import CONFIGS, model, waves
from ._libenma import INVALID_ARGUMENT, OK, Failure, Library, Model


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_a_restored_session_continues_with_the_same_bits(small: Model, done: int) -> None:
    fields = waves(2, 1, 8, CONFIGS["relative-fast"].codec).numpy()
    session = small.session(num_members=3, seed=4)
    session.observe(fields[0, :3], fields[1])
    for _ in range(done):
        session.step()
    saved_state = session.save()
    expected = session.forecast() if done < 5 else None
    latents = session.latents()
    session.free()
    other = small.session(num_members=3, seed=4, threads=2)
    other.restore(saved_state)
    assert other.progress() == (done, 5)
    assert other.save() == saved_state
    if expected is not None:
        assert np.array_equal(other.forecast(), expected)
    assert np.array_equal(other.latents(), latents)


@pytest.mark.parametrize("task", ["history", "context alone"])
@pytest.mark.parametrize("name", ["relative", "relative-fast", "line-local"])
def test_stopped_members_are_missing_and_others_keep_their_bits(
    library: Library, tmp_path: Path, name: str, task: str
) -> None:
    network = model(name)
    save_model(network, tmp_path / "it")
    opened = library.open(tmp_path / "it")
    fields = waves(2, 1, 3, network.config.codec).numpy()
    history, context = (fields[0], None) if task == "history" else (None, fields[1])
    options = {"num_members": 7, "num_frames": 8, "shifts": 3, "seed": 2}
    whole = opened.forecast(history, context, **options)
    # Before the first frame, between frames of one latent frame, after the last of one, twice, and all.
    ends = {0: [6], 1: [0], 2: [3, 0], 5: [2, 4], 7: [1, 5]}

    def stopped_until(done: int) -> np.ndarray:
        values = whole.copy()
        for frame, members in ends.items():
            if frame <= done:
                values[members, frame:] = np.nan
        return values

    session = opened.session(**options)
    session.observe(history, context)
    saves, frames = [], []
    for frame in range(8):
        session.stop(ends.get(frame, []))
        saves.append(session.save())
        frames.append(session.step())
    assert np.array_equal(np.stack(frames, 1), stopped_until(8), equal_nan=True)
    observed, tokenizer = 3 if history is not None else 0, network.config.codec
    for frame, members in ends.items():
        known = tokenizer.latent_frames(observed + frame) if frame > 0 else (observed + 1) // 2
        latents = session.latents()[[m for m in members if m != 0 or frame == 1]]
        assert np.isfinite(latents[:, :known]).all()
        assert np.isnan(latents[:, known:]).all()
    for done, state in enumerate(saves):
        other = opened.session(**options, threads=2)
        other.restore(state)
        assert other.save() == state
        # Again: nothing changes.
        other.stop(ends.get(done, []))
        assert np.array_equal(other.forecast(), stopped_until(done)[:, done:], equal_nan=True)
    session.observe(history, context)
    assert np.array_equal(session.forecast(), whole)


def test_stopped_members_cost_nothing(fast: Model) -> None:
    def seconds(stopped: int) -> float:
        session = fast.session(num_members=64, num_frames=16)
        session.observe(example())
        session.step()
        session.stop(list(range(stopped)))
        before = time.process_time()
        session.forecast()
        return time.process_time() - before

    # In turn, so that all meet the same quiet moments.
    rounds = [[seconds(stopped) for stopped in (0, 60, 64)] for _ in range(3)]
    none, most, all_of_them = (min(times) for times in zip(*rounds, strict=True))
    assert most < 0.4 * none
    assert all_of_them < 0.05 * none


def test_masks_that_do_not_fit(small: Model) -> None:
    session = small.session(num_members=3)
    with pytest.raises(Failure, match="observe first"):
        session.stop([0])
    session.observe(waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy())
    with pytest.raises(Failure, match="members has 2 entries; the session has 3") as failure:
        session.call("stop", b"12", ctypes.c_size_t(2))
    assert failure.value.status == INVALID_ARGUMENT
    with pytest.raises(Failure, match="members is NULL"):
        session.call("stop", None, ctypes.c_size_t(3))
    assert np.isfinite(session.forecast()).all()


def test_a_saved_session_of_another_kind_is_refused(small: Model, fast: Model) -> None:
    fields = waves(1, 1, 3, CONFIGS["relative-fast"].codec).numpy()
    session = small.session(num_members=2)
    session.observe(fields[0])
    session.step()
    state = session.save()
    for changed in ({"seed": 1}, {"trajectory": 1}, {"first_member": 1}, {"num_frames": 4}, {"temperature": 0.1}):
        with pytest.raises(Failure, match=next(iter(changed))):
            small.session(**{"num_members": 2, **changed}).restore(state)
    with pytest.raises(Failure, match="model"):
        fast.session(num_members=2).restore(state)
    for place in range(0, len(state), 37):
        altered = bytearray(state)
        altered[place] ^= 1
        with pytest.raises(Failure, match="buffer") as failure:
            session.restore(bytes(altered))
        assert failure.value.status != OK
    for size in (0, 7, 100, len(state) - 1):
        with pytest.raises(Failure, match="buffer"):
            session.restore(state[:size])
    # Frames observed and given out, latent frames of the context and made: a sum that overflows is seen by sanitizers.
    for place, value in product((96, 104, 112, 120), (-(2**63), -1, 2**31, 2**62, 2**63 - 1)):
        made_up = bytearray(state[:-32])
        struct.pack_into("<q", made_up, place, value)
        with pytest.raises(Failure, match="buffer: not a saved session"):
            session.restore(bytes(made_up) + hashlib.sha256(made_up).digest())
    # A refusal leaves the session as it was.
    assert session.save() == state
    with pytest.raises(Failure, match="are needed") as failure:
        session.call("save", ctypes.create_string_buffer(8), ctypes.c_size_t(8), None)
    assert failure.value.status == INVALID_ARGUMENT
