"""The table of scores: a row made elsewhere is accumulated, printed and reported, and the docs list every row."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enma_fast.cli import main
from enma_fast.data import read, write
from enma_fast.evaluation.metrics import SCORES, Scores
from enma_fast.evaluation.metrics.score import POINTS, PointSum, Score
from enma_fast.evaluation.metrics.table import SOLVER_FIDELITY, columns
from enma_fast.figures.report.page import write_report
from enma_fast.models.checkpoint import load_model
from enma_fast.training.card import card_text, read_metrics
from tests._made import create_store

DOCS = Path(__file__).resolve().parents[2] / "docs"

# A sum of one number a frame, finished over all points; and one of K numbers, finished for each trajectory.
BIAS = Score(
    name="bias",
    label="mean error with its sign",
    short="bias",
    sums=(POINTS, PointSum("signed", lambda ensemble, truth: (ensemble.mean(1) - truth).sum((0, 2)))),
    finish=lambda totals: totals["signed"] / totals["points"],
    needs_truth=True,
    places=("terminal", "card", "trajectories"),
)
WORST = Score(
    name="worst_member",
    label="greatest relative error of a member",
    short="worst",
    sums=(
        PointSum("apart", lambda ensemble, truth: (ensemble - truth[:, None]).square().sum(-1)[0], frame_axis=1),
        PointSum("truth", lambda ensemble, truth: truth.square().sum(-1)[0]),
    ),
    finish=lambda totals: torch.sqrt(totals["apart"].amax(0) / totals["truth"]),
    over="trajectories",
    fewest_members=3,
    needs_members=True,
    places=(),
)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    for score in (BIAS, WORST):
        monkeypatch.setitem(SCORES, score.name, score)


@pytest.fixture
def fields(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Members `[B, K, T, X, c]` and truth."""
    return rng.normal(size=(3, 4, 5, 8, 2)).astype(np.float32), rng.normal(size=(3, 5, 8, 2)).astype(np.float32)


def by_hand(members: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    error = members.astype(float) - truth[:, None]
    axes = (2, 3, 4)
    worst = np.sqrt((error**2).sum(axes).max(1) / (truth.astype(float) ** 2).sum((1, 2, 3)))
    return {"bias": error.mean(), "worst_member": worst.mean(), "bias_frames": error.mean((0, 1, 3, 4))}


def test_a_row_made_elsewhere_is_accumulated(mine: None, fields: tuple[np.ndarray, np.ndarray]) -> None:
    members, truth = fields
    whole, parts, gone_on = Scores(), Scores(), Scores()
    whole.update(members, truth)
    result, expected = whole.result(), by_hand(members, truth)
    for name in ("bias", "worst_member"):
        assert result[name] == pytest.approx(expected[name], rel=1e-12)
    assert result["per_frame"]["bias"] == pytest.approx(expected["bias_frames"].tolist(), rel=1e-9)
    assert len(result["per_frame"]["worst_member"]) == 5
    for of_K, of in zip(members, truth, strict=True):
        cut = [(t, of_K[:, t : t + 2].reshape(4, -1, 16), of[t : t + 2].reshape(-1, 16)) for t in (0, 2, 4)]
        parts.update_in_parts(cut, 5)
    assert parts.result()["worst_member"] == pytest.approx(result["worst_member"], rel=1e-12)
    gone_on.update(members[:2], truth[:2])
    gone_on = Scores.restore(gone_on.state())
    gone_on.update(members[2:], truth[2:])
    assert gone_on.result() == result
    few = Scores()
    few.update(members[:, :2], truth)
    assert few.result()["worst_member"] is None
    assert few.result()["per_frame"]["worst_member"] == [None] * 5


@pytest.mark.usefixtures("undrawn")
def test_a_row_made_elsewhere_is_shown(
    mine: None, fields: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    members, truth = fields
    store = tmp_path / "run.zarr"
    with create_store(
        store,
        channels=("u", "v"),
        times=np.arange(2, 7) * 0.1,
        coords=[np.arange(8) / 8],
        trajectories=[0, 1, 2],
        num_members=4,
        truth=truth,
        attributes={"task": "temporal", "observed_frames": 2, "model": "a model", "data_name": "waves-test-in"},
    ) as made:
        made.put(0, members)
    assert main(["score", str(store), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["bias"] == pytest.approx(by_hand(members, truth)["bias"], rel=1e-6)
    assert printed["worst_member"] == pytest.approx(by_hand(members, truth)["worst_member"], rel=1e-6)
    assert main(["score", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "bias" in shown
    assert "worst_member" not in shown
    write_report(store, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert '<th scope="row">mean error with its sign</th>' in page
    assert '<th scope="row">greatest relative error of a member</th>' in page
    assert '<th scope="col">bias</th>' in page


def test_the_errors_of_a_generated_trajectory_are_left_out(
    mine: None, fields: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    from enma_fast.evaluation.store_scores import score_store

    members, truth = fields
    data = write(
        tmp_path / "waves-test-in.h5",
        name="waves-test-in",
        times=np.arange(5) * 0.1,
        coords=[np.arange(8) / 8],
        periodic=[True],
        scalars={"environment": np.zeros(3)},
        t0_fields={"u": truth[..., 0], "v": truth[..., 1]},
    )
    times = read(data).times
    with create_store(
        tmp_path / "run.zarr",
        channels=("u", "v"),
        times=times,
        coords=[np.arange(8) / 8],
        trajectories=[0, 1, 2],
        num_members=4,
        attributes={"task": "generation", "observed_frames": 0, "model": "a model", "data_name": "waves-test-in"},
    ) as made:
        made.put(0, members)
    result = score_store(tmp_path / "run.zarr", truth=data)
    assert result["bias"] is result["rel_l2"] is None
    assert result["per_frame"]["bias"] == [None] * 5
    assert result["worst_member"] is not None


def test_the_card_has_a_column_for_it(mine: None) -> None:
    model = load_model("combined-fast")
    folder = Path(__file__).resolve().parents[2] / "enma_fast" / "pretrained" / "combined-fast"
    metrics = read_metrics(folder)
    assert metrics is not None
    metrics["rows"][0]["bias"] = 0.125
    lines = card_text(model.config, metrics, "").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| task | split | trajectories"))
    place = lines[head].split(" | ").index("bias")
    assert lines[head + 2].split(" | ")[place] == "0.125"
    assert lines[head + 3].split(" | ")[place] == "-", "measured before there was such a score"


def test_the_docs_list_every_score_in_order() -> None:
    # Distributions and physics have tables of their own, below.
    page = (DOCS / "scores.md").read_text().split("`python -m benchmarks.paper tables` also compares")[0]
    listed = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert listed == [*SCORES, SOLVER_FIDELITY.name]
    for column in (*SCORES.values(), SOLVER_FIDELITY):
        assert f"| `{column.name}` | {column.label} |" in page
    for score in SCORES.values():
        needs = ["truth"] * score.needs_truth + ["members"] * score.needs_members
        needed = f"{score.fewest_members} members" if score.fewest_members > 1 else ", ".join(needs)
        assert re.search(
            rf"\| `{score.name}` \| [^|]+ \| (?:none|the field's) \| {needed} \| .{{20,}} \|$", page, re.MULTILINE
        )
    assert {column.name for column in columns("paper")} <= set(listed)
