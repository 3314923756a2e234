"""The report: its numbers are those of the metrics, and its data those of the store."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray

from enma_fast.data import write as write_fields_file
from enma_fast.drawing.forecast import LEVELS
from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import SCORES
from enma_fast.figures.report import PooledScores, StoreReader, store_figure, write_report
from enma_fast.figures.report.viewer import Thinning
from enma_fast.store.read import read_forecast
from tests._stacked import stacked

from ._reports import GRIDS, HOSTILE, TIMES, decoded, fields, page, pooled, without_members, write


@pytest.fixture
def line(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, dict[str, np.ndarray]]:
    """A store of one channel on a line, and what is in it."""
    given = fields(rng, GRIDS["line"], 1)
    return write(tmp_path / "run.zarr", given), given


@pytest.mark.usefixtures("undrawn")
def test_the_table_holds_the_scores(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 2)
    store = write(tmp_path / "run.zarr", given, ("u", "v"))
    result = write_report(store, tmp_path / "new" / "a.html")
    document = page(tmp_path / "new" / "a.html")
    expected = pooled(given["samples"], given["truth"], given["observed"])
    assert {name: result["scores"][name] for name in expected} == expected
    by_channel = [pooled(*(given[name][..., c : c + 1] for name in ("samples", "truth", "observed"))) for c in (0, 1)]
    table = document.table("score")
    assert table[""] == ["all channels", "u", "v"]
    for label, name in {
        "relative L2 error of the mean": "rel_l2",
        "the same, median over trajectories": "rel_l2_median",
        "the same, 90 % quantile over trajectories": "rel_l2_q90",
        "relative L2 error of single members": "rel_l2_member",
        "error of the mean (RMS)": "rmse",
        "spread (RMS)": "spread",
        "spread / error (1 is calibrated)": "spread_skill",
        "CRPS": "crps",
        "CRPS / RMS of the observed frames": "crps_relative",
        "RMSCE, Gaussian intervals": "rmsce",
        "RMSCE, ranks of the truth": "rmsce_rank",
    }.items():
        assert [float(value) for value in table[label]] == [scores[name] for scores in (expected, *by_channel)], label
    each = document.table("trajectory")
    assert each[""] == ["rel. L2", "CRPS", "spread/skill", "spread", "error", "alpha", "environment"]
    for b, number in enumerate(("4", "7", "8")):
        one = pooled(given["samples"][b : b + 1], given["truth"][b : b + 1])
        names = ("rel_l2", "crps", "spread_skill", "spread", "rmse")
        assert [float(value) for value in each[number][:5]] == [one[name] for name in names]
    assert [float(value) for value in each["4"][5:]] == [0.5, 900000]
    assert any(text == "900000" for _, text in document.texts), "a whole number is shown in full"
    assert result["num_bytes"] == (tmp_path / "new" / "a.html").stat().st_size
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.html"]


def test_the_page_says_what_was_forecast_and_shows_all_figures(
    line: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    write_report(line[0], tmp_path / "a.html")
    document = page(tmp_path / "a.html")
    text = " ".join(text for _, text in document.texts)
    assert "3 trajectories, 8 members each, 7 frames from 3 observed, on 24 points by tiny." in text
    meta = {attrs.get("name"): attrs.get("content") for tag, attrs in document.elements if tag == "meta"}
    assert meta["viewport"] == "width=device-width, initial-scale=1"
    labels = [attrs["aria-label"] for tag, attrs in document.elements if tag == "svg"]
    assert labels == [
        "maps",
        "fan chart",
        "error and spread",
        "rank histogram",
        "spread and skill",
        "reliability",
        "spectrum",
    ]
    (slider,) = (attrs for tag, attrs in document.elements if tag == "input")
    assert (slider["type"], slider["id"]) == ("range", "time")
    targets = {attrs.get("for") for tag, attrs in document.elements if tag == "label"}
    assert targets == {"time", "trajectory", "channel"}, "each control has a label"
    ids = [
        attrs["id"] for tag, attrs in document.elements if "id" in attrs and tag in ("input", "select", "button", "h2")
    ]
    assert len(ids) == len(set(ids))
    write_report(line[0], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes(), "the same store, the same page"


@pytest.mark.usefixtures("undrawn")
def test_the_viewer_of_a_line_holds_the_store(line: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    store, given = line
    write_report(store, tmp_path / "a.html")
    data = page(tmp_path / "a.html").data
    np.testing.assert_array_equal(data["times"], TIMES)
    np.testing.assert_array_equal(data["coords"][0], np.linspace(0, 1, 24))
    assert (data["trajectories"], data["channels"], data["levels"]) == ([4, 7, 8], ["u"], list(LEVELS))
    bands = [(band["label"], LEVELS[band["low"]], LEVELS[band["high"]]) for band in data["bands"]]
    expected = [("95%", 0.025, 0.975), ("80%", 0.1, 0.9), ("50%", 0.25, 0.75)]
    assert bands == [(f"{inside} of members", low, high) for inside, low, high in expected]
    for b, (series,) in enumerate(data["series"]):
        samples, truth = given["samples"][b, ..., 0], given["truth"][b, ..., 0]
        mean, spread = samples.mean(0), samples.std(0, ddof=1)
        np.testing.assert_array_equal(decoded(series["truth"]).reshape(7, 24), truth)
        np.testing.assert_allclose(decoded(series["mean"]).reshape(7, 24), mean, rtol=1e-6, atol=1e-6)
        quantiles = np.quantile(samples, LEVELS, axis=0)
        np.testing.assert_allclose(decoded(series["quantiles"]).reshape(7, 7, 24), quantiles, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(decoded(series["observed"]), given["observed"][b, -1, :, 0])
        np.testing.assert_allclose(series["rmse"], np.sqrt(((mean - truth) ** 2).mean(1)), rtol=1e-5)
        np.testing.assert_allclose(series["spread_rms"], np.sqrt((spread**2).mean(1)), rtol=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_the_viewer_of_a_plane_holds_the_store(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["plane"], 2)
    store = write(tmp_path / "run.zarr", given, ("u", "v"))
    write_report(store, tmp_path / "a.html")
    data = page(tmp_path / "a.html").data
    np.testing.assert_array_equal(data["coords"][1], np.linspace(0, 2, 6))
    samples, truth = given["samples"][2, ..., 1], given["truth"][2, ..., 1]
    mean = samples.mean(0)
    expected = [truth, mean, np.abs(mean - truth), samples.std(0, ddof=1)]
    maps = data["series"][2][1]["maps"]
    titles = ["truth", "ensemble mean", "error of the mean (absolute)", "spread (standard deviation)"]
    assert [each["title"] for each in maps] == titles
    for each, values in zip(maps, expected, strict=True):
        levels = decoded(each["data"], "u1").reshape(7, 10, 6)
        step = (each["high"] - each["low"]) / 254
        np.testing.assert_allclose(each["low"] + levels * step, values, atol=0.51 * step)
        assert decoded(data["colours"][each["colours"]], "u1").shape == (255 * 3,)


@pytest.mark.usefixtures("undrawn")
def test_missing_values_are_shown_as_missing_and_not_scored(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["plane"], 1)
    given["samples"][1, 3, 2:] = np.nan
    result = write_report(write(tmp_path / "run.zarr", given), tmp_path / "a.html")
    document = page(tmp_path / "a.html")
    mean = document.data["series"][1][0]["maps"][1]
    assert (decoded(mean["data"], "u1").reshape(7, -1) == 255).all(1).tolist() == [False] * 2 + [True] * 5
    assert document.data["series"][1][0]["rmse"][2:] == [None] * 5
    whole = pooled(given["samples"][[0, 2]], given["truth"][[0, 2]])
    assert result["scores"]["crps"] == whole["crps"]
    assert set(result["left_out"]) == {"7"}
    assert any("Trajectory 7 is not scored: ensemble holds nan" in text for _, text in document.texts)
    assert document.table("trajectory")["7"] == ["0.6", "1.0"]


@pytest.mark.parametrize("grid", GRIDS)
def test_without_a_truth(tmp_path: Path, rng: np.random.Generator, grid: str) -> None:
    given = fields(rng, GRIDS[grid], 1)
    store = write(tmp_path / "run.zarr", {"samples": given["samples"]})
    result = write_report(store, tmp_path / "a.html")
    document = page(tmp_path / "a.html")
    assert result["scores"] is None
    assert not document.rows
    assert any("No truth is known" in text for _, text in document.texts)
    labels = [attrs["aria-label"] for tag, attrs in document.elements if tag == "svg"]
    assert labels == ["maps", "fan chart"]
    (series, *_), *_ = document.data["series"]
    assert series["rmse"] is None
    assert "truth" not in series


@pytest.mark.usefixtures("undrawn")
def test_generated_trajectories_have_no_errors(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 1)
    store = write(tmp_path / "run.zarr", given, task="generation", data_name="advection-test-in")
    result = write_report(store, tmp_path / "a.html")
    expected = pooled(given["samples"], given["truth"], given["observed"])
    assert result["scores"]["crps"] == expected["crps"]
    errors = [name for name, score in SCORES.items() if score.needs_truth]
    assert "rel_l2" in errors
    assert all(result["scores"][name] is None for name in errors)
    document = page(tmp_path / "a.html")
    assert "relative L2 error of the mean" not in document.table("score")
    assert document.table("trajectory")[""] == ["CRPS", "spread/skill", "spread", "alpha", "environment"]
    assert any("another draw of the environment" in text for _, text in document.texts)
    assert not any("distance from the truth" in text for _, text in document.texts)
    labels = [attrs["aria-label"] for tag, attrs in document.elements if tag == "svg"]
    assert "spread and skill" not in labels
    (series, *_), *_ = document.data["series"]
    assert series["rmse"] is None
    assert "truth" not in series
    other = write(tmp_path / "forecast.zarr", given, data_name="advection-test-in")
    write_report(other, tmp_path / "b.html")
    assert any("mean square, distance from the truth" in text for _, text in page(tmp_path / "b.html").texts)


def truth_file(path: Path, truth: np.ndarray, **changes: object) -> Path:
    """A field file whose trajectories 4, 7 and 8 are those of `_reports.write`."""
    u = np.zeros((9, 10, 24), np.float32)
    u[[4, 7, 8]] = truth[..., 0]
    axes = {"times": 0.05 * np.arange(10), "coords": [np.linspace(0, 1, 24)], "periodic": [False], **changes}
    return write_fields_file(path, name="waves", scalars={"environment": np.arange(9)}, t0_fields={"u": u}, **axes)


@pytest.mark.usefixtures("undrawn")
def test_the_truth_of_another_file_is_checked(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    given = fields(rng, GRIDS["line"], 1)
    whole = np.concatenate([given["observed"], given["truth"]], 1)
    store = write(tmp_path / "run.zarr", {"samples": given["samples"], "observed": given["observed"]}, data_sha256="0")
    file = truth_file(tmp_path / "truth.h5", whole)
    scores = write_report(store, tmp_path / "a.html", truth=file)["scores"]
    assert scores["rel_l2"] == pooled(given["samples"], given["truth"])["rel_l2"]
    assert not caplog.records
    write_report(store, tmp_path / "a.html", truth=truth_file(tmp_path / "other.h5", 1 + whole))
    assert "the first frames of trajectory 8 differ from those that" in caplog.text
    statistics = without_members(tmp_path / "few.zarr", store, mean=((), given["samples"].mean(1)))
    assert write_report(statistics, tmp_path / "a.html", truth=file)["scores"]["rel_l2"] == pytest.approx(
        scores["rel_l2"], rel=1e-5
    )
    with pytest.raises(EnmaError, match="dimensions/x"):
        write_report(store, tmp_path / "a.html", truth=truth_file(tmp_path / "x.h5", whole, coords=[np.arange(24.0)]))
    with pytest.raises(EnmaError, match="dimensions/time"):
        write_report(store, tmp_path / "a.html", truth=truth_file(tmp_path / "t.h5", whole, times=np.arange(10.0)))


@pytest.mark.usefixtures("undrawn")
def test_statistics_of_one_member_have_no_spread(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 1, members=1)
    source = write(tmp_path / "run.zarr", given, num_members=1)
    mean = given["samples"][:, 0].astype(np.float64)
    statistics = {"mean": ((), mean), "spread": ((), np.full_like(mean, np.nan))}
    result = write_report(without_members(tmp_path / "few.zarr", source, **statistics), tmp_path / "a.html")
    assert result["scores"]["rmse"] == pytest.approx(np.sqrt(((mean - given["truth"]) ** 2).mean()))
    assert result["scores"]["spread"] is None


@pytest.mark.usefixtures("undrawn")
def test_one_member(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 1, members=1)
    result = write_report(write(tmp_path / "run.zarr", given), tmp_path / "a.html")
    assert result["scores"]["crps"] == pooled(given["samples"], given["truth"])["crps"]
    assert result["scores"]["spread"] is result["scores"]["rank_histogram"] is None
    assert "RMSCE, Gaussian intervals" not in page(tmp_path / "a.html").table("score")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("grid", GRIDS)
def test_statistics_alone_give_the_scores_that_need_no_members(
    tmp_path: Path, rng: np.random.Generator, grid: str
) -> None:
    given = fields(rng, GRIDS[grid], 1)
    samples = given["samples"].astype(np.float64)
    source = write(tmp_path / "run.zarr", given, num_members=8)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    quantiles = np.quantile(samples, levels, axis=1).swapaxes(0, 1)
    statistics = {
        "mean": ((), samples.mean(1)),
        "spread": ((), samples.std(1, ddof=1)),
        "quantile": (("quantile",), quantiles),
    }
    store = without_members(tmp_path / "few.zarr", source, levels, **statistics)
    result = write_report(store, tmp_path / "a.html")
    expected = pooled(given["samples"], given["truth"])
    assert (result["num_members"], result["scores"]["num_trajectories"]) == (8, 3)
    for name in ("rel_l2_median", "rel_l2_q90"):
        assert result["scores"][name] == pytest.approx(expected[name], rel=1e-6), name
    for name in ("rel_l2", "rmse", "spread", "spread_skill", "rmsce"):
        assert result["scores"][name] == pytest.approx(expected[name], rel=1e-6), name
        np.testing.assert_allclose(result["scores"]["per_frame"][name], expected["per_frame"][name], rtol=1e-6)
    for name in ("rel_l2_member", "crps", "crps_relative", "rmsce_rank"):
        assert result["scores"][name] is None
        assert result["scores"]["per_frame"][name] == [None] * 7
    document = page(tmp_path / "a.html")
    labels = [attrs["aria-label"] for tag, attrs in document.elements if tag == "svg"]
    assert labels == ["maps", "fan chart", "error and spread", "spread and skill", "reliability"]
    if grid == "line":
        viewer = document.data
        assert [band["label"] for band in viewer["bands"]] == ["90% of members", "50% of members"]
        shown = decoded(viewer["series"][1][0]["quantiles"]).reshape(5, 7, 24)
        np.testing.assert_allclose(shown, quantiles[1, ..., 0], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_a_mean_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 1)
    mean = given["samples"].astype(np.float64).mean(1)
    store = without_members(tmp_path / "few.zarr", write(tmp_path / "run.zarr", given), mean=((), mean))
    scores = write_report(store, tmp_path / "a.html")["scores"]
    error = np.sqrt(((mean - given["truth"]) ** 2).mean())
    assert scores["rmse"] == pytest.approx(error)
    assert scores["crps"] is scores["spread"] is scores["spread_skill"] is scores["rmsce"] is None
    assert "reliability" not in scores


def test_pooling_reads_one_trajectory_at_a_time(
    line: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, given = line
    sizes = []
    load = xarray.DataArray.to_numpy

    def seen(array: xarray.DataArray) -> np.ndarray:
        values = load(array)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(xarray.DataArray, "to_numpy", seen)
    store_figure(store)
    assert max(sizes) == given["samples"][0].size
    monkeypatch.undo()
    pool = PooledScores(8)
    for trajectory in StoreReader(store):
        pool.add(trajectory)
    result, expected = pool.result(), pooled(given["samples"], given["truth"], given["observed"])
    assert result is not None
    assert {name: result[name] for name in expected} == expected
    bins = result["spread_error"]
    assert sum(bins["points"]) == given["truth"].size
    error = given["samples"].mean(1) - given["truth"]
    total = np.dot(bins["points"], np.square(bins["rmse"]))
    assert total == pytest.approx(np.square(error).sum(), rel=1e-5)


def test_a_large_store_is_thinned_and_the_page_says_so(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, (300,), 1, members=2)
    store = write(tmp_path / "run.zarr", given)
    reader = StoreReader(store)
    assert Thinning.choose(reader).notes == []
    thinned = Thinning.choose(reader, most_bytes=40_000)
    series = [thinned.encode(reader.forecast(reader.trajectory(place), 0)) for place in thinned.places]
    assert len(json.dumps(series)) < 40_000
    assert thinned.notes == [
        "1 of 3 trajectories are shown, spread over the store.",
        f"One point in {thinned.space} along each axis is shown.",
    ]
    document = thinned.document(reader, [series])
    assert document["trajectories"] == [4]
    np.testing.assert_array_equal(document["coords"][0], np.linspace(0, 1, 300)[:: thinned.space])
    truth = decoded(series[0]["truth"]).reshape(7, -1)
    np.testing.assert_array_equal(truth, given["truth"][0, :, :: thinned.space, 0])
    tiny = Thinning.choose(reader, most_bytes=1)
    assert (len(tiny.places), tiny.space, tiny.time) == (1, 300, 7), "thinning ends"


def test_hostile_names_stay_text(tmp_path: Path, rng: np.random.Generator, request: pytest.FixtureRequest) -> None:
    given = fields(rng, GRIDS["line"], 1)
    attributes = {"model": HOSTILE, "data_name": HOSTILE, "command": HOSTILE, HOSTILE: {"a": [HOSTILE, 1]}}
    write_report(write(tmp_path / "run.zarr", given, ("<b>u & $v^$",), **attributes), tmp_path / "a.html")
    document = page(tmp_path / "a.html")
    request.getfixturevalue("undrawn")
    plain = page_of_plain(tmp_path, given)
    tags = [tag for tag, _ in document.elements if tag in ("script", "img", "b", "h1", "select")]
    assert tags == plain
    assert not any(name.startswith("on") for _, attrs in document.elements for name in attrs)
    texts = [text for _, text in document.texts]
    assert f"Forecast of {HOSTILE}" in texts
    assert HOSTILE in texts
    assert json.dumps({"a": [HOSTILE, 1]}) in texts
    assert document.data["channels"] == ["<b>u & $v^$"]


@pytest.mark.usefixtures("undrawn")
def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path, rng: np.random.Generator) -> None:
    attributes = {"model": "m\udcff", "data_name": "d\udcff", "command": "enma-fast forecast \udcff.h5"}
    result = write_report(
        write(tmp_path / "run.zarr", fields(rng, GRIDS["line"], 1), **attributes), tmp_path / "a.html"
    )
    texts = [text for _, text in page(tmp_path / "a.html").texts]
    assert "Forecast of d\\udcff" in texts
    assert "enma-fast forecast \\udcff.h5" in texts
    assert result["num_bytes"] == (tmp_path / "a.html").stat().st_size


def page_of_plain(tmp_path: Path, given: dict[str, np.ndarray]) -> list[str]:
    write_report(write(tmp_path / "plain.zarr", given), tmp_path / "plain.html")
    elements = page(tmp_path / "plain.html").elements
    return [tag for tag, _ in elements if tag in ("script", "img", "b", "h1", "select")]


@pytest.mark.usefixtures("undrawn")
def test_long_attributes_are_cut(tmp_path: Path, rng: np.random.Generator) -> None:
    store = write(tmp_path / "run.zarr", fields(rng, GRIDS["line"], 1), notes="x" * 3_000_000)
    write_report(store, tmp_path / "a.html")
    assert f"{'x' * 2000} ... (3000000 characters)" in [text for _, text in page(tmp_path / "a.html").texts]


@pytest.mark.usefixtures("undrawn")
def test_places_where_no_page_can_be(
    line: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = line
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(p.name for p in tmp_path.iterdir())
    for out, message in (
        ("folder.html", r"folder\.html: is a folder; give --out a file that ends in \.html"),
        ("a.txt", r"a\.txt: a report is an HTML page; end --out in \.html"),
        ("file/a.html", r"a\.html: cannot be written"),
    ):
        with pytest.raises(EnmaError, match=message):
            write_report(store, tmp_path / out)
    with pytest.raises(EnmaError, match="folder"):
        write_report(tmp_path / "nowhere", tmp_path / "a.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    # A disk that fills up leaves the page that was there.
    write_report(store, tmp_path / "a.html")
    old = (tmp_path / "a.html").read_bytes()

    def fail(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(EnmaError, match=r"a\.html: .*written"):
        write_report(store, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "a.html"])


def test_stacked_and_reader_agree(line: tuple[Path, dict[str, np.ndarray]]) -> None:
    store, _ = line
    reader = StoreReader(store)
    for trajectory, whole in zip(reader, stacked(read_forecast(store)), strict=True):
        np.testing.assert_array_equal(trajectory.members, whole)
    with pytest.raises(EnmaError, match="trajectory"):
        store_figure(store, place=3)
