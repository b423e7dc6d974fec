# Each target makes what it needs: a virtual environment in .venv, nothing outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-long test-all test-kernels test-rounding test-versions fuzz sweep figures manifolds lint code-figures format docs clean

run: $(VENV)/.installed  ## train the three heads on 100 classes of real images
	$(BIN)/ddnkit run recipes/digit_pairs.yaml

test: $(VENV)/.installed-test  ## every behaviour, in at most six minutes on two idle cores
	$(PYTEST) -m "not long" $(COVER)

test-long: $(VENV)/.installed-test  ## what takes longer: more seeds, more draws, larger sizes
	$(PYTEST) -m long $(COVER) $(LONG)

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
LONG ?=
KERNELS ?=
ROUNDING ?= 1 2 3 4 5
VERSIONS ?= oldest newest
CASES ?= 10500
NODES ?= 2000
SEEDS ?= 3

fuzz: $(VENV)/.installed-test  ## every backward form at more seeds, more than ten thousand drawn gradients, 2,000 drawn nodes; what hypothesis draws, drawn anew
	DDNKIT_DRAW=random DDNKIT_SWEEP_SEEDS=$(SEEDS) DDNKIT_FUZZ_CASES=$(CASES) DDNKIT_FUZZ_NODES=$(NODES) $(BIN)/python -m pytest -s -q tests/testing/test_sweep.py tests/fuzz
	DDNKIT_DRAW=random $(PYTEST) $$(grep -rl --include='test_*.py' '^from hypothesis' tests)

sweep: $(VENV)/.installed  ## docs/sweep.md, docs/manifold_sweep.md: every known problem through every backward form
	$(BIN)/python -m ddnkit.testing.sweeping --seeds $(SEEDS) --markdown docs/sweep.md
	$(BIN)/python tools/manifold_table.py

figures: $(VENV)/.installed  ## docs/active_set.png, of docs/inequalities.md
	$(BIN)/python tools/inequality_figures.py

manifolds: $(VENV)/.installed  ## docs/manifolds/, a page for each manifold
	$(BIN)/python tools/manifold_pages.py

lint: $(VENV)/.installed-test  ## style, types, and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/import_graph.py

BEFORE ?= HEAD
code-figures: $(VENV)/.installed  ## how large and how tangled the code is, at the revision BEFORE and in the working tree
	$(BIN)/python tools/code_figures.py $(BEFORE) $(AFTER)

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## the site, strict
	$(BIN)/mkdocs build --strict

# What is installed in .venv, a stamp for each set of extras. pip shows what it does on a terminal and
# is quiet elsewhere, but for a line before and a line after.
STAMPS := $(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-docs
$(VENV)/.installed: EXTRAS = vision
$(VENV)/.installed-test: EXTRAS = test,vision,tensorboard
$(VENV)/.installed-docs: EXTRAS = docs

# PyTorch's build: by default what pip chooses; cpu, cu126 and so on as PyTorch names them.
TORCH ?=
PIP_ARGS ?=
PIP = $(BIN)/python -m pip install --disable-pip-version-check $$quiet $(PIP_ARGS)
GOAL = $(or $(firstword $(MAKECMDGOALS)),run)

# Without a Python in .venv the stamps mean nothing.
ifneq ($(shell test -x $(BIN)/python && echo there),there)
.PHONY: $(STAMPS)
endif

# A .venv is marked as unfinished, with the make that is at it, until all is in it. One that was cut
# off on the way, or whose Python the system no longer has, is made anew.
.NOTPARALLEL:
$(STAMPS): pyproject.toml
	@by=$$(cat $(VENV)/.unfinished 2>/dev/null); if [ -n "$$by" ] && [ "$$by" != $$PPID ] && kill -0 $$by 2>/dev/null; then \
	  echo "process $$by is installing into $(VENV): wait for it; if it is no make of yours, remove $(VENV)" >&2; exit 1; \
	fi
	@if [ -e $(VENV)/.unfinished ] || { [ -e $(VENV)/pyvenv.cfg ] && ! [ -x $(BIN)/python ]; }; then \
	  echo "$(VENV) is not whole: it is made anew."; rm -rf $(BIN) $(VENV); \
	fi
	@if ! [ -x $(BIN)/python ]; then \
	  case "$$($(PYTHON) -c 'import sys; print(sys.version_info >= (3, 10))' 2>/dev/null)" in \
	    True) ;; \
	    False) echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), and ddnkit needs Python 3.10 or newer; name one: make $(GOAL) PYTHON=python3.12" >&2; exit 1 ;; \
	    *) echo "$(PYTHON) is no Python that runs here; ddnkit needs Python 3.10 or newer; name one: make $(GOAL) PYTHON=python3.12" >&2; exit 1 ;; \
	  esac; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) lacks the module venv or ensurepip, which makes $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	  mkdir -p $(VENV) && echo $$PPID >$(VENV)/.unfinished && $(PYTHON) -m venv $(VENV); \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "$(VENV) has no pip: remove that folder, and make will make it anew" >&2; exit 1; }
	@if $(BIN)/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is not None)'; then \
	  echo "Installing ddnkit and PyTorch into $(VENV), once; this takes some minutes."; \
	  if [ -z "$(TORCH)" ] && [ "$$(uname -sm)" = 'Linux x86_64' ]; then \
	    echo "PyTorch for Linux brings NVIDIA's libraries: about 6 GB on the disk in all."; \
	    echo "Without a GPU a quarter of that is enough: Ctrl-C, then make $(GOAL) TORCH=cpu"; \
	  fi; \
	else \
	  echo "Installing into $(VENV) what pyproject.toml asks for: $(EXTRAS)."; \
	fi
	@quiet=; [ -t 1 ] || quiet=--quiet; { \
	  $(if $(TORCH),$(PIP) --index-url https://download.pytorch.org/whl/$(TORCH) torch torchvision &&) \
	  $(PIP) -e '.[$(EXTRAS)]'; } || { \
	  echo "pip could not install ddnkit, and says why above; make $(GOAL) tries again" >&2; exit 1; }
	@rm -f $(VENV)/.unfinished
	@touch $@ $(if $(filter %-test,$@),$(VENV)/.installed)
	@echo "Installed."

clean:
	rm -rf $(VENV) outputs site
