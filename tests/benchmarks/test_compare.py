"""Whole forecasts under `benchmarks.compare`: every contender agrees with its own model before it is timed."""

import dataclasses
import json
import sys

import pytest
import torch

from benchmarks import compare, forecast, trajectory
from benchmarks.cases import flow_head_case
from enma_fast.ops import _flow_head_cuda
from enma_fast.ops.flow_head import flow_head_ref
from enma_fast.presets import PRESETS
from enma_fast.utils.dataclass_json import replace

from .._tiny import COMBINED

DTYPE_NAMES = ("bfloat16", "float32")


@pytest.fixture
def presets(monkeypatch):
    for name, decoder in (("tiny", "masked-flow"), ("tiny-fast", "one-pass")):
        model = replace(COMBINED, {"name": name, "num_frames": 8, "dynamics.decoder": decoder})
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(PRESETS["combined-small"], model=model))
    monkeypatch.setattr(compare, "gemm_rate", lambda *_, **__: 1e9)


def rows_of(monkeypatch, capsys, *arguments):
    common = ["--members", "1,3", "--rounds", "2", "--no-compile", "--json", "--device", "cpu"]
    threads = ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments, *common, *threads])
    status = compare.main()
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("case", "dtype", "baselines"),
    [
        ("trajectory", "bf16", ["eager-bf16", "eager-fp32"]),
        ("trajectory", "fp32", ["eager-fp32"]),
        ("forecast", "fp32", ["eager"]),
    ],
)
@pytest.mark.parametrize("preset", ["tiny", "tiny-fast"])
def test_contenders_of_a_whole_forecast(presets, monkeypatch, capsys, case, dtype, baselines, preset):
    status, rows = rows_of(monkeypatch, capsys, case, "--preset", preset, "--dtype", dtype)
    assert status == 0
    one_pass = preset == "tiny-fast"
    for row, members in zip(rows, (1, 3), strict=True):
        flow = ["masked-flow", *(f"masked-flow-{name}" for name in baselines)]
        assert list(row["against"]) == baselines + flow * one_pass
        assert row["wrong"] == {}
        assert row["error"] <= row["allowed_error"]
        assert row["ours_s"] > 0
        assert (row["members"], row["preset"], row["decoder"]) == (
            members,
            preset,
            "one-pass" if one_pass else "masked-flow",
        )


def test_all_formats_are_compared_one_after_the_other(presets, monkeypatch, capsys):
    status, rows = rows_of(monkeypatch, capsys, "trajectory", "--preset", "tiny", "--dtype", "all")
    assert status == 0
    assert [(row["members"], row["dtype"]) for row in rows] == [(n, dtype) for n in (1, 3) for dtype in DTYPE_NAMES]


@pytest.mark.parametrize("case", ["trajectory", "forecast"])
@pytest.mark.parametrize("name", ["ours", "masked-flow"])
def test_a_wrong_contender_has_no_time(presets, monkeypatch, capsys, case, name):
    module = {"trajectory": trajectory, "forecast": forecast}[case]
    original = getattr(module, f"{case}_case")

    def wrong(members, dtype, device, **options):
        made = original(members, dtype, device, **options)
        # The other model's answer, as if it were this one's.
        run = made.contenders["ours" if name == "masked-flow" else "masked-flow"]
        return dataclasses.replace(made, contenders={**made.contenders, name: run})

    monkeypatch.setattr(compare, f"{case}_case", wrong)
    status, rows = rows_of(monkeypatch, capsys, case, "--preset", "tiny-fast")
    for row in rows:
        assert list(row["wrong"]) == [name]
        assert name not in row["against"]
        assert (row["ours_s"] is None) == (name == "ours")
    assert status == (name == "ours")


def test_one_pass_needs_fewer_flops():
    config = PRESETS["combined-fast-paper"].model
    slow = trajectory.with_mask_steps(config)
    assert slow.dynamics == PRESETS["combined-paper"].model.dynamics
    counted = [trajectory.needed_flops(made, members=4, num_latents=11, observed=2) for made in (config, slow)]
    assert counted[0] < counted[1] / 3


def test_the_flow_head_is_timed_by_each_way_to_exchange(monkeypatch):
    cpu, ran = torch.device("cpu"), []
    plain = flow_head_case(3, torch.float32, cpu, compiled=False)
    assert not any(name.startswith("cuda") for name in plain.contenders)

    def run(c, noise, plan, *, group):
        ran.append(group)
        return flow_head_ref(c, noise, plan=plan)

    monkeypatch.setattr(_flow_head_cuda, "problem", lambda *given: None)
    monkeypatch.setattr(_flow_head_cuda, "group_problem", lambda _, __, group: "none" if group == "cluster" else None)
    monkeypatch.setattr(_flow_head_cuda, "run", run)
    case = flow_head_case(3, torch.float32, cpu, compiled=False)
    assert list(case.contenders) == [*plain.contenders, "cuda-remote", "cuda-counter"]
    for group in ("remote", "counter"):
        error = (case.contenders[f"cuda-{group}"]().double() - case.exact).abs().max()
        assert error <= case.allowance
    assert ran == ["remote", "counter"]
