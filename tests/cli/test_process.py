"""`enma-fast` as a process: exit status, what goes to which stream, tracebacks, ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enma_fast import cli
from enma_fast.data import write
from enma_fast.models.checkpoint import load_model
from enma_fast.store.read import read_forecast
from enma_fast.training.recipes import Recipe, to_toml
from enma_fast.utils.dataclass_json import from_json
from tests._stacked import stacked
from tests._tiny_checkpoint import tiny_config

ROOT = Path(__file__).resolve().parents[2]


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "enma_fast", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_json_is_all_there_is_on_standard_output(tiny: Path, test_in: Path) -> None:
    run = process("score", test_in, "-c", tiny, "--members", 2, "--limit", 1, "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["num_members"] == 2
    assert run.stdout.count("\n") == 1
    assert run.stderr == "", "progress is for terminals"


def test_bad_input_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    run = process("score", tmp_path / "no.h5", "--json")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: {tmp_path / 'no.h5'}: no such file; check the path\n"


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "iso-8859-9"])
def test_characters_that_a_locale_lacks_are_escapes(tmp_path: Path, encoding: str) -> None:
    path = write(
        tmp_path / "fields.h5",
        name="fields",
        times=np.arange(3) * 0.1,
        coords=[np.arange(8) * 0.1],
        periodic=[True],
        scalars={"environment": np.zeros(2), "ρ": np.ones(2)},
        t0_fields={"温度": np.ones((2, 3, 8), np.float32)},
    )
    run = process("data", "info", path, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (run.returncode, run.stderr) == (0, "")
    assert r"\u6e29\u5ea6" in run.stdout
    assert r"\u03c1" in run.stdout


def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    enma: Callable, tiny: Path, test_in: Path, tmp_path: Path, files_of: Callable
) -> None:
    out = tmp_path / "run.zarr"
    command = ("forecast", test_in, "-c", tiny, "--out", out, "--members", 256, "--shard", 4, "--select", 0, "--quiet")
    # The store's metadata fit, its chunks do not.
    with files_of(30000):
        full = enma(*command)
    assert full.error().startswith(f"{out}: cannot be written ([Errno 27] File too large); what was written is kept")
    done = enma(*command)
    assert (done.status, done.out, done.err) == (0, "", "")
    assert not np.isnan(stacked(read_forecast(out))).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score",), "Missing argument 'FILE'"),
        (("score", "a.h5", "--members", "many"), "Invalid value for '--members'"),
        (("score", "a.h5", "--colour"), "No such option: --colour"),
        (("train", "combined-small", "--out", "o", "--threads", "0"), "Invalid value for"),
        (("dance",), "No such command 'dance'"),
    ],
)
def test_bad_usage_is_one_line_too(enma: Callable, arguments: tuple, message: str) -> None:
    error = enma(*arguments).error()
    assert error.startswith(message)
    assert error.endswith(" --help"), "it says where to look"


def test_no_arguments_and_help(enma: Callable) -> None:
    commands = {"demo", "data", "train", "publish", "forecast", "score", "plot", "info", "verify"}
    shown = enma("--help")
    assert shown.status == 0
    found = {line.split()[1] for line in shown.out.splitlines() if line.startswith("│") and len(line.split()) > 2}
    assert commands <= found
    for group in commands:
        assert enma(group, "--help").status == 0


def test_every_command_has_json(enma: Callable) -> None:
    commands = ["demo", "forecast", "score", "plot", "info", "verify"]
    commands += ["data generate", "data info", "train", "publish"]
    for command in commands:
        assert "--json" in enma(*command.split(), "--help").out, command


def test_a_failure_is_status_1_and_a_traceback_only_under_debug(
    enma: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import enma_fast.data

    def fail(path: Path) -> None:
        raise RuntimeError("out of luck\n  in two lines")

    monkeypatch.setattr(enma_fast.data, "describe", fail)
    run = enma("data", "info", tmp_path / "a.h5")
    assert (run.status, run.out, run.err) == (1, "", "error: RuntimeError: out of luck in two lines\n")
    for arguments in (("--debug", "data", "info", "a.h5"), ("data", "info", "a.h5", "--debug")):
        with pytest.raises(RuntimeError, match="luck"):
            enma(*arguments)

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(enma_fast.data, "describe", interrupt)
    run = enma("data", "info", "a.h5")
    assert (run.status, run.err) == (130, "error: interrupted\n")


def test_numbers_in_tables() -> None:
    from enma_fast.commands.terminal import number

    shown = [number(x) for x in (None, 0.0, 0.00786, 0.01, 0.123456, 12.3456, 123456.0, -0.001)]
    assert shown == ["-", "0", "7.86e-3", "0.01", "0.123", "12.3", "1.23e5", "-1.00e-3"]


def test_a_handler_writes_to_the_standard_error_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    with cli._log_to_stderr():
        logging.getLogger("enma_fast").info("step %d", 3)
    assert capsys.readouterr().err == "step 3\n"


@pytest.mark.slow
def test_two_ranks_train_and_one_of_them_speaks(data_folder: Path, tiny: Path, tmp_path: Path) -> None:
    stage = {"kind": "dynamics", "steps": 2, "batch": 4}
    document = {"model": tiny_config("combined-small"), "stage": [stage]}
    (tmp_path / "tiny.toml").write_text(to_toml(from_json(Recipe, json.dumps(document))))
    arguments = ["train", tmp_path / "tiny.toml", "--from", tiny, "--data", data_folder]
    arguments += ["--out", tmp_path / "run", "--threads", 1, "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "enma_fast"]
    run = subprocess.run([*launch, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["training"]["stages"]["dynamics"]["steps"] == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["ranks"] == 2
    assert load_model(result["checkpoint"]).config.context.width == 16
    assert run.stderr.count("step 2: rel_l2") == 1
    assert "step 2: \n" not in run.stderr
