# Everything daskdl needs on a Linux machine with Python 3.11 or newer and make. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ACCELERATOR := $(shell command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# The tested versions are those of a CPU environment; RAPIDS pins its own on a GPU machine.
CONSTRAINTS := $(if $(filter cpu,$(ACCELERATOR)),-c constraints.txt)
TORCH := $(if $(filter cpu,$(ACCELERATOR)),torch==2.13.0,torch)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
CHAOS_RUNS ?= 300
# Tests wait more than they compute: for processes to start, to die, to be missed. Files are shared out, not tests.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
CODE := daskdl tests benchmarks docs notebooks
SITE := docs/_build
SPHINX := $(BIN)/python -m sphinx -q -W --keep-going -d $(SITE)/doctrees

.PHONY: help demo lab test lint types unit notebooks docs docs-links browser-deps peers bench chaos screenshots format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-demo  ## train XGBoost and PyTorch on real flights and print how they did
	$(BIN)/daskdl demo

lab: $(VENV)/.stamp-demo  ## JupyterLab with the dashboard's panes beside the quickstart notebook
	$(BIN)/daskdl lab

test: lint types unit notebooks  ## everything that guards the project

lint: $(VENV)/.stamp-dev  ## style of code and notebooks
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify $(NOTEBOOKS))

types: $(VENV)/.stamp-dev  ## static types
	$(BIN)/mypy

unit: $(VENV)/.stamp-dev browser-deps  ## unit, cluster and browser tests
	$(PYTEST) tests

notebooks: $(VENV)/.stamp-dev  ## run every notebook
	$(if $(NOTEBOOKS),$(PYTEST) --nbmake --nbmake-timeout=600 --timeout=900 $(NOTEBOOKS))

docs: $(VENV)/.stamp-docs  ## the documentation in docs/_build/html; warnings and dead local links are errors
	$(SPHINX) -b html docs $(SITE)/html
	$(BIN)/python docs/links.py $(SITE)/html

docs-links: $(VENV)/.stamp-docs  ## ask other hosts whether the links to them are alive
	$(SPHINX) -b linkcheck docs $(SITE)/linkcheck

bench: $(VENV)/.stamp-dev  ## run the benchmarks
	for script in $(filter-out benchmarks/harness.py benchmarks/loading.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

chaos: $(VENV)/.stamp-dev  ## disturb trainings at random, CHAOS_RUNS times, and write docs/chaos.md
	$(BIN)/python -m tests.chaos.run --runs $(CHAOS_RUNS) --table docs/chaos.md

screenshots: $(VENV)/.stamp-dev browser-deps  ## take the pictures of README and documentation
	$(BIN)/python docs/screenshot.py

format: $(VENV)/.stamp-dev  ## format code and strip notebooks
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(if $(NOTEBOOKS),$(BIN)/nbstripout $(NOTEBOOKS))

browser-deps:  ## a Chromium for the browser test
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=; elif sudo -n true 2>/dev/null; then root=sudo; else root=none; fi; \
	if [ "$$root" != none ] && command -v apt-get >/dev/null; then \
	  $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium; \
	else echo "No Chromium here and no right to install one: the browser test needs 'apt-get install chromium'."; fi

peers: $(PEERS)/.stamp  ## the environment of the systems the benchmarks compare with

# Loaders that pin old versions of what the other peers need: without their pins, and no error where that fails.
WILLING := petastorm mosaicml-streaming torchvision==0.28.0
THEIRS := six future diskcache pyzmq dill catalogue xxhash zstd Brotli python-snappy tqdm transformers pillow psutil

$(PEERS)/.stamp:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 "ray[train,tune,data]" scikit-learn xgboost-cpu pyarrow pandas
	for peer in $(THEIRS) "--no-deps $(WILLING)"; do \
	  timeout 300 $(PEERS)/bin/python -m pip install --quiet torch==2.13.0 $$peer || echo "not installed: $$peer"; done
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "daskdl needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Say which: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: a range would let pip choose another build
$(VENV)/.stamp-torch: constraints.txt | $(BIN)/python
	$(PIP) $(CONSTRAINTS) $(TORCH)
	touch $@

$(VENV)/.stamp-demo: pyproject.toml constraints.txt $(VENV)/.stamp-torch
	$(PIP) $(CONSTRAINTS) $(TORCH) -e ".[$(ACCELERATOR),lab,demo]"
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-demo
	$(PIP) $(CONSTRAINTS) $(TORCH) -e ".[$(ACCELERATOR),lab,demo,dev]"
	touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-demo
	$(PIP) $(CONSTRAINTS) $(TORCH) -e ".[$(ACCELERATOR),lab,demo,docs]"
	touch $@

clean:  ## remove environments, caches and data
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache daskdl-data daskdl-runs $(SITE) docs/generated docs/notebooks
