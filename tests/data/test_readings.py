"""Tables of readings: what is read, and the one line of what is refused."""

from pathlib import Path

import numpy as np
import pytest

from enma_fast.data import Readings, is_readings, read_readings, readings
from enma_fast.errors import EnmaError

# Three frames of one trajectory, two readings in the first.
ROWS = ("frame,x,u", "0,0.5,1.5", "0,6.25,-2", "1,0.25,3", "2,0,4e-1")


def table(tmp_path: Path, *rows: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "readings.csv"
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def on_line(path: Path) -> Readings:
    return read_readings(path, lengths=(2 * np.pi,), num_channels=1, needed_by="points")


def on_plane(path: Path) -> Readings:
    return read_readings(path, lengths=(2.0, 1.0), num_channels=2, needed_by="plane")


def test_one_trajectory(tmp_path: Path) -> None:
    found = on_line(table(tmp_path, *ROWS))
    nan = np.nan
    np.testing.assert_array_equal(found.points, np.float32([[[[0.5], [6.25]], [[0.25], [nan]], [[0], [nan]]]]))
    # What stands where there is no reading is a value that is there, so that all are finite.
    np.testing.assert_array_equal(found.u, np.float32([[[[1.5], [-2]], [[3], [3]], [[0.4], [0.4]]]]))
    assert (found.points.dtype, found.u.dtype) == (np.float32, np.float32)
    assert found.channels == ("u",)


def test_columns_and_rows_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(6), [3, 1, 2, 2, 3, 3])
    values = np.c_[place // 3, place % 3, rng.uniform(0, 1, (14, 4))]
    head = ("trajectory", "frame", "x", "y", "u", "v")
    rows = [",".join(f"{x:.17g}" for x in row) for row in values]
    expected = on_plane(table(tmp_path, ",".join(head), *rows))
    assert (expected.points.shape, expected.u.shape) == ((2, 3, 3, 2), (2, 3, 3, 2))
    np.testing.assert_array_equal(expected.points[1, 1], np.float32(values[8:11, 2:4]))
    np.testing.assert_array_equal(expected.u[1, 1], np.float32(values[8:11, 4:]))
    # Frames in another order, columns too, as a spreadsheet saves them; readings of one frame stay in theirs.
    order = rng.permutation(6)
    moved = np.concatenate([values[place == p] for p in order])[:, ::-1]
    rows = [" , ".join(f"{x:.17g}" for x in row) for row in moved]
    rows.insert(3, "")
    found = on_plane(table(tmp_path, ",".join(head[::-1]), *rows, encoding="utf-8-sig"))
    assert found.channels == ("v", "u")
    np.testing.assert_array_equal(found.points, expected.points)
    np.testing.assert_array_equal(found.u[..., ::-1], expected.u)


def test_two_readings_at_one_point_are_two(tmp_path: Path) -> None:
    """As in Python, where a point that is given twice weighs twice."""
    found = on_line(table(tmp_path, *ROWS, "2,0,4e-1"))
    np.testing.assert_array_equal(found.points[0, 2], [[0], [0]])


def test_the_end_of_the_domain_belongs_to_it(tmp_path: Path) -> None:
    found = on_line(table(tmp_path, *ROWS, f"2,{2 * np.pi:.7f},1"))
    assert found.points[0, 2, 1] == np.float32(2 * np.pi)


def without(row: int) -> list[str]:
    return [*ROWS[:row], *ROWS[row + 1 :]]


def instead(row: int, text: str) -> list[str]:
    return [*ROWS[:row], text, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "is empty"),
        (ROWS[:1], "no reading"),
        (ROWS[1:], "'frame'"),
        (instead(0, "frame,lon,u"), "'x'"),
        (instead(0, "frame;x;u"), "'frame;x;u'"),
        (instead(0, "Frame,x,u"), "'frame'"),
        (instead(0, "frame,x,x"), "'x'"),
        *((instead(0, f"frame,x,{name}"), f"column '{name}' cannot name") for name in (".", "a/b", "../../p")),
        (instead(0, "frame,x,"), "column 3"),
        ([",frame,x,u", "0,0,1,1"], "column 1"),
        (["frame,x", "0,0", "1,0", "2,0"], "0 columns"),
        (["frame,x,u,v", "0,0,1,2"], "2 columns"),
        (["frame,x,station,u", "0,0,A7,2"], "2 columns"),
        (["frame,x,y,u", "0,0,1,2"], "'y'"),
        (instead(2, "0,6.25"), "line 3"),
        (instead(2, "0,6,25,-2"), "line 3"),
        (instead(2, "0,6.25,wet"), "line 3, u"),
        (instead(2, "0,6.25,1_0"), "line 3, u"),
        (instead(2, "0,6.25,\u0661"), "line 3, u"),
        (instead(2, "0,6.25,"), "line 3, u"),
        (instead(2, "0,6.25,nan"), "line 3, u"),
        (instead(2, "0,inf,1"), "line 3, x"),
        (instead(2, "0,6.25,1e39"), "line 3, u"),
        (instead(2, "0,6.25,9.969209968386869e36"), "line 3, u"),
        (instead(2, "0,6.3,1"), "line 3, x"),
        (instead(2, "0,-0.1,1"), "line 3, x"),
        (instead(3, "0.5,1,1"), "line 4, frame"),
        (instead(3, "-1,1,1"), "line 4, frame"),
        (instead(3, "nan,1,1"), "line 4, frame"),
        ([*ROWS, "30000,1,1"], "line 6, frame"),
        (without(3), "frame 1"),
        ([ROWS[0], *ROWS[3:]], "frame 0"),
        ([*ROWS, 'a"b,"1'], "a table"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, rows: list[str], said: str) -> None:
    path = table(tmp_path, *rows)
    with pytest.raises(EnmaError, match=f"^{path}: .*{said}") as caught:
        on_line(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["0,0,1,1", "0,1,1,1", "0,2,1,1", "2,0,1,1"], "trajectory 1"),
        (["1,0,1,1", "1,1,1,1", "1,2,1,1"], "trajectory 0"),
        (["1e15,0,1,1"], "trajectory 0"),
        (["0,0,1,1", "0,1,1,1", "0,2,1,1", "1,0,1,1", "1,1,1,1"], "frame 2"),
        (["0,0,1,1", "0,1,1,1", "1,0,1,1", "1,1,1,1", "1,2,1,1"], "frame 2"),
        (["0.5,0,1,1"], "line 2, trajectory"),
    ],
)
def test_trajectories_are_whole(tmp_path: Path, rows: list[str], said: str) -> None:
    path = table(tmp_path, "trajectory,frame,x,u", *rows)
    with pytest.raises(EnmaError, match=f"^{path}: {said}"):
        on_line(path)


def test_the_memory_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "memory", lambda: 40)
    path = table(tmp_path, *ROWS)
    with pytest.raises(EnmaError, match=rf"^{path}: .*frame"):
        on_line(path)


@pytest.mark.parametrize("bad", [b"frame,x,u\n0,0,\xff\n", b"frame,x,u\n0,0,\0\n", None])
def test_a_file_that_is_no_text(tmp_path: Path, bad: bytes | None) -> None:
    path = tmp_path / "a.csv"
    if bad is not None:
        path.write_bytes(bad)
    with pytest.raises(EnmaError, match=f"^{path}: "):
        on_line(path)


def test_a_table_is_known_by_its_ending() -> None:
    assert is_readings(Path("a.csv"))
    assert is_readings(Path("A.CSV"))
    assert not is_readings(Path("csv.h5"))
