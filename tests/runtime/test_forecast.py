"""Forecasts of libenma are those of the Python engine, and depend on nothing that they should not depend on."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import enma_fast
from enma_fast.config import DecoderConfig, LinearConfig
from enma_fast.data import example
from enma_fast.models.checkpoint import PRETRAINED, save_model
from enma_fast.models.model import Model as Network
from enma_fast.sampling.native import NativeSampler
from enma_fast.sampling.noise import trajectory_seed

from .._extension import ISAS, needs_native
from .._static import Problem
from .._tiny import CONFIGS, LOCAL, ONE_PASS, PLANE, SQUARE, in_one_pass, model, random_model, shaken, waves
from ..sampling._native import play
from ._libenma import INVALID_ARGUMENT, TOLERANCE, Failure, Library, Model, assert_close


@pytest.mark.parametrize("name", ["combined-fast", "combined-small"])
def test_members_are_those_of_python(library: Library, name: str) -> None:
    asked = {"seed": 2**40 + 5, "first_member": 3, "num_members": 10}
    expected = enma_fast.forecast(enma_fast.load_model(name), example()[None], trajectories=[7], **asked).numpy()[0]
    found = library.open(PRETRAINED / name).forecast(example(), trajectory=7, **asked)
    assert_close(found, expected)


@needs_native
@pytest.mark.parametrize(
    "name", ["combined-fast", "paper", *ONE_PASS, "plane-local", "plane-fourier", "plane", "plane-paper"]
)
def test_latents_after_the_same_history_have_the_same_bits(library: Library, tmp_path: Path, name: str) -> None:
    """The sampler is the same code, by whichever compiler, for each instruction set that the library has."""
    if name == "combined-fast":
        network = enma_fast.load_model(name)
    else:
        # That of the paper decides tokens by mask steps and a flow.
        config = CONFIGS[name]
        if name.startswith("plane-paper"):
            config = replace(config, codec=PLANE)
        network = random_model(config if name == "paper" or config.initial is not None else in_one_pass(config))
    opened = library.open(saved(network, tmp_path / "it"))
    observed = waves(1, 1, 3, network.config.codec)[0].numpy()
    sampler, known = NativeSampler(network.dynamics, dtype=torch.float32), 2
    used = [isa for isa in ISAS if has(opened, isa)]
    assert "scalar" in used
    for isa in used:
        session = opened.session(seed=3, trajectory=1, num_members=5, shifts=1, isa=isa)
        session.observe(observed)
        session.forecast()
        latents = torch.from_numpy(session.latents())
        seeds, members = torch.full((5,), trajectory_seed(3, 1)), torch.arange(5)
        given = Problem(segments=[latents[:, :known]], seeds=seeds, members=members)
        made = play(sampler, given, num_latents=latents.shape[1], isa=isa)
        assert torch.equal(made, latents[:, known:]), isa


def has(opened: Model, isa: str) -> bool:
    """A compiler other than GCC makes no kernels of wide vectors."""
    try:
        opened.session(isa=isa).free()
    except Failure as failure:
        if failure.status != INVALID_ARGUMENT:
            raise
        return False
    return True


def saved(network: Network, folder: Path) -> Path:
    save_model(network, folder)
    return folder


@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
@pytest.mark.parametrize("task", ["history", "context", "context alone"])
def test_every_kind_of_model_and_task(library: Library, tmp_path: Path, name: str, task: str) -> None:
    network = model(name)
    fields = waves(2, 1, 8, network.config.codec).numpy()
    history = None if task == "context alone" else fields[0, : 3 if task == "history" else 1]
    context = None if task == "history" else fields[1]
    expected = enma_fast.forecast(network, history, context=context, num_members=3, seed=1).numpy()
    found = library.open(saved(network, tmp_path / "it")).forecast(history, context, num_members=3, seed=1)
    assert_close(found, expected)


@pytest.mark.parametrize("observed", [4, 5, 6])
def test_walls_units_and_any_number_of_observed_frames(library: Library, tmp_path: Path, observed: int) -> None:
    config = CONFIGS["relative-fast"]
    codec = replace(config.codec, periodic=(False,), field_channels=3, layers=("space", "time"))
    codec = replace(codec, field_mean=(0.5, -1.0, 0.0), field_scale=(2.0, 0.3, 1.0))
    torch.manual_seed(0)
    network = shaken(Network(replace(config, codec=codec)), scale=0.1).eval()
    history = waves(1, 1, observed, codec)[0].numpy()
    expected = enma_fast.forecast(network, history, num_members=2, num_frames=5).numpy()
    found = library.open(saved(network, tmp_path / "it")).forecast(history, num_members=2, num_frames=5)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "step", "periodic", "shifts"),
    [
        ("plane", None, (True, False), None),
        ("plane", LinearConfig(), (True, True), 3),
        ("plane", LinearConfig(), (False, True), 2),
        ("plane-paper", None, (False, False), None),
        ("plane", LinearConfig(), (False, False), 4),
        ("square", LinearConfig(), (False, False), 8),
        ("plane-paper", LinearConfig(), (True, True), None),
        ("plane", LOCAL, (True, False), 2),
        ("plane", LOCAL, (False, False), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", ["history", "context", "context alone"])
def test_planes(
    library: Library,
    tmp_path: Path,
    name: str,
    step: DecoderConfig | None,
    periodic: tuple[bool, bool],
    shifts: int | None,
    task: str,
) -> None:
    """Both kinds of places, walls and rings, patches, two channels with units of their own."""
    config = CONFIGS["plane" if name == "square" else name]
    square = SQUARE if name == "square" else {}
    codec = replace(PLANE, periodic=periodic, field_mean=(0.5, -1.0), field_scale=(2.0, 0.3), **square)
    config = replace(config, codec=codec, sampling=replace(config.sampling, shifts=shifts))
    if step is not None:
        config = in_one_pass(config, step)
    network, count = random_model(config), max(4, shifts or 1)
    fields = waves(2, 1, 8, config.codec).numpy()
    history = None if task == "context alone" else fields[0, : 3 if task == "history" else 1]
    context = None if task == "history" else fields[1]
    expected = enma_fast.forecast(network, history, context=context, num_members=count, seed=1).numpy()
    found = library.open(saved(network, tmp_path / "it")).forecast(history, context, num_members=count, seed=1)
    assert_close(found, expected)


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_layers_of_a_plane(library: Library, tmp_path: Path, channels: int) -> None:
    """More than one product for each line, kernels of other sizes, and points that no group of places divides."""
    config = CONFIGS["plane"]
    codec = replace(
        config.codec,
        grid=(12, 20),
        field_channels=channels,
        layers=("space", "residual", "space", "time"),
        kernel_ends=5,
    )
    config = replace(config, codec=codec, context=replace(config.context, patch=(3, 1)))
    network = random_model(config)
    history = waves(1, 1, 4, codec)[0].numpy()
    expected = enma_fast.forecast(network, history, num_members=2).numpy()
    opened = library.open(saved(network, tmp_path / "it"))
    assert_close(opened.forecast(history, num_members=2), expected)
    about = opened.describe()
    assert (about.dims, list(about.shape), about.grid) == (2, [12, 20, 1], 240)
    assert (list(about.lengths), list(about.periodic)) == ([2.0, 1.0, 0.0], [1, 0, 0])


@pytest.mark.parametrize(("name", "stride", "channels"), [("relative-fast", 4, 3), ("plane", 2, 2), ("plane", 4, 3)])
def test_nothing_at_full_resolution(library: Library, tmp_path: Path, name: str, stride: int, channels: int) -> None:
    config = CONFIGS[name]
    layers = ("residual", "time") if stride == 4 else ("residual", "space", "time")
    codec = replace(config.codec, stride_ends=stride, kernel_ends=5, layers=layers, field_channels=channels)
    patch = (1,) * codec.dims
    network = random_model(replace(config, codec=codec, context=replace(config.context, patch=patch)))
    history = waves(1, 1, 3, codec)[0].numpy()
    expected = enma_fast.forecast(network, history, num_members=2).numpy()
    found = library.open(saved(network, tmp_path / "it")).forecast(history, num_members=2)
    assert_close(found, expected)


def test_a_large_plane(library: Library, tmp_path: Path) -> None:
    """Products of more rows than a kernel takes at a time."""
    config = CONFIGS["plane"]
    codec = replace(config.codec, grid=(32, 64), layers=("space", "space", "space", "time"))
    network = random_model(replace(config, codec=codec))
    history = waves(1, 1, 3, codec)[0].numpy()
    expected = enma_fast.forecast(network, history, num_members=1).numpy()
    assert_close(library.open(saved(network, tmp_path / "it")).forecast(history), expected)


def test_members_on_a_plane_depend_on_nothing_else(library: Library, plane: Path) -> None:
    model = library.open(plane)
    history = waves(1, 1, 3, CONFIGS["plane"].codec)[0].numpy()
    whole = model.forecast(history, num_members=5)
    assert np.array_equal(model.forecast(history, num_members=2, first_member=2, threads=2), whole[2:4])
    session = model.session(num_members=5)
    session.observe(np.asfortranarray(history.astype(np.float64)))
    first = session.step()
    other = model.session(num_members=5, threads=2)
    other.restore(session.save())
    assert np.array_equal(np.concatenate([first[:, None], other.forecast()], 1), whole)
    assert np.array_equal(other.latents()[:, :2], np.repeat(session.latents()[:1, :2], 5, 0))


def test_long_forecasts(library: Library, small: Model, folder: Path) -> None:
    """More frames than the first tables of rotary places hold."""
    history = waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()
    expected = enma_fast.forecast(enma_fast.load_model(folder), history, num_members=1, num_frames=150).numpy()
    assert_close(small.forecast(history, num_frames=150), expected)
    assert any("frames beyond 8" in message for _, message in library.messages)


@pytest.mark.parametrize(("shortest", "least"), [(None, 8), (5, 5)])
def test_a_context_that_training_did_not_show_is_said(
    library: Library, tmp_path: Path, shortest: int | None, least: int
) -> None:
    network = random_model(replace(in_one_pass(CONFIGS["relative"]), shortest_context=shortest))
    opened, (first, other) = (
        library.open(saved(network, tmp_path / "it")),
        waves(1, 2, 8, CONFIGS["relative"].codec),
    )
    for frames in (8, 5, 4):
        library.messages.clear()
        given = {"context": other[:frames].numpy(), "num_frames": 2}
        found = opened.forecast(first[:1].numpy(), **given)
        assert_close(found, enma_fast.forecast(network, first[:1].numpy(), num_members=1, **given).numpy())
        expected = ["context: of its 4 frames the first 3 are used, as in training"] * (frames == 4)
        expected += [
            f"context: has {frames} frames; {network.config.name} was trained on contexts of at least {least}, and "
            "may forecast far worse from fewer"
        ] * (frames < least)
        assert [message for _, message in library.messages] == expected


def test_temperature_and_shifts_can_be_others(fast: Model) -> None:
    network = enma_fast.load_model("combined-fast")
    own = network.config.sampling
    settings = replace(own, temperature=0.0, shifts=3)
    expected = enma_fast.forecast(network, example(), num_members=4, settings=settings, num_frames=3).numpy()
    found = fast.forecast(example(), num_members=4, temperature=0.0, shifts=3, num_frames=3)
    assert_close(found, expected)
    # Without noise members differ by their shifts alone.
    assert np.array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[1])
    # Shifts that do not divide a token are as many views too.
    found = fast.forecast(example(), num_members=10, temperature=0.0, shifts=10, num_frames=3)
    expected = enma_fast.forecast(
        network, example(), num_members=10, settings=replace(settings, shifts=10), num_frames=3
    )
    assert_close(found, expected.numpy())
    apart = np.abs(found[:, None] - found).max((2, 3, 4)) + np.eye(10)
    assert apart.min() > 1e-5


def test_threads_ranges_and_steps_change_no_bit(fast: Model) -> None:
    whole = fast.forecast(example(), num_members=11, num_frames=6)
    for threads in (2, 3):
        assert np.array_equal(fast.forecast(example(), num_members=11, num_frames=6, threads=threads), whole)
    for first, last in pairwise((0, 1, 4, 11)):
        part = fast.forecast(example(), first_member=first, num_members=last - first, num_frames=6)
        assert np.array_equal(part, whole[first:last])
    session = fast.session(num_members=11, num_frames=6)
    session.observe(example())
    steps = [session.step() for _ in range(2)]
    rest = session.forecast()
    assert np.array_equal(np.concatenate([np.stack(steps, 1), rest], 1), whole)
    assert session.progress() == (6, 6)


def test_a_session_observes_again(small: Model) -> None:
    fields = waves(2, 1, 4, CONFIGS["relative-fast"].codec).numpy()
    session = small.session(num_members=2)
    session.observe(fields[0])
    session.step()
    session.observe(fields[1, :3])
    assert np.array_equal(session.forecast(), small.forecast(fields[1, :3], num_members=2))


def test_strides_and_precision_of_arrays(small: Model) -> None:
    history = waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()
    expected = small.forecast(history, num_members=2)
    backwards = np.ascontiguousarray(history[::-1, ::-1])[::-1, ::-1]
    for given in (history.astype(np.float64), np.asfortranarray(history), np.repeat(history, 2, 1)[:, ::2], backwards):
        session = small.session(num_members=2)
        session.observe(given)
        wide = np.full((*expected.shape[:2], 2, *expected.shape[2:]), np.nan)
        session.forecast(wide[:, :, 1])
        assert np.array_equal(wide[:, :, 1].astype(np.float32), expected)
        assert np.isnan(wide[:, :, 0]).all()
    session = small.session(num_members=2)
    session.observe(history)
    columns = np.full(expected.shape[::-1], np.nan, np.float32, order="F")
    session.forecast(columns.T)
    assert np.array_equal(columns.T, expected)


def test_members_that_overflow_do_not_cost_the_others_their_restart(small: Model) -> None:
    session = small.session(num_members=3, seed=4, temperature=3e38)
    session.observe(waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy())
    assert not np.isfinite(session.step()).all()
    saved_state = session.save()
    other = small.session(num_members=3, seed=4, temperature=3e38)
    other.restore(saved_state)
    assert other.progress() == (1, 5)
    assert np.array_equal(other.forecast(), session.forecast(), equal_nan=True)


def test_a_long_line_of_many_channels(library: Library, tmp_path: Path) -> None:
    """More points than the root of the most of a plane, and more channels than 64."""
    config = CONFIGS["relative-fast"]
    count = 70
    codec = replace(
        config.codec,
        grid=(4096,),
        field_channels=count,
        field_mean=(0.5,) * count,
        field_scale=(2.0,) * count,
    )
    network = random_model(replace(config, codec=codec))
    history = 0.5 + 2 * waves(1, 1, 3, codec)[0]
    settings = {"num_members": 2, "num_frames": 1}
    expected = enma_fast.forecast(network, history, **settings).numpy()
    found = library.open(saved(network, tmp_path)).forecast(history.numpy(), **settings)
    assert_close(found, expected)


def test_an_instruction_set_by_name(small: Model) -> None:
    history = waves(1, 1, 3, CONFIGS["relative-fast"].codec)[0].numpy()
    scalar, fastest = small.forecast(history, isa="scalar"), small.forecast(history)
    assert np.abs(scalar - fastest).max() <= TOLERANCE * np.abs(fastest).max()
