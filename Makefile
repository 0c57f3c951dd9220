# make quickstart | make test: each works alone, from nothing, and sets up .venv from the lock files first.
SHELL := /bin/bash
# The first Python 3.11-3.13 found; another one: make PYTHON=/path/to/python3.12 ...
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 && echo $$p && break; done)
# torch is only the tests' reference, and its build differs by platform, so it is not in the lock files. The small CPU build:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
# Arguments for the study, for example: make quickstart ARGS="--samples_dir=/media/samples"
ARGS ?=
WORKERS ?= 2
# Whole files go to a worker, in the order of tests/conftest.py: the slowest first.
SHARED = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
export TRANSFORMERS_NO_ADVISORY_WARNINGS := 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-times test-scann-core bench bench-retrieval docs docs-serve lint format lock clean
.DELETE_ON_ERROR:

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

quickstart: .venv/.openbook  ## environment + the main job: train, build a memory, ask, edit, report (runs/quickstart)
	$(BIN)/python -m launch.study --config=configs/studies/quickstart.py $(ARGS)

test: .venv/.test  ## environment + all tests on 8 forced CPU devices
	$(BIN)/python -m pytest $(SHARED) -m "not slow"

test-slow: .venv/.test  ## the larger sweeps too
	$(BIN)/python -m pytest $(SHARED)

test-times: .venv/.test  ## all tests, then their time by folder and the 30 slowest files
	$(BIN)/python -m tests.times $(SHARED) -m "not slow"

test-scann-core: .venv/.test  ## the memory's tests with scann-core in scann's place (docs/memory.md)
	$(PIP) install --no-deps --upgrade --target .venv/scann-core scann-core==0.2.1
	PYTHONPATH=.venv/scann-core $(BIN)/python -m pytest $(SHARED) -m "not slow" tests/retrieval

bench: .venv/.test  ## speed beside transformers and others, rows that are not measured yet, into docs/performance.md (hours)
	$(BIN)/python -m tests.benchmarks.run --write-docs

bench-retrieval: .venv/.test  ## indexes beside faiss, hnswlib and usearch, and a memory of 200,000 passages (an hour and a half the first time)
	$(PIP) install --editable ".[bench]"
	$(BIN)/python -m tests.benchmarks.retrieval

docs: .venv/.test  ## the pages of docs/ as a searchable site: build/site/index.html
	$(BIN)/mkdocs build --strict

docs-serve: .venv/.test  ## the same at http://127.0.0.1:8000, made again as the pages change
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

lint: .venv/.test  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check lm retrieval launch configs

format: .venv/.test  ## rewrite the sources in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch is resolved for no platform, so that it and what only it needs stay out of the lock files.
NO_TORCH = --overrides <(echo "torch; sys_platform == 'none'") $(addprefix --no-emit-package ,torch sympy mpmath networkx)
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate \
  --no-header --group build $(LOCKFLAGS) pyproject.toml
lock: .venv/.python  ## resolve pyproject.toml into the lock files again (LOCKFLAGS=--upgrade for newer versions)
	$(PIP) install "uv>=0.8"
	$(LOCK) $(NO_TORCH) --extra test --output-file requirements-test.lock
	$(LOCK) --constraints requirements-test.lock --output-file requirements.lock

clean:  ## remove the environment and caches; runs/ and downloaded samples stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an installation that was cut off is done again.
.venv/.python:
	@if [ -z "$(PYTHON)" ]; then echo "Openbook needs Python 3.11, 3.12 or 3.13 and found none. Debian, Ubuntu: apt install python3 python3-venv;" \
	  "elsewhere: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; choose one: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make environments. Debian, Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.runtime: requirements.lock | .venv/.python
	@echo "Installing into .venv from $< (about 1 GB, once) ..."
	$(PIP) install --require-hashes --no-deps -r $<
	@touch $@

.venv/.openbook: pyproject.toml .venv/.runtime
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.torch: | .venv/.python
	@echo "Installing $(TORCH) for the tests ..."
	$(PIP) install $(TORCH)
	@touch $@

.venv/.test: requirements-test.lock .venv/.torch .venv/.openbook
	$(PIP) install --require-hashes --no-deps -r $<
	@touch $@
