# Everything a newcomer or CI runs. Needs make, Python >= 3.11 with venv, and PyPI (or a mirror of it); no root, but
# for `make integration`.
#
#   make demo            a picture in demo/demo.png
#   make test            the default test suite
#   make help            the rest
#
# Variables: PYTHON=/path/to/python (used when the environment is made), VENV=.venv,
# JOBS=3 (test processes: on two cores, one mostly waits for workers), PYTEST_ARGS="-k hann", BENCH="floor" (which benchmarks).

VENV ?= .venv
JOBS ?= 3
PYTEST_ARGS ?=
BENCH ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One BLAS/OpenMP thread per process: the tests start their own worker processes.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help env demo test lint format integration docs linkcheck bench constraints clean distclean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

env: $(STAMP)  ## the virtual environment, with every extra, at the pinned versions

# An interpreter counts only if it runs and is new enough (a version manager's shim may exist and not run).
$(BIN)/python:
	@py=""; for c in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	  if "$$c" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then py="$$c"; break; fi; \
	done; \
	if [ -z "$$py" ]; then echo "no Python >= 3.11 with venv and ensurepip found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "making $(VENV) with $$py ($$("$$py" --version))"; "$$py" -m venv $(VENV)

# Compiled at once: tests start hundreds of processes, and where no bytecode may be written each would compile anew.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -b constraints.txt -e '.[dev,all]'
	$(BIN)/python -m compileall -q geopatch_dask
	@touch $@

demo: $(STAMP)  ## a scene, its reconstruction on a local cluster, and demo/demo.png
	$(BIN)/geopatch demo

test: $(STAMP)  ## the default suite (no slow, no integration tests)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# Ceph, Slurm and network namespaces need root and apt; without them this fails, and "pytest -m slow" is what can be run.
integration: $(STAMP)  ## slow and integration tests, as root: starts Ceph and Slurm, kills processes
	bash tests/services/up.sh
	bash tests/services/deploy.sh
	bash tests/services/run.sh $(BIN)/python -m pytest --timeout 1500 $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff, mypy, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation in docs/_build/html; warnings are errors
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

linkcheck: $(STAMP)  ## whether links of the documentation to other sites answer; needs the network
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

bench: $(STAMP)  ## the benchmarks (see benchmarks/README.md)
	$(BIN)/python benchmarks/run.py $(BENCH)

# One resolution for every supported Python; the lines that differ carry environment markers.
constraints: $(STAMP)  ## resolve constraints.txt anew
	printf 'uv\nhatchling\n' | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --extra dev --extra all --no-header --no-annotate --no-emit-index-url -o constraints.txt pyproject.toml -

clean:  ## what builds, tests and the demo left behind
	rm -rf build dist demo docs/_build benchmarks/results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dask-scratch-space
	find . -name .git -prune -o -name '.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## and the virtual environments
	rm -rf $(VENV) .venv312
