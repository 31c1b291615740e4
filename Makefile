# Two commands: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Kills, full disks and other processes, about 40 minutes on two cores.
.PHONY: demo test test-slow-faults check lint types contracts clean

demo: $(VENV)/.installed
	$(BIN)/erg demo

test: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow"

test-slow-faults: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults -m slow

check: lint types contracts

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developing
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(VENV)/.developing
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.developing: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
