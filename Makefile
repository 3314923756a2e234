# Every target makes what it needs: `make demo` and `make test` work on a clean clone.
#   make install             .venv at the root with all that the other targets use
#   make demo  [ARGS=...]    an ensemble forecast of trajectories the model has never seen
#   make test  [ARGS=...]    the quick tests, by WORKERS=2 processes; with ARGS, what they name by one
#   make test-full           those, and the tests marked slow or kill; a change must pass make lint and make test-full
#   make lint, make check    format (C too), lint, types, spelling; and with them the quick tests/packaging but for builds
#   make docs                the documentation site, into out/site; a warning is an error
#   make libenma [PREFIX=...]  the C library, for CMake and pkg-config (docs/embedding.md); make embed: all its tests
#   make gpu   [DRY=1] [ONLY=...]  on a bare GPU machine, no network: build, benchmarks, tests, sanitizers; DRY: compile only
#   make gpu-wheels [GPU_PYTHON=3.12]  before, with a network: wheels for that machine's Python, into out/gpu-wheels
#   make clean               what was built in the tree; .venv and out/ stay
PYTHON ?= python3
TORCH ?= torch>=2.11
ARGS ?=
# Processes that share the tests; a run of its own choice (ARGS) is one process.
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.enma_fast_installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SHARED = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
EXTRAS := data,store,plots,triton,cf,docs,test,dev
# Tests start hundreds of processes, which would compile their modules each time where the environment keeps no bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test test-full lint check docs libenma embed gpu gpu-wheels clean

install: $(STAMP)

# The extension is compiled against the Torch already there: two steps. Bytecode of all files would take half a minute.
$(STAMP): pyproject.toml setup.py $(shell find csrc -type f 2>/dev/null)
	@$(PYTHON) -c 'import sys; sys.exit("enma-fast needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "installing into .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --no-compile "setuptools>=77" wheel ninja "$(TORCH)"
	@$(PIP) install --no-compile --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

demo: install ; @$(BIN)/enma-fast demo $(ARGS)

test: install
	@$(BIN)/python -m pytest $(or $(ARGS),$(SHARED) -m "not slow and not kill")

test-full: install
	@$(BIN)/python -m pytest $(SHARED)

lint: install
	@$(BIN)/ruff format --check --quiet . || { echo "fix with: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet . && $(BIN)/mypy && $(BIN)/codespell && $(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu*')

check: lint  # without test_build.py and test_extension.py, which build the distributions
	@$(BIN)/python -m pytest --quiet -m "not slow" tests/packaging --ignore=tests/packaging/test_build.py --ignore=tests/packaging/test_extension.py

docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo "out/site/index.html"

libenma: ; @cmake -S csrc -B out/libenma -DCMAKE_INSTALL_PREFIX=$(abspath $(or $(PREFIX),out/prefix)) && cmake --build out/libenma && cmake --install out/libenma
embed: install ; @sh tests/runtime/embed.sh $(abspath $(BIN))/python $(ARGS)
gpu: $(if $(DRY),install)
	@$(if $(DRY),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(if $(DRY),--dry) $(if $(ONLY),--only $(ONLY))

gpu-wheels:
	@$(PYTHON) -m pip download --quiet --dest out/gpu-wheels --only-binary=:all: --python-version $(or $(GPU_PYTHON),3.12) \
		--platform manylinux2014_x86_64 numpy pydantic pytest rich safetensors typer ninja "setuptools>=77" wheel

clean:
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .benchmarks .hypothesis enma_fast/embed $(STAMP) enma_fast/_C*.so
	@find enma_fast kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
