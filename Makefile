# Each target makes what it needs: a virtual environment in .venv, nothing outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-long test-all test-kernels test-rounding test-versions fuzz sweep lint format docs clean

run: $(VENV)/.installed  ## train the three heads on 100 classes of real images
	$(BIN)/ddnkit run recipes/digit_pairs.yaml

test: $(VENV)/.installed-test  ## every behaviour, in at most six minutes on two idle cores
	$(PYTEST) -m "not long" $(COVER)

test-long: $(VENV)/.installed-test  ## what takes longer: more seeds, more draws, larger sizes
	$(PYTEST) -m long $(COVER)

test-all: $(VENV)/.installed-test  ## both, with the lines that no test reaches
	$(BIN)/python -m coverage erase
	$(MAKE) test COVER="--cov --cov-report= --cov-fail-under=0"
	$(MAKE) test-long COVER="--cov --cov-append --cov-report=term"

test-kernels: $(VENV)/.installed-test  ## the numeric tests on every code path that this processor can take
	$(BIN)/python tests/kernels.py $(KERNELS)

test-rounding: $(VENV)/.installed-test  ## the numeric tests as other processors may compute them
	$(BIN)/python tests/kernels.py --rounding $(ROUNDING) $(KERNELS)

test-versions: $(VENV)/.installed-test  ## the tests with the oldest and the newest packages that are supported
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python tests/versions.py $(VERSIONS)

# As many as there are cores, each of one thread: tests/conftest.py.
WORKERS ?= auto
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
COVER ?=
KERNELS ?=
ROUNDING ?= 1 2 3 4 5
VERSIONS ?= oldest newest
CASES ?= 10500
SEEDS ?= 3

fuzz: $(VENV)/.installed-test  ## every backward form at more seeds, and more than ten thousand drawn gradients
	DDNKIT_SWEEP_SEEDS=$(SEEDS) DDNKIT_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -s -q tests/core/test_sweep.py tests/fuzz

sweep: $(VENV)/.installed  ## docs/sweep.md: every known problem through every backward form
	$(BIN)/python -m ddnkit.testing.sweeping --seeds $(SEEDS) --markdown docs/sweep.md

lint: $(VENV)/.installed-test  ## style, types, and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## the site, strict
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ddnkit needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[vision]'
	@touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,vision,tensorboard]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) outputs site
