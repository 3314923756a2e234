"""CUDA graphs on a GPU: the bits of the step without a graph, one launch per frame, the same member in any place."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from enma_fast.forecasting.members import sample_fields
from enma_fast.models.model import Dynamics
from enma_fast.sampling.cuda_graphs import CapturedStep
from enma_fast.sampling.settings import Size
from enma_fast.sampling.static_step import FrameKind, StaticStep
from enma_fast.training.recipes import RECIPES

from .._static import LATENTS, TASKS, Problem, build, generate, make_step, problem
from .._tiny import CONFIGS, ONE_PASS, distance, waves
from .._tiny import model as tiny_model

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def unfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is not filled with NaN: a fill is a launch, and launches are counted."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


@pytest.fixture
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32, as on the CPU; by default cuDNN rounds what it multiplies to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def capture(dynamics: Dynamics, given: Problem, *, spare: int = 0, dtype: torch.dtype | None = None) -> CapturedStep:
    return CapturedStep(make_step(dynamics, given, spare=spare, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_replayed_frame_has_the_bits_of_the_step(name: str, dtype: torch.dtype, cuda: torch.device) -> None:
    dynamics = build(name).to(cuda)
    others = [problem(dynamics, task, members=3, seed=seed).to(cuda) for seed, task in enumerate(TASKS)]
    step = make_step(dynamics, others[2], spare=2, dtype=dtype)
    expected = [generate(step, given) for given in others]
    captured = CapturedStep(step)
    # From the second round on histories and contexts are read from graphs too, which the second records.
    for _ in range(4):
        for given, frames in zip(others, expected, strict=True):
            found = generate(captured, given)
            assert torch.isfinite(found).all()
            assert torch.equal(found, frames)
    captured.close()


@pytest.mark.usefixtures("exact_convolutions")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_frames_are_those_of_the_cpu(name: str, task: str, cuda: torch.device) -> None:
    dynamics = build(name)
    given = problem(dynamics, task)
    expected = generate(make_step(dynamics, given), given)
    dynamics.to(cuda)
    found = generate(capture(dynamics, given.to(cuda)), given.to(cuda)).cpu()
    # The noise has the same bits; products are in fp32, and rounding grows from frame to frame.
    assert distance(found[:, :2], expected[:, :2]) < 1e-4


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize("name", ["paper", "paper-fast"])
def test_a_frame_is_one_launch(name: str, cuda: torch.device) -> None:
    dynamics = build(name).to(cuda)
    given = problem(dynamics, "generation").to(cuda)
    captured = capture(dynamics, given)
    captured.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for t in range(LATENTS):
            captured.frame(last=t == LATENTS - 1)
        torch.cuda.synchronize()
    launches = Counter(event.name for event in seen.events() if "Launch" in event.name)
    assert launches == {"cudaGraphLaunch": LATENTS}


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["paper", "paper-fast"])
def test_a_history_is_read_in_one_launch(name: str, task: str, cuda: torch.device) -> None:
    dynamics = build(name).to(cuda)
    given = problem(dynamics, task).to(cuda)
    captured = capture(dynamics, given)

    def launches() -> Counter[str]:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            captured.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
            torch.cuda.synchronize()
        return Counter(event.name for event in seen.events() if "Launch" in event.name)

    once, _, replayed = launches(), launches(), launches()
    assert once["cudaGraphLaunch"] == 0
    assert replayed["cudaGraphLaunch"] == 1
    # Beside it at most a copy of each input: segments, seeds, members, counters.
    assert replayed.total() <= 1 + len(given.segments) + 3
    assert replayed.total() < once.total()


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize("name", ["relative-fast", "plane"])
def test_a_forecast_that_comes_again_encodes_and_decodes_in_one_launch_each(name: str) -> None:
    model = tiny_model(name).to("cuda")
    tok = model.config.codec

    def forecast(seed: int) -> tuple[Tensor, Counter[str]]:
        history = waves(1, 1, 3, tok, seed=seed)[0].to("cuda")
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            made = sample_fields(model, history, num_members=2, seed=seed)
            torch.cuda.synchronize()
        return made, Counter(event.name for event in seen.events() if "Launch" in event.name)

    once = [forecast(seed) for seed in (1, 2, 3)]
    again = [forecast(seed) for seed in (1, 2, 3)]
    for (first, _), (second, _) in zip(once, again, strict=True):
        assert torch.equal(first, second)
    # What is not in a graph: noise keys, shifts, copies in and out.
    assert again[0][1].total() < once[0][1].total() / 2
    frames = model.config.codec.latent_frames(model.config.num_frames) - model.config.codec.whole_latents(3)
    assert again[0][1]["cudaGraphLaunch"] == frames + 3


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize("name", ["relative", "relative-fast"])
def test_replays_need_no_memory(name: str, cuda: torch.device) -> None:
    dynamics = build(name).to(cuda)
    given = problem(dynamics, "generation").to(cuda)
    captured = capture(dynamics, given, spare=100)
    captured.begin(given.segments, seeds=given.seeds, members=given.members, first=given.first)
    captured.frame()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats(cuda)["allocation.all.allocated"]
    for _ in range(100):
        captured.frame()
    assert torch.cuda.memory_stats(cuda)["allocation.all.allocated"] == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["paper", "relative", *ONE_PASS])
def test_a_member_has_the_same_bits_in_any_place(name: str, dtype: torch.dtype, cuda: torch.device) -> None:
    dynamics = build(name).to(cuda)
    rows = 16
    given = problem(dynamics, "temporal", groups=1, members=rows).to(cuda)
    captured = capture(dynamics, given, dtype=dtype)
    known: dict[int, Tensor] = {}
    draw = random.Random(0)
    for _ in range(25):
        members = draw.sample(range(100), rows)
        placed = Problem(segments=given.segments, seeds=given.seeds, members=torch.tensor(members, device=cuda))
        for member, frames in zip(members, generate(captured, placed), strict=True):
            assert torch.equal(known.setdefault(member, frames), frames), member


def test_steps_of_several_sizes_live_side_by_side(cuda: torch.device) -> None:
    dynamics = build("paper").to(cuda)
    sizes = [problem(dynamics, "initial-value", groups=groups, members=3).to(cuda) for groups in (1, 4)]
    expected = [generate(make_step(dynamics, given), given) for given in sizes]
    captured = [capture(dynamics, given) for given in sizes]
    for _ in range(2):
        for step, given, frames in zip(captured, sizes, expected, strict=True):
            assert torch.equal(generate(step, given), frames)
    captured[0].close()
    assert torch.equal(generate(captured[1], sizes[1]), expected[1])


def test_a_failed_capture_leaves_step_and_generator(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamics = build("paper").to(cuda)
    given = problem(dynamics, "temporal").to(cuda)
    expected = generate(make_step(dynamics, given), given)
    step = make_step(dynamics, given)
    run = step.run

    def waits(kind: FrameKind) -> Tensor:
        out = run(kind)
        out.sum().item()
        return out

    monkeypatch.setattr(step, "run", waits)
    before = torch.cuda.get_rng_state(cuda)
    with pytest.raises(RuntimeError, match="captur"):
        CapturedStep(step)
    assert torch.equal(generate(step, given), expected)
    # The generator is not left within a capture, where it draws no number.
    assert torch.equal(torch.cuda.get_rng_state(cuda), before)
    assert torch.isfinite(torch.randn(5, device=cuda)).all()


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize(("name", "budget"), [("combined-paper", 300), ("combined-fast-paper", 70)])
def test_kernels_of_a_frame_are_within_their_budget(name: str, budget: int, cuda: torch.device) -> None:
    config = RECIPES[name].model
    dynamics = Dynamics(config).to(cuda).eval().requires_grad_(False)
    sizes = {"rows": 1, "groups": 1, "prefix_frames": 3, "own_frames": 3, "settings": config.sampling}
    step = StaticStep(dynamics, Size(**sizes), dtype=torch.bfloat16)
    words = {"seeds": torch.zeros(1, dtype=torch.int64, device=cuda)}
    history = torch.randn(1, 2, config.num_tokens, config.token_channels, device=cuda)
    step.begin([history], **words, members=words["seeds"], first=2)
    step.frame()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step.frame()
        torch.cuda.synchronize()
    kernels = Counter(event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    assert 0 < kernels.total() <= budget, kernels
