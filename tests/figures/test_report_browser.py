"""The page of a report works in a browser, on a telephone and on a desk."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from enma_fast.figures.report import write_report

from .. import _browser
from ._reports import GRIDS, HOSTILE, TIMES, fields, write

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
