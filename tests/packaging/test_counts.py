"""Counts of the source stay below their limits, which a change may only lower (`python -m tests.packaging._counts`)."""

import ast
from pathlib import Path

import pytest

from ._counts import COUNTS, ROOT, limits, number, stage_comparisons, torch_headers, wide_functions
from ._expectations import is_sentence, pinned_messages, private_names
from ._kinds import branches_of, classes_of_kinds, cpp_branches
from ._syntax import Tree


@pytest.fixture(scope="module")
def tree() -> Tree:
    """The checkout."""
    return Tree(ROOT)


def test_each_count_has_a_limit() -> None:
    assert list(limits()) == list(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_count_is_within_its_limit(name: str, tree: Tree) -> None:
    found, most = COUNTS[name](tree), limits()[name]
    places = [] if isinstance(found, int) else found
    assert number(found) <= most, "\n".join((f"{COUNTS[name].__doc__} At most {most}; now:", *places))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("if model.config.dynamics.decoder == 'one-pass': f()", 1),
        ("x = 1 if layer in ('space', 'time') else 2", 1),
        ("if codec.kind != 'blocks': f()", 1),
        ("y = tok.interpolation is not None and not tok.lossless", 2),
        ("def f(model):\n    head = model.dynamics.local\n    return head is None", 1),
        ("def f(model):\n    if (head := model.flow): head()", 1),
        ("n = config.layers.count('space')", 1),
        ("isinstance(decoder, FlowDecoder)", 1),
        ("match x:\n    case FlowDecoder(): f()\n    case 'one-pass': g()", 2),
        # Other meanings of the same words.
        ("if array.dtype.kind == 'f' or 'time' in data.sizes or axis == 'points': f()", 0),
        ("x = lock.first or stream.read(3)", 0),
        ("if self.first: f()", 0),
        ("layers = ('space', 'residual')", 0),
        ("y = dynamics.local(x)", 0),
    ],
)
def test_branches_are_recognised(text: str, count: int, tree: Tree) -> None:
    assert len(branches_of("enma_fast/sampling/a.py", ast.parse(text), classes_of_kinds(tree))) == count


def test_a_kind_may_be_known_in_its_own_file(tree: Tree) -> None:
    text = ast.parse("if layer == 'space' and model.local is None: f()")
    found = {
        path: branches_of(path, text, {})
        for path in (
            "enma_fast/models/codecs/conv.py",
            "enma_fast/models/decoders/local.py",
            "enma_fast/models/format_1.py",
        )
    }
    assert [len(places) for places in found.values()] == [1, 1, 0]


def written(root: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def test_branches_of_cpp_are_recognised(tmp_path: Path) -> None:
    text = """
        // if (model.one_pass) in words
        if (model->one_pass && config.local) f();
        g(m.first == nullptr ? 1 : 2);
        if (frame_ == 0 || kind == DecoderKind::flow || text == "masked-flow") f();
        local_head(view, first ? a : b);
    """
    tree = written(tmp_path, {"csrc/runtime/a.cpp": text, "csrc/runtime/decoder_local.cpp": "if (config.local) f();"})
    assert [place.partition(": ")[2] for place in cpp_branches(tree)] == [
        "model->one_pass",
        "config.local",
        "m.first",
        "frame_ == 0",
        "DecoderKind::flow",
        '"masked-flow"',
    ]


def test_comparisons_of_stages_are_recognised(tmp_path: Path) -> None:
    text = """
if stage in ("head", "forecasts"): f()
COUNTS = {"tokenizer": 200, "dynamics": 48}
COUNTS["head"] + scores["forecasts"]
config = {"dynamics": x, "sampling": y}
record["tokenizer"]
"""
    tree = written(tmp_path, {"enma_fast/training/a.py": text})
    assert sorted(place.partition(".py:")[2] for place in stage_comparisons(tree)) == [
        "2: head",
        "3: dynamics",
        "3: tokenizer",
        "4: forecasts",
        "4: head",
    ]


def test_wide_functions_and_headers_are_recognised(tmp_path: Path) -> None:
    names = ", ".join("abcdefgh")
    tree = written(
        tmp_path,
        {
            "enma_fast/a.py": f"class A:\n    def f(self, {names}): ...\n    def g(self, {names}, *, i): ...\n",
            "csrc/a.cpp": "#include <vector>\n",
            "csrc/b.h": "# include <torch/torch.h>\n",
        },
    )
    assert wide_functions(tree) == ["enma_fast/a.py:3: g has 9"]
    assert torch_headers(tree) == [str(tmp_path / "csrc/b.h")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (r"^num_frames\b", False),
        (r"a\.zarr: u", False),
        (r"^points: .*context_points", False),
        ("holds no truth", True),
        ("a" * 31, True),
        (r"line 3, x is inf; write a number", True),
    ],
)
def test_sentences_are_recognised(text: str, sentence: bool) -> None:
    assert is_sentence(text) is sentence


def test_expectations_of_errors_are_found_where_they_stand(tmp_path: Path) -> None:
    text = """
@pytest.mark.parametrize(("value", "message"), [("one of these rows", "and this is a sentence")])
def test(value, message):
    with pytest.raises(EnmaError, match=f"{value}: {message}"): f()
    with pytest.raises(EnmaError, match="this is a sentence") as error: f()
    said = str(error.value)
    assert "here is one more" in said
    assert str(error.value).startswith("they are many, many")
    assert "of other text" in output
"""
    found = pinned_messages(written(tmp_path, {"tests/a.py": text}))
    assert [int(place.split(":")[1]) for place in found] == [2, 2, 5, 7, 8]


def test_private_names_are_recognised(tmp_path: Path) -> None:
    text = """
from enma_fast import _C
from enma_fast.data import well
from enma_fast.data.well import _read
monkeypatch.setattr("enma_fast.store.ledger._PATIENCE", 1)
well._BYTES, well.__file__, other._BYTES
"""
    found = private_names(written(tmp_path, {"tests/a.py": text}))
    assert {place.rpartition(".")[2] for place in found} == {"_read", "_BYTES", "_PATIENCE"}
    assert len(found) == 3
