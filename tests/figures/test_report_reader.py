"""Reading a forecast store for figures: damaged and missing files are named, and never drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from enma_fast.errors import EnmaError
from enma_fast.figures.report import StoreReader, reader, store_figure, write_report
from enma_fast.figures.report.viewer import VIEWER_BYTES, Thinning
from tests._made import create_store


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Members, statistics and truth of two trajectories."""
    shape, path = (5, 7, 1), tmp_path / "run.zarr"
    with create_store(
        path,
        channels=("u",),
        times=np.arange(5.0),
        coords=[np.arange(7.0)],
        trajectories=[4, 7],
        num_members=3,
        statistics=True,
        quantiles=(0.1, 0.9),
        truth=rng.normal(size=(2, *shape)),
    ) as made:
        made.put(0, rng.normal(size=(2, 3, *shape)))
        own = {"mean": (), "spread": (), "quantile": (2,)}
        for b in range(2):
            made.put_statistics(b, {name: np.ones((*axes, *shape)) for name, axes in own.items()})
    return path


@pytest.mark.parametrize("draw", [lambda path, out: write_report(path, out), lambda path, out: store_figure(path)])
@pytest.mark.parametrize(("file", "holds"), [("u/c.1.2.0.0", "u of trajectory 7"), ("u_truth/c.0.0.0", "u_truth")])
def test_what_is_damaged_or_lost_is_not_drawn(store: Path, tmp_path: Path, draw, file: str, holds: str) -> None:
    path = store / file
    data = path.read_bytes()
    for content, what in ((bytes([data[0] ^ 1]) + data[1:], r"cannot be read \(.+\)"), (None, "is missing")):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(EnmaError, match=f"{holds}.*{what}") as caught:
            draw(store, tmp_path / "a.html")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.html").exists()


def test_a_trajectory_beyond_the_memory_is_refused_unread(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three members and the truth, in float32.
    size = 4 * (3 + 1) * 5 * 7
    monkeypatch.setattr(reader, "memory", lambda: 2 * size)
    StoreReader(store)
    monkeypatch.setattr(reader, "memory", lambda: size)
    monkeypatch.setattr(StoreReader, "_values", lambda *given: pytest.fail("was read"))
    with pytest.raises(EnmaError, match=r"run\.zarr: .*trajectory"):
        StoreReader(store)


@pytest.mark.parametrize("axis", ["x", "time"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_places_that_are_not_finite_are_not_drawn(
    tmp_path: Path, rng: np.random.Generator, axis: str, value: float
) -> None:
    axes = {"times": np.arange(5.0), "coords": [np.arange(7.0)]}
    (axes["times"] if axis == "time" else axes["coords"][0])[2] = value
    with create_store(tmp_path / "a.zarr", channels=("u",), trajectories=[0], num_members=2, **axes) as made:
        made.put(0, rng.normal(size=(1, 2, 5, 7, 1)))
    for draw in (lambda path: write_report(path, tmp_path / "a.html"), store_figure):
        with pytest.raises(EnmaError, match=rf"a\.zarr: .*{axis}"):
            draw(tmp_path / "a.zarr")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.inf, 3e38])
def test_values_beyond_float32_are_drawn_without_a_warning(
    tmp_path: Path, rng: np.random.Generator, value: float
) -> None:
    members, path = rng.normal(size=(1, 4, 5, 7, 1)).astype(np.float32), tmp_path / "a.zarr"
    members[0, 1:3] = value
    axes = {"times": np.arange(5.0), "coords": [np.arange(7.0)]}
    truth = rng.normal(size=(1, 5, 7, 1))
    with create_store(path, channels=("u",), trajectories=[3], num_members=4, truth=truth, **axes) as made:
        made.put(0, members)
    assert set(write_report(path, tmp_path / "a.html")["left_out"]) == ({"3"} if value == np.inf else set())


def test_lost_statistics_are_named(store: Path) -> None:
    reader = StoreReader(store)
    reader.dataset = reader.dataset.drop_vars("u")
    assert reader.trajectory(1).quantiles is not None
    (store / "u_quantile" / "c.1.0.0.0").unlink()
    with pytest.raises(EnmaError, match="u_quantile"):
        reader.trajectory(1)


def test_what_is_not_finite_is_not_lost(store: Path) -> None:
    """A model that gives NaN is shown as it is."""
    reader = StoreReader(store)
    with create_store(
        store.with_name("nan.zarr"),
        channels=("u",),
        times=[0.0],
        coords=[np.arange(2.0)],
        trajectories=[0],
        num_members=2,
    ) as made:
        made.put(0, np.full((1, 2, 1, 2, 1), np.nan))
    assert np.isnan(StoreReader(store.with_name("nan.zarr")).trajectory(0).members).all()
    assert np.isfinite(reader.trajectory(0).members).all()


def test_scores_do_not_depend_on_how_much_is_scored_at_a_time(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = StoreReader(store)
    expected = [whole.scores(channel).add(trajectory) for channel in (None, 0) for trajectory in whole]
    monkeypatch.setattr(reader, "_BLOCK", 1)
    parts = StoreReader(store)
    found = [parts.scores(channel).add(trajectory) for channel in (None, 0) for trajectory in parts]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"per_frame"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-12), name
    members = whole.trajectory(0).members
    blocks = list(reader.blocks(members, 1))
    assert [block.shape for block in blocks] == [(3, 1, 7, 1)] * 5
    assert np.array_equal(np.concatenate(blocks, 1), members)


@pytest.mark.parametrize("keep_members", [True, False])
def test_units_are_those_of_the_store_where_they_are_known(tmp_path: Path, keep_members: bool) -> None:
    def reader_of(name: str, data_name: str, **given: object) -> StoreReader:
        with create_store(
            tmp_path / name,
            channels=("T", "v"),
            times=np.arange(5.0),
            coords=[np.arange(7.0)],
            trajectories=[4],
            num_members=3,
            units={"T": "K"},
            keep_members=keep_members,
            statistics=not keep_members,
            attributes={"data_name": data_name},
            **given,
        ) as made:
            if keep_members:
                made.put(0, np.zeros((1, 3, 5, 7, 2)))
            else:
                made.put_statistics(0, {kind: np.ones((5, 7, 2)) for kind in ("mean", "spread")})
        return StoreReader(tmp_path / name)

    own = reader_of("own.zarr", "advection-test-in")
    assert own.axis_units == {"time": "1", "x": "1"}
    assert reader_of("air.zarr", "air", dimensionless=False).axis_units == {}
    old = reader_of("old.zarr", "air")
    assert old.axis_units == {}, "stores of older versions say 1 of all axes"
    drawn = [own.forecast(own.trajectory(0), c) for c in range(2)]
    assert [(made.unit, made.label, own.label(c)) for c, made in enumerate(drawn)] == [
        ("K", "T (K)", "T (K)"),
        ("1", "v", "v"),
    ]
    write_report(old.path, tmp_path / "old.html")
    page = (tmp_path / "old.html").read_text()
    assert "dimensionless" not in page
    assert '"labels":["T (K)","v"],"x":"x"' in page
    write_report(own.path, tmp_path / "own.html")
    assert '"x":"x (dimensionless)"' in (tmp_path / "own.html").read_text()


@pytest.mark.parametrize(
    ("errors", "place"), [([0.3, 0.1, 0.2], 2), ([0.1, 0.4, 0.2, 0.3], 2), ([0.1, None, 0.3, 0.2], 3)]
)
def test_the_trajectory_of_median_error(tmp_path: Path, errors: list[float | None], place: int) -> None:
    # A truth of zeros has no relative error.
    truth = np.stack([np.full((5, 7, 1), error is not None, np.float64) for error in errors])
    offsets = np.array([error or 0.0 for error in errors])[:, None, None, None, None]
    with create_store(
        tmp_path / "run.zarr",
        channels=("u",),
        times=np.arange(5.0),
        coords=[np.arange(7.0)],
        trajectories=list(range(10, 10 + len(errors))),
        num_members=2,
        truth=truth,
    ) as made:
        made.put(0, np.repeat(truth[:, None], 2, axis=1) + offsets)
    assert StoreReader(tmp_path / "run.zarr").place_of_median_error() == place


def test_a_report_shows_all_of_two_dozen_trajectories_of_128_points_and_17_frames(tmp_path: Path) -> None:
    count, shape = 24, (17, 128, 1)
    with create_store(
        tmp_path / "run.zarr",
        channels=("u",),
        times=np.arange(17.0),
        coords=[np.arange(128.0)],
        trajectories=list(range(count)),
        num_members=2,
        observed=np.zeros((count, 3, 128, 1)),
        observed_times=np.arange(-3.0, 0.0),
        truth=np.ones((count, *shape)),
    ) as made:
        made.put(0, np.ones((count, 2, *shape)) * np.linspace(0.9, 1.1, 2)[:, None, None, None])
    found = StoreReader(tmp_path / "run.zarr")
    thinning = Thinning.choose(found)
    assert thinning.notes == []
    series = [[thinning.encode(found.forecast(found.trajectory(place), 0))] for place in thinning.places]
    document = thinning.document(found, series)
    assert document["trajectories"] == found.numbers
    assert 0.9 * VIEWER_BYTES < len(json.dumps(document)) <= VIEWER_BYTES
