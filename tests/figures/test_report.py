"""The report: its numbers are those of the metrics, its data those of the store, and its page works in a browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from enma_fast.errors import EnmaError
from enma_fast.evaluation.metrics import Scores
from enma_fast.figures.plots import LEVELS
from enma_fast.figures.report import PooledScores, StoreReader, store_figure, write_report
from enma_fast.figures.report.viewer import Thinning
from enma_fast.store import create
from enma_fast.store.create import create_store
from enma_fast.store.metadata import read_metadata
from enma_fast.store.read import read_forecast, stacked

from .. import _browser

VOID = {"meta", "link", "input", "br", "img", "hr"}
HOSTILE = (
    "</script><script>document.documentElement.dataset.error = 'ran'</script>"
    "<img src=x onerror=alert(1)> \" ' & {{data}}"
)
TIMES, SEEN_TIMES = 0.05 * np.arange(3, 10), 0.05 * np.arange(3)
GRIDS = {"line": (24,), "plane": (10, 6)}


def fields(rng: np.random.Generator, space: tuple[int, ...], channels: int, members: int = 8) -> dict[str, np.ndarray]:
    """Truth, history and members of 3 trajectories."""
    shape = (3, 10, *space, channels)
    truth = 0.3 + np.cumsum(rng.normal(size=shape), axis=1)
    samples = truth[:, None, 3:] + rng.normal(size=(3, members, 7, *space, channels))
    return {"samples": np.float32(samples), "truth": np.float32(truth[:, 3:]), "observed": np.float32(truth[:, :3])}


def write(path: Path, given: dict[str, np.ndarray], channels: tuple[str, ...] = ("u",), **attributes: Any) -> Path:
    """A store; a truth or a history that is not given is not in it."""
    samples = given["samples"]
    with create_store(
        path,
        channels=channels,
        times=TIMES,
        coords=[np.linspace(0, 1 + i, n) for i, n in enumerate(samples.shape[3:-1])],
        trajectories=[4, 7, 8],
        num_members=samples.shape[1],
        observed=given.get("observed"),
        observed_times=SEEN_TIMES if "observed" in given else (),
        truth=given.get("truth"),
        columns={"alpha": np.array([0.5, 0.6, 0.7]), "environment": np.array([900000, 1, 2])},
        attributes={"model": "tiny", "task": "temporal", "observed_frames": 3, "seed": 7, **attributes},
    ) as store:
        store.put(0, samples)
    return path


def without_members(path: Path, source: Path, levels: Sequence[float] = (), **statistics: Any) -> Path:
    """A store of statistics, `<channel>_<name>` from name -> (own axes, values with channels last)."""
    root = read_metadata(source)
    channels, old = root["attributes"]["channels"], root["consolidated_metadata"]["metadata"]
    shutil.copytree(source, path)
    for name in (*channels, "realization"):
        shutil.rmtree(path / name)
    group = create._NewGroup(path, {name: array for name, array in old.items() if (path / name).is_dir()})
    for name, (own, values) in statistics.items():
        for c, channel in enumerate(channels):
            dims = ("trajectory", *own, "time", *(axis for axis in "xy" if axis in old))
            create._write_array(group, f"{channel}_{name}", dims, values[..., c])
    if levels:
        create._write_array(group, "quantile", ("quantile",), np.asarray(levels, np.float64))
    attributes = {**root["attributes"], "keeps": ", ".join(statistics)}
    metadata = {**root["consolidated_metadata"], "metadata": group.arrays}
    create.write_metadata(path, {**root, "attributes": attributes, "consolidated_metadata": metadata})
    return path


class Document(HTMLParser):
    """Elements of a page: balanced, and what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag == "data":
            self.rows[-1].append(dict(attrs)["value"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))
        if self.open and self.open[-1] == "th":
            self.rows[-1].append(data)

    @property
    def data(self) -> Any:
        """What the viewer is given."""
        (text,) = (text for (path, text), last in zip(self.texts, self._scripts(), strict=True) if last)
        return json.loads(text)

    def _scripts(self) -> list[bool]:
        return [bool(path) and path[-1] == "script" and text.startswith("{") for path, text in self.texts]

    def table(self, first: str) -> dict[str, list[str]]:
        """Rows below the one that starts with a word, by their heading."""
        start = next(i for i, row in enumerate(self.rows) if row and row[0] == first)
        found: dict[str, list[str]] = {"": self.rows[start][1:]}
        for row in self.rows[start + 1 :]:
            if row[0] in ("score", "trajectory"):
                break
            found[row[0]] = row[1:]
        return found


def page(path: Path) -> Document:
    text = path.read_text()
    assert not re.search(r"""(?:src|href|action|poster)\s*=\s*["']?\s*(?:https?:)?//""", text), "nothing is fetched"
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert len(path.read_bytes()) < 5e6
    return Document(text)


def decoded(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def pooled(samples: np.ndarray, truth: np.ndarray, observed: np.ndarray | None = None) -> dict[str, Any]:
    scores = Scores()
    scores.update(samples, truth, observed)
    return scores.result()


@pytest.fixture
def line(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, dict[str, np.ndarray]]:
    """A store of one channel on a line, and what is in it."""
    given = fields(rng, GRIDS["line"], 1)
    return write(tmp_path / "run.zarr", given), given


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
    assert each[""] == ["rel. L2", "error", "spread", "spread / error", "CRPS", "alpha", "environment"]
    for b, number in enumerate(("4", "7", "8")):
        one = pooled(given["samples"][b : b + 1], given["truth"][b : b + 1])
        names = ("rel_l2", "rmse", "spread", "spread_skill", "crps")
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
    assert labels == ["maps", "fan chart", "error and spread", "rank histogram", "spread and skill", "reliability"]
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


def test_one_member(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 1, members=1)
    result = write_report(write(tmp_path / "run.zarr", given), tmp_path / "a.html")
    assert result["scores"]["crps"] == pooled(given["samples"], given["truth"])["crps"]
    assert result["scores"]["spread"] is result["scores"]["rank_histogram"] is None
    assert "RMSCE, Gaussian intervals" not in page(tmp_path / "a.html").table("score")


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


def test_hostile_names_stay_text(tmp_path: Path, rng: np.random.Generator) -> None:
    given = fields(rng, GRIDS["line"], 1)
    attributes = {"model": HOSTILE, "data_name": HOSTILE, "command": HOSTILE, HOSTILE: {"a": [HOSTILE, 1]}}
    write_report(write(tmp_path / "run.zarr", given, ("<b>u & $v^$",), **attributes), tmp_path / "a.html")
    document = page(tmp_path / "a.html")
    plain = page_of_plain(tmp_path, given)
    tags = [tag for tag, _ in document.elements if tag in ("script", "img", "b", "h1", "select")]
    assert tags == plain
    assert not any(name.startswith("on") for _, attrs in document.elements for name in attrs)
    texts = [text for _, text in document.texts]
    assert f"Forecast of {HOSTILE}" in texts
    assert HOSTILE in texts
    assert json.dumps({"a": [HOSTILE, 1]}) in texts
    assert document.data["channels"] == ["<b>u & $v^$"]


def page_of_plain(tmp_path: Path, given: dict[str, np.ndarray]) -> list[str]:
    write_report(write(tmp_path / "plain.zarr", given), tmp_path / "plain.html")
    elements = page(tmp_path / "plain.html").elements
    return [tag for tag, _ in elements if tag in ("script", "img", "b", "h1", "select")]


def test_long_attributes_are_cut(tmp_path: Path, rng: np.random.Generator) -> None:
    store = write(tmp_path / "run.zarr", fields(rng, GRIDS["line"], 1), notes="x" * 3_000_000)
    write_report(store, tmp_path / "a.html")
    assert f"{'x' * 2000} ... (3000000 characters)" in [text for _, text in page(tmp_path / "a.html").texts]


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
    with pytest.raises(EnmaError, match="no such folder"):
        write_report(tmp_path / "nowhere", tmp_path / "a.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    # A disk that fills up leaves the page that was there.
    write_report(store, tmp_path / "a.html")
    old = (tmp_path / "a.html").read_bytes()

    def fail(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(EnmaError, match=r"a\.html: cannot be written \(disk full\)"):
        write_report(store, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "a.html"])


def test_stacked_and_reader_agree(line: tuple[Path, dict[str, np.ndarray]]) -> None:
    store, _ = line
    reader = StoreReader(store)
    for trajectory, whole in zip(reader, stacked(read_forecast(store)), strict=True):
        np.testing.assert_array_equal(trajectory.members, whole)
    with pytest.raises(EnmaError, match="has no trajectory at place 3; it holds 3"):
        store_figure(store, place=3)


in_browser = pytest.mark.skipif(_browser.PROGRAM is None, reason="needs chromium or google-chrome on the PATH")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_browser.Page]:
    with _browser.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Address of a report, and what is in its store, for each grid; names in them are hostile."""
    folder, made = tmp_path_factory.mktemp("reports"), {}
    for name, grid in GRIDS.items():
        given = fields(np.random.default_rng(1), grid, 2)
        attributes = {"model": HOSTILE, "command": "x" * 300, "data_name": HOSTILE}
        write(folder / f"{name}.zarr", given, ("u", "<i>v $_$"), **attributes)
        write_report(folder / f"{name}.zarr", folder / f"{name}.html")
        made[name] = ((folder / f"{name}.html").as_uri(), given)
    return made


def pixels(png: bytes) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(png)).convert("RGB"), int)


@in_browser
def test_the_dumped_document_is_ready(reports: dict[str, tuple[str, dict[str, np.ndarray]]], tmp_path: Path) -> None:
    url, given = reports["line"]
    text = _browser.dumped(f"{url}#t=5&trajectory=7", tmp_path / "profile")
    root = re.search(r"<html[^>]*>", text)
    assert root is not None
    assert 'data-ready="true"' in root[0]
    assert "data-error" not in root[0]
    assert 'data-frame="5"' in root[0]
    assert 'max="6"' in text
    shown = re.search(r"<output[^>]*>([^<]*)</output>", text)
    assert shown is not None
    error = given["samples"][1, :, 5, :, 0].mean(0) - given["truth"][1, 5, :, 0]
    assert shown[1].startswith(f"time {TIMES[5]:.3g} · frame 6 of 7 · RMS error {np.sqrt((error**2).mean()):.3g}")


@in_browser
@pytest.mark.parametrize("grid", GRIDS)
def test_it_opens_where_there_is_something_to_be_seen(
    reports: dict[str, tuple[str, dict[str, np.ndarray]]], tmp_path: Path, grid: str
) -> None:
    url, given = reports[grid]
    text = _browser.dumped(url, tmp_path / "profile")
    error = given["samples"][0, ..., 0].mean(0) - given["truth"][0, ..., 0]
    worst = int((error**2).reshape(len(error), -1).mean(1).argmax())
    assert f'data-frame="{worst}"' in text


@in_browser
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_telephone_shows_it(
    window: _browser.Page, reports: dict[str, tuple[str, dict[str, np.ndarray]]], grid: str, dark: bool
) -> None:
    url, _ = reports[grid]
    window.open(f"{url}#t=0", width=390, height=844, dark=dark, mobile=True)
    assert window.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390], "nothing sticks out"
    assert int(window.run("document.documentElement.dataset.overflow")) <= 0
    assert window.run("document.documentElement.dataset.error ?? null") is None
    small = "[...document.querySelectorAll('select, button')].filter(e => e.getBoundingClientRect().height < 44).length"
    assert window.run(small) == 0, "what is touched is large enough"
    first = pixels(window.picture())
    assert first.shape == (844, 390, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50, "the picture is not blank"
    assert (first[:4].mean() < 80) == dark
    window.run("location.hash = 't=6'")
    window.until(lambda: window.run("document.documentElement.dataset.frame") == "6")
    assert (np.abs(first - pixels(window.picture())).max(-1) > 30).mean() > 0.005, "another time is another picture"
    fetched = [e["params"]["request"]["url"] for e in window.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(address.startswith(("file:", "data:")) for address in fetched), fetched
    bad = [e for e in window.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert bad == []


@in_browser
def test_keys_touch_and_the_play_button_move_the_time(
    window: _browser.Page, reports: dict[str, tuple[str, dict[str, np.ndarray]]]
) -> None:
    url, _ = reports["plane"]
    window.open(f"{url}#t=0", width=390, height=844, mobile=True)
    frame = "Number(document.documentElement.dataset.frame)"
    assert window.run(frame) == 0
    window.run("document.getElementById('time').focus()")
    window.press("ArrowRight", 39)
    window.press("ArrowRight", 39)
    assert window.run(frame) == 2
    window.press("End", 35)
    assert window.run(frame) == 6
    assert window.run("document.getElementById('time').getAttribute('aria-valuetext')") == "time 0.45, frame 7 of 7"
    assert "t=6" in window.run("location.hash")
    middle = (
        "(r => [r.left + r.width / 2, r.top + r.height / 2])(document.getElementById('{}').getBoundingClientRect())"
    )
    window.tap(*window.run(middle.format("time")))
    window.until(lambda: window.run(frame) == 3)
    window.tap(*window.run(middle.format("play")))
    window.until(lambda: window.run(frame) == 5)
    assert window.run("document.getElementById('play').getAttribute('aria-pressed')") == "true"
    window.tap(*window.run(middle.format("play")))
    window.until(lambda: window.run("document.getElementById('play').textContent") == "Play")
    stopped = window.run(frame)
    assert window.run(f"new Promise(done => setTimeout(() => done({frame}), 700))") == stopped


@in_browser
def test_the_selectors_choose_what_is_drawn(
    window: _browser.Page, reports: dict[str, tuple[str, dict[str, np.ndarray]]]
) -> None:
    url, given = reports["plane"]
    window.open(f"{url}#t=2&trajectory=8&channel=%3Ci%3Ev%20%24_%24", width=1200, height=900)
    assert window.run("[trajectory, channel].map(e => e.selectedOptions[0].textContent)") == ["8", "<i>v $_$"]
    read = """(() => {
        const canvas = document.querySelector('.maps canvas'), g = canvas.getContext('2d');
        return [canvas.width, canvas.height, ...g.getImageData(0, 0, canvas.width, canvas.height).data];
    })()"""
    width, height, *colours = window.run(read)
    assert (width, height) == GRIDS["plane"]
    shown = np.array(colours).reshape(6, 10, 4)[..., :3]
    truth = given["truth"][2, ..., 1]
    top = max(np.abs(truth).max(), np.abs(given["samples"][2, ..., 1].mean(0)).max())
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps["RdBu_r"]((truth[2] + top) / (2 * top), bytes=True)[..., :3]
    np.testing.assert_allclose(shown, expected.swapaxes(0, 1)[::-1], atol=6, err_msg="x to the right, y upward")
    assert "One point" not in window.run("document.body.textContent")
