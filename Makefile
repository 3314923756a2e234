# Every target makes what it needs: `make demo` and `make test` work on a clean clone.
#   make install             .venv at the root with what demo and test use; a target that needs more adds it
#   make demo  [ARGS=...]    an ensemble forecast of trajectories the model has never seen
#   make test  [ARGS=...]    the quick tests, by WORKERS=2 processes; with ARGS, what they name by one
#   make test-full           those, and the tests marked slow or kill; a change must pass make lint and make test-full
#   make lint, make check    format (C too), lint, types, spelling; and with them the quick tests/packaging but for builds
#   make docs                the documentation site, into out/site; a warning is an error
#   make libenma [PREFIX=...]  the C library (docs/embedding.md); make embed: all its tests; make wheel: wheels, into dist/
#   make gpu   [DRY=1] [ONLY=...]  on a bare GPU machine, no network, in calls of ten minutes (benchmarks/gpu.py); DRY: compile only
#   make gpu-wheels [GPU_PYTHON=3.12]  before, with a network: wheels for that machine's Python, into out/gpu-wheels
#   make clean               what was built in the tree; .venv and out/ stay
PYTHON ?= python3
TORCH ?= torch>=2.11
ARGS ?=
# Processes that share the tests; a run of its own choice (ARGS) is one process.
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-compile --prefer-binary
SHARED = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The package with what demo needs, and on top of it, with a stamp for each, the extras that other targets name.
RUN := data store plots
STAMP := .venv/.enma_fast_
# Tests start hundreds of processes, which would compile their modules each time where the environment keeps no bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test test-full lint check docs libenma wheel embed gpu gpu-wheels clean extension packages

install: $(STAMP)triton,test

# The extension needs no Torch to be compiled, so packages arrive meanwhile. Bytecode of all files would take 30 s.
$(STAMP)run: pyproject.toml setup.py $(shell find csrc -type f 2>/dev/null)
	@$(PYTHON) -c 'import sys; sys.exit("enma-fast needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "1/2 making .venv with the build tools"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) "setuptools>=77" wheel "cmake>=3.20" ninja "pybind11>=3,<4"
	@echo "2/2 compiling the extension (about a minute of a core), installing Torch and packages for $(RUN)"
	@$(MAKE) --no-print-directory --jobs=2 extension packages
	@touch $@

extension: ; @$(PIP) --no-build-isolation --no-deps --editable .
packages: ; @$(BIN)/python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print("$(TORCH)", *p["dependencies"], *sum((p["optional-dependencies"][e] for e in sys.argv[1:]), []), sep="\n")' $(RUN) | $(PIP) -r /dev/stdin

# The package is there, so pip adds what its extras name; one at a time, for .ci/run makes two targets at once.
$(STAMP)%: $(STAMP)run
	@echo "installing packages for $*"
	@flock .venv $(PIP) "enma-fast[$*]"
	@touch $@

demo: $(STAMP)run ; @$(BIN)/enma-fast demo $(ARGS)

test: install
	@$(BIN)/python -m pytest $(or $(ARGS),$(SHARED) -m "not slow and not kill")

test-full: install $(STAMP)cf,docs
	@$(BIN)/python -m pytest $(SHARED)

lint: $(STAMP)dev
	@$(BIN)/ruff format --check --quiet . || { echo "fix with: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet . && $(BIN)/mypy && $(BIN)/codespell && $(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu*')

check: lint install  # without test_build.py and test_extension.py, which build the distributions
	@$(BIN)/python -m pytest --quiet -m "not slow" tests/packaging --ignore=tests/packaging/test_build.py --ignore=tests/packaging/test_extension.py

docs: $(STAMP)docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo "out/site/index.html"
libenma: ; @cmake -S csrc -B out/libenma -DCMAKE_INSTALL_PREFIX=$(abspath $(or $(PREFIX),out/prefix)) && cmake --build out/libenma --parallel && cmake --install out/libenma
wheel: $(STAMP)wheel ; @sh packaging/wheel.sh $(abspath $(BIN))
embed: install ; @sh tests/runtime/embed.sh $(abspath $(BIN))/python $(ARGS)
gpu: $(if $(DRY),install)
	@$(if $(DRY),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(if $(DRY),--dry) $(if $(DEVICE),--device $(DEVICE)) $(if $(ONLY),--only $(ONLY))

gpu-wheels:
	@$(PYTHON) -m pip download --quiet --dest out/gpu-wheels --only-binary=:all: --python-version $(or $(GPU_PYTHON),3.12) \
		--platform manylinux2014_x86_64 $(or $(GPU_WHEELS),pydantic pytest rich safetensors typer ninja pybind11 "setuptools>=77" wheel)

clean:
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .benchmarks .hypothesis enma_fast/embed $(STAMP)* enma_fast/_C*.so
	@find enma_fast kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
