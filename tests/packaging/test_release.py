"""Facts that stand in several files agree: the version, the Pythons, the tools."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from enma_fast.data.shipped import MODELS


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_newest_of_the_changelog_and_that_of_the_citation(
    root: Path, project: dict[str, Any]
) -> None:
    changelog = (root / "CHANGELOG.md").read_text()
    assert changelog.index("## [Unreleased]") < changelog.index("## [0")
    newest, date = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE).groups()
    citation = (root / "CITATION.cff").read_text()
    assert project["version"] == newest == re.search(r"^version: (.+)$", citation, re.MULTILINE)[1]
    assert date == re.search(r"^date-released: (.+)$", citation, re.MULTILINE)[1]
    models = tomllib.loads((root / "packaging/models/pyproject.toml").read_text())["project"]
    assert {key: models[key] for key in ("version", "requires-python", "license")} == {
        key: project[key] for key in ("version", "requires-python", "license")
    }
    assert models["name"] == MODELS


def test_the_workflow_runs_what_a_change_must_pass_on_every_python(root: Path, project: dict[str, Any]) -> None:
    workflow = (root / ".github" / "workflows" / "ci.yml").read_text()
    named = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1])
    classified = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named == classified
    assert project["requires-python"] == f">={named[0]}"
    assert "- run: .ci/run\n" in workflow
    assert (root / ".ci" / "run").stat().st_mode & 0o111


def test_tools_of_pre_commit_come_with_the_extra_dev(root: Path, project: dict[str, Any]) -> None:
    tools = set(re.findall(r"entry: \.venv/bin/([\w-]+)", (root / ".pre-commit-config.yaml").read_text()))
    assert tools == {"ruff", "mypy", "clang-format", "codespell"}
    listed = {re.match(r"[\w-]+", requirement)[0] for requirement in project["optional-dependencies"]["dev"]}
    assert tools | {"pre-commit"} <= listed


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "added"),
    [("demo", set()), ("install", {"triton", "test"}), ("docs", {"docs"}), ("lint", {"dev"}), ("wheel", {"wheel"})],
)
def test_a_target_installs_what_it_needs_and_no_more(target: str, added: set[str], root: Path) -> None:
    command = ["make", "--dry-run", "--always-make", target]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert " data store plots | " in said
    assert {extra for extras in re.findall(r"enma-fast\[([a-z,]+)\]", said) for extra in extras.split(",")} == added
