# `make demo` and `make test` set up everything they need, once, in .venv (Python 3.11 or newer: PYTHON=python3.12).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= auto
# TESTS="tests/test_groups.py -k kl" runs only these.
TESTS ?=
PYTEST := pytest -n $(WORKERS) --dist worksteal --durations=25 $(TESTS)
# What needs no browser, PyTorch, process, notebook or claim that runs.
FAST := -m "not slow and not torch"

# A lane sets these; otherwise all tests run with the newest versions that this Python can have.
EXTRAS ?= test
PIP_OPTIONS ?=

.PHONY: demo check test fast browser notebooks test-lowest test-between test-newest coverage lint audit bench \
  soak clean

demo: $(VENV)/core.stamp  ## the headline comparison: table, figures/, results/
	$(BIN)/bandit-pft demo

check: lint fast  ## style, types, laws and the fast tests: some minutes

fast: $(VENV)/check.stamp
	$(BIN)/python -m $(PYTEST) $(FAST)

test: $(VENV)/$(EXTRAS).stamp browser  ## run every test
	$(BIN)/python -m $(PYTEST)

# Tests drive a real browser: the system's, or else one that Playwright downloads.
browser: $(VENV)/$(EXTRAS).stamp
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq chromium; } || \
	  $(BIN)/playwright install --with-deps chromium

notebooks: $(VENV)/test.stamp  ## run every notebook at full size, from top to bottom
	$(BIN)/jupyter nbconvert --execute --to notebook --output-dir "$$(mktemp -d)" notebooks/*.ipynb

# Lanes compile as for users (see tests/conftest.py), have folders of their own, and fail where their Python is missing;
# PYTHON=... says where it is.
test-lowest test-between test-newest: export XLA_FLAGS =
test-lowest test-between test-newest: export JAX_DISABLE_MOST_OPTIMIZATIONS = 0
test-lowest: PYTHON = python3.11
test-lowest:  ## the fast tests with the oldest Python and libraries that pyproject.toml allows
	$(call need_python,3.11)
	$(PYTHON) -c '$(LOWER_BOUNDS)' > .venv-lowest.txt
	$(MAKE) fast VENV=.venv-lowest PYTHON=$(PYTHON) PIP_OPTIONS="--constraint .venv-lowest.txt"

test-between: PYTHON = python3.12
test-between:  ## the fast tests with a JAX between
	$(call need_python,3.12)
	echo 'jax==0.11.*' > .venv-between.txt
	$(MAKE) fast VENV=.venv-between PYTHON=$(PYTHON) PIP_OPTIONS="--constraint .venv-between.txt"

test-newest: PYTHON = python3.13
test-newest:  ## every test with the newest Python and libraries; no PyTorch, whose builds for it take gigabytes
	$(call need_python,3.13)
	rm -f .venv-newest/*.stamp
	$(MAKE) test VENV=.venv-newest PYTHON=$(PYTHON) PIP_OPTIONS="--upgrade --upgrade-strategy eager" EXTRAS=test-core \
	  TESTS='-m "not torch" $(TESTS)'

coverage: $(VENV)/test.stamp browser  ## run every test, then name the lines and branches that none of them reached
	$(BIN)/python -m $(PYTEST) --cov --cov-report=term-missing:skip-covered

lint: $(VENV)/check.stamp  ## style, types, and README's table of objectives
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --level error --pythonpath $(BIN)/python
	$(BIN)/bandit-pft readme --check

# Builds such as 2.13.0+cpu are known to the service by their version alone; what it does not know is an error.
audit: $(VENV)/test.stamp .venv-audit/bin/pip-audit  ## known vulnerabilities of everything that is installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > .venv-audit/installed.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r .venv-audit/installed.txt

bench: $(VENV)/test.stamp browser  ## measure the engine and the language-model trainer against others, and how long the explorer's reader waits
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.explorer
	$(BIN)/python -m benchmarks.hf

soak: $(VENV)/test.stamp  ## kills, fuzzing, nightly properties, lanes, benchmark: some hours, one table
	$(BIN)/python tests/soak.py

clean:
	rm -rf .venv .venv-*

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip

$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/check.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[check]'
	touch $@ $(VENV)/core.stamp

$(VENV)/test-core.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[test-core]'
	touch $@ $(VENV)/core.stamp $(VENV)/check.stamp

# PyTorch goes first and alone: what depends on it would otherwise choose its own, much larger build.
$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install '$(shell sed -n 's/.*"\(torch==.*\)".*/\1/p' pyproject.toml)'
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[test]'
	touch $@ $(VENV)/core.stamp $(VENV)/check.stamp $(VENV)/test-core.stamp

.venv-audit/bin/pip-audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install pip-audit

define LOWER_BOUNDS
import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*(text.replace(">=", "==") for text in project["dependencies"]), sep="\n")
endef

define need_python
@$(PYTHON) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' || \
  { echo "$@ needs Python $(1), which $(PYTHON) is not: install it, or name it with PYTHON=..." >&2; exit 1; }
endef

# pyenv hides every interpreter but the selected ones: show all, the selected ones first.
ifneq ($(shell which pyenv 2>/dev/null),)
export PYENV_VERSION := $(shell pyenv version-name):$(shell pyenv versions --bare --skip-aliases | paste -sd:)
endif
