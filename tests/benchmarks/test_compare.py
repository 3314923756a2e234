"""Whole forecasts under `benchmarks.compare`: every contender agrees with its own model before it is timed."""

import dataclasses
import json
import sys

import pytest
import torch

from benchmarks import compare, forecast, gpu, trajectory
from benchmarks.cases import CASES, flow_head_case
from enma_fast.ops import _flow_head_cuda
from enma_fast.ops.flow_head import flow_head_ref
from enma_fast.training.recipes import RECIPES

from .._tiny import COMBINED, in_one_pass

DTYPE_NAMES = ("bfloat16", "float32")


@pytest.fixture
def presets(monkeypatch):
    for name, made in (("tiny", COMBINED), ("tiny-fast", in_one_pass(COMBINED))):
        model = dataclasses.replace(made, name=name, num_frames=8)
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES["combined-small"], model=model))
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
        ("forecast", "bf16", ["eager-bf16", "eager-fp32"]),
        ("forecast", "fp32", ["eager-fp32"]),
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
            "linear" if one_pass else "flow",
        )


def test_the_model_by_flow_throughout_is_left_out_where_asked(presets, monkeypatch, capsys):
    status, rows = rows_of(monkeypatch, capsys, "trajectory", "--preset", "tiny-fast", "--no-flow")
    assert status == 0
    assert [list(row["against"]) for row in rows] == [["eager-bf16", "eager-fp32"]] * 2


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
    config = RECIPES["combined-fast-paper"].model
    slow = trajectory.with_mask_steps(config)
    assert slow == dataclasses.replace(RECIPES["combined-paper"].model, name=slow.name)
    counted = [trajectory.needed_flops(made, members=4, num_latents=11, observed=2) for made in (config, slow)]
    assert counted[0] < counted[1] / 3


def test_the_flow_head_is_timed_by_each_way_to_exchange(monkeypatch, capsys):
    cpu, ran = torch.device("cpu"), []

    def run(c, noise, plan, *, group):
        ran.append(group)
        return flow_head_ref(c, noise, plan=plan)

    monkeypatch.setattr(_flow_head_cuda, "problem", lambda *given: None)
    monkeypatch.setattr(_flow_head_cuda, "group_problem", lambda _, __, group: "none" if group == "cluster" else None)
    monkeypatch.setattr(_flow_head_cuda, "run", run)
    assert gpu.EXCHANGES == _flow_head_cuda.GROUPS
    given = ["compare", "flow_head", "--rows", "3", "--dtype", "fp32", "--rounds", "1", "--alone", "--json"]
    for group in ("remote", "counter"):
        monkeypatch.setattr(sys, "argv", [*given, "--device", "cpu", "--exchange", group])
        assert compare.main() == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["exchange"] == group
        assert row["against"] == {}
        assert set(ran) == {group}
        ran.clear()
    # What this GPU lacks is said, and is no time of another way.
    monkeypatch.setattr(sys, "argv", [*given, "--device", "cpu", "--exchange", "cluster"])
    assert compare.main() == 1
    assert "--exchange cluster: none" in capsys.readouterr().err
    assert flow_head_case(3, torch.float32, cpu, compiled=False).notes.keys().isdisjoint({"exchange"})
    assert not ran


@pytest.mark.slow
def test_compiled_contenders_of_a_forecast_are_right(presets):
    with torch._inductor.config.patch(freezing=False), torch.no_grad():
        case = forecast.forecast_case(6, torch.float32, torch.device("cpu"), compiled=True, preset="tiny")
        assert list(case.contenders) == ["ours", "eager-fp32", "compile-fp32"]
        for run in case.contenders.values():
            assert (run().double() - case.exact).abs().max() <= case.allowance


@pytest.mark.parametrize("name", ["point_attention", "frame_attention"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fused_attention_computes_the_same(name, dtype):
    with torch.no_grad():
        case = CASES[name][0](16, dtype, torch.device("cpu"), compiled=False)
        names = [contender for contender in case.contenders if contender.startswith("sdpa")]
        assert names == (["sdpa-fp32"] if dtype == torch.float32 else ["sdpa-bf16", "sdpa-fp32"])
        for contender in names:
            assert (case.contenders[contender]().double() - case.exact).abs().max() <= case.allowance


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("embed --threads 2", "--threads: has no effect on embed, only on flow_head, "),
        ("embed --dtype bf16", "--dtype: has no effect on embed"),
        ("embed --device cpu", "--device: has no effect on embed"),
        ("embed --alone", "--alone: has no effect on embed"),
        ("embed --no-compile", "--no-compile: has no effect on embed"),
        ("embed --flag-wrong", "--flag-wrong: has no effect on embed"),
        (
            "ensemble --preset combined-fast",
            "--preset: has no effect on ensemble, only on trajectory, forecast, embed;",
        ),
        ("flow_head --preset combined-fast", "--preset: has no effect on flow_head"),
        ("trajectory --others", "--others: has no effect on trajectory, only on embed; leave it out"),
        ("flow_head --library libenma.so", "--library: has no effect on flow_head"),
        ("ensemble --alone", "--alone: has no effect on ensemble"),
        ("forecast --no-flow", "--no-flow: has no effect on forecast, only on trajectory; leave it out"),
        ("ensemble --no-compile", "--no-compile: has no effect on ensemble"),
        ("ensemble --dtype bf16", "--dtype: is bf16, but the shipped model of ensemble samples in fp32; give fp32"),
        ("ensemble --dtype all", "--dtype: is all, but"),
        ("ensemble --device cuda", "--device: is cuda, but ensemble compares stores on the CPU; give cpu"),
        ("flow_head --device abacus", "--device: "),
        ("flow_head --device meta", "--device: is meta; give cpu or cuda"),
        ("flow_head --rounds 0", "--rounds: '0' is no count; give 1 or more"),
        ("flow_head --threads 0", "--threads: '0' is no count; give 1 or more"),
        ("flow_head --rows 3,x", "--rows/--members: 'x' is no count; give 1 or more"),
    ],
)
def test_what_has_no_effect_is_refused(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["compare", *words.split()])
    with pytest.raises(SystemExit) as exit:
        compare.main()
    assert exit.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_library_that_is_missing_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "embed", "--library", "nowhere/libenma.so"])
    assert compare.main() == 1
    assert capsys.readouterr().err.startswith("error: nowhere/libenma.so is missing")
