"""Score files and the tables made of them: protocols against other packages, cells, and the check of shipped models."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.paper import protocols, scattered, score_files, tables
from benchmarks.paper.protocols import CASES, Case, ZebraScores, measure, of_model
from enma_fast.data import PRETRAINED, read
from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import crps
from enma_fast.evaluation.scoring import score
from enma_fast.forecasting.request import GENERATION, INITIAL_VALUE, TEMPORAL
from enma_fast.models.checkpoint import WEIGHTS, available, hashes, load_config, load_model, save_model

from .._tiny import COMBINED, random_model, with_points
from ._score_files import file_of


@pytest.fixture(scope="module")
def data():
    return read(PRETRAINED / "combined-test-in.h5", select=slice(0, 4))


@pytest.mark.parametrize("task", [TEMPORAL, INITIAL_VALUE, GENERATION])
def test_a_model_has_the_scores_of_the_command(tiny, data, task):
    model = load_model(tiny)
    row = measure(of_model(model), data, Case(protocol="whole", task=task, split="test-in", members=3), seed=5)
    expected = score(model, data, task=task.name, num_members=3, seed=5)
    assert row["frames"] == expected["num_frames"]
    if not task.has_truth:
        assert row["solver_fidelity"] == pytest.approx(expected["solver_fidelity"], rel=1e-5)
        return
    for name in protocols.KEPT:
        assert row[name] == pytest.approx(expected[name], rel=1e-5), name
    assert row["physics"]["spectrum_error"] == pytest.approx(expected["physics"]["spectrum_error"], rel=1e-5)


def test_zebras_protocol_shows_ten_frames(data):
    seen = []

    def method(given):
        seen.append(given)
        return torch.zeros(len(given.trajectories), 20, given.num_frames, 128, 1)

    row = measure(method, data, Case(protocol="zebra", task=INITIAL_VALUE, split="test-in", members=20))
    assert row["frames"] == 9
    assert row["rel_l2"] == pytest.approx(1)
    (given,) = seen
    assert given.history.shape[1] == 1
    assert given.context.shape[1] == 10
    np.testing.assert_array_equal(given.context[0], data.u[1, :10])


def test_zebras_scores_are_those_of_the_packages(rng):
    """CRPS as properscoring has it, of the members as they are, and RMSCE of uncertainty-toolbox for each batch."""
    toolbox = pytest.importorskip("uncertainty_toolbox.metrics_calibration")
    scores, expected = ZebraScores(), {"crps": [], "rmsce": []}
    for size in (3, 2):
        truth = rng.normal(size=(size, 2, 5, 1))
        members = truth[:, None] + rng.normal(size=(size, 6, 2, 5, 1))
        scores.update(torch.from_numpy(members), truth)
        error = np.abs(members - truth[:, None]).mean(1)
        pairs = np.abs(members[:, :, None] - members[:, None]).mean((1, 2))
        expected["crps"] += (error - pairs / 2).mean((1, 2, 3)).tolist()
        std = members.std(1, ddof=1).ravel()
        found = toolbox.root_mean_squared_calibration_error(members.mean(1).ravel(), std, truth.ravel())
        expected["rmsce"] += [found] * size
    result = scores.result()
    assert result["crps"] == pytest.approx(np.mean(expected["crps"]), rel=1e-9)
    assert result["rmsce"] == pytest.approx(np.mean(expected["rmsce"]), rel=1e-6)


def test_the_fair_crps_is_higher_by_what_few_members_hide(rng):
    members, truth = rng.normal(size=(1, 4, 1, 3, 1)), rng.normal(size=(1, 1, 3, 1))
    pairs = np.abs(members[:, :, None] - members[:, None]).sum((1, 2)).mean() / 2
    difference = float(crps(members, truth, fair=False) - crps(members, truth))
    assert difference == pytest.approx(pairs / (4 * 3) - pairs / 16, rel=1e-9)


def test_cells_average_seeds_and_stand_beside_the_paper():
    files = [file_of("fno", seed=i, rel_l2=value, kind="baseline") for i, value in enumerate((0.1, 0.2, 0.3))]
    made = [cell for cell in tables.cells([*files, file_of()]) if cell.table == "errors" and cell.source != "paper"]
    model, baseline = made
    assert (model.method, model.value, model.median, model.deviation) == ("fast", 0.02, 0.01, None)
    assert (baseline.value, baseline.deviation) == (pytest.approx(0.2), pytest.approx(0.1))
    assert baseline.seeds == [0, 1, 2]
    assert (baseline.cpu_seconds, baseline.members, baseline.trajectories) == (100, 16, 1200)
    assert baseline.data == "ab" * 32
    assert model.paper["ENMA"] == 7.86e-3
    assert model.paper["Zebra"] == 1.82e-2


def test_every_number_of_the_papers_tables_has_a_cell():
    made = [cell for cell in tables.cells([file_of()]) if cell.source == "paper"]
    errors = [cell for cell in made if cell.table == "errors"]
    assert len(errors) == 5 * 2 * (6 + 4)
    of = {(c.equation, c.task, c.split, c.method): c.value for c in errors}
    assert of["gray_scott", "temporal", "test-out", "ENMA"] == 0.144
    assert of["vorticity", "initial-value", "test-in", "CLS-ViT"] == 0.043
    assert {(c.method, c.score, c.value) for c in made if c.table == "uncertainty"} >= {("ENMA", "rmsce", 0.0868)}
    assert {(c.equation, c.method, c.value) for c in made if c.table == "speed"} >= {("vorticity", "Zebra", 31)}
    points = {(c.equation, c.protocol, c.method, c.score): c.value for c in made if c.table == "points"}
    assert len(points) == 2 * 3 * 5 * 2
    assert points["advection", "20% of points", "ENMA", "reconstruction"] == 0.0305
    assert points["vorticity", "100% of points", "AROMA", "rel_l2"] == 1.13
    generation = {(c.method, c.score): c.value for c in made if c.table == "generation"}
    assert generation == {
        ("ENMA", "solver_fidelity"): 0.081,
        ("Zebra", "fpd"): 0.103,
        ("Zebra", "precision"): 0.77,
        ("Zebra", "recall"): 0.86,
        ("ENMA", "fpd"): 0.0095,
        ("ENMA", "precision"): 0.79,
        ("ENMA", "recall"): 0.78,
    }


def test_an_equation_that_the_paper_lacks_has_its_rows_too():
    text = tables.markdown([file_of(equation="burgers"), file_of()])
    assert "Vorticity, out | Burgers, in | Burgers, out |" in text
    assert "| Burgers | fast (model) | 2,000,000 |" in text


def test_seconds_are_cpu_seconds_on_the_shipped_files():
    shipped = [file_of(protocol="shipped"), file_of("persistence", kind="baseline", protocol="shipped")]
    made = [cell for cell in tables.cells([*shipped, file_of("fno")]) if cell.table == "speed"]
    assert [(c.method, c.value) for c in made if c.source != "paper"] == [("fast", 0.003), ("persistence", 0.003)]
    assert {c.method for c in made if c.source == "paper"} == {"AR-DiT", "Zebra", "ENMA"}


def test_the_page_shows_mean_median_and_deviation():
    seeds = [file_of("fno", seed=i, rel_l2=value, kind="baseline") for i, value in enumerate((0.1, 0.2, 0.3))]
    text = tables.markdown([*seeds, file_of()])
    row = next(line for line in text.splitlines() if line.startswith("| fno |"))
    assert "| 0.2 ± 0.1 (0.1) |" in row
    assert "| **fast** | - | - | 2.00e-02 (1.00e-02) | - |" in text
    assert "| ENMA, *paper* | 3.95e-02 | 0.53 | 7.86e-03 | 0.102 |" in text
    assert "| Combined | fno (baseline) | 2,000,000 | 100 | 0, 1, 2 | 1200 x 16 | a processor, 1 thread |" in text
    assert json.loads(json.dumps(tables.as_json(seeds), allow_nan=False))["source"] == "arXiv 2506.06158v2"


def test_scores_of_generated_trajectories_share_a_row():
    rows = [
        {"protocol": "features", "task": "generation", "fpd": 0.012, "precision": 0.81, "recall": 0.75},
        {"protocol": "whole", "task": "generation", "solver_fidelity": 0.05},
    ]
    file = file_of()
    file["rows"] = [{**file["rows"][0], **row} for row in rows]
    text = tables.markdown([file])
    assert "| Combined | ENMA, *paper* | 9.50e-03 | 0.79 | 0.78 | 8.10e-02 |" in text
    assert "| Combined | **fast** | 1.20e-02 | 0.81 | 0.75 | 5.00e-02 |" in text


def test_what_the_physics_says_has_a_table():
    quantities = [{"name": "mass", "law": "conserved", "violation": 0.004, "truth": 1e-8}]
    said = {"spectrum_error": 0.25, "energy_error": 0.5, "quantities": quantities}
    text = tables.markdown([file_of(protocol="shipped", physics=said)])
    assert "| Combined | **fast** | 0.25 | 0.5 | mass 4.00e-03 |" in text


def test_what_a_baseline_adds_to_a_score_file_is_read_back(tmp_path):
    file = file_of() | {"steps": 14140, "loss_last": 0.25}
    path = score_files.write_score_file(file, tmp_path)
    found = json.loads(path.read_text())
    assert (found["steps"], found["loss_last"], len(found["rows"])) == (14140, 0.25, len(file["rows"]))


def test_a_score_file_is_read_as_it_was_written(tmp_path):
    path = score_files.write_score_file(file_of(rel_l2=0.0123456789), tmp_path)
    assert path.name == "combined-fast-0.json"
    (found,) = score_files.read_score_files(tmp_path)
    assert found["rows"][0]["rel_l2"] == 0.012346
    assert {**found, "rows": None} == {**file_of(), "rows": None}


def test_what_is_no_score_file_is_refused(tmp_path):
    with pytest.raises(EnmaError, match="--measure"):
        score_files.read_score_files(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(EnmaError, match=r"a\.json: .*score"):
        score_files.read_score_files(tmp_path)
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(EnmaError, match=r"a\.json: .*JSON"):
        score_files.read_score_files(tmp_path)


def test_a_model_without_a_card_is_measured_in_all_cases(tiny, tmp_path, monkeypatch):
    few = [case for case in CASES if case.protocol in ("shipped", "zebra")]
    monkeypatch.setattr(score_files, "CASES", few)
    for split in ("test-in", "test-out"):
        shutil.copy(PRETRAINED / f"combined-{split}.h5", tmp_path)
    done = []
    found = score_files.measure_model(tiny, tmp_path, progress=lambda i, n, case: done.append((i, n, case)))
    assert (found["method"], found["equation"], found["cpu_seconds"]) == ("small", "combined", 0)
    assert found["weights"] == hashes(tiny)[WEIGHTS]
    assert [(r["protocol"], r["task"], r["split"]) for r in found["rows"]] == [
        (case.protocol, case.task.name, case.split) for case in few
    ]
    assert done[-1] == (24, 24, "zebra, initial-value, test-in")
    assert set(found["data"]) == {
        "combined-test-in.h5",
        "shipped/combined-test-in.h5",
        "shipped/combined-test-out.h5",
    }


def test_rows_of_a_card_count_where_it_scored_as_many_trajectories_as_the_cases_ask_for(tmp_path, monkeypatch):
    measured = []

    def not_now(method, data, case, **_):
        measured.append(case)
        return {"protocol": case.protocol}

    monkeypatch.setattr(score_files, "measure", not_now)
    monkeypatch.setattr(score_files, "_rows_at_points", lambda *_: [])
    # One card has the first 40 trajectories of each file, one the first 120, and one all and a calibration of one task.
    for model, missing in (("gray-scott-fast", 8), ("combined-small", 4), ("combined-fast", 2)):
        dataset = load_config(model).dataset
        for split in ("test-in", "test-out"):
            shutil.copy(PRETRAINED / f"{dataset}-{split}.h5", tmp_path)
        measured.clear()
        found = score_files.measure_model(model, tmp_path)
        assert found["method"] in model
        # Those of the card are of the clock, in which threads wait for each other.
        assert not any("seconds_per_member" in key for row in found["rows"] for key in row)
        assert len([case for case in measured if case.protocol in ("whole", "calibration", "zebra")]) == missing


def test_data_that_the_card_was_not_measured_on_are_refused(tmp_path):
    data = read(PRETRAINED / "combined-test-out.h5")
    shutil.copy(data.path, tmp_path / "combined-test-in.h5")
    said = r"combined-test-in\.h5: is not the file that .* is a part of \(its environments are others\); generate it"
    with pytest.raises(EnmaError, match=said):
        score_files.measure_model("combined-fast", tmp_path)


def test_data_that_another_machine_has_generated_are_those_of_the_card():
    data = read(PRETRAINED / "combined-test-in.h5")
    assert score_files._difference(replace(data, u=data.u * np.float32(1 + 1e-6)), data) is None
    other = data.u.copy()
    other[3] *= 1.01
    said = f"1 of {len(data)} trajectories differ by more than 0.001"
    assert score_files._difference(replace(data, u=other), data) == said
    fewer = data.rows(range(3))
    assert score_files._difference(fewer, data) == f"its shape is {fewer.u.shape}, not {data.u.shape}"


@pytest.fixture
def one_case(monkeypatch):
    case = next(case for case in CASES if case.protocol == "shipped")
    monkeypatch.setattr(score_files, "CASES", [case])


def committed():
    return copy.deepcopy([f for f in score_files.read_score_files() if (f["equation"], f["method"]) == CHECKED])


CHECKED = ("combined", "fast")


@pytest.mark.slow
def test_the_check_agrees_with_the_committed_scores(one_case):
    entries = score_files.check(committed())
    assert [entry["what"] for entry in entries][:3] == ["weights", "combined-test-in.h5", "temporal, test-in: rel_l2"]
    assert len(entries) > 6
    wrong = [entry for entry in entries if not entry["agrees"]]
    assert not wrong


@pytest.mark.parametrize("equation", ["advection", "combined"])
def test_an_equation_has_its_committed_scores_out_of_distribution_too(equation):
    """Some trajectories of Combined have terms that those of training lack, which a model finds or is lost."""
    (file,) = (f for f in score_files.read_score_files() if (f["equation"], f["method"]) == (equation, "equation"))
    whole = [row for row in file["rows"] if "points" not in row["protocol"]]
    entries = score_files.check([copy.deepcopy(file) | {"rows": whole}])
    assert any("test-out" in entry["what"] for entry in entries)
    assert not [entry for entry in entries if not entry["agrees"]]


@pytest.mark.slow
def test_the_check_is_of_every_model_that_the_tables_show(monkeypatch):
    monkeypatch.setattr(score_files, "measure", lambda method, data, case, **_: {})
    monkeypatch.setattr(score_files, "measure_points", lambda model, data, share, **_: {})
    # Nothing is measured, so nothing is compared but weights and files.
    monkeypatch.setattr(score_files, "_CHECKED", ())
    files = score_files.read_score_files()
    entries = score_files.check(files)
    shown = {score_files.model_name(file) for file in files if file["kind"] == "model"}
    assert {entry["model"] for entry in entries if entry["what"] == "weights"} == shown
    # The paper's own method is not in the tables.
    assert set(available()) - shown == {"combined-small"}
    assert shown <= set(available())
    assert all(entry["agrees"] for entry in entries)


@pytest.mark.slow
def test_a_model_is_measured_at_shares_of_the_points(tmp_path, monkeypatch):
    monkeypatch.setattr(score_files, "CASES", ())
    made = random_model(replace(COMBINED, codec=with_points(COMBINED.codec)))
    save_model(made, tmp_path / "made")
    shutil.copy(PRETRAINED / "combined-test-in.h5", tmp_path)
    monkeypatch.setattr(scattered, "SHARES", (1.0, 0.2))
    monkeypatch.setattr(score_files, "SHARES", (1.0, 0.2))
    rows = score_files.measure_model(tmp_path / "made", tmp_path)["rows"]
    said = ["100% of points", "20% of points", "shipped, 100% of points", "shipped, 20% of points"]
    assert [row["protocol"] for row in rows] == said
    assert [row["rel_l2"] for row in rows[:2]] == [row["rel_l2"] for row in rows[2:]]
    data = read(PRETRAINED / "combined-test-in.h5")
    expected = score(made, data, num_members=16, points=26)
    assert rows[1]["rel_l2"] == pytest.approx(expected["rel_l2"])
    assert rows[1]["reconstruction"] == pytest.approx(
        scattered.reconstruction_errors(made.codec, torch.from_numpy(data.u), share=0.2, seed=0).mean().item()
    )
    file = file_of()
    file["rows"] = [{**file["rows"][0], **rows[1], "reconstruction": 0.5, "reconstruction_median": 0.25}]
    assert "| Combined | 20% of points | **fast** | 0.5 (0.25) |" in tables.markdown([file])


@pytest.mark.slow
def test_the_command_ends_with_1_where_a_score_differs(one_case, tmp_path, capsys):
    from benchmarks.paper.__main__ import main

    (file,) = committed()
    row = next(row for row in file["rows"] if row["protocol"] == "shipped" and row["task"] == "temporal")
    row["rel_l2"] *= 1.1
    score_files.write_score_file(file, tmp_path)
    assert main(["tables", "--scores", str(tmp_path), "--check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [e["what"] for e in found["values"] if not e["agrees"]] == ["temporal, test-in: rel_l2"]
    assert main(["tables", "--scores", str(tmp_path), "--check", "--tolerance", "0.2"]) == 0
    assert "value" in capsys.readouterr().out


def test_methods_of_ten_minutes_have_a_table_of_their_own(tmp_path):
    score_files.write_score_file(file_of(), tmp_path)
    assert score_files.read_ten_minutes(tmp_path) == []
    quick = [file_of("own", rel_l2=0.125), file_of("fno", kind="baseline", rel_l2=0.25)]
    for file in quick:
        score_files.write_score_file(file, tmp_path / "ten-minutes")
    files, ten_minutes = score_files.read_score_files(tmp_path), score_files.read_ten_minutes(tmp_path)
    assert [file["method"] for file in files] == [file_of()["method"]]
    whole, text = tables.markdown(files), tables.markdown(files, ten_minutes)
    before, after = text.split("## Uncertainty")
    assert whole == before.split("## Ten minutes each")[0] + "## Uncertainty" + after
    quickly = before.split("## Ten minutes each")[1]
    assert "| **own** | - | - | 0.125" in quickly
    assert "| fno | - | - | 0.25" in quickly
    assert "*paper*" not in quickly
    assert "*fno*" in quickly
    assert "*latent-flow*" not in quickly
    found = tables.as_json(files, ten_minutes)
    assert {cell["method"] for cell in found["ten_minutes"]} == {"own", "fno"}
    assert found["cells"] == tables.as_json(files)["cells"]


def test_the_page_says_where_a_baseline_is_ahead_after_ten_minutes():
    own, ahead = file_of("own", rel_l2=0.25), file_of("fno", kind="baseline", rel_l2=0.125)
    text = tables.markdown([file_of()], [own, ahead])
    assert "Baselines with a lower error than **own**: *fno* on Combined (in distribution). Reasons: *fno* " in text
    behind = file_of("fno", kind="baseline", rel_l2=0.5)
    assert "lower error than **own**" not in tables.markdown([file_of()], [own, behind])


def test_points_seen_after_ten_minutes_have_a_table(tmp_path):
    def seen(method, kind, share, error):
        protocol = score_files.protocol_of(share)
        return file_of(
            method, kind=kind, equation="advection", rel_l2=error, protocol=protocol, reconstruction=error / 4
        )

    ten = [seen("own", "model", 0.5, 0.5), seen("gino", "baseline", 0.5, 0.75)]
    text = tables.markdown([file_of()], ten).split("### Scattered points after ten minutes")[1].split("\n## ")[0]
    assert "| Advection | 50% of points | **own** | 0.125 | 0.5 (0.25) |" in text
    assert "| Advection | 50% of points | gino | 0.188 | 0.75 (0.375) |" in text
    assert "*paper*" not in text
    assert "### Scattered points" not in tables.markdown([file_of()], [file_of("own")])


def test_the_command_writes_page_and_cells(tmp_path, capsys):
    from benchmarks.paper.__main__ import main

    score_files.write_score_file(file_of(), tmp_path / "scores")
    assert main(["tables", "--scores", str(tmp_path / "scores"), "--out", str(tmp_path / "docs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "docs" / "tables.json").read_text()) == found
    assert (tmp_path / "docs" / "tables.md").read_text() == tables.markdown([file_of()])
    assert main(["tables", "--measure", "combined-fast"]) == 2
    assert "--measure: give --data" in capsys.readouterr().err
    score_files.write_score_file(file_of("fno", kind="baseline"), tmp_path / "others")
    for options, said in (
        (["--tolerance", "0.5"], "--tolerance: belongs to --check; leave it out"),
        (["--data", str(tmp_path)], "--data: belongs to --measure; leave it out"),
        (["--seed", "3"], "--seed: belongs to --measure; leave it out"),
        (["--check", "--out", str(tmp_path)], "--out: --check writes no file; leave it out"),
        (["--check", "--tolerance", "-0.1"], "Invalid value for '--tolerance'"),
        (["--measure", "combined-fast", "--check"], "--measure: makes one score file; leave out --check"),
        (["--measure", "combined-fast", "--scores", str(tmp_path)], "leave out --scores"),
        (["--scores", str(tmp_path / "others"), "--check"], "has no score file of a shipped model; check the folder"),
    ):
        assert main(["tables", *options]) == 2
        assert said in capsys.readouterr().err


def test_the_docs_page_is_made_of_the_committed_scores():
    page = PRETRAINED.parents[1] / "docs" / "tables.md"
    files = score_files.read_score_files(), score_files.read_ten_minutes()
    assert page.read_text() == tables.markdown(*files), "python -m benchmarks.paper tables --out docs"
    assert json.loads(page.with_name("tables.json").read_text()) == tables.as_json(*files), (
        "python -m benchmarks.paper tables --out docs"
    )


def test_committed_methods_of_ten_minutes_took_no_more():
    files = score_files.read_ten_minutes()
    assert {file["method"] for file in files} >= {"own", "fno", "transformer"}
    for file in files:
        assert 400 < file["cpu_seconds"] < 610, (file["equation"], file["method"])
        shipped = load_model(f"{file['equation'].replace('_', '-')}-fast")
        size = sum(p.numel() for p in shipped.parameters())
        # The model of a user's own plane is smaller than the one that is shipped.
        least = 0.5 if file["method"] == "own" and shipped.config.codec.dims == 2 else 0.8
        assert least * size < file["num_parameters"] < 1.4 * size


def test_committed_scores_are_of_the_shipped_weights():
    models = [file for file in score_files.read_score_files() if file["kind"] == "model"]
    for file in models:
        name = score_files.model_name(file)
        if name in available():
            assert file["weights"] == hashes(name)[WEIGHTS], f"{score_files.COMMAND} --measure {name} --data data"
