"""Score files that anybody may have made or changed: tables without markup, or one line that names the file."""

import json
import os

import pytest

from benchmarks.paper import score_files, tables
from enma_fast.errors import EnmaError

from ._score_files import file_of


def changed(value, change):
    """Copies of a document of plain values, in each of which one entry is another, or left out."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield {key: kept for key, kept in value.items() if key != name}
            yield from ({**value, name: other} for other in changed(entry, change))
    if isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in changed(value[0], change))
    yield change


@pytest.mark.parametrize(
    "change",
    [None, True, -1, 1e308, float("nan"), 10**400, "<script>alert(1)</script>", "a|b\nc", "../../x", [], {"a": 1}],
)
def test_a_score_file_of_other_entries_is_one_line_or_a_table(tmp_path, change):
    physics = {"spectrum_error": 0.1, "quantities": [{"name": "mass", "law": "decays", "violation": 0.1, "truth": 0.0}]}
    made, refused = 0, []
    for document in changed(file_of(physics=physics), change):
        (tmp_path / "a.json").write_text(json.dumps(document))
        try:
            files = score_files.read_score_files(tmp_path)
        except EnmaError as error:
            refused.append(str(error))
            continue
        page = tables.markdown(files, files)
        assert "<script" not in page
        json.dumps(tables.as_json(files, files), allow_nan=False)
        made += 1
    assert made
    assert len(refused) > 20
    assert all(said.startswith(f"{tmp_path / 'a.json'}: ") and "\n" not in said for said in refused)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\xff\xfe", "[]", '"method"'])
def test_a_file_of_other_things_is_no_score_file(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(EnmaError, match=r"a\.json:"):
        score_files.read_score_files(tmp_path)
    (tmp_path / "a.json").unlink()
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(EnmaError, match=r"a\.json: .*file"):
        score_files.read_score_files(tmp_path)
