# make demo and make test do all the set-up on a machine that has Python (3.11 to 3.14) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
PYTEST_ARGS ?= -n 2
NUMERIC := tests/ops tests/losses tests/metrics tests/optim tests/models tests/methods

.PHONY: help setup demo test test-slow test-numeric lint format faults fuzz audit nightly bench clean
.DEFAULT_GOAL := help

help:           ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) || { echo "installing again from an empty $(VENV)"; $(PYTHON) -m venv --clear $(VENV) && $(INSTALL); }
	@touch $@

setup: $(READY)  ## create .venv and install (repeatable: constraints.txt)

demo: $(READY)   ## a small sweep on synthetic rooms, a table, a page with pictures
	$(BIN)/hardpix demo

test: $(READY)   ## the test suite: no network, GPU or data set needed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

test-slow: $(READY) ## the tests that train whole chains of runs, kill processes and wait for others
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

test-numeric: $(READY) ## the numeric tests with the rounding of other processors: no test may notice
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest $(PYTEST_ARGS) -q -m "not slow" $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest $(PYTEST_ARGS) -q -m "not slow" -p tests.permuted $(NUMERIC)

lint: $(READY)   ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff reformat
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: $(READY) ## interrupt runs at every step and write, and at 500 random ones: the result must be the same
	$(BIN)/python -m tests.faults

fuzz: $(READY)   ## broken, odd and hostile files for every reader: each ends in a value or one sentence
	$(BIN)/python -m tests.fuzz

audit: $(READY)  ## known vulnerabilities of the pinned versions (needs the network), after the floors (which does not)
	$(BIN)/python scripts/audit.py

nightly:         ## audit, fuzz and faults, all three whatever one of them says: for a scheduler
	$(MAKE) --keep-going audit fuzz faults

bench: $(READY)  ## speed, side by side in one run, as ratios (brings OpenCV to measure against)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python scripts/bench.py

clean:           ## remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
