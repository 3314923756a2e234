"""One bit, one file: `verify` names it, the same command writes it again and nothing else, and nobody reads it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enma_fast.cli import main
from enma_fast.errors import EnmaError
from enma_fast.store.checksums import CHECKSUMS
from enma_fast.store.layout import LEDGER
from enma_fast.store.read import read_forecast

from .._files import contents
from ._harness import Server, beside, identities

COMMON = ("--members", 5, "--select", "1:3", "--chunk", 2)
KINDS = {
    "members": ("--quantiles", "0.1,0.9"),
    "shards": ("--shard", 3),
    "statistics": ("--statistics-only", "--exceedance", "0.2"),
}
# File, and what verify calls it.
SAMPLED = [
    ("members", "u/c.0.3.0.0", "u of member 3 of trajectory 1"),
    ("members", "u_mean/c.1.0.0", "mean of u of trajectory 2"),
    ("members", "u_quantile/c.0.0.0.0", "quantile of u of trajectory 1"),
    ("shards", "u/c.1.0.0.0", "u of members 0 to 2 of trajectory 2"),
    ("shards", "u/c.0.1.0.0", "u of members 3 to 4 of trajectory 1"),
    ("statistics", "u_spread/c.0.0.0", "spread of u of trajectory 1"),
    ("statistics", "u_exceedance/c.1.0.0.0", "exceedance of u of trajectory 2"),
]
FIXED = [
    *(f"{name}/c.0" for name in ("trajectory", "realization", "time", "x", "alpha", "environment")),
    "u_truth/c.1.0.0",
    "u_observed/c.0.0.0",
    "u/zarr.json",
    "time/zarr.json",
]
DAMAGES = ("flip", "truncate", "delete", "empty")


def damage(path: Path, how: str, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "flip":
        bit = int(np.random.default_rng(seed).integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2 if how == "truncate" else 0])


def statistics(files: dict[str, bytes], trajectory: int) -> set[str]:
    """Names of the files of the statistics of a trajectory."""
    return {name for name in files if re.match(rf"u_(mean|spread|quantile|exceedance)/c\.{trajectory}\.", name)}


@pytest.fixture(scope="module")
def stores(server: Server, test_in: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """A store of each kind, with the command that wrote it and its files."""
    made = {}
    for kind, options in KINDS.items():
        out = tmp_path_factory.mktemp(kind) / "run.zarr"
        command = ("forecast", test_in, "--out", out, "-c", tiny, *COMMON, *options, "--json")
        assert server.run(*command).status == 0
        made[kind] = (out, command, contents(out))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_whole(server: Server, stores: dict, kind: str) -> None:
    out, _, whole = stores[kind]
    found = server.run("verify", out, "--json").json
    assert (found["damaged"], found["unfinished"]) == ([], False)
    assert server.run("verify", out).out.strip() == f"{out}: whole"
    assert contents(out) == whole


@pytest.mark.each_value
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(("kind", "file", "holds"), SAMPLED)
def test_a_damaged_file_is_named_and_written_again_alone(
    server: Server, stores: dict, kind: str, file: str, holds: str, how: str
) -> None:
    out, command, whole = stores[kind]
    before = identities(out)
    name = file.split("/")[0]
    original = read_forecast(out)[name].to_numpy()
    damage(out / file, how)
    try:
        values = read_forecast(out)[name].to_numpy()
    except Exception:
        lost = None
    else:
        lost = np.isnan(values)
    if lost is not None:
        # To Zarr a chunk is missing if its file is, or if a shard is empty.
        assert how == "delete" or (how, kind) == ("empty", "shards")
        assert lost.any()
        np.testing.assert_array_equal(values[~lost], original[~lost])
    found = server.run("verify", out, "--mark", "--json")
    assert found.error().startswith(f"{out}: {file} (")
    (entry,) = found.json["damaged"]
    assert (entry["file"], entry["holds"]) == (file, holds)
    said = {"flip": "flipped", "truncate": "torn", "empty": "torn: 0 bytes", "delete": "missing"}
    assert entry["problem"].startswith(said[how])
    with pytest.raises(EnmaError, match="finished"):
        read_forecast(out)
    again = server.run(*command)
    assert again.status == 0, again.err
    assert contents(out) == whole
    assert beside(out) == []
    after = identities(out)
    changed = {name for name in after if after[name] != before[name]}
    # The statistics of a trajectory are made together.
    own = {file} if file.startswith("u/") else statistics(whole, int(file.split(".")[1]))
    assert {file} <= changed - {CHECKSUMS} <= own


@pytest.mark.parametrize("byte", [0, 8708, 26123, 26124, 26131, 26140, -5, -1])
def test_any_part_of_a_shard_is_checked(server: Server, stores: dict, byte: int) -> None:
    """Values, their sums, and the index and its own sum."""
    out, command, whole = stores["shards"]
    file = out / "u" / "c.0.0.0.0"
    data = bytearray(file.read_bytes())
    assert len(data) == 3 * (4 * 17 * 128 + 4) + 3 * 16 + 4
    data[byte] ^= 16
    file.write_bytes(data)
    with pytest.raises(Exception, match=r"."):
        read_forecast(out)["u"][0, :3].to_numpy()
    assert "u/c.0.0.0.0 (flipped" in server.run("verify", out, "--mark").error()
    assert server.run(*command).json["members_sampled"] == 3
    assert contents(out) == whole


def test_several_files_at_once(server: Server, stores: dict) -> None:
    out, command, whole = stores["members"]
    before = identities(out)
    names = ["u/c.0.0.0.0", "u/c.1.4.0.0", "u_spread/c.1.0.0"]
    for name, how in zip(names, DAMAGES, strict=False):
        damage(out / name, how)
    found = server.run("verify", out, "--mark", "--json")
    assert (
        f"{out}: u/c.0.0.0.0 (flipped: its CRC-32C differs) and 2 more are damaged and marked; repeat: "
        in found.error()
    )
    assert {entry["file"] for entry in found.json["damaged"]} == set(names)
    assert server.run(*command).json["members_sampled"] == 2
    assert contents(out) == whole
    after = identities(out)
    changed = {name for name in after if after[name] != before[name]}
    assert set(names) <= changed - {CHECKSUMS} <= {*names, *statistics(whole, 1)}


@pytest.mark.each_value
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", FIXED)
def test_damage_of_what_is_written_once_is_named_and_repaired(
    server: Server, stores: dict, file: str, how: str
) -> None:
    out, command, whole = stores["members"]
    damage(out / file, how, seed=1)
    before = identities(out)
    told = server.run("verify", out, "--mark", "--json")
    assert told.error().startswith(f"{out}: {file} (")
    assert told.error().endswith(f"--out {out}")
    assert [entry["file"] for entry in told.json["damaged"]] == [file]
    # Nothing was sampled in vain: no member is unmarked.
    assert not (out / LEDGER).exists()
    assert "damaged" in server.run("score", out).error()
    assert server.run(*command).json["members_sampled"] == 0
    assert contents(out) == whole
    after = identities(out)
    assert {name for name in after if after[name] != before.get(name)} <= {file}
    assert beside(out) == []
    assert server.run("verify", out).status == 0


def test_what_somebody_else_has_repaired_is_no_damage(server: Server, stores: dict) -> None:
    out, _, whole = stores["members"]
    damage(out / "x" / "c.0", "flip")
    assert server.run("verify", out, "--mark").status == 2
    (out / "x" / "c.0").write_bytes(whole["x/c.0"])
    assert ".damaged (names files that are whole)" in server.run("verify", out).error()
    assert ".damaged (names files that are whole)" in server.run("verify", out, "--mark").error()
    assert server.run("verify", out).status == 0
    assert contents(out) == whole


def test_the_metadata_of_an_array_are_in_the_store_twice(server: Server, stores: dict) -> None:
    """Whichever of the two is damaged."""
    out, command, whole = stores["members"]
    damaged = whole["zarr.json"].replace(b'"long_name": "true u"', b'"long_name": "trve u"')
    assert damaged != whole["zarr.json"]
    (out / "zarr.json").write_bytes(damaged)
    assert "u_truth/zarr.json (differs from the metadata of the store)" in server.run("verify", out, "--mark").error()
    assert server.run(*command).status == 0
    assert contents(out) == whole


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_a_coordinate_that_nobody_knows_to_be_damaged_is_named(server: Server, stores: dict, how: str) -> None:
    out, command, whole = stores["members"]
    damage(out / "x" / "c.0", how)
    reads = ("report", out, "--out", out.with_name("report.html"))
    for line in (command, *([reads] if how == "delete" else [])):
        error = server.run(*line).error()
        assert error.startswith(f"{out}: its x cannot be read (")
        assert error.count("cannot be read") == 1
        assert error.endswith(f"run: enma-fast verify {out}")
    assert server.run("verify", out, "--mark").status == 2
    assert server.run(*command).status == 0
    assert contents(out) == whole


@pytest.mark.slow
def test_a_repair_that_is_killed_is_done_by_the_next(server: Server, stores: dict) -> None:
    out, command, whole = stores["members"]
    trace, file = out.with_name("trace"), "u_truth/c.1.0.0"

    def spoil() -> None:
        damage(out / file, "flip")
        assert server.run("verify", out, "--mark").status == 2

    spoil()
    assert server.run(*command, trap={"folder": str(out.parent), "trace": str(trace)}).status == 0
    count = len(trace.read_text().splitlines())
    trace.unlink()
    assert count >= 20
    for number in [*range(1, count, 7), count]:
        spoil()
        assert server.run(*command, trap={"folder": str(out.parent), "how": "kill", "at": [number]}).status == -9
        assert server.run(*command).status == 0
        assert contents(out) == whole
        assert beside(out) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 500, b"[]", b"null", b'{"zarr_format": 3}'])
def test_metadata_that_are_none_are_one_line(stores: dict, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    out, command, whole = stores["members"]
    (out / "zarr.json").write_bytes(content)
    try:
        for arguments in (("verify", out), command):
            assert main([str(argument) for argument in arguments]) == 2
            told = capfd.readouterr().err
            assert told.startswith(f"error: {out}: ")
            assert told.count("\n") == 1
    finally:
        (out / "zarr.json").write_bytes(whole["zarr.json"])


def test_a_flipped_bit_in_the_metadata_is_never_a_crash(stores: dict, capfd: pytest.CaptureFixture[str]) -> None:
    """Most are damage or no store at all; a letter of a text changes no more than this text."""
    out, _, whole = stores["members"]
    seen = 0
    try:
        for seed in range(40):
            (out / "zarr.json").write_bytes(whole["zarr.json"])
            damage(out / "zarr.json", "flip", seed)
            status = main(["verify", str(out)])
            told = capfd.readouterr().err
            assert (status, told) == (0, "") or (status == 2 and told.count("\n") == 1), (seed, told)
            seen += status == 2
    finally:
        (out / "zarr.json").write_bytes(whole["zarr.json"])
    assert seen >= 20


LEDGERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "garbage": lambda data: bytes(range(len(data))),
    "chunk": lambda data: data[:8] + b"\xff" * 8 + data[16:],
}


@pytest.mark.parametrize("ledger", LEDGERS)
def test_a_damaged_ledger_is_one_line(server: Server, test_in: Path, tiny: Path, quick: Path, ledger: str) -> None:
    out = quick / "run.zarr"
    command = ("forecast", test_in, "--out", out, "-c", tiny, "--members", 3, "--select", 0)
    trap = {"folder": str(quick), "how": "kill", "match": "/run.zarr/u/", "at": [1]}
    assert server.run(*command, trap=trap).status == -9
    path = out / LEDGER
    path.write_bytes(LEDGERS[ledger](path.read_bytes()))
    for arguments in (command, ("verify", out)):
        assert server.run(*arguments).error().startswith(f"{path}: is not the ledger of 3 units; write the forecast")
    assert server.run(*command, "--force").status == 0
    assert server.run("verify", out).status == 0


def test_units_of_a_ledger_that_are_neither_are_sampled_again(server: Server, stores: dict) -> None:
    """Half a shard that is noted as done, and noise: what is not surely done is missing."""
    out, command, whole = stores["shards"]
    (out / LEDGER).write_bytes(b"enmaunit" + bytes(8) + bytes([1, 0, 1, 1, 1, 255, 7, 3, 1, 1]))
    assert server.run(*command).json["members_sampled"] == 6
    assert contents(out) == whole


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_verify_that_is_killed_hides_nothing(server: Server, stores: dict, every: int) -> None:
    out, command, whole = stores["members"]
    trace = out.with_name("trace")
    damage(out / "u" / "c.0.1.0.0", "flip")
    assert server.run("verify", out, "--mark", trap={"folder": str(out.parent), "trace": str(trace)}).status == 2
    (out / LEDGER).unlink()
    count = len(trace.read_text().splitlines())
    trace.unlink()
    assert count >= 5
    for number in range(1, count + 1, every):
        trap = {"folder": str(out.parent), "how": "kill", "at": [number]}
        assert server.run("verify", out, "--mark", trap=trap).status == -9
        again = server.run(*command)
        assert again.status == 0, again.err
        # Before the ledger is there, nothing has been noted.
        if again.json["members_sampled"] == 0:
            assert "u/c.0.1.0.0 (flipped" in server.run("verify", out, "--mark").error()
            assert server.run(*command).json["members_sampled"] == 1
        assert contents(out) == whole
        assert beside(out) == []
        damage(out / "u" / "c.0.1.0.0", "flip")
    (out / "u" / "c.0.1.0.0").write_bytes(whole["u/c.0.1.0.0"])
