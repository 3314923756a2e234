"""The Pareto benchmark: which points are on the front, and one run on an untrained model."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import pareto
from benchmarks.pareto import OWN, front, grid, label, pareto_set, rows_by_environment
from enma_fast.config import SamplingConfig
from enma_fast.data import read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import Scores
from enma_fast.forecasting.file_forecast import FileForecast
from enma_fast.forecasting.request import ForecastRequest
from enma_fast.models.checkpoint import PRETRAINED, load_model, save_model
from enma_fast.models.model import Model

from .._tiny import COMBINED, CONFIGS, in_one_pass, random_model

CONFIG = dataclasses.replace(COMBINED, sampling=SamplingConfig(mask_steps=2, flow_steps=2))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({}, []),
        ({"a": (1.0, 1.0)}, ["a"]),
        # A staircase: nothing is dominated.
        ({"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (3.0, 1.0)}, ["a", "b", "c"]),
        # b is worse than a in both, c is worse in one and equal in the other.
        ({"a": (1.0, 2.0), "b": (2.0, 3.0), "c": (1.0, 2.5), "d": (1.5, 2.0)}, ["a"]),
        # Equal points stay together, or go together.
        ({"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (2.0, 1.0), "d": (2.0, 1.0)}, ["a", "b", "c", "d"]),
        ({"a": (2.0, 2.0), "b": (2.0, 2.0), "c": (1.0, 1.0)}, ["c"]),
        # Three coordinates: b loses both pairs with the first one, and wins the third.
        ({"a": (1.0, 1.0, 5.0), "b": (2.0, 2.0, 4.0), "c": (2.0, 2.0, 6.0)}, ["a", "b"]),
    ],
)
def test_pareto_set(points, expected):
    assert pareto_set(points) == expected
    assert pareto_set(dict(reversed(points.items()))) == expected[::-1]


def test_rounding_makes_no_better_point():
    rows = [{"name": "native", "seconds_per_member": 1.0, "crps": 0.003079244738}]
    rows.append({"name": "eager", "seconds_per_member": 2.0, "crps": 0.003079244735})
    assert front(rows, "crps") == ["native"]
    rows[1]["crps"] = 0.00307
    assert front(rows, "crps") == ["native", "eager"]


def test_rows_are_spread_over_the_environments():
    environment = np.array([7, 7, 7, 7, 2, 2, 5])
    assert rows_by_environment(environment, 7, 3) == [0, 4, 6]
    assert rows_by_environment(environment, 7, 5) == [0, 1, 4, 5, 6]
    assert rows_by_environment(environment, 7, 60) == list(range(7))
    assert rows_by_environment(None, 7, 2) == [0, 1]


def test_the_grid_begins_with_the_models_own_and_is_cheaper_or_cooler():
    own = SamplingConfig(mask_steps=4, flow_steps=4, temperature=1.5)
    settings = grid(own)
    assert next(iter(settings.items())) == (OWN, own)
    assert len(set(settings.values())) == len(settings)
    for name, chosen in settings.items():
        assert label(own, chosen) == name
        assert chosen.flow_steps <= own.flow_steps, name
        assert chosen.mask_steps <= own.mask_steps, name
        assert chosen.temperature <= own.temperature, name
    assert settings["mask 2, flow 1"] == dataclasses.replace(own, mask_steps=2, flow_steps=1)
    # One step and one mask step leave no cheaper number, and no temperature is below 0.
    least = SamplingConfig(mask_steps=1, flow_steps=1, temperature=0.0)
    assert grid(least) == {OWN: least}
    # A one-pass model has no steps to save, only a temperature.
    assert [label(own, chosen) for chosen in grid(own, one_pass=True).values()] == list(grid(own, one_pass=True))
    assert {dataclasses.replace(chosen, temperature=1.5) for chosen in grid(own, one_pass=True).values()} == {own}
    assert len(grid(own, one_pass=True)) == 5


def test_a_one_pass_model_beside_another(tmp_path, monkeypatch, capsys):
    for name, config in (("tiny", CONFIG), ("fast", in_one_pass(CONFIG))):
        save_model(Model(dataclasses.replace(config, name=name)), tmp_path / name)
    common = ["--members", 2, "--limit", 1, "--rounds", 1, "--chunk", 2, "--device", "cpu", "--json", "--no-compile"]
    common += ["--threads", torch.get_num_threads()]
    found = {}
    for name, other in (("tiny", "fast"), ("fast", "tiny")):
        arguments = ["--checkpoint", tmp_path / name, "--beside", tmp_path / other, *common]
        monkeypatch.setattr(sys, "argv", ["pareto", *map(str, arguments)])
        pareto.main()
        result = json.loads(capsys.readouterr().out)
        assert result["solver"] is None
        found[name] = {row["name"]: row for row in result["rows"]}
        assert list(found[name])[-3:] == [other, f"{OWN}, eager", f"{other}, eager"]
    assert len(found["fast"]) == 8
    assert {row["decoder"] for name, row in found["fast"].items() if "tiny" not in name} == {"linear"}
    # A point is the same from either side.
    for name, other in (("tiny", "fast"), ("fast", "tiny")):
        for key in ("rel_l2", "crps", "decoder"):
            assert found[name][OWN][key] == found[other][name][key]
    arguments = ["--checkpoint", tmp_path / "tiny", "--beside", tmp_path / "fast", tmp_path / "fast", *common]
    monkeypatch.setattr(sys, "argv", ["pareto", *map(str, arguments)])
    with pytest.raises(EnmaError, match="--beside"):
        pareto.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relative", "line-local"])
@torch._inductor.config.patch(freezing=False)
def test_compiled_networks_are_compiled(name):
    model = random_model(CONFIGS[name])
    twin, counters = pareto.compiled_model(model).dynamics, torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    N, C, D = model.config.num_tokens, model.config.token_channels, model.config.context.width
    h, noise = torch.randn(2, N, D), torch.randn(2, N, C)
    with torch.no_grad():
        if name == "line-local":
            past = torch.randn(2, model.dynamics.step.past, N, C)
            found, expected = (dynamics.step.from_noise(h, past, noise) for dynamics in (twin, model.dynamics))
        else:
            known = torch.rand(2, N) < 0.5
            found, expected = (
                dynamics.step.sample(dynamics.trunk(h, noise, known), noise, steps=2)
                for dynamics in (twin, model.dynamics)
            )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Transformer and head, in one graph each or in parts.
    assert counters["unique_graphs"] - before >= 2


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_on_an_untrained_model(tmp_path, monkeypatch, capsys, compiled):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(CONFIG)
        # The head's last layer starts at zero: settings would not differ.
        for p in model.dynamics.parameters():
            p.data += 0.05 * torch.randn_like(p)
    save_model(model, tmp_path / "tiny")
    arguments = ["--checkpoint", tmp_path / "tiny", "--members", 3, "--limit", 4, "--rounds", 2, "--chunk", 6]
    arguments += ["--threads", torch.get_num_threads(), "--device", "cpu", "--json", "--out", tmp_path / "a.png"]
    arguments += [] if compiled else ["--no-compile"]
    monkeypatch.setattr(sys, "argv", ["pareto", *map(str, arguments)])
    pareto.main()
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    result = json.loads(line)
    rows = {row["name"]: row for row in result["rows"]}
    assert [text[: len(name)] for text, name in zip(printed.err.splitlines()[1:], rows, strict=True)] == list(rows)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    others = [f"{OWN}, eager", f"{OWN}, compiled"][: 1 + compiled]
    assert rows.keys() == grid(CONFIG.sampling).keys() | set(others)
    for other in others:
        # The same noise, by other arithmetic, in a time of its own.
        assert rows[other]["crps"] == pytest.approx(rows[OWN]["crps"], rel=1e-4)
        assert rows[other]["seconds_per_member"] != rows[OWN]["seconds_per_member"]
    assert (result["num_trajectories"], result["timed_trajectories"], result["members"]) == (4, 2, 3)
    assert result["machine"]["threads"] == result["threads"]

    model, data = load_model(tmp_path / "tiny"), read(PRETRAINED / "combined-test-in.h5")
    for name in (OWN, "flow 1", "mask 1, flow 1"):
        settings = SamplingConfig(**rows[name]["sampling"])
        request = ForecastRequest(num_members=3, trajectories=[0, 2, 4, 6], chunk=6, settings=settings)
        expected = Scores()
        for part, samples in FileForecast(model, data, request).samples():
            expected.update(samples, data.u[part, 3:20])
        for key in ("rel_l2", "crps", "spread_skill"):
            assert rows[name][key] == pytest.approx(expected.result()[key], rel=1e-6)
    assert rows[OWN]["crps"] != rows["flow 1"]["crps"] != rows["mask 1, flow 1"]["crps"]

    # The temperature changes no work: one time for all of them.
    assert rows["temperature 0"]["seconds_per_member"] == rows[OWN]["seconds_per_member"]
    assert rows[OWN]["speedup"] == 1.0
    for error, found in result["pareto"].items():
        assert found == front(result["rows"], error)
        errors = {name: float(f"{row[error]:.5g}") for name, row in rows.items()}
        best = [name for name in rows if errors[name] == min(errors.values())]
        assert min(best, key=lambda name: rows[name]["seconds_per_member"]) in found
