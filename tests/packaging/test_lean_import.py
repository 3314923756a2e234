"""`import enma_fast` is cheap: it loads no optional or heavy package, starts no GPU and shows few names."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "exponax",
    "h5netcdf",
    "h5py",
    "jax",
    "matplotlib",
    "pandas",
    "pydantic",
    "rich",
    "scipy",
    "triton",
    "typer",
    "xarray",
    "zarr",
)
MAX_PUBLIC_NAMES = 15

# Modules that bare torch and numpy load do not count, so they are subtracted.
PROBE = """
import json, logging, sys
import numpy, torch
before = set(sys.modules)
handlers, threads = list(logging.getLogger().handlers), torch.get_num_threads()
import enma_fast
if {resolve}:
    for name in enma_fast.__all__:
        getattr(enma_fast, name)
loaded = set(sys.modules) - before
if {resolve}:
    from enma_fast.models.checkpoint import load_model
    for name in ("combined-fast", "combined", "wave"):
        load_model(name)
print(json.dumps({{
    "loaded": sorted({{name.partition(".")[0] for name in loaded}}),
    "compiler": "torch._dynamo" in sys.modules and "torch._dynamo" not in before,
    "public": list(enma_fast.__all__),
    "cuda": torch.cuda.is_initialized(),
    "handlers": logging.getLogger().handlers != handlers,
    "threads": torch.get_num_threads() != threads,
}}))
"""


@pytest.fixture(scope="module", params=[False, True], ids=["import", "every-public-name"])
def probe(request: pytest.FixtureRequest) -> dict:
    """The state of a fresh interpreter after the import, without and with each public name resolved."""
    command = [sys.executable, "-c", PROBE.format(resolve=request.param)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_loads_nothing_heavy(probe: dict) -> None:
    found = sorted(set(HEAVY) & set(probe["loaded"]))
    assert "enma_fast" in probe["loaded"]
    assert not found, f"import enma_fast loads {', '.join(found)}: import inside the function that needs it"


def test_a_checkpoint_loads_without_the_compiler(probe: dict) -> None:
    assert not probe["compiler"], "a model made on the meta device does arithmetic there, which loads torch.compile"


def test_changes_no_global_state(probe: dict) -> None:
    assert not probe["cuda"], "import enma_fast initialises CUDA"
    assert not probe["handlers"], "import enma_fast adds handlers to the root logger"
    assert not probe["threads"], "import enma_fast changes the number of threads"


def test_few_public_names(probe: dict) -> None:
    names = probe["public"]
    assert 0 < len(names) == len(set(names)) <= MAX_PUBLIC_NAMES, f"enma_fast.__all__ holds {names}"
