# `make demo` and `make test` need Python 3.11 or newer and make; they set up everything else themselves, in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export OMP_NUM_THREADS := 1

.PHONY: setup demo test test-all lint types typecoverage wheel wheel-file docs docs-links recipes notebooks bench bench-accuracy clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pyrovi needs Python 3.11 or newer; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/pyrovi fit gamma_poisson

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) -q

test-all: setup
	$(BIN)/python -m pytest -n $(WORKERS) -q -m 'slow or not slow'

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

# How much of the public interface has types that a user's checker knows.
typecoverage: $(VENV)/.types
	$(BIN)/python tests/check_types.py

$(VENV)/.types: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[types]'
	@touch $@

wheel: setup
	$(BIN)/python tests/check_wheel.py

wheel-file: setup
	$(BIN)/python -m build --no-isolation --outdir dist

# The site, into docs/_build/html: warnings are errors. It is read from there without a server and without a network.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -E -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Links out of the site too; this needs a network.
docs-links: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b linkcheck docs docs/_build/links

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

recipes: setup
	$(BIN)/python benchmarks/recipes.py

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/bench.py

bench-accuracy: $(VENV)/.peers
	$(BIN)/python benchmarks/no_settings.py

notebooks: $(VENV)/.notebooks
	$(BIN)/python notebooks/execute.py

$(VENV)/.notebooks: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebooks]'
	@touch $@

$(VENV)/.peers: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
