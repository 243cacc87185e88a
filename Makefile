# `make demo` and `make test` need Python >= 3.11 and make, nothing else: they build .venv first.
#   make demo    train on handwritten digits, sample, score; 3 to 6 minutes on one core
#   make test    the test suite
#   make check   formatting, lint, types and tests: all that a commit needs
#   make slow    the tests that take longer
#   make soak    those that take longest: a kill at every write, thousands of compositions
#   make docs    the site, in docs/_build/html; VERSION=0.2.0 names its version
# PYTHON=python3.12 takes another Python; pip's own settings (PIP_INDEX_URL, ...) apply.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: help demo test check slow soak docs clean

help:
	@sed -n '2,7s/^# *//p' Makefile

demo: $(VENV)/demo.stamp
	$(BIN)/diffkit demo

test: $(VENV)/dev.stamp
	$(PYTEST)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST)

slow: $(VENV)/dev.stamp
	$(PYTEST) -m "slow and not soak"

soak: $(VENV)/dev.stamp
	$(PYTEST) -m soak

# Figures are cached in docs/_build/cache; warnings are errors, and so are dead links.
docs: $(VENV)/docs.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -j 2 -b html -d docs/_build/doctrees -D release=$(VERSION) docs docs/_build/html

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "diffkit needs Python >= 3.11, and $(PYTHON) is %d.%d; run: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

# A stamp is as new as the set-up it stands for; the development set-up includes the demo's.
$(VENV)/demo.stamp: pyproject.toml constraints-cpu.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints-cpu.txt -e ".[demo]"
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints-cpu.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints-cpu.txt -e ".[dev]"
	@touch $(VENV)/demo.stamp $@

$(VENV)/docs.stamp: pyproject.toml constraints-cpu.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints-cpu.txt -e ".[docs]"
	@touch $@
