"""Stores of known fields, and the HTML page of a report read back."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from enma_fast.evaluation.metrics import Scores
from enma_fast.store import create
from enma_fast.store.metadata import read_metadata
from tests._made import create_store

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
    """Write a store; without a truth or a history if none is given."""
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
    """Elements of a page, which must be balanced, and their contents."""

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
        """Data of the viewer."""
        (text,) = (text for (path, text), last in zip(self.texts, self._scripts(), strict=True) if last)
        return json.loads(text)

    def _scripts(self) -> list[bool]:
        return [bool(path) and path[-1] == "script" and text.startswith("{") for path, text in self.texts]

    def table(self, first: str) -> dict[str, list[str]]:
        """Rows below the one that starts with the word `first`, by their heading."""
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
