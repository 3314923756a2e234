"""No link or other file beside a store or in it makes a run write elsewhere."""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from enma_fast.errors import EnmaError
from enma_fast.store.layout import LEDGER
from enma_fast.utils.files import open_file, read_file, remove, remove_temporaries, write_atomic, write_file
from tests._made import create_store

from .._files import contents
from .._runs import prepare

ROOT = Path(__file__).resolve().parents[2] / "enma_fast"
SECRET = b"somebody else's"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder and a file outside, which no run may change."""
    folder = tmp_path / "other"
    (folder / "u").mkdir(parents=True)
    for name in ("file", "u/file"):
        (folder / name).write_bytes(SECRET)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def start(test_in: Path, tiny: Path, out: Path, **options):
    return prepare(test_in, out, checkpoint=tiny, num_members=2, trajectories=[0], **options)


@pytest.mark.parametrize("name", [".run.zarr.lock", ".run.zarr.tmp", ".run.zarr.old"])
@pytest.mark.parametrize("target", ["file", "u", "nowhere"])
def test_a_link_beside_the_store_is_not_followed(
    test_in: Path, tiny: Path, place: Path, other: Path, name: str, target: str
) -> None:
    (place / name).symlink_to(other / target)
    before = contents(other)
    if name.endswith("lock"):
        with pytest.raises(EnmaError, match=r"run\.zarr: .*written"):
            start(test_in, tiny, place / "run.zarr").execute()
    else:
        assert start(test_in, tiny, place / "run.zarr").execute()["members_sampled"] == 2
        assert os.listdir(place) == ["run.zarr"]
    assert contents(other) == before
    assert sorted(path.name for path in other.iterdir()) == ["file", "u"]


def test_a_second_name_of_a_file_is_no_lock(test_in: Path, tiny: Path, place: Path, other: Path) -> None:
    os.link(other / "file", place / ".run.zarr.lock")
    with pytest.raises(EnmaError, match=r"run\.zarr: .*written"):
        start(test_in, tiny, place / "run.zarr").execute()
    assert (other / "file").read_bytes() == SECRET


@pytest.mark.parametrize("name", ["u", LEDGER, ".checksums", "u/.c.0.1.0.0.tmp", "u/c.0.1.0.0"])
def test_a_link_in_the_store_is_not_followed(
    test_in: Path, tiny: Path, place: Path, other: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("enma_fast.runs.run.Run._finish", lambda run: None)
        start(test_in, tiny, out).execute()
    with open(out / LEDGER, "r+b") as ledger:
        ledger.seek(-1, os.SEEK_END)
        ledger.write(b"\0")
    remove(out / name)
    (out / name).symlink_to(other / ("u" if name == "u" else "file"))
    before = contents(other)
    if name.startswith("u/"):
        # It is replaced.
        assert start(test_in, tiny, out).execute()["members_sampled"] == 1
        assert not (out / name).is_symlink()
    else:
        with pytest.raises(EnmaError, match=r"run\.zarr"):
            start(test_in, tiny, out).execute()
    assert contents(other) == before


def test_a_store_that_a_user_names_by_a_link_is_written_where_it_leads(
    test_in: Path, tiny: Path, place: Path, other: Path
) -> None:
    (place / "link").symlink_to(other)
    for out in (place / "link" / "run.zarr", place / "run.zarr"):
        if out.parent == place:
            out.symlink_to(other / "run.zarr")
        assert start(test_in, tiny, out, force=out.exists()).execute()["members_sampled"] == 2
        assert not (other / "run.zarr").is_symlink()
        assert (other / "run.zarr" / "u" / "c.0.1.0.0").is_file()


def test_links_are_replaced_and_never_written_through(place: Path, other: Path) -> None:
    for write in (write_file, write_atomic):
        (place / "a").symlink_to(other / "file")
        (place / ".a.tmp").symlink_to(other / "file")
        write(place / "a", b"new")
        assert (place / "a").read_bytes() == b"new"
        assert not (place / "a").is_symlink()
        shutil.rmtree(place)
        place.mkdir()
    (place / "folder").symlink_to(other)
    with pytest.raises(OSError, match="Not a directory"):
        write_file(place / "folder" / "a", b"new")
    os.mkfifo(place / "pipe")
    for opened in (lambda: open_file(place / "pipe", os.O_RDWR), lambda: read_file(place / "pipe")):
        with pytest.raises(OSError, match="regular file"):
            opened()
    with pytest.raises(OSError, match=r"most 10\b"):
        read_file(other / "file", most=10)
    remove(place / "folder")
    assert (other / "file").read_bytes() == SECRET


def test_processes_that_write_one_file_never_show_a_part_of_it(place: Path) -> None:
    """As two do where one has taken over from another that was stopped."""
    path, data, short = place / "file", bytes(4 << 20), []
    write_file(path, data)
    writers = [threading.Thread(target=lambda: [write_file(path, data) for _ in range(6)]) for _ in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        short += [size for size in [path.stat().st_size] if size != len(data)]
    assert short == []
    assert os.listdir(place) == ["file"]


def test_a_write_that_fails_leaves_nothing(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_file(place / "a", b"new")
    assert os.listdir(place) == ["a"]


def test_a_temporary_file_that_was_taken_for_one_that_was_left_is_written_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, removed = os.rename, []

    def late(source: str, target: str, **folders: int) -> None:
        if not removed:
            removed.extend(os.listdir(place))
            remove_temporaries(place)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", late)
    write_file(place / "a", b"new")
    assert [name[:3] for name in removed] == [".a."]
    assert os.listdir(place) == ["a"]
    assert (place / "a").read_bytes() == b"new"


def test_only_temporary_files_are_removed(place: Path, other: Path) -> None:
    for name in (".a.01234567.tmp", ".a.tmp", "a.tmp", ".a"):
        (place / name).write_bytes(b"")
    (place / ".b.tmp").symlink_to(other / "file")
    (place / ".c.tmp").mkdir()
    remove_temporaries(place)
    assert sorted(os.listdir(place)) == [".a", ".c.tmp", "a.tmp"]
    assert (other / "file").read_bytes() == SECRET


@pytest.mark.parametrize("how", ["run", "at once"])
def test_a_refusal_leaves_no_folders_behind(
    test_in: Path, tiny: Path, place: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "a" / "b" / "run.zarr"

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("enma_fast.store.create._write_empty_store", fail)
    options = {"channels": ("u",), "times": [0.0], "coords": [[0.0]], "trajectories": [0], "num_members": 1}
    make = start(test_in, tiny, out).execute if how == "run" else create_store(out, **options).__enter__
    with pytest.raises(EnmaError, match="No space"):
        make()
    assert list(place.iterdir()) == []


def test_nothing_of_a_store_is_written_past_the_safe_files() -> None:
    """Only one module creates, opens for writing, renames or removes files of a store."""
    going_around = re.compile(
        r"os\.(open|rename|replace|mkdir|makedirs|link|symlink|truncate)\(|\bopen\([^)]*[\"'][wax]|\.open\(\s*[\"'][wax]"
        r"|write_text|write_bytes|\.mkdir\(|\.touch\(|\.rename\(|\.replace\(path|shutil\.|mkstemp|NamedTemporary|symlink_to"
    )
    allowed = {
        # A folder that is only waited for, and the place that is tried.
        "chunks.py": ["os.open(folder, os.O_RDONLY)"],
        "location.py": ["shutil.disk_usage(folder)", "tempfile.mkdtemp("],
    }
    modules = [*sorted((ROOT / "store").glob("*.py")), *sorted((ROOT / "runs").glob("*.py"))]
    modules.append(ROOT / "evaluation" / "store_scores.py")
    assert {"create.py", "forecast_store.py", "run.py", "saved_statistics.py"} <= {path.name for path in modules}
    found = []
    for path in modules:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            known = any(part in line for part in allowed.get(path.name, []))
            if going_around.search(line) and not known and not line.strip().startswith(("#", "import")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
