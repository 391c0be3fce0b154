# `make demo` and `make test` set up everything they need, once, in .venv (Python 3.11 to 3.13: PYTHON=python3.12).
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= auto

.PHONY: demo test lint bench clean

demo: .venv/core.stamp  ## the headline comparison: table, figures/, results/
	$(BIN)/bandit-pft demo

test: .venv/test.stamp  ## run every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/test.stamp  ## style, types, and README's table of objectives
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/bandit-pft readme --check

bench: .venv/test.stamp  ## measure the engine against other implementations
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip

.venv/core.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -e .
	touch $@

# PyTorch goes first and alone: what depends on it would otherwise choose its own, much larger build.
.venv/test.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install -e '.[test]'
	touch $@ .venv/core.stamp
