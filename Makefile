# make test and make demo need nothing but Python 3.11 or newer: the environment is made on the first call.
#
#   make setup   the environment in .venv        make lint        ruff and pyright
#   make test    all tests                       make docs-check  links, named tests and commands in the docs
#   make demo    examples/nibr2 into out/demo    make bench       benchmarks into out/bench
#   make clean   remove whatever make has made, .venv included
#
# PYTHON       interpreter that makes the environment             (python3)
# JOBS         test processes                                     (2)
# TORCH_INDEX  package index for torch alone, to choose a build:  make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
JOBS ?= 2
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PINNED := pyproject.toml constraints.txt

.DELETE_ON_ERROR:
.PHONY: help setup test demo bench lint docs-check clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: $(VENV)/ready

# Two stamps: a change of hamnet's own requirements does not install torch again.
$(VENV)/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); expected Python 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	@echo "setting up $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/ready: $(VENV)/torch $(PINNED)
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/lint: $(VENV)/ready
	$(PIP) --editable '.[test,lint]'
	@touch $@

# One thread for each process: the matrices of the tests are small, and threads of several processes get in each other's way.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

demo: $(VENV)/ready
	$(BIN)/python examples/nibr2/demo.py --output out/demo

bench: $(VENV)/ready
	@mkdir -p out/bench
	@for script in benchmarks/*.py; do \
		echo "== $$script"; $(BIN)/python "$$script" --json "out/bench/$$(basename "$$script" .py).json" || exit 1; \
	done

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs-check: $(VENV)/ready
	$(BIN)/python -m pytest --quiet tests/test_conventions.py tests/test_docs.py

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
