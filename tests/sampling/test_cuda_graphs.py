"""Captured frames on a CPU: a tape stands in for the CUDA graph, so Python runs once and never again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types

import pytest
import torch

from enma_fast.errors import EnmaError
from enma_fast.models import layers
from enma_fast.models.codecs.folding import folded_end
from enma_fast.models.model import Dynamics
from enma_fast.ops.recordings import MOST_RECORDINGS, Recordings
from enma_fast.sampling import cuda_graphs
from enma_fast.sampling.cuda_graphs import CapturedStep
from enma_fast.sampling.settings import Size
from enma_fast.sampling.static_step import StaticStep

from .._static import LATENTS, Problem, TapeRecorder, build, generate, make_step, problem
from .._tiny import ONE_PASS, distance, waves
from .._tiny import model as tiny_model

# The tape runs the reference operators, and attention under Triton's interpreter.
CLOSE = 2e-4


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    pytest.importorskip("triton")
    # The interpreter compiles nothing that a second time would find.
    monkeypatch.setattr(cuda_graphs, "WARM_UPS", 1)
    return TapeRecorder(monkeypatch)


def one_row(dynamics: Dynamics) -> Problem:
    """The interpreter takes a second for a frame of it; for one in mask steps and of four rows, ten times as long."""
    return problem(dynamics, "temporal", groups=1, members=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_replayed_frames_are_the_steps_own(name: str, recorder: TapeRecorder) -> None:
    dynamics = build(name)
    # Other trajectories, lengths, seeds and members than at the capture, one after the other.
    members = 2 if name in ("paper", "relative-fast") else 1
    tasks = ("initial-value", "temporal", "generation")
    others = [problem(dynamics, task, members=members, seed=seed) for seed, task in enumerate(tasks)]
    step = make_step(dynamics, others[2], spare=2)
    step.begin(others[0].segments, seeds=others[0].seeds, members=others[0].members, first=1)
    step.frame()
    captured = CapturedStep(step, recorder=recorder)
    # Fed back or not, and in a one-pass model in mask steps or not.
    assert recorder.warm_ups == (4 if name in ONE_PASS else 2)
    replays, found = 0, []
    for number, given in enumerate((*others, others[1])):
        found.append(generate(captured, given))
        # The last one has the lengths of one before.
        replays += LATENTS - given.first + (number == 3)
        assert recorder.replays == replays
    for given, values in zip(others, found, strict=False):
        assert distance(values, generate(make_step(dynamics, given), given)) < CLOSE
    # Its history was read by the operators that the tape runs, and not as on a CPU.
    assert distance(found[3], found[1]) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relative", "line-local"])
def test_histories_of_lengths_seen_before_are_replayed(name: str, recorder: TapeRecorder) -> None:
    dynamics = build(name)
    first, *others = (problem(dynamics, "temporal", groups=1, members=1, seed=seed) for seed in range(3))
    step = make_step(dynamics, first)
    captured = CapturedStep(step, recorder=recorder)
    frames = len(recorder.nodes)

    def begin(step: StaticStep | CapturedStep, given: Problem) -> None:
        step.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)

    begin(captured, first)
    assert len(recorder.nodes) == frames
    for replays, given in enumerate((*others, first), start=1):
        begin(captured, given)
        # Recorded once, from other values than these.
        assert (len(recorder.nodes), recorder.replays) == (frames + 1, replays)
        fresh = make_step(dynamics, given)
        begin(fresh, given)
        for name_of in ("_prefix", "_context_BND", "_anchor_GND", "_counters", "_past_BPNC"):
            ours, expected = getattr(step, name_of), getattr(fresh, name_of)
            assert (ours is None) == (expected is None)
            assert ours is None or distance(ours, expected) < CLOSE
    # What follows goes on from it.
    assert distance(captured.frame(last=True), generate(fresh, first)[:, 0]) < CLOSE
    exact = dataclasses.replace(first, segments=[segment.double() for segment in first.segments])
    begin(captured, exact)
    assert len(recorder.nodes) == frames + 1
    captured.close()
    begin(captured, first)
    assert recorder.replays == 3 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relative", "line-local"])
def test_recorded_frames_read_weights_that_are_loaded_later(name: str, recorder: TapeRecorder) -> None:
    dynamics = build(name)
    given = problem(dynamics, "temporal", groups=1, members=1)
    captured = CapturedStep(make_step(dynamics, given), recorder=recorder)
    # The history is recorded the second time.
    earlier = [generate(captured, given) for _ in range(2)][1]
    recorded = len(recorder.nodes)
    for weight in dynamics.parameters():
        weight.mul_(1.1)
    captured.load(dynamics)
    made = generate(captured, given)
    assert distance(made, generate(make_step(dynamics, given), given)) < CLOSE
    assert distance(made, earlier) > 1e-2
    assert len(recorder.nodes) == recorded


@pytest.mark.parametrize("name", ["relative-fast", "plane", "paper"])
def test_encoding_and_decoding_are_one_launch_when_they_come_again(name: str, recorder: TapeRecorder) -> None:
    model = tiny_model(name)
    tok = model.config.codec
    end = folded_end(model.codec)
    calls = {
        "encode": model.encode,
        "decode": lambda z: model.decode(z, 5, end=end),
    }
    recordings = Recordings(recorder)
    with torch.inference_mode():
        fields = [waves(2, 1, 5, tok, seed=seed) for seed in range(4)]
        given = {"encode": fields, "decode": [model.encode(u) for u in fields]}
        for operation, call in calls.items():

            def run(inputs, call=call):
                return call(inputs[0])

            made = [recordings((operation, rows.shape), run, [rows]) for rows in given[operation]]
            # The first is not recorded, and no call writes into what another has given.
            assert recorder.replays == 3
            assert all(torch.equal(values, call(rows)) for values, rows in zip(made, given[operation], strict=True))
            few = given[operation][0][:1]
            assert torch.equal(recordings((operation, few.shape), run, [few]), call(few))
            assert recorder.replays == 3
            recorder.replays = 0
    # Launches that a graph of each saves.
    assert [nodes.total() > 15 for nodes in recorder.nodes] == [True, True]


def test_so_many_calls_are_recorded_and_large_ones_are_not(
    recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = Recordings(recorder)
    for count in range(1, MOST_RECORDINGS + 2):
        x = torch.ones(count)
        for _ in range(3):
            assert recordings(count, lambda inputs: inputs[0].cumsum(0), [x])[-1] == count
    assert len(recorder.nodes) == MOST_RECORDINGS
    recordings.clear()
    assert recordings(1, lambda inputs: inputs[0] + 1, [torch.ones(1)]) == 2

    codec = tiny_model("plane").codec
    assert cuda_graphs.codec_recordings(codec, rows=1, frames=1) is None
    # As if it were on a GPU.
    monkeypatch.setattr(layers, "CudaRecorder", lambda device: recorder)
    monkeypatch.setattr(type(codec), "device", torch.device("cuda", 0))
    monkeypatch.setattr(layers, "prepared", lambda module, name, prepare: prepare())
    streams = [0, 0]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: streams[0])
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: streams[1])
    config = codec.config
    most = cuda_graphs.MOST_VALUES // (math.prod(config.grid) * config.field_channels)
    assert cuda_graphs.codec_recordings(codec, rows=1, frames=most) is not None
    assert cuda_graphs.codec_recordings(codec, rows=1, frames=most + 1) is None
    # The memory of a recording is of one stream, and its arithmetic that of its time.
    streams[0] = 1
    assert cuda_graphs.codec_recordings(codec, rows=1, frames=1) is None
    streams[0] = 0
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    assert cuda_graphs.codec_recordings(codec, rows=1, frames=1) is None


# test_node_budget.py counts the nodes of a frame in one pass in a second.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "relative"])
def test_a_frame_in_one_pass_is_a_small_graph(name: str, recorder: TapeRecorder) -> None:
    nodes = {}
    for made in (name, f"{name}-fast"):
        dynamics = build(made)
        step = make_step(dynamics, one_row(dynamics))
        recorder.nodes.clear()
        CapturedStep(step, recorder=recorder)
        # One graph for a frame that is fed back and one for the last, which has no causal transformer.
        assert len(recorder.nodes) == 2
        nodes[made] = recorder.nodes[-1].total()
    # Three mask steps beside one pass.
    assert nodes[f"{name}-fast"] < nodes[name] / 2


def test_the_tape_would_show_a_number_that_python_holds(recorder: TapeRecorder) -> None:
    counter, total = torch.zeros(()), torch.zeros(())
    held = iter((1.0, 2.0))

    def run() -> None:
        total.add_(counter.add(next(held)))
        counter.add_(10.0)

    replay = recorder.record(run)
    assert total.item() == 1.0
    replay()
    assert total.item() == 1.0 + 11.0


def test_bad_calls_of_a_captured_step_are_refused(recorder: TapeRecorder) -> None:
    dynamics = build("paper-fast")
    given = one_row(dynamics)
    step = make_step(dynamics, given)
    captured = CapturedStep(step, recorder=recorder)
    assert captured.plan is step.plan
    with pytest.raises(EnmaError, match="call begin first"):
        captured.frame()
    good = {"segments": given.segments, "seeds": given.seeds, "members": given.members, "first": given.first}
    for name, wrong in (
        ("segments", [given.segments[0][:, :, :-1]]),
        ("seeds", given.seeds.double()),
        ("members", given.members.to("meta")),
    ):
        with pytest.raises(EnmaError, match=name):
            captured.begin(**good | {name: wrong})
    captured.begin(**good)
    captured.frame()
    captured.frame()
    with pytest.raises(EnmaError, match="own_frames is 2"):
        captured.frame()
    assert recorder.replays == 2

    captured.close()
    assert recorder.closed
    for call in (captured.frame, lambda: generate(captured, given)):
        with pytest.raises(EnmaError, match="is closed; make a new one"):
            call()
    assert torch.equal(generate(step, given), generate(make_step(dynamics, given), given))


def test_a_single_frame_needs_one_graph(recorder: TapeRecorder) -> None:
    dynamics = build("relative")
    given = one_row(dynamics)
    step = StaticStep(
        dynamics, Size(rows=1, groups=1, prefix_frames=3, own_frames=0, settings=dynamics.config.sampling)
    )
    captured = CapturedStep(step, recorder=recorder)
    assert recorder.warm_ups == 1
    captured.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
    found = captured.frame(last=True)
    assert distance(found, generate(make_step(dynamics, given), given)[:, 0]) < CLOSE


def test_a_capture_that_fails_closes_the_recorder_and_leaves_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamics = build("paper-fast")
    given = one_row(dynamics)
    step = make_step(dynamics, given)
    with pytest.raises(EnmaError, match="cpu"):
        CapturedStep(step)

    class Failing(TapeRecorder):
        def record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    recorder = Failing(monkeypatch)
    with pytest.raises(RuntimeError, match="permitted"):
        CapturedStep(step, recorder=recorder)
    assert recorder.closed
    assert torch.equal(generate(step, given), generate(make_step(dynamics, given), given))


class Generator:
    """The state of a GPU's generator: a capture enters it, and leaves it only if it succeeds."""

    def __init__(self) -> None:
        self.capturing = False

    def clone_state(self) -> Generator:
        copy = Generator()
        copy.capturing = self.capturing
        return copy

    def graphsafe_set_state(self, other: Generator) -> None:
        self.capturing = other.capturing


def test_a_failed_capture_gives_the_generator_back(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator()

    @contextlib.contextmanager
    def capturing(graph, pool, stream, capture_error_mode):
        # Another thread's call on the device ends no capture.
        assert capture_error_mode == "thread_local"
        generator.capturing = True
        yield
        generator.capturing = False

    for name, stand_in in (
        ("Stream", lambda device: None),
        ("graph_pool_handle", lambda: (0, 0)),
        ("CUDAGraph", lambda: types.SimpleNamespace(replay=list)),
        ("device", lambda device: contextlib.nullcontext()),
        ("graph", capturing),
        ("default_generators", [None, generator]),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    recorder = cuda_graphs.CudaRecorder(torch.device("cuda", 1))

    def fails() -> None:
        assert generator.capturing
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="permitted"):
        recorder.record(fails)
    assert not generator.capturing
    assert recorder.record(lambda: None)() == []
    assert not generator.capturing
