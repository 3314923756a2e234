"""Baselines: networks of the reference's size that learn in a moment, and forecasts that no later frame changes."""

import dataclasses
import itertools
import json
import shutil
import sys
import time
import types

import numpy as np
import pytest
import torch

from benchmarks.baselines import __main__ as command
from benchmarks.baselines import training
from benchmarks.baselines.latent_flow import LatentFlow
from benchmarks.baselines.training import num_parameters, of_size, train
from benchmarks.baselines.transformer import Transformer
from enma_fast.data import read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.baselines import Observations
from enma_fast.models.checkpoint import PRETRAINED, load_model, read_tensors, write_tensors
from enma_fast.models.model import Model
from enma_fast.training.recipes import RECIPES
from enma_fast.utils.dataclass_json import replace

SMALL = replace(RECIPES["combined-small"].model, {"context.width": 48, "step.width": 88})
# Networks, and steps after which their loss is at most 0.7 of what it was (0.8 is asked).
STEPS = {"fno": 50, "gino": 30, "transformer": 30, "latent-flow": 80}
NAMES = tuple(STEPS)


@pytest.fixture(scope="module")
def data():
    return read(PRETRAINED / "combined-test-in.h5")


@pytest.fixture
def folder(tmp_path):
    """The shipped test files as all splits."""
    for split, source in (("train", "in"), ("test-in", "in"), ("test-out", "out")):
        shutil.copy(PRETRAINED / f"combined-test-{source}.h5", tmp_path / f"combined-{split}.h5")
    return tmp_path


def made(name, data):
    if name in ("fno", "gino"):
        pytest.importorskip("neuralop")
    torch.manual_seed(0)
    return command.networks()[name](SMALL, data)


def test_the_truth_is_as_good_as_generated_trajectories_can_be(folder):
    found = command.run("truth", "combined", data_dir=folder, seconds=0.0)
    (row,) = found["rows"]
    assert (row["protocol"], row["task"], row["split"], row["members"]) == ("features", "generation", "test-in", 1)
    assert (row["fpd"], row["precision"], row["recall"]) == (pytest.approx(0, abs=1e-9), 1, 1)
    assert (found["num_parameters"], found["cpu_seconds"]) == (0, 0)


def test_what_the_library_trains_by_itself_is_measured_as_a_model(folder, monkeypatch):
    asked = []

    def prepare(source, out, request):
        asked.append((source.name, request.minutes, request.seed))
        return out

    def train_own(plan, out, *, command):
        assert plan == out
        shutil.copytree(PRETRAINED / "combined-fast", out / "checkpoint")

    monkeypatch.setattr(command, "prepare_own", prepare)
    monkeypatch.setattr(command, "train_own", train_own)
    found = command.run("own", "combined", data_dir=folder, seconds=13.5, seed=4, limit=2, protocols=("whole",))
    assert asked == [("combined-train.h5", 0.225, 4)]
    assert (found["method"], found["kind"]) == ("own", "model")
    assert 0 < found["cpu_seconds"] < 60
    assert found["num_parameters"] == num_parameters(load_model("combined-fast"))
    assert [(row["protocol"], row["trajectories"], row["members"]) for row in found["rows"]] == [("whole", 2, 16)] * 4
    assert all(row["rel_l2"] < 0.1 for row in found["rows"] if row["split"] == "test-in")


@pytest.mark.parametrize("name", ["own", "transformer", "persistence"])
def test_protocols_without_a_case_are_refused_before_training(folder, monkeypatch, name):
    monkeypatch.setattr(command, "train", None)
    monkeypatch.setattr(command, "own", None)
    with pytest.raises(EnmaError, match="--protocols: features"):
        command.run(name, "combined", data_dir=folder, seconds=1.0, protocols=("features",))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_size_of_its_reference_and_learns(data, name, one_thread, monkeypatch):
    network = made(name, data)
    network.config = dataclasses.replace(network.config, batch=2)
    target = sum(p.numel() for p in Model(SMALL).parameters())
    assert abs(num_parameters(network.module) - target) < 0.2 * target
    u = torch.from_numpy(data.u)

    def loss():
        """Loss of the same draws each time, before the networks forecast from their own frames."""
        with torch.no_grad():
            return float(network.loss(u, None, 0.0, torch.Generator().manual_seed(0)))

    before = loss()
    # A clock that goes on by 1 whenever it is looked at, so that a busy machine takes as many steps.
    clock = types.SimpleNamespace(process_time=itertools.count().__next__, monotonic=time.monotonic)
    monkeypatch.setattr(training, "time", clock)
    trained = train(network, data, seconds=STEPS[name] + 2, seed=0)
    assert trained.steps == len(trained.losses) == STEPS[name]
    assert loss() < 0.8 * before


def test_a_step_that_does_not_fit_is_not_begun(data, one_thread, monkeypatch):
    """Of 35 seconds, with steps of 10, the last one begins before 25."""
    network = made("fno", data)
    network.config = dataclasses.replace(network.config, batch=2)
    clock = types.SimpleNamespace(process_time=itertools.count(0, 10).__next__, monotonic=time.monotonic)
    monkeypatch.setattr(training, "time", clock)
    trained = train(network, data, seconds=35, seed=0)
    # The clock is looked at before the first step, after each one, and at the end.
    assert trained.steps == 2
    assert trained.cpu_seconds == 40


@pytest.mark.parametrize("name", ["fno", "transformer"])
def test_a_training_goes_on_from_its_state(data, tmp_path, one_thread, name):
    state = tmp_path / "it.safetensors"

    def trained(network, seconds, **changes):
        network.config = dataclasses.replace(network.config, batch=2)
        return train(network, data, **{"seconds": seconds, "seed": 0, "state": state, "save_seconds": 0.0} | changes)

    first = made(name, data)
    # Stopped in a step, as by a signal: the state is that of the step before.
    batches = []

    def loss(*arguments, of=first.loss):
        batches.append(arguments[0])
        if len(batches) == 3:
            raise KeyboardInterrupt
        return of(*arguments)

    first.loss = loss
    with pytest.raises(KeyboardInterrupt):
        trained(first, 60.0)
    kept, notes = read_tensors(state)
    losses = json.loads(notes["losses"])
    assert len(losses) == 2
    again, seen = made(name, data), []

    def watched(*arguments, of=again.loss):
        seen.append([arguments[0], *(p.detach().clone() for p in again.module.parameters())])
        raise KeyboardInterrupt

    again.loss = watched
    with pytest.raises(KeyboardInterrupt):
        trained(again, 60.0)
    for p, q in zip(seen[0], [batches[2], *first.module.parameters()], strict=True):
        assert torch.equal(p, q.detach())
    # Its seconds count; nothing is left of a training that has had all of them.
    write_tensors(state, kept, notes | {"spent": "61.0"})
    done = made(name, data)
    found = trained(done, 60.0)
    assert (found.steps, found.losses) == (2, losses)
    assert found.cpu_seconds >= 61.0
    for which, p in done.module.named_parameters():
        assert torch.equal(p.detach(), kept[f"average.{which}"])
    with pytest.raises(EnmaError, match=r"safetensors: .*another"):
        trained(made(name, data), 60.0, seed=1)


def observations(data, *, context, members=2, frames=17):
    history = data.u[:2, : 1 if context else 3]
    return Observations(
        history=history,
        context=data.u[[1, 0]] if context else None,
        num_frames=frames,
        num_members=members,
        trajectories=[0, 1],
        seed=0,
    )


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_forecasts_have_the_frames_that_are_asked_for(data, name, context):
    network = made(name, data)
    if context and "initial-value" not in network.tasks:
        pytest.skip("only from three frames")
    given = observations(data, context=context, frames=7 if context else 5)
    members = torch.as_tensor(network.forecast()(given))
    assert members.shape == (2, 1 if network.deterministic else 2, given.num_frames, 128, 1)
    assert torch.isfinite(members).all()
    # A shorter forecast is the beginning of a longer one.
    short = torch.as_tensor(network.forecast()(dataclasses.replace(given, num_frames=3)))
    torch.testing.assert_close(short, members[:, :, :3], rtol=1e-4, atol=1e-5)


def test_the_transformer_steps_as_it_was_trained(data):
    """Its forecast of the next frame from the cache is that of the parallel pass of training."""
    network = Transformer(SMALL, data)
    with torch.no_grad():
        network.net.read.weight.normal_(std=0.05)
        u = torch.from_numpy(data.u[:2, :6])
        h = network.net.temporal([network._tokens(u)])[0]
        expected = u[:, 2] + network._change(h[:, 3:4])[:, 0]
    given = observations(data, context=False, frames=1)
    torch.testing.assert_close(network.forecast()(given)[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_members_of_the_flow_follow_the_seed(data):
    network = LatentFlow(SMALL, data)
    given = observations(data, context=False, frames=2)
    first, again = (network.forecast()(given) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first[:, 0] != first[:, 1]).any()
    assert (network.forecast()(dataclasses.replace(given, seed=1)) != first).any()


def test_a_network_of_another_size_is_refused():
    with pytest.raises(EnmaError, match="combined-small"):
        of_size(lambda width: torch.nn.Linear(width, 1, bias=False), range(3, 10, 3), SMALL)


def test_the_solver_finds_the_physics_of_a_context(data):
    pytest.importorskip("scipy")
    members = command.solver("combined")(observations(data, context=True, frames=19))
    truth = data.u[:2, None, 1:]
    assert members.shape == (2, 2, 19, 128, 1)
    assert np.sqrt(np.square(members - truth).mean() / np.square(truth).mean()) < 1e-3


def test_advection_is_fitted_among_many_minima():
    from benchmarks.classical import PROBLEMS, ensemble
    from enma_fast.data.equations import advection

    pytest.importorskip("scipy")
    start = advection.initial_conditions("val", seed=0, group=0)[:3]
    truth = advection.solve(start, {"alpha": np.array([-6.9, 0.3, 4.9])})
    for row in truth:
        members = ensemble(row[:3], members=2, num_frames=17, seed=0, problem=PROBLEMS["advection"])
        np.testing.assert_allclose(members, np.stack([row[3:]] * 2), atol=1e-6)


@pytest.mark.parametrize("name", ["persistence", "climatology"])
def test_the_command_writes_a_score_file(folder, tmp_path, monkeypatch, capsys, name):
    arguments = [name, "combined", "--data", folder, "--limit", 2, "--out", tmp_path / "scores", "--json"]
    monkeypatch.setattr(sys, "argv", ["baselines", *map(str, arguments)])
    command.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["method"], found["kind"], found["num_parameters"]) == (name, "baseline", 0)
    row = next(r for r in found["rows"] if (r["protocol"], r["task"], r["split"]) == ("whole", "temporal", "test-in"))
    u, train = read(folder / "combined-test-in.h5").u[:2], read(folder / "combined-train.h5").u
    forecast = u[:, 2:3] if name == "persistence" else train.mean(0)[3:]
    error = np.sqrt(np.square(forecast - u[:, 3:]).sum((1, 2, 3)) / np.square(u[:, 3:]).sum((1, 2, 3)))
    assert row["rel_l2"] == pytest.approx(error.mean(), rel=1e-5)
    assert row["crps"] == pytest.approx(np.abs(forecast - u[:, 3:]).mean(), rel=1e-5)
    assert (tmp_path / "scores" / f"combined-{name}-0.json").is_file()


def test_what_cannot_be_done_is_said(folder, monkeypatch):
    with pytest.raises(EnmaError, match=r"solver: .*parameters"):
        command.solver("wave")
    with pytest.raises(EnmaError, match=r"burgers-test-in\.h5"):
        command.run("persistence", "burgers", data_dir=folder, seconds=0)
    monkeypatch.setattr(sys, "argv", ["baselines", "transformer", "advection", "--data", str(folder)])
    with pytest.raises(SystemExit, match=r"advection-train\.h5"):
        command.main()
